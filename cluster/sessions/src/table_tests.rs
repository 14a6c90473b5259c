//! Properties of the sessions table: whatever is written, delivered, doubled, lost, restarted and
//! purged, in any order, all nodes come to the same table, and it is true.

use super::exchange::{Exchange, Step};
use super::memory::Memory;
use super::row::{self, Key};
use super::*;
use bytes::Bytes;
use links::{Answered, CallError, Lane, Links, PeerInfo};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NODES: usize = 3;
const KEYS: u64 = 5;
const NOW_MS: u64 = 1_000_000;

/// Links to nobody: rows travel by the hands of the test.
#[derive(Debug)]
struct NoLinks(PeerId);

impl Links for NoLinks {
    fn me(&self) -> PeerId {
        self.0
    }
    fn cast(&self, _to: NodeId, _lane: Lane, _parcel: Bytes) -> bool {
        false
    }
    fn call(&self, _to: NodeId, _lane: Lane, _parcel: Bytes, _within: Duration) -> Answered {
        Box::pin(async { Err(CallError::NotUp) })
    }
    fn up(&self) -> Vec<PeerInfo> {
        Vec::new()
    }
    fn learn(&self, _addresses: Vec<(NodeId, String)>) {}
}

/// The sessions that really live on a node.
#[derive(Default)]
struct Here {
    live: Mutex<BTreeSet<Key>>,
    displaced: Mutex<Vec<Key>>,
}

impl Watch for Here {
    fn displaced(&self, user: UserId, device: DeviceId) {
        self.displaced.lock().push((user, device));
    }
    fn changed(&self, _: UserId, _: DeviceId, _: Option<&Session>, _: Option<&Session>) {}
    fn touched(&self, _: UserId) {}
    fn still_here(&self, user: UserId, device: DeviceId) -> bool {
        self.live.lock().contains(&(user, device))
    }
}

struct Node {
    id: PeerId,
    disk: Memory,
    here: Arc<Here>,
    sessions: Sessions,
}

impl Node {
    fn start(id: PeerId, disk: Memory) -> Self {
        let clock = Clock::new(|| NOW_MS);
        let rows = Box::new(disk.clone());
        let sessions = Sessions::open_on(rows, id, clock, SessionsTiming::default()).unwrap();
        let here = Arc::new(Here::default());
        sessions.wire(Arc::new(NoLinks(id)), here.clone());
        Self { id, disk, here, sessions }
    }

    fn table(&self) -> &Table {
        &self.sessions.0.table
    }

    fn row(&self, key: Key) -> Option<Session> {
        self.table().get(key).unwrap()
    }

    fn close(&self, key: Key) {
        if self.here.live.lock().remove(&key) {
            let end = |row: &mut Session| row.online = false;
            self.sessions.write(key.0, key.1, end).unwrap();
        }
    }

    /// What user actors do with those who lost: end them.
    fn kick(&self) {
        let displaced = std::mem::take(&mut *self.here.displaced.lock());
        for key in displaced {
            self.close(key);
        }
    }

    fn purge(&self) {
        while let Some(due) = self.table().purge_due() {
            let mut from = Some(row::bucket_begin(0));
            while let Some(key) = from {
                from = self.table().purge(key, 2).unwrap().next;
            }
            self.table().purged(due);
        }
    }

    /// Fetches from `other` what differs, as the process does.
    fn pull(&self, other: &Self) {
        let (mut exchange, mut question) = Exchange::begin(self.table(), other.id.node, 1);
        for _ in 0..10_000 {
            let step = match other.sessions.serve(&question) {
                Some(response::Kind::Sessions(differ)) => exchange.differ(self.table(), &differ),
                Some(response::Kind::Rows(rows)) => {
                    self.sessions.0.merge(rows.rows);
                    exchange.fetched(self.table(), rows.more)
                }
                Some(_) | None => panic!("not answered"),
            };
            match step.unwrap() {
                Step::Ask(next) => question = *next,
                Step::Done | Step::Again => return,
            }
        }
        panic!("an exchange without end");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Claim(usize, u64),
    Close(usize, u64),
    Away(usize, u64),
    Bury(usize, u64),
    /// A row that was written at any time reaches a node.
    Deliver(usize, usize),
    Restart(usize),
    /// Restart with an empty disk.
    Loss(usize),
    Learn(usize, usize),
    Remove(usize, bool),
    Cutoff(usize, bool),
    Piece(usize, u64),
    Pull(usize, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (node, key) = (0..NODES, 0..KEYS);
    prop_oneof![
        6 => (node.clone(), key.clone()).prop_map(|(n, k)| Event::Claim(n, k)),
        4 => (node.clone(), key.clone()).prop_map(|(n, k)| Event::Close(n, k)),
        2 => (node.clone(), key.clone()).prop_map(|(n, k)| Event::Away(n, k)),
        1 => (node.clone(), key.clone()).prop_map(|(n, k)| Event::Bury(n, k)),
        12 => (node.clone(), 0..1_000_usize).prop_map(|(n, i)| Event::Deliver(n, i)),
        1 => node.clone().prop_map(Event::Restart),
        1 => node.clone().prop_map(Event::Loss),
        2 => (node.clone(), node.clone()).prop_map(|(n, m)| Event::Learn(n, m)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, gone)| Event::Remove(n, gone)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, all)| Event::Cutoff(n, all)),
        2 => (node.clone(), key).prop_map(|(n, k)| Event::Piece(n, k)),
        3 => (node.clone(), node).prop_map(|(n, m)| Event::Pull(n, m)),
    ]
}

