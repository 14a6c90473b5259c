//! The Raft groups of this node. Each is opened once in the life of a node, since what the log holds beyond
//! the tables is read when the node starts. It stays open while the process that owns its replica restarts.

use super::{Group, GroupArgs, OpenError, OwnClock, Replica, Timing};
use bytes::Bytes;
use links::Peers;
use parking_lot::Mutex;
use proto::ShardId;
use proto::ids::SHARDS;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use storage::{ShardRecords, Storage};

/// What the groups of a node have in common.
pub struct GroupsArgs {
    /// This node's storage.
    pub storage: Storage,
    /// What its log held beyond the tables.
    pub recovered: Vec<ShardRecords>,
    /// This node's links.
    pub peers: Peers,
    /// How patient the groups are.
    pub timing: Timing,
    /// Whether this node's clock lets it lead.
    pub clock: Arc<dyn OwnClock>,
    /// Whether a group without members begins with this node as its only voter.
    pub bootstrap: bool,
}

impl fmt::Debug for GroupsArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupsArgs").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

/// The Raft groups of this node. Cheap to clone.
#[derive(Clone)]
pub struct Groups(Arc<Shared>);

struct Shared {
    storage: Storage,
    peers: Peers,
    timing: Timing,
    clock: Arc<dyn OwnClock>,
    bootstrap: bool,
    /// Records of groups that were not opened yet.
    recovered: Mutex<BTreeMap<ShardId, Vec<(u64, Bytes)>>>,
    open: Vec<OnceLock<Group>>,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("open", &self.all().count()).finish_non_exhaustive()
    }
}

impl Groups {
    /// None is open yet.
    pub fn new(args: GroupsArgs) -> Self {
        let GroupsArgs { storage, recovered: found, peers, timing, clock, bootstrap } = args;
        let mut recovered: BTreeMap<_, _> =
            (0..=SHARDS).map(|group| (ShardId(group), Vec::new())).collect();
        recovered.extend(found.into_iter().map(|part| (part.shard, part.records)));
        let (recovered, open) =
            (Mutex::new(recovered), (0..=SHARDS).map(|_| OnceLock::new()).collect());
        Self(Arc::new(Shared { storage, peers, timing, clock, bootstrap, recovered, open }))
    }

    /// Opens a group, whose committed entries go to `replica`. A group that is open stays as it is, and its
    /// entries go to the replica with which it was opened.
    ///
    /// # Errors
    /// [`OpenError::Raft`] as of [`Group::open`]. [`OpenError::Twice`]: it could not be opened before.
    pub async fn open(
        &self,
        group: ShardId,
        replica: Arc<dyn Replica>,
    ) -> Result<Group, OpenError> {
        let shared = &self.0;
        if let Some(open) = self.get(group) {
            return Ok(open.clone());
        }
        let recovered = self.recovered().remove(&group).ok_or(OpenError::Twice(group))?;
        let opened = Group::open(GroupArgs {
            group,
            storage: shared.storage.clone(),
            peers: shared.peers.clone(),
            recovered,
            replica,
            timing: shared.timing,
            clock: shared.clock.clone(),
        })
        .await?;
        if let Some(place) = shared.open.get(usize::from(group.0)) {
            drop(place.set(opened.clone()));
        }
        if shared.bootstrap {
            opened.found().await?;
        }
        Ok(opened)
    }

    /// A group, if it is open; the last one is [`ShardId::META`].
    pub fn get(&self, group: ShardId) -> Option<&Group> {
        self.0.open.get(usize::from(group.0)).and_then(OnceLock::get)
    }

    /// All that are open.
    pub fn all(&self) -> impl Iterator<Item = (ShardId, &Group)> {
        let groups = (0..=SHARDS).map(ShardId).zip(&self.0.open);
        groups.filter_map(|(id, place)| place.get().map(|group| (id, group)))
    }

    fn recovered(&self) -> parking_lot::MutexGuard<'_, BTreeMap<ShardId, Vec<(u64, Bytes)>>> {
        self.0.recovered.lock()
    }
}
