//! The second simulation: three nodes that tell each other who is connected where. The sessions
//! table, its comparisons, and the boxes of the links are the real ones; nodes die and forget what
//! was not flushed, links break, packets are lost, doubled and late.
//!
//! What must hold in the end: all tables are equal, their digests are those of their rows, whoever is
//! connected reads as online there and nobody else does. At all times: no row goes back.

mod link;
mod node;

use crate::chance::Chance;
use crate::seeds::Story;
use link::{Half, Rough};
use links::cores::Kind;
use links::{Lane, PeerId};
use node::{Disk, Node, Say};
use proto::cluster::Packet;
use proto::{DeviceId, NodeId, UserId};
use std::collections::BTreeMap;

const NODES: usize = 3;

/// How long a question waits for its answer, in ms.
const ANSWER_MS: u64 = 2_000;

/// Time until a comparison that failed is tried again, in ms.
const RETRY_MS: u64 = 300;

/// Within this time all must be equal when everything works again, in ms.
const PATIENCE_MS: u64 = 60_000;

/// First byte of a parcel: rows and questions about them, or something that only has to arrive whole.
const ROWS: u8 = 1;
const JUNK: u8 = 2;

enum Event {
    Tick,
    Compare,
    Work,
    Fault,
    Arrive { from: usize, to: usize, link: u64, packet: Box<Packet> },
    Again { node: usize, life: u64, peer: NodeId },
    Over { node: usize, life: u64, number: u64 },
    Down { node: usize, peer: usize, link: u64 },
    Up(usize, usize),
    Mend(usize, usize),
    Start(usize),
}

struct Link {
    number: u64,
    /// Who is at its other end.
    peer: PeerId,
    half: Half,
}

struct World {
    chance: Chance,
    now: u64,
    order: u64,
    events: BTreeMap<(u64, u64), Event>,
    rough: Rough,
    nodes: Vec<Option<Node>>,
    disks: Vec<Disk>,
    lives: [u64; NODES],
    links: [[Option<Link>; NODES]; NODES],
    cut: [[bool; NODES]; NODES],
    link_numbers: u64,
    marks: u64,
    writes: usize,
    until: u64,
    tracing: bool,
}

/// Runs a seed. What went wrong, if something did.
pub(crate) fn run(seed: u64, tracing: bool) -> Result<Story, String> {
    let mut world = World::new(seed, tracing);
    world.run(world.until);
    world.heal();
    let end = world.now + PATIENCE_MS;
    loop {
        world.run(world.now + 1_000);
        match world.wrong() {
            None => return Ok(Story { messages: world.writes, events: world.order }),
            Some(wrong) if world.now >= end => return Err(wrong),
            Some(_) => {}
        }
    }
}

fn id(node: usize, life: u64) -> PeerId {
    PeerId { node: NodeId(node as u64 + 1), incarnation: life }
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap() - 1
}

impl World {
    fn new(seed: u64, tracing: bool) -> Self {
        let mut chance = Chance::new(seed);
        let until = chance.between(1_000, 12_000);
        let disks: Vec<Disk> = (0..NODES).map(|_| Disk::default()).collect();
        let node = |n: usize| Some(Node::new(id(n, 1), disks[n].clone()));
        let mut world = Self {
            rough: Rough { delay_ms: 5, ..Rough::default() },
            nodes: (0..NODES).map(node).collect(),
            disks,
            lives: [1; NODES],
            links: Default::default(),
            cut: Default::default(),
            link_numbers: 0,
            marks: 0,
            writes: 0,
            now: 0,
            order: 0,
            events: BTreeMap::new(),
            chance,
            until,
            tracing,
        };
        for event in [Event::Tick, Event::Compare, Event::Work, Event::Fault] {
            world.after(1, event);
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            world.after(10, Event::Up(a, b));
        }
        world
    }

