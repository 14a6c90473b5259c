//! Nodes of one process on a network in memory, each with storage of its own and a list for a
//! replica.

mod chaos;
mod disk;
mod figures;
mod forget;
mod leadership;
mod members;
mod replication;

use super::*;
use links::memory::Network;
use links::{PeerId, PeerInfo, Respond, Service};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::UserId;
use std::collections::BTreeMap;
use storage::{Recovered, Row, StorageOptions};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub(super) const GROUP: ShardId = ShardId(3);

/// Patience of these tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Quick enough for tests, slow enough for a busy machine.
pub(super) fn quick() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(60),
        election: (Duration::from_millis(400), Duration::from_millis(700)),
        request: Duration::from_millis(200),
        piece: Duration::from_secs(5),
        learner: Duration::from_secs(3),
    }
}

/// Whom a busy machine stops for a moment is not replaced for it: for tests in which nobody else is to
/// lead, or only because a leader asks for it. An election that fails is held again within
/// [`PATIENCE`].
pub(super) fn calm() -> Timing {
    Timing { election: (Duration::from_secs(8), Duration::from_secs(12)), ..quick() }
}

/// Between the two, for tests that wait for several election times and see that nothing happens.
pub(super) fn unhurried() -> Timing {
    Timing { election: (Duration::from_millis(1_500), Duration::from_secs(2)), ..quick() }
}

/// A list, and as of which place of the log it is.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    pub(super) items: Vec<String>,
    pub(super) applied: stored::Applied,
    pub(super) reloads: usize,
}

/// The clock of a node that nobody doubts.
struct RightClock;

impl OwnClock for RightClock {
    fn is_astray(&self) -> bool {
        false
    }
}

/// The replica of these tests. In the tables an item is an account.
pub(super) struct Replicated {
    group: ShardId,
    storage: Storage,
    list: Mutex<List>,
    /// Told when something is applied.
    pub(super) when_applied: Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
}

impl Replicated {
    fn open(group: ShardId, storage: &Storage) -> Arc<Self> {
        let list = Mutex::new(load(group, storage));
        Arc::new(Self { group, storage: storage.clone(), list, when_applied: Mutex::default() })
    }

    pub(super) fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock()
    }

    /// Writes the tables, as a checkpoint does.
    fn write(&self) -> stored::LogId {
        let list = self.list().clone();
        let rows = (1u64..).zip(&list.items).map(|(number, item)| {
            let alias = stored::AliasClaim { alias: item.clone(), claim: 1 };
            let account = stored::Account { aliases: vec![alias], ..Default::default() };
            Row::Account(UserId(number), Some(account))
        });
        let id = list.applied.id.unwrap();
        self.storage.checkpoint(self.group, list.applied.clone(), rows.collect()).unwrap();
        id
    }
}

fn load(group: ShardId, storage: &Storage) -> List {
    let mut items = BTreeMap::new();
    let applied = storage.load(group, &mut |row| {
        if let Row::Account(user, Some(account)) = row {
            items.insert(user.0, account.aliases[0].alias.clone());
        }
    });
    let applied = applied.unwrap().unwrap_or_default();
    List { items: items.into_values().collect(), applied, reloads: 0 }
}

impl Replica for Replicated {
    fn apply(&self, entries: Vec<Committed>, done: Done) {
        let mut list = self.list();
        for entry in entries {
            let expected = list.applied.id.map_or(0, |id| id.index + 1);
            assert_eq!(entry.id.index, expected, "entries come in order and once");
            list.applied.id = Some(entry.id);
            list.items.extend(entry.content.map(|item| String::from_utf8(item.to_vec()).unwrap()));
            if let Some(membership) = entry.membership {
                list.applied.membership = Some(membership);
                list.applied.membership_at = Some(entry.id);
            }
        }
        drop(list);
        done();
        if let Some(sender) = self.when_applied.lock().take() {
            sender.send(()).unwrap();
        }
    }

    fn rest(&self, done: Done) {
        done();
    }

    fn reload(&self, done: Done) {
        let loaded = load(self.group, &self.storage);
        let mut list = self.list();
        *list = List { reloads: list.reloads + 1, ..loaded };
        drop(list);
        done();
    }
}

/// What arrives at a node.
struct Post {
    groups: BTreeMap<u32, Group>,
    tasks: TaskGroup,
}

