//! The sessions process between several nodes: loss, partitions, restarts, two claims of one device.

use super::memory::Memory;
use super::*;
use bytes::Bytes;
use links::memory::Network;
use links::{Answered, CallError, Lane, Links, PeerInfo, Respond, Service};
use prost::Message as _;
use std::collections::BTreeSet;
use storage::engine::memory::Memory as MemoryEngine;
use storage::{Engines, Storage, StorageOptions};
use supervision::{ChildSpec, Intensity, Strategy, Supervisor};

const OFTEN: Intensity = Intensity { restarts: 5, within: Duration::from_secs(10) };
const NOW_MS: u64 = 1_000_000_000_000;

/// The user actors of a node.
#[derive(Default)]
struct Here {
    sessions: OnceLock<Sessions>,
    live: Mutex<BTreeSet<(UserId, DeviceId)>>,
    displaced: AtomicU64,
    told: Mutex<Vec<(UserId, bool)>>,
    touched: Mutex<Vec<UserId>>,
}

impl Watch for Here {
    fn displaced(&self, user: UserId, device: DeviceId) {
        self.displaced.fetch_add(1, Relaxed);
        self.live.lock().remove(&(user, device));
        let sessions = self.sessions.get().unwrap();
        sessions.write(user, device, |row| row.online = false).unwrap();
    }
    fn changed(&self, user: UserId, _: DeviceId, _: Option<&Session>, after: Option<&Session>) {
        self.told.lock().push((user, after.is_some_and(|row| row.online)));
    }
    fn touched(&self, user: UserId) {
        self.touched.lock().push(user);
    }
    fn still_here(&self, user: UserId, device: DeviceId) -> bool {
        self.live.lock().contains(&(user, device))
    }
}

/// What arrives from other nodes.
struct Port(Sessions);

impl Service for Port {
    fn up(&self, peer: PeerInfo) {
        self.0.peer_up(peer.id);
    }
    fn down(&self, peer: PeerId) {
        self.0.peer_down(peer);
    }
    fn cast(&self, from: PeerId, parcel: Bytes) {
        if let Some(cluster::cast::Kind::Sessions(rows)) =
            cluster::Cast::decode(parcel).unwrap().kind
        {
            self.0.received(from, rows);
        }
    }
    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        let kind = cluster::Request::decode(parcel).unwrap().kind.unwrap();
        let kind = self.0.serve(&kind);
        respond(cluster::Response { kind }.encode_to_vec().into());
    }
}

/// Refuses casts as long as it is told to, as a lane that is full does.
#[derive(Debug)]
struct Valve(Peers, Arc<AtomicBool>);

impl Links for Valve {
    fn me(&self) -> PeerId {
        self.0.me()
    }
    fn cast(&self, to: NodeId, lane: Lane, parcel: Bytes) -> bool {
        !self.1.load(Relaxed) && self.0.cast(to, lane, parcel)
    }
    fn call(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        if self.1.load(Relaxed) {
            return Box::pin(async { Err(CallError::Full) });
        }
        self.0.call(to, lane, parcel, within)
    }
    fn up(&self) -> Vec<PeerInfo> {
        self.0.up()
    }
    fn learn(&self, _addresses: Vec<(NodeId, String)>) {}
}

struct Node {
    id: PeerId,
    disk: Memory,
    here: Arc<Here>,
    sessions: Sessions,
    is_full: Arc<AtomicBool>,
    tree: Supervisor,
}

impl Node {
    async fn start(network: &Network, node: u64, incarnation: u64, disk: Memory) -> Self {
        let id = PeerId { node: NodeId(node), incarnation };
        let clock = Clock::new(|| NOW_MS);
        let rows = Box::new(disk.clone());
        let sessions = Sessions::open_on(rows, id, clock, SessionsTiming::default()).unwrap();
        let here = Arc::new(Here::default());
        here.sessions.set(sessions.clone()).unwrap();
        let (peers, attach) = network.node(id.node, incarnation);
        let is_full = Arc::new(AtomicBool::new(false));
        sessions.wire(Arc::new(Valve(peers, is_full.clone())), here.clone());
        let tree = start(&sessions).await;
        attach.attach(Arc::new(Port(sessions.clone())));
        Self { id, disk, here, sessions, is_full, tree }
    }