/// Users of different buckets, and two devices of one user.
fn key(number: u64) -> Key {
    if number == 0 {
        (UserId(1), DeviceId(2))
    } else {
        (UserId(1 + ((number - 1) << 42)), DeviceId(1))
    }
}

struct World {
    nodes: Vec<Node>,
    /// All rows ever written, as they may still be under way.
    wire: Vec<(Key, Session)>,
    /// Node 2, according to each node.
    removed: [bool; NODES],
}

impl World {
    fn new() -> Self {
        let node = |n: usize| {
            let id = PeerId { node: NodeId(n as u64 + 1), incarnation: 1 };
            Node::start(id, Memory::default())
        };
        Self { nodes: (0..NODES).map(node).collect(), wire: Vec::new(), removed: [false; NODES] }
    }

    fn restart(&mut self, n: usize, disk: Memory) {
        let PeerId { node, incarnation } = self.nodes[n].id;
        self.nodes[n] = Node::start(PeerId { node, incarnation: incarnation + 1 }, disk);
        self.nodes[n].sessions.set_removed(NodeId(3), self.removed[n]);
    }

    fn happens(&mut self, event: &Event) {
        let node = &self.nodes[match *event {
            Event::Claim(n, _)
            | Event::Close(n, _)
            | Event::Away(n, _)
            | Event::Bury(n, _)
            | Event::Deliver(n, _)
            | Event::Restart(n)
            | Event::Loss(n)
            | Event::Learn(n, _)
            | Event::Remove(n, _)
            | Event::Cutoff(n, _)
            | Event::Piece(n, _)
            | Event::Pull(n, _) => n,
        }];
        match *event {
            Event::Claim(_, k) => {
                let (user, device) = key(k);
                node.here.live.lock().insert((user, device));
                let since_ms = self.wire.len() as u64 + 1;
                let claim = |row: &mut Session| {
                    *row = Session { online: true, away: false, since_ms, ..*row };
                };
                node.sessions.claim(user, device, claim).unwrap();
            }
            Event::Close(_, k) => node.close(key(k)),
            Event::Away(_, k) => {
                let (user, device) = key(k);
                if node.here.live.lock().contains(&(user, device)) {
                    node.sessions.write(user, device, |row| row.away = !row.away).unwrap();
                }
            }
            Event::Bury(_, k) => {
                node.close(key(k));
                node.sessions.remove(key(k).0, key(k).1).unwrap();
            }
            Event::Deliver(_, i) => {
                if let Some(((user, device), row)) = self.wire.get(i % self.wire.len().max(1)) {
                    node.sessions.0.merge(vec![table::wire_row((*user, *device), *row)]);
                }
            }
            Event::Restart(n) => {
                let disk = node.disk.clone();
                self.restart(n, disk);
            }
            Event::Loss(n) => self.restart(n, Memory::default()),
            Event::Learn(_, m) => node.table().learn(self.nodes[m].id),
            Event::Remove(n, gone) => {
                node.sessions.set_removed(NodeId(3), gone);
                self.removed[n] = gone;
            }
            Event::Cutoff(_, all) => node.table().set_cutoff(if all { NOW_MS + 1 } else { 0 }),
            Event::Piece(_, k) => drop(node.table().purge(key(k), 1).unwrap()),
            Event::Pull(n, m) => {
                if n != m {
                    node.pull(&self.nodes[m]);
                }
            }
        }
        self.nodes.iter().for_each(Node::kick);
        for node in &self.nodes {
            for (key, row) in node.disk.rows() {
                if !self.wire.contains(&(key, row)) {
                    self.wire.push((key, row));
                }
            }
        }
    }

