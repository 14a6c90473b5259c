//! One Raft group. openraft runs the algorithm; natter supplies the log, the tables and the links.
//!
//! ```text
//!   propose --> openraft --> journal --> the node's log, flushed
//!                  |  \----> links   --> members on other nodes (Append, Vote, SnapshotPiece)
//!                  v
//!               machine --> Replica::apply
//! ```
//!
//! Every node opens every group. A group that was never initialized on this node has no members: it waits
//! until a leader adds this node. A sole voter becomes leader as soon as its group is open.
//!
//! # Invariants
//! 1. The replica sees an entry only after a majority of the voters has it on disk.
//! 2. Proposals enter the log in the order of the calls.
//! 3. A proposal that failed with anything but [`ProposeError::Unknown`] is never committed.
//! 4. A full disk does not end a group: another voter leads meanwhile, and if none can, the group waits.

mod convert;
mod error;
mod forget;
mod groups;
mod handed;
mod leadership;
mod log;
mod machine;
mod network;
mod proposals;
mod serve;
mod types;

#[cfg(test)]
mod tests;

pub use error::{OpenError, ProposeError, RaftError};
pub use groups::{Groups, GroupsArgs};
pub use handed::{Handed, Task, Unfinished};
pub use leadership::space::OwnClock;
pub use leadership::status::GroupStatus;
pub use proposals::describe_metrics;

use bytes::Bytes;
use leadership::confirm::Confirmations;
use leadership::election::Contact;
use leadership::space::WayOut;
use leadership::status::Checkpoints;
use links::Peers;
use log::journal::Journal;
use machine::Machine;
use network::link::{Links, Wire};
use network::snapshot::Receiving;
use openraft::{Config, SnapshotPolicy};
use parking_lot::RwLock;
use proposals::Proposals;
use proto::{NodeId, ShardId, cluster, stored};
use serve::InHand;
use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use storage::Storage;
use supervision::TaskGroup;
use tokio::sync::{Notify, watch};
use types::{Core, Id};

/// The replica calls it when it has finished the task.
pub type Done = Box<dyn FnOnce() + Send>;

/// Called with the reason why a proposal failed.
pub type Failed = Box<dyn FnOnce(ProposeError) + Send>;

/// The process that owns the state machine.
pub trait Replica: Send + Sync + 'static {
    /// Applies committed entries. They come in order and without a gap; the next ones come after the
    /// replica called `done`. If it drops `done` without a call, the group ends: see [`Handed`].
    fn apply(&self, entries: Vec<Committed>, done: Done);

    /// Loads the tables again: a snapshot replaced them, or they were emptied. No other call comes before
    /// `done`.
    fn reload(&self, done: Done);

    /// Stops writing: the group has ended on this node, and its storage is about to be wiped. The replica
    /// calls `done` when its last write has finished. [`Replica::reload`] comes next.
    fn rest(&self, done: Done);
}

/// A committed entry. Blank and membership entries have no content; the replica gets them too, since it
/// keeps track of its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// Its term and index.
    pub id: stored::LogId,
    /// The proposal; `None` for a blank or a membership entry.
    pub content: Option<Bytes>,
    /// The members from this entry on, if it changes them.
    pub membership: Option<stored::Membership>,
}

/// The timeouts of a group.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time between two heartbeats of a leader. Default 250 ms.
    pub heartbeat: Duration,
    /// The election timeout: a random time between these two. Default 1 s to 2 s, at least twice the
    /// heartbeat. A voter that has lost its link to the leader does not wait for it.
    pub election: (Duration, Duration),
    /// Timeout of one append request with entries. Default 1 s, at least the heartbeat.
    pub request: Duration,
    /// Timeout of one piece of a snapshot; the last one includes the replacement of all tables.
    /// Default 60 s.
    pub piece: Duration,
    /// Longest time for which a learner may make no progress. Default 30 s.
    pub learner: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election: (Duration::from_secs(1), Duration::from_secs(2)),
            request: Duration::from_secs(1),
            piece: Duration::from_mins(1),
            learner: Duration::from_secs(30),
        }
    }
}