    fn claim(&self, user: u64) -> Session {
        self.here.live.lock().insert((UserId(user), DeviceId(1)));
        let online = |row: &mut Session| *row = Session { online: true, away: false, ..*row };
        self.sessions.claim(UserId(user), DeviceId(1), online).unwrap()
    }

    fn close(&self, user: u64) {
        self.here.live.lock().remove(&(UserId(user), DeviceId(1)));
        self.sessions.write(UserId(user), DeviceId(1), |row| row.online = false).unwrap();
    }

    fn get(&self, user: u64) -> Option<Session> {
        self.sessions.get(UserId(user), DeviceId(1)).unwrap()
    }

    fn sees(&self, user: u64) -> bool {
        self.get(user).is_some_and(|row| row.online)
    }

    fn node_of(&self, user: u64) -> Vec<NodeId> {
        self.sessions.nodes_of(UserId(user), [DeviceId(1)])
    }
}

async fn start(sessions: &Sessions) -> Supervisor {
    let (args, inbox) = (sessions.clone(), sessions.inbox().clone());
    let child = ChildSpec::process::<SessionsActor>("sessions", args, inbox);
    Supervisor::start("tables", Strategy::OneForOne, OFTEN, vec![child]).await.unwrap()
}

async fn three(network: &Network) -> [Node; 3] {
    let start = |n| Node::start(network, n, 1, Memory::default());
    let nodes = [start(1).await, start(2).await, start(3).await];
    let all_up = || nodes.iter().all(|node| node.sessions.0.table.standing().up().len() == 2);
    until(all_up).await;
    nodes
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come true in 200 seconds");
}