    /// Nothing more happens, and all compare with all. How many rounds until nothing changes.
    fn come_to_rest(nodes: &[&Node]) -> usize {
        for round in 0..12 {
            for node in nodes {
                node.purge();
            }
            let before: Vec<_> = nodes.iter().map(|node| node.disk.rows()).collect();
            for (one, other) in nodes.iter().flat_map(|a| nodes.iter().map(move |b| (a, b))) {
                if one.id != other.id {
                    one.pull(other);
                    for node in nodes {
                        node.kick();
                    }
                }
            }
            let settled = nodes.iter().all(|node| node.sessions.is_settled());
            if settled && nodes.iter().zip(before).all(|(node, rows)| node.disk.rows() == rows) {
                return round;
            }
        }
        panic!("no end");
    }
}

/// Digest and counts are those of the rows.
fn adds_up(node: &Node) {
    let (digest, rows) = (digest::Digest::default(), node.disk.rows());
    for (key, row) in &rows {
        digest.replace(*key, None, Some(row));
    }
    assert_eq!(digest.whole(), node.sessions.digest());
    assert_eq!(node.table().rows(), rows.len() as u64);
    assert_eq!(node.table().tombstones(), rows.values().filter(|row| row.gone).count() as u64);
}

/// Where the table says that someone is, they are, and where someone is, it says so.
fn is_true(nodes: &[&Node]) {
    let rows = nodes[0].disk.rows();
    for node in nodes {
        let said = rows.iter().filter(|(_, row)| row.online && row.node == node.id.node.0);
        let said: BTreeMap<Key, u64> = said.map(|(key, row)| (*key, row.incarnation)).collect();
        let live = node.here.live.lock().clone();
        assert_eq!(said.keys().copied().collect::<BTreeSet<_>>(), live, "node {:?}", node.id);
        assert!(said.values().all(|incarnation| *incarnation == node.id.incarnation));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn all_nodes_come_to_the_same_table_and_it_is_true(
        events in proptest::collection::vec(event(), 1..120),
        is_removed in any::<bool>(),
        drops_tombstones in any::<bool>(),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happens(event);
            world.nodes.iter().for_each(adds_up);
        }
        for node in &world.nodes {
            node.sessions.set_removed(NodeId(3), is_removed);
            node.table().set_cutoff(if drops_tombstones { NOW_MS + 2 } else { 0 });
        }
        let members: Vec<&Node> = world.nodes.iter().take(if is_removed { 2 } else { 3 }).collect();
        World::come_to_rest(&members);
        for node in &members {
            prop_assert_eq!(node.disk.rows(), members[0].disk.rows());
            prop_assert_eq!(node.sessions.digest(), members[0].sessions.digest());
            prop_assert!(!drops_tombstones || node.table().tombstones() == 0);
            adds_up(node);
        }
        is_true(&members);
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_rows_and_floors_does_not_matter(
        rows in proptest::collection::vec(any_row(), 1..12),
        floor in 0..4_u64,
        turn in 0..12_usize,
        place in 0..13_usize,
    ) {
        let me = PeerId { node: NodeId(9), incarnation: 1 };
        let outcome = |rows: &[Session], floor_at: usize| {
            let node = Node::start(me, Memory::default());
            for (n, row) in rows.iter().enumerate() {
                if n == floor_at {
                    node.table().learn(PeerId { node: NodeId(1), incarnation: floor });
                }
                node.table().merge(vec![(key(1), *row)]).unwrap();
            }
            node.table().learn(PeerId { node: NodeId(1), incarnation: floor });
            node.purge();
            (node.row(key(1)), node.sessions.digest(), node.table().online())
        };
        let mut turned = rows.clone();
        turned.rotate_left(turn % rows.len());
        turned.extend_from_slice(&rows[..rows.len() / 2]);
        prop_assert_eq!(outcome(&rows, 0), outcome(&turned, place));
    }
}

fn any_row() -> impl Strategy<Value = Session> {
    let states = (any::<bool>(), any::<bool>(), any::<bool>());
    (0..2_u64, 0..3_u64, 1..3_u64, 0..2_u64, 0..2_u64, states).prop_map(
        |(node, incarnation, version, last_seen_ms, since_ms, (online, away, gone))| Session {
            node,
            incarnation,
            version,
            online,
            away,
            last_seen_ms,
            since_ms,
            gone,
        },
    )
}

#[test]
fn only_the_parts_that_differ_are_fetched() {
    let start = |n| Node::start(PeerId { node: NodeId(n), incarnation: 1 }, Memory::default());
    let (one, other) = (start(1), start(2));
    let key = |n: u64| (UserId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11), DeviceId(1));
    for n in 0..100_000 {
        let row = Session { node: 2, incarnation: 1, version: 1, ..Session::default() };
        other.table().merge(vec![(key(n), row)]).unwrap();
        if n % 1_000 != 0 {
            one.table().merge(vec![(key(n), row)]).unwrap();
        }
    }
    let fetched = || one.sessions.0.counters.merged.load(Relaxed);
    one.pull(&other);
    assert_eq!(fetched(), 100);
    assert_eq!(one.sessions.digest(), other.sessions.digest());
}