/// The arguments of [`Group::open`].
pub struct GroupArgs {
    /// Its id.
    pub group: ShardId,
    /// This node's storage.
    pub storage: Storage,
    /// This node's links.
    pub peers: Peers,
    /// The group's records in the log beyond its tables, as [`Storage::open`] found them.
    pub recovered: Vec<(u64, Bytes)>,
    /// The state machine. Its state must be that of the tables.
    pub replica: Arc<dyn Replica>,
    /// The group's timeouts.
    pub timing: Timing,
    /// This node's clock: a node with a wrong clock should not lead.
    pub clock: Arc<dyn OwnClock>,
}

impl fmt::Debug for GroupArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupArgs").field("group", &self.group).finish_non_exhaustive()
    }
}

/// One Raft group on this node. Cheap to clone. Ends with [`Group::stop`], not by being dropped.
#[derive(Clone)]
pub struct Group(Arc<Door>);

struct Door {
    parts: Parts,
    /// [`Group::forget`] replaces it.
    inner: RwLock<Arc<Inner>>,
    /// The lock of [`Group::forget`].
    forgetting: tokio::sync::Mutex<()>,
}

/// The arguments that a group keeps, to be opened again after [`Group::forget`].
#[derive(Clone)]
struct Parts {
    group: ShardId,
    storage: Storage,
    peers: Peers,
    replica: Arc<dyn Replica>,
    timing: Timing,
    clock: Arc<dyn OwnClock>,
    status: Arc<watch::Sender<GroupStatus>>,
}

pub(crate) struct Inner {
    group: ShardId,
    me: u64,
    peers: Peers,
    storage: Storage,
    timing: Timing,
    clock: Arc<dyn OwnClock>,
    raft: Core,
    journal: Journal,
    wire: Arc<Wire>,
    contact: Contact,
    status: Arc<watch::Sender<GroupStatus>>,
    checkpoints: Checkpoints,
    proposals: Proposals,
    confirmations: Confirmations,
    in_hand: InHand,
    receiving: tokio::sync::Mutex<Receiving>,
    /// The lock of a leadership transfer.
    handover: tokio::sync::Mutex<()>,
    way_out: WayOut,
    /// The last entry of the log when this node forgot it, see [`forget`].
    floor: Option<Id>,
    /// The group answers no request and starts no election: it may be forgotten soon.
    resting: AtomicBool,
    /// [`Inner::stop`] was called.
    stopped: AtomicBool,
    /// The reason why the group could not be opened again.
    failure: OnceLock<String>,
    /// Locked for reading during an append, for writing during the installation of a snapshot.
    appends: tokio::sync::RwLock<()>,
    /// Wakes the task that sends heartbeats and starts elections.
    nudge: Notify,
    tasks: TaskGroup,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("group", &self.0.parts.group).finish_non_exhaustive()
    }
}

/// Polls a future once. The futures of openraft that only send it a message are ready at once.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn config(timing: &Timing) -> Config {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (least, most) = timing.election;
    let request = ms(timing.request.max(timing.heartbeat));
    let election_timeout_min = ms(least).max(request) + 1;
    Config {
        // openraft's own timers are off, see `election`. openraft uses this as the timeout of a request.
        heartbeat_interval: request,
        enable_heartbeat: false,
        enable_elect: false,
        election_timeout_min,
        election_timeout_max: ms(most).max(election_timeout_min + 1),
        install_snapshot_timeout: ms(timing.piece),
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::Never,
        // `Checkpoints` decides which entries are purged.
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}