    fn note(&self, say: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>6} ms  {}", self.now, say());
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + ms, self.order), event);
    }

    fn run(&mut self, until: u64) {
        while let Some(first) = self.events.first_entry().filter(|e| e.key().0 <= until) {
            self.now = first.key().0;
            let event = first.remove();
            self.happen(event);
            for node in 0..NODES {
                self.settle(node);
            }
        }
        self.now = until;
    }

    /// What is said is sent, as far as there is a link and room.
    fn settle(&mut self, me: usize) {
        let Some(node) = &mut self.nodes[me] else { return };
        node.now_ms = self.now;
        node.settle();
        let (sayings, again) = (std::mem::take(&mut node.says), std::mem::take(&mut node.again));
        for peer in again {
            self.after(RETRY_MS, Event::Again { node: me, life: self.lives[me], peer });
        }
        for (to, what) in sayings {
            let peers = (0..NODES).filter(|peer| to.is_none_or(|to| index(to) == *peer));
            for peer in peers.collect::<Vec<_>>() {
                self.say(me, peer, &what);
            }
        }
        for peer in 0..NODES {
            self.ship(me, peer);
        }
    }

    fn say(&mut self, me: usize, peer: usize, say: &Say) {
        self.marks += 1;
        let link = self.links[me][peer].as_mut();
        let deadline_ms = self.now + ANSWER_MS;
        let (kind, lane, body) = match say {
            Say::Cast(body) => (Kind::Cast, Lane::Normal, body),
            Say::Ask(call, body) => (Kind::Request { call: *call, deadline_ms }, Lane::Bulk, body),
        };
        let body = [&[ROWS], &body[..]].concat();
        let mark = self.marks;
        let sent = link.is_some_and(|link| link.half.push(lane, kind, &body, mark));
        if let Say::Ask(number, _) = say {
            let over = if sent { ANSWER_MS } else { 0 };
            self.after(over, Event::Over { node: me, life: self.lives[me], number: *number });
        }
    }

    fn ship(&mut self, me: usize, peer: usize) {
        let now = self.now;
        let Some(link) = &mut self.links[me][peer] else { return };
        let number = link.number;
        for packet in link.half.packets(now) {
            for late in self.rough.arrivals(&mut self.chance) {
                let packet = Box::new(packet.clone());
                self.after(late, Event::Arrive { from: me, to: peer, link: number, packet });
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.after(50, Event::Tick);
                let heartbeat = self.now.is_multiple_of(200) || self.chance.one_in(4);
                for link in self.links.iter_mut().flatten().flatten().filter(|_| heartbeat) {
                    link.half.heartbeat();
                }
            }
            Event::Compare => {
                let late = self.chance.between(500, 4_000);
                self.after(late, Event::Compare);
                for node in self.nodes.iter_mut().flatten() {
                    (1..=NODES as u64).for_each(|peer| node.compare(NodeId(peer)));
                }
            }
            Event::Work => self.work(),
            Event::Fault => self.fault(),
            Event::Arrive { from, to, link, packet } => self.arrive((from, to), link, *packet),
            Event::Again { node, life, peer } => {
                if self.lives[node] == life
                    && let Some(node) = &mut self.nodes[node]
                {
                    node.compare(peer);
                }
            }
            Event::Over { node, life, number } => {
                if self.lives[node] == life
                    && let Some(node) = &mut self.nodes[node]
                {
                    node.answered(number, None);
                }
            }
            Event::Down { node, peer, link } => self.down(node, peer, link),
            Event::Up(a, b) => self.up(a, b),
            Event::Mend(a, b) => self.cut[a][b] = false,
            Event::Start(node) => self.start(node),
        }
    }

    fn arrive(&mut self, (from, to): (usize, usize), number: u64, packet: Packet) {
        let now = self.now;
        let Some(link) = self.links[to][from].as_mut().filter(|link| link.number == number) else {
            return;
        };
        if self.cut[from][to] {
            return;
        }
        let whole = link.half.take(packet, now);
        let Some(node) = &mut self.nodes[to] else { return };
        for (kind, body) in whole {
            if body[0] == JUNK {
                continue;
            }
            match kind {
                Kind::Cast => node.cast(&body[1..]),
                Kind::Request { call, .. } => {
                    let answer = [&[ROWS], &node.request(&body[1..])[..]].concat();
                    self.marks += 1;
                    link.half.push(Lane::Bulk, Kind::Response { call }, &answer, self.marks);
                }
                Kind::Response { call } => node.answered(call, Some(&body[1..])),
            }
        }
    }

    // ---- Links and lives ---------------------------------------------------------------------

    /// Now and then: two nodes that can reach each other are linked.
    fn up(&mut self, a: usize, b: usize) {
        let late = self.chance.between(100, 500);
        self.after(late, Event::Up(a, b));
        let joined = !self.cut[a][b] && !self.cut[b][a];
        let free = self.links[a][b].is_none() && self.links[b][a].is_none();
        if !joined || !free || self.nodes[a].is_none() || self.nodes[b].is_none() {
            return;
        }
        self.link_numbers += 1;
        self.note(|| format!("{a} and {b} are linked"));
        for (me, other) in [(a, b), (b, a)] {
            let peer = id(other, self.lives[other]);
            let link = Link { number: self.link_numbers, peer, half: Half::default() };
            self.links[me][other] = Some(link);
            if let Some(node) = &mut self.nodes[me] {
                node.came(peer);
            }
        }
    }

    /// A node notices that a link is no more.
    fn down(&mut self, me: usize, peer: usize, number: u64) {
        let Some(link) = self.links[me][peer].take_if(|link| link.number == number) else { return };
        self.note(|| format!("{me} loses {peer}"));
        if let Some(node) = &mut self.nodes[me] {
            node.went(link.peer);
        }
    }

    fn break_link(&mut self, a: usize, b: usize) {
        for (me, peer) in [(a, b), (b, a)] {
            if let Some(number) = self.links[me][peer].as_ref().map(|link| link.number) {
                let late = self.chance.between(1, 1_500);
                self.after(late, Event::Down { node: me, peer, link: number });
            }
        }
    }

    fn crash(&mut self, node: usize) {
        if self.nodes[node].take().is_none() {
            return;
        }
        let lost = self.chance.one_in(2);
        self.note(|| format!("{node} dies, what was not flushed is lost: {lost}"));
        self.disks[node].crash(lost);
        for peer in (0..NODES).filter(|peer| *peer != node) {
            self.break_link(node, peer);
            self.links[node][peer] = None;
        }
        let late = self.chance.pick(&[20, 700, 4_000]);
        self.after(late, Event::Start(node));
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_none() {
            self.lives[node] += 1;
            let id = id(node, self.lives[node]);
            self.note(|| format!("{node} starts, incarnation {}", id.incarnation));
            self.nodes[node] = Some(Node::new(id, self.disks[node].clone()));
        }
    }

    // ---- What a seed does --------------------------------------------------------------------

    fn work(&mut self) {
        if self.now >= self.until {
            return;
        }
        let late = self.chance.pick(&[0, 3, 30, 200]);
        self.after(late, Event::Work);
        let user = self.chance.pick(&[1, 2, 3, 5, (1 << 43) + 1, (1 << 43) + 2, (1 << 52) + 9]);
        let key = (UserId(user), DeviceId(1 + u32::from(self.chance.one_in(3))));
        let me = self.chance.index(NODES);
        let what = self.chance.below(12);
        if what == 11 {
            return self.junk(me);
        }
        let since_ms = self.chance.next();
        let Some(node) = &mut self.nodes[me] else { return };
        node.now_ms = self.now;
        self.writes += 1;
        match what {
            0..5 => node.arrive(key, since_ms),
            5..8 => node.leave(key),
            8 => node.rest(key, true),
            9 => node.rest(key, false),
            _ if since_ms.is_multiple_of(3) => node.unlink(key),
            _ => node.flush(),
        }
    }

    /// Something large, in any lane: it must come out whole, and keep nothing else from coming.
    fn junk(&mut self, me: usize) {
        let peer = self.chance.index(NODES);
        let length = self.chance.pick(&[0, 100, 40_000, 150_000]);
        let mut body = vec![JUNK; length + 1];
        if let Some(last) = body.last_mut().filter(|_| length > 0) {
            *last = 9;
        }
        let lane = self.chance.pick(&[Lane::Urgent, Lane::Normal, Lane::Bulk]);
        self.marks += 1;
        if let Some(link) = &mut self.links[me][peer] {
            link.half.push(lane, Kind::Cast, &body, self.marks);
        }
    }

    fn fault(&mut self) {
        if self.now >= self.until {
            return;
        }
        let late = self.chance.between(100, 2_000);
        self.after(late, Event::Fault);
        let (a, b) = self.chance.pick(&[(0, 1), (0, 2), (1, 2)]);
        match self.chance.below(6) {
            0 => self.crash(a),
            1 => self.crash(b),
            2 => self.break_link(a, b),
            3 | 4 => {
                let both = self.chance.one_in(2);
                let length = self.chance.pick(&[100, 1_000, 5_000]);
                for (from, to) in [(a, b), (b, a)].into_iter().take(1 + usize::from(both)) {
                    self.cut[from][to] = true;
                    self.after(length, Event::Mend(from, to));
                }
                self.break_link(a, b);
            }
            _ => {
                self.rough = Rough {
                    loss_percent: self.chance.pick(&[0, 2, 20]),
                    double_percent: self.chance.pick(&[0, 10]),
                    delay_ms: self.chance.pick(&[1, 20, 150]),
                };
            }
        }
    }

    fn heal(&mut self) {
        self.note(|| "everything works again".to_owned());
        self.rough = Rough { delay_ms: 5, ..Rough::default() };
        self.cut = Default::default();
        (0..NODES).for_each(|node| self.start(node));
    }

    /// What is not yet as it must be.
    fn wrong(&self) -> Option<String> {
        let nodes: Vec<&Node> = self.nodes.iter().flatten().collect();
        if nodes.len() < NODES || !nodes.iter().all(|node| node.is_settled()) {
            return Some("a node does not come to rest".to_owned());
        }
        for node in &nodes {
            if node.table.digest().whole() != node.digest_anew() {
                return Some(format!("{:?}: the digest is not that of the rows", node.id));
            }
            if node.table.digest().whole() != nodes[0].table.digest().whole() {
                let (ours, theirs) = (node.rows(), nodes[0].rows());
                return Some(format!("tables differ: {ours:?} and {theirs:?}"));
            }
        }
        for (key, row) in nodes[0].rows() {
            for node in &nodes {
                let says = row.online && row.node == node.id.node.0;
                if says != node.here.contains(&key) {
                    return Some(format!("{:?} has {key:?}: {}, but: {row:?}", node.id, !says));
                }
                if row.online != node.table.standing().is_live(&row) {
                    return Some(format!("{:?} cannot reach {key:?}: {row:?}", node.id));
                }
            }
        }
        None
    }
}