#[test]
fn a_session_ends_only_the_row_that_is_its_own() {
    let start = |n| Node::start(PeerId { node: NodeId(n), incarnation: 1 }, Memory::default());
    let (one, other) = (start(1), start(2));
    let (user, device) = key(0);
    let online = |row: &mut Session| row.online = true;
    let first = one.sessions.claim(user, device, online).unwrap();
    other.table().merge(vec![((user, device), first)]).unwrap();
    let second = other.sessions.claim(user, device, online).unwrap();
    one.table().merge(vec![((user, device), second)]).unwrap();
    let late = one.sessions.write(user, device, |row| row.online = false).unwrap();
    assert_eq!(late, None);
    assert_eq!(one.row((user, device)), Some(second));
}

#[test]
fn a_tombstone_beats_what_was_there_and_is_dropped_in_time() {
    let node = Node::start(PeerId { node: NodeId(1), incarnation: 1 }, Memory::default());
    let (user, device) = key(0);
    let before = node.sessions.claim(user, device, |row| row.online = true).unwrap();
    assert!(node.sessions.remove(user, device).unwrap());
    assert!(!node.sessions.remove(user, device).unwrap(), "there is nothing left to remove");
    node.table().merge(vec![((user, device), before)]).unwrap();
    assert_eq!(node.sessions.get(user, device).unwrap(), None);
    assert_eq!(node.sessions.figures().tombstones, 1);
    node.table().set_cutoff(NOW_MS + 1);
    node.purge();
    assert_eq!(node.sessions.figures(), SessionsFigures::default());
    assert_eq!(node.sessions.digest(), digest::Digest::default().whole());
}

#[test]
fn a_tombstone_is_kept_even_if_the_clock_was_set_back() {
    let node = Node::start(PeerId { node: NodeId(1), incarnation: 1 }, Memory::default());
    let (user, device) = key(0);
    node.table().set_cutoff(NOW_MS + 5);
    node.sessions.claim(user, device, |row| row.online = true).unwrap();
    node.sessions.remove(user, device).unwrap();
    assert!(node.row((user, device)).is_some_and(|row| row.gone && row.last_seen_ms > NOW_MS));
    node.purge();
    assert_eq!(node.sessions.figures().tombstones, 1);
}

#[test]
fn who_is_not_there_is_not_away() {
    let node = Node::start(PeerId { node: NodeId(1), incarnation: 1 }, Memory::default());
    let (user, device) = key(0);
    node.sessions.claim(user, device, |row| (row.online, row.away) = (true, true)).unwrap();
    let row = node.sessions.write(user, device, |row| row.online = false).unwrap().unwrap();
    assert!(!row.away, "or it would beat the same row put offline");
    let theirs = Session { node: 2, version: 9, away: true, ..Session::default() };
    node.table().merge(vec![((user, device), theirs)]).unwrap();
    assert_eq!(node.row((user, device)), Some(Session { away: false, ..theirs }));
}

#[test]
fn rows_of_one_device_in_one_batch_count_as_if_they_came_one_by_one() {
    let start = || Node::start(PeerId { node: NodeId(1), incarnation: 1 }, Memory::default());
    let (one, other) = (start(), start());
    let row =
        |version| Session { node: 2, incarnation: 1, version, online: true, ..Session::default() };
    let rows = [2, 5, 3, 5, 6].map(|version| (key(7), row(version)));
    let together = one.table().merge(rows.to_vec()).unwrap();
    let singly = rows.map(|row| other.table().merge(vec![row]).unwrap()).concat();
    assert_eq!(together, singly);
    assert_eq!(one.row(key(7)), Some(row(6)));
    assert_eq!(one.sessions.figures().rows, 1);
    assert_eq!(one.sessions.digest(), other.sessions.digest());
}