impl Group {
    /// Opens the group with the state in storage. A sole voter leads when this returns, or soon after.
    ///
    /// # Errors
    /// [`RaftError::Storage`], [`RaftError::Damaged`], [`RaftError::Stopped`].
    pub async fn open(args: GroupArgs) -> Result<Self, RaftError> {
        let GroupArgs { group, storage, peers, recovered, replica, timing, clock } = args;
        let status = Arc::new(watch::Sender::new(GroupStatus::default()));
        let parts = Parts { group, storage, peers, replica, timing, clock, status };
        let inner = RwLock::new(Inner::open(&parts, recovered).await?);
        Ok(Self(Arc::new(Door { parts, inner, forgetting: tokio::sync::Mutex::default() })))
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0.inner.read())
    }

    /// Bootstraps a group that has no members: this node becomes its sole voter. Otherwise does nothing.
    ///
    /// # Errors
    /// [`RaftError::Stopped`].
    pub async fn found(&self) -> Result<(), RaftError> {
        leadership::members::found(&self.inner()).await
    }

    /// Proposes `content`. If it is committed, [`Replica::apply`] gets it on all members; if it fails, or
    /// if its outcome is unknown, this calls `failed`, on any thread. Never waits.
    ///
    /// After [`ProposeError::Unknown`] the proposal may still be committed: [`Replica::apply`] may get it
    /// before `failed` is called, after it, or never.
    pub fn propose(&self, content: Bytes, failed: Failed) {
        proposals::propose(&self.inner(), content, failed);
    }

    /// Makes sure that this node leads (Raft's read index): when this returns, the state on this node has
    /// every proposal that was acknowledged before the call. Concurrent callers share one round of
    /// requests to the other voters; a sole voter asks nobody.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::NoMajority`], [`ProposeError::Failed`].
    pub async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        leadership::confirm::confirm(&self.inner()).await
    }

    /// The state of the group, as far as this node knows.
    pub fn status(&self) -> GroupStatus {
        let (inner, mut status) = (self.inner(), self.inner().status_now());
        if status.me_leads {
            status.caught_up = inner.caught_up();
        }
        status
    }

    /// Watches the state of the group. A change of only the two indexes wakes no watcher.
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.0.parts.status.subscribe()
    }

    /// Waits until the group fails, because its storage or its replica failed, and returns the reason. A
    /// failed group works again only after a restart of the node.
    pub async fn failed(&self) -> String {
        let mut status = self.watch();
        loop {
            if status.borrow_and_update().ended
                && let Some(reason) = self.inner().failure()
            {
                return reason;
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The members that answer and have nearly all of the log. A node that does not lead knows of no other
    /// member: it returns at most itself.
    pub fn caught_up(&self) -> BTreeSet<NodeId> {
        self.inner().caught_up()
    }

    /// Makes a node a learner and waits until it has nearly all of the log.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`]; [`RaftError::NoProgress`] after [`Timing::learner`] without progress: the
    /// node stays a learner. [`RaftError::NoMajority`], [`RaftError::Busy`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::add_learner(&self.inner(), node).await
    }

    /// Removes a learner from the group; does nothing if the node is no learner.
    ///
    /// # Errors
    /// As [`Group::add_learner`]; [`RaftError::Refused`] if the node is a voter.
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::remove_learner(&self.inner(), node).await
    }

    /// Makes these nodes the voters, through learners and a joint membership. The other voters leave the
    /// group.
    ///
    /// A leader that is not among them transfers leadership to one of them and returns
    /// [`RaftError::NotLeader`] with its id: ask that node again.
    ///
    /// # Errors
    /// As [`Group::add_learner`]; [`RaftError::Refused`] for no voters at all.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), RaftError> {
        leadership::members::change_voters(&self.inner(), voters).await
    }

    /// Transfers leadership to a voter. Proposals wait meanwhile. If the voter does not become leader,
    /// this node continues to lead.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`]; [`RaftError::Refused`] if the node is no voter; [`RaftError::NotTaken`].
    pub async fn yield_to(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::yield_to(&self.inner(), node).await
    }

    /// True if this node leads, and a majority answered requests that it sent within the shortest election
    /// timeout, over links that are still up. Never waits.
    ///
    /// Almost always no other leader exists then: a voter that hears its leader votes for no other. Two
    /// exceptions: this leader asked another node to lead, or a voter lost its link while this end still
    /// took it for up. A caller that needs certainty uses [`Group::confirm_leadership`].
    pub fn is_followed(&self) -> bool {
        self.inner().is_followed()
    }

    /// True if this node's disk is nearly full, another voter is connected, and no transfer of leadership
    /// failed lately. On the leader a request that stores something should wait for the transfer: a few
    /// seconds at most.
    pub fn gives_way(&self) -> bool {
        self.inner().gives_way()
    }

    /// Answers a request of another node to this group. `None`: no answer, and the other node tries again;
    /// also for a request that does not belong to a group.
    pub async fn serve(&self, request: cluster::request::Kind) -> Option<cluster::response::Kind> {
        serve::serve(&self.inner(), request).await
    }

    /// The link to a node is gone. If that node leads the group, this node starts an election at once.
    pub fn peer_down(&self, node: NodeId) {
        if self.0.parts.status.borrow().leader == Some(node) {
            self.inner().nudge.notify_one();
        }
    }

    /// The tables on disk have all entries up to this one: older entries may be purged.
    pub fn checkpointed(&self, applied: stored::LogId) {
        self.inner().checkpointed(applied);
    }

    /// True if a node is no longer a member, and that change is committed. Only the leader answers.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`], [`RaftError::NoMajority`], [`RaftError::Stopped`].
    pub async fn has_left(&self, node: NodeId) -> Result<bool, RaftError> {
        leadership::members::has_left(&self.inner(), node).await
    }

    /// Wipes the group on this node if `may` returns true, and opens it again, empty: it waits until a
    /// leader adds this node. Meanwhile it answers nobody. Returns true if it wiped the group.
    ///
    /// `may` must ask the group's leader for [`Group::has_left`], and only when it is polled.
    ///
    /// # Errors
    /// [`RaftError::Storage`], [`RaftError::Damaged`], [`RaftError::Stopped`]; then the group has ended.
    pub async fn forget(&self, may: impl Future<Output = bool>) -> Result<bool, RaftError> {
        forget::forget(&self.0, may).await
    }

    /// Ends the group. Proposals that are not committed yet fail. The storage stays open.
    pub async fn stop(&self) {
        self.inner().stop().await;
    }
}