impl Service for Post {
    fn up(&self, _peer: PeerInfo) {}

    fn down(&self, peer: PeerId) {
        for group in self.groups.values() {
            group.peer_down(peer.node);
        }
    }

    fn cast(&self, _from: PeerId, _parcel: Bytes) {}

    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        use cluster::request::Kind;
        let kind = cluster::Request::decode(parcel).unwrap().kind.unwrap();
        let number = match &kind {
            Kind::Append(append) => append.group,
            Kind::Vote(vote) => vote.group,
            Kind::Snapshot(piece) => piece.group,
            Kind::TimeoutNow(now) => now.group,
            Kind::Propose(_)
            | Kind::Ask(_)
            | Kind::Sessions(_)
            | Kind::Fetch(_)
            | Kind::Join(_)
            | Kind::Order(_)
            | Kind::Meta(_)
            | Kind::Clock(_)
            | Kind::Vitals(_) => panic!("not for a group: {kind:?}"),
        };
        let Some(group) = self.groups.get(&number).cloned() else { return };
        self.tasks.spawn("raft", async move {
            if let Some(kind) = group.serve(kind).await {
                respond(cluster::Response { kind: Some(kind) }.encode_to_vec().into());
            }
        });
    }
}

/// One start of a node.
pub(super) struct Node {
    pub(super) groups: BTreeMap<u32, Group>,
    pub(super) replicas: BTreeMap<u32, Arc<Replicated>>,
    pub(super) storage: Storage,
}

impl Node {
    pub(super) fn group(&self) -> &Group {
        &self.groups[&u32::from(GROUP.0)]
    }

    pub(super) fn replica(&self) -> &Arc<Replicated> {
        &self.replicas[&u32::from(GROUP.0)]
    }

    pub(super) fn items(&self) -> Vec<String> {
        self.replica().list().items.clone()
    }

    /// Writes the tables and lets go of the log.
    pub(super) fn checkpoint(&self) {
        let applied = self.replica().write();
        self.group().checkpointed(applied);
    }
}

/// Nodes and what is between them.
pub(super) struct Cluster {
    pub(super) network: Network,
    pub(super) timing: Timing,
    pub(super) nodes: BTreeMap<u64, Node>,
    group_ids: Vec<ShardId>,
    dirs: BTreeMap<u64, TempDir>,
    incarnation: u64,
}

pub(super) const SILENCE: Duration = Duration::from_millis(300);

impl Cluster {
    pub(super) fn new(timing: Timing) -> Self {
        let network = Network::new(7);
        network.set_silence(SILENCE);
        Self {
            network,
            timing,
            nodes: BTreeMap::new(),
            group_ids: vec![GROUP],
            dirs: BTreeMap::new(),
            incarnation: 0,
        }
    }

    pub(super) fn with_groups(timing: Timing, groups: impl Iterator<Item = u16>) -> Self {
        Self { group_ids: groups.map(ShardId).collect(), ..Self::new(timing) }
    }

    /// Starts a node on the data that it left.
    pub(super) async fn start(&mut self, node: u64) {
        self.incarnation += 1;
        let dir = self.dirs.entry(node).or_insert_with(|| tempfile::tempdir().unwrap());
        let options = StorageOptions { free_bytes_min: 0, ..StorageOptions::default() };
        let (storage, recovered) = open(dir.path(), options).await;
        let (peers, attach) = self.network.node(NodeId(node), self.incarnation);
        let mut records: BTreeMap<u16, Vec<(u64, Bytes)>> =
            recovered.records.into_iter().map(|of| (of.shard.0, of.records)).collect();
        let (mut groups, mut replicas) = (BTreeMap::new(), BTreeMap::new());
        for group in self.group_ids.iter().copied() {
            let replica = Replicated::open(group, &storage);
            let args = GroupArgs {
                group,
                storage: storage.clone(),
                peers: Arc::clone(&peers),
                recovered: records.remove(&group.0).unwrap_or_default(),
                replica: Arc::clone(&replica) as Arc<dyn Replica>,
                timing: self.timing,
                clock: Arc::new(RightClock),
            };
            groups.insert(u32::from(group.0), Group::open(args).await.unwrap());
            replicas.insert(u32::from(group.0), replica);
        }
        attach.attach(Arc::new(Post { groups: groups.clone(), tasks: TaskGroup::new() }));
        self.nodes.insert(node, Node { groups, replicas, storage });
    }