async fn are_equal(nodes: &[&Node]) {
    let same = || {
        nodes.iter().all(|node| {
            node.sessions.is_settled() && node.sessions.digest() == nodes[0].sessions.digest()
        })
    };
    until(same).await;
    for node in nodes {
        assert_eq!(node.disk.rows(), nodes[0].disk.rows());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_known_everywhere_at_once() {
    let nodes = three(&Network::new(1)).await;
    nodes[0].claim(7);
    let begun = tokio::time::Instant::now();
    until(|| nodes[1].sees(7) && nodes[2].sees(7)).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(nodes[1].node_of(7), [NodeId(1)]);
    assert_eq!(nodes[0].node_of(7), [], "not another node");
    nodes[0].close(7);
    until(|| !nodes[1].sees(7) && !nodes[2].sees(7)).await;
    assert_eq!(nodes[1].node_of(7), []);
    let told = nodes[1].here.told.lock().clone();
    assert_eq!(told, [(UserId(7), true), (UserId(7), false)]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_comes_to_another_node_before_its_old_session_ended_is_told_of() {
    let nodes = three(&Network::new(10)).await;
    nodes[0].claim(7);
    until(|| nodes[1].sees(7) && nodes[2].sees(7)).await;
    nodes[1].claim(7);
    let moved = |node: &Node| node.get(7).is_some_and(|row| row.node == nodes[1].id.node.0);
    until(|| moved(&nodes[0]) && moved(&nodes[2])).await;
    for (node, times) in [(&nodes[0], 1), (&nodes[2], 2)] {
        assert_eq!(*node.here.told.lock(), vec![(UserId(7), true); times]);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_on_the_way_is_found() {
    let network = Network::new(2);
    let nodes = three(&network).await;
    network.set_loss(0.3);
    network.set_delay(Duration::from_millis(1)..=Duration::from_millis(40));
    for user in 1..=300 {
        let node = &nodes[usize::try_from(user % 3).unwrap()];
        node.claim(user);
        if user % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(7)).await;
            node.close(user);
        }
        if user % 5 == 0 {
            nodes[usize::try_from((user + 1) % 3).unwrap()].claim(user);
        }
    }
    // Also while a third of everything is lost.
    are_equal(&nodes.each_ref()).await;
    for user in 1..=300 {
        let live = nodes.iter().any(|node| node.here.still_here(UserId(user), DeviceId(1)));
        assert_eq!(nodes[0].sees(user), live, "user {user}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_that_claim_a_device_one_wins_and_peace_follows() {
    let network = Network::new(3);
    let nodes = three(&network).await;
    network.cut(NodeId(1), NodeId(2));
    network.cut(NodeId(1), NodeId(3));
    until(|| !nodes[1].sessions.0.table.standing().is_up(NodeId(1))).await;
    nodes[0].claim(7);
    nodes[1].claim(7);
    tokio::time::sleep(Duration::from_mins(1)).await;
    network.heal_all();
    let refs = nodes.each_ref();
    until(|| refs.iter().all(|node| node.node_of(7).len() <= 1 && node.sees(7))).await;
    are_equal(&refs).await;
    let displaced = |node: &Node| node.here.displaced.load(Relaxed);
    assert_eq!((displaced(refs[0]), displaced(refs[1]), displaced(refs[2])), (1, 0, 0));
    let row = refs[2].get(7);
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(refs[0].get(7), row, "nobody writes it again");
}

#[tokio::test(start_paused = true)]
async fn a_session_outlives_a_late_word_that_nobody_is_there() {
    let network = Network::new(4);
    let nodes = three(&network).await;
    nodes[1].claim(7);
    until(|| nodes[0].sees(7)).await;
    // Node 2 does not hear of the claim when its own session ends: both rows have one version.
    network.cut(NodeId(1), NodeId(2));
    nodes[0].claim(7);
    nodes[1].close(7);
    tokio::time::sleep(Duration::from_secs(30)).await;
    network.heal_all();
    are_equal(&nodes.each_ref()).await;
    assert!(nodes.iter().all(|node| node.sees(7)));
    assert_eq!(nodes[1].node_of(7), [NodeId(1)]);
    assert_eq!(nodes[0].here.displaced.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_fetches_only_differences_and_its_old_sessions_are_gone() {
    let network = Network::new(5);
    let nodes = three(&network).await;
    for user in 1..=3_000_u64 {
        nodes[usize::try_from(user % 3).unwrap()].claim(user << 40);
    }
    are_equal(&nodes.each_ref()).await;
    let [one, two, three] = nodes;
    network.remove(three.id.node);
    three.tree.stop().await;
    for user in 1..=30 {
        one.claim(user);
    }
    let three = Node::start(&network, 3, 2, three.disk.clone()).await;
    are_equal(&[&one, &two, &three]).await;
    let figures = three.sessions.figures();
    assert!((30..300).contains(&figures.fetched), "{figures:?}");
    assert_eq!((figures.rows, figures.online), (3_030, 2_030));
    assert_eq!(one.sessions.figures().online, 2_030);
    assert!(!one.sees(2 << 40) && one.get(2 << 40).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_empty_node_fetches_everything() {
    let network = Network::new(6);
    let [one, two, three] = three(&network).await;
    for user in 1..=5_000_u64 {
        (if user % 2 == 0 { &one } else { &two }).claim(user << 40);
    }
    network.remove(three.id.node);
    let four = Node::start(&network, 4, 1, Memory::default()).await;
    are_equal(&[&one, &two, &four]).await;
    let figures = four.sessions.figures();
    assert_eq!(figures.rows, 5_000);
    assert!(figures.fetched < 5_100, "each row once: {figures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_out_of_reach_is_not_pushed_to_and_after_the_grace_reads_as_offline() {
    let network = Network::new(7);
    let nodes = three(&network).await;
    let row = nodes[0].claim(7);
    until(|| nodes[1].sees(7) && nodes[2].sees(7)).await;
    network.cut(NodeId(1), NodeId(2));
    until(|| nodes[1].node_of(7).is_empty()).await;
    assert!(nodes[1].sees(7), "a short cut changes nothing that people see");
    nodes[1].here.touched.lock().clear();
    until(|| !nodes[1].sees(7)).await;
    until(|| nodes[1].here.touched.lock().contains(&UserId(7))).await;
    assert!(nodes[2].sees(7), "node 3 reaches node 1 as before");
    assert_eq!(nodes[1].sessions.digest(), nodes[2].sessions.digest(), "and no row was rewritten");
    network.heal_all();
    until(|| nodes[1].node_of(7) == [NodeId(1)]).await;
    assert_eq!(nodes[1].get(7), Some(row));
    until(|| nodes[1].here.told.lock().len() == 3).await;
    let told: Vec<bool> = nodes[1].here.told.lock().iter().map(|told| told.1).collect();
    assert_eq!(told, [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_removed_node_are_dead_until_it_is_a_member_again() {
    let network = Network::new(8);
    let nodes = three(&network).await;
    for user in 1..=10 {
        nodes[2].claim(user);
    }
    are_equal(&nodes.each_ref()).await;
    network.cut(NodeId(1), NodeId(3));
    network.cut(NodeId(2), NodeId(3));
    let [one, two, three] = nodes.each_ref();
    for node in [one, two] {
        node.sessions.set_removed(NodeId(3), true);
    }
    are_equal(&[one, two]).await;
    assert_eq!(one.sessions.figures().purged, 10);
    assert!((1..=10).all(|user| !one.sees(user)));
    for node in [one, two] {
        node.sessions.set_removed(NodeId(3), false);
    }
    network.heal_all();
    are_equal(&[one, two, three]).await;
    assert!((1..=10).all(|user| one.sees(user) && two.sees(user)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_more_hears_of_it_later() {
    let nodes = three(&Network::new(9)).await;
    until(|| nodes.iter().all(|node| node.sessions.figures().compared >= 2)).await;
    nodes[0].is_full.store(true, Relaxed);
    nodes[0].claim(7);
    until(|| nodes[0].sessions.figures().shed == 2).await;
    let begun = tokio::time::Instant::now();
    nodes[0].is_full.store(false, Relaxed);
    until(|| nodes[1].sees(7) && nodes[2].sees(7)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "sooner than the next comparison");
}

#[tokio::test]
async fn a_node_works_alone_and_finds_its_rows_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = || Arc::new(MemoryEngine::default());
    let engines = Engines { tables: engine(), sessions: engine() };
    let open = |incarnation| {
        let options = StorageOptions::default();
        let (storage, _) = Storage::open_with(dir.path(), options, engines.clone()).unwrap();
        let me = PeerId { node: NodeId(1), incarnation };
        let clock = Clock::new(|| NOW_MS);
        Sessions::open(storage.sessions().clone(), me, clock, SessionsTiming::default()).unwrap()
    };
    let sessions = open(1);
    let claim = |row: &mut Session| *row = Session { online: true, since_ms: 5, ..*row };
    let row = sessions.claim(UserId(7), DeviceId(1), claim).unwrap();
    assert_eq!(sessions.get(UserId(7), DeviceId(1)).unwrap(), Some(row));
    assert_eq!(sessions.places(UserId(7), [DeviceId(1), DeviceId(2)]), [(DeviceId(1), NodeId(1))]);
    drop(sessions);

    let sessions = open(2);
    let offline = Session { online: false, ..row };
    assert_eq!(sessions.get(UserId(7), DeviceId(1)).unwrap(), Some(offline), "its times stay");
    let _tree = start(&sessions).await;
    for _ in 0..1_000 {
        if sessions.is_settled() {
            assert_eq!(sessions.figures().purged, 1);
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not purged");
}