impl Inner {
    async fn open(parts: &Parts, recovered: Vec<(u64, Bytes)>) -> Result<Arc<Self>, RaftError> {
        let Parts { group, storage, peers, replica, timing, clock, status } = parts.clone();
        let me = peers.me().node.0;
        let tables = {
            let storage = storage.clone();
            let read = tokio::task::spawn_blocking(move || storage.applied(group)).await;
            read.map_err(|_| RaftError::Stopped)??
        };
        let floor = storage.wiped(group)?.as_ref().map(convert::id);
        let applied = tables.as_ref().and_then(|row| row.id.as_ref()).map(convert::id);
        let entries = log::recovered::entries(applied, recovered)
            .map_err(|index| RaftError::Damaged { group, index })?;
        let alone = log::recovered::elects_alone(me, tables.as_ref(), &entries);
        let demoted = (!alone).then_some(me);
        let journal = Journal::new((group, demoted, storage.clone()), applied, entries);
        let machine = Machine::new((group, journal.clone()), replica, tables.as_ref());
        let wire = Arc::new(Wire::new(group, Arc::clone(&peers), timing.heartbeat / 2));
        let links = Links(Arc::clone(&wire));
        let raft = Core::new(me, Arc::new(config(&timing)), links, journal.clone(), machine);
        let raft = raft.await.map_err(|_| RaftError::Stopped)?;
        let (proposals, waiting) = Proposals::new();
        let inner = Arc::new(Self {
            group,
            me,
            peers,
            storage,
            timing,
            clock,
            raft,
            journal,
            wire,
            contact: Contact::new(),
            status,
            checkpoints: Checkpoints::default(),
            proposals,
            confirmations: Confirmations::default(),
            in_hand: InHand::default(),
            receiving: tokio::sync::Mutex::default(),
            handover: tokio::sync::Mutex::default(),
            way_out: WayOut::default(),
            floor,
            resting: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            failure: OnceLock::new(),
            appends: tokio::sync::RwLock::default(),
            nudge: Notify::new(),
            tasks: TaskGroup::new(),
        });
        inner.begin(waiting);
        Ok(inner)
    }

    fn begin(self: &Arc<Self>, waiting: proposals::Waiting) {
        self.refresh();
        self.tasks.spawn("raft disk", log::journal::retry(self.journal.clone()));
        self.tasks.spawn("raft proposals", proposals::run(Arc::clone(self), waiting));
        self.tasks.spawn("raft status", leadership::status::run(Arc::clone(self)));
        self.tasks.spawn("raft election", leadership::election::run(Arc::clone(self)));
        self.tasks.spawn("raft space", leadership::space::run(Arc::clone(self)));
    }

    async fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // openraft cannot hear the request to stop while one of its writes waits for space.
        self.journal.close();
        if self.raft.shutdown().await.is_err() {
            tracing::warn!(shard = %self.group, "openraft ended in a panic");
        }
        self.proposals.close();
        self.tasks.finish(Duration::from_secs(1)).await;
        self.refresh();
    }
}