    /// Nodes 1, 2 and 3, all voters of every group, the first one leading.
    pub(super) async fn of_three(timing: Timing) -> Self {
        let mut cluster = Self::new(timing);
        cluster.start_three().await;
        cluster
    }

    pub(super) async fn start_three(&mut self) {
        for node in 1..=3 {
            self.start(node).await;
        }
        for group in self.nodes[&1].groups.values() {
            group.found().await.unwrap();
            until("the founder leads", || group.status().me_leads).await;
            group.change_voters([1, 2, 3].map(NodeId).into()).await.unwrap();
        }
    }

    /// The node is gone: nobody hears from it, nothing is closed or flushed at its end.
    pub(super) async fn kill(&mut self, node: u64) {
        self.network.remove(NodeId(node));
        let gone = self.nodes.remove(&node).unwrap();
        for group in gone.groups.values() {
            group.stop().await;
        }
    }

    pub(super) fn cut_off(&self, node: u64) {
        for other in self.dirs.keys().filter(|other| **other != node) {
            self.network.cut(NodeId(node), NodeId(*other));
        }
    }

    /// The one node that leads with a majority.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |node: &Node| {
            let status = node.group().status();
            status.me_leads && status.quorum_seen
        };
        let mut leaders = self.nodes.iter().filter(|(_, node)| leads(node));
        leaders.next().map(|(node, _)| *node).filter(|_| leaders.next().is_none())
    }

    pub(super) async fn wait_for_leader(&self) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            assert!(Instant::now() < end, "nobody leads");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Proposes where it can be accepted until it is.
    pub(super) async fn add(&self, item: &str) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let Some(leader) = self.leader() else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            if self.propose(leader, item).await.is_ok() {
                return;
            }
        }
        panic!("{item} was never accepted");
    }

    /// Hands leadership over, once more if a busy machine took longer than a leader waits.
    pub(super) async fn hand_over(&self, leader: u64, heir: u64) {
        let group = self.nodes[&leader].group();
        let end = Instant::now() + PATIENCE;
        while let Err(error) = group.yield_to(NodeId(heir)).await {
            if self.nodes[&heir].group().status().me_leads {
                return;
            }
            assert!(Instant::now() < end, "not taken: {error}");
            group.inner().way_out.forgive();
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Proposes once, and waits until it is applied at that node or fails.
    pub(super) async fn propose(&self, node: u64, item: &str) -> Result<(), ProposeError> {
        let node = &self.nodes[&node];
        let failure = Arc::new(Mutex::new(None));
        let told = Arc::clone(&failure);
        let failed = Box::new(move |error| *told.lock() = Some(error));
        node.group().propose(Bytes::copy_from_slice(item.as_bytes()), failed);
        let applied = || node.replica().list().items.iter().any(|known| known == item);
        until("a proposal is applied or fails", || applied() || failure.lock().is_some()).await;
        let failure = failure.lock().take();
        failure.map_or(Ok(()), Err)
    }

    /// Waits until all nodes that run have the same list, and returns it.
    pub(super) async fn agreed(&self) -> Vec<String> {
        self.agreed_by(&self.nodes.keys().copied().collect::<Vec<_>>()).await
    }

    /// Waits until these nodes have the same list, and returns it.
    pub(super) async fn agreed_by(&self, nodes: &[u64]) -> Vec<String> {
        let longest = || self.nodes.values().map(|n| n.items().len()).max().unwrap();
        let same = || {
            let mut lists = nodes.iter().map(|node| self.nodes[node].items());
            let first = lists.next().unwrap();
            first.len() == longest() && lists.all(|list| list == first)
        };
        until("all lists are the same", same).await;
        self.nodes[&nodes[0]].items()
    }
}

/// A directory stays locked for a moment after its end.
async fn open(dir: &std::path::Path, options: StorageOptions) -> (Storage, Recovered) {
    let end = Instant::now() + PATIENCE;
    loop {
        match Storage::open(dir, options) {
            Ok(opened) => return opened,
            Err(error) if Instant::now() > end => panic!("{error}"),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

pub(super) fn named(prefix: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{prefix}{number}")).collect()
}
