//! What is where in a network in memory: nodes, links between them, what is due when.
//!
//! Locked as a whole by [`super::Network`]; the clock is handed in.
//!
//! # Invariants
//! 1. A link has a number of its own; what was sent on another one is dropped on arrival.
//! 2. A pair has a link when both are attached and nothing is cut, or the cut is not noticed yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::NodeId;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::door::{CallError, PeerId, PeerInfo};

/// Most that may wait for one node; the real links count bytes instead.
const WAITING_MAX: usize = 100_000;

type Waiting = oneshot::Sender<Result<Bytes, CallError>>;
type Pair = (NodeId, NodeId);

/// What is handed to a node.
pub(super) enum Arrival {
    Up(PeerInfo),
    Down(PeerId, Vec<Waiting>),
    Cast(PeerId, Bytes),
    Request { from: PeerId, call: u64, link: u64, parcel: Bytes, deadline: Instant },
    Response(Waiting, Bytes),
}

/// What a node's task does next.
pub(super) enum Next {
    Now(Arrival),
    At(Instant, Arc<Notify>),
    Quiet(Arc<Notify>),
    Gone,
}

enum Event {
    Up,
    Down,
    Cast(Bytes),
    Request { call: u64, parcel: Bytes, deadline: Instant },
    Response { call: u64, answer: Bytes },
}

/// Ordered by time, then by number.
struct Due {
    at: Instant,
    number: u64,
    from: PeerInfo,
    link: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Node {
    info: PeerInfo,
    attached: bool,
    due: BinaryHeap<Reverse<Due>>,
    bell: Arc<Notify>,
    /// The peers that this node was told of, and the link to each.
    up: BTreeMap<NodeId, (PeerInfo, u64)>,
    /// Calls of this node: the link they went out on, and who waits.
    calls: HashMap<u64, (u64, Waiting)>,
}

struct Link {
    number: u64,
    breaks_at: Option<Instant>,
}

/// All of a network.
pub(super) struct State {
    rng: StdRng,
    pub(super) loss: f64,
    pub(super) delay: RangeInclusive<Duration>,
    pub(super) silence: Duration,
    number: u64,
    nodes: BTreeMap<NodeId, Node>,
    cuts: BTreeSet<Pair>,
    links: BTreeMap<Pair, Link>,
}

fn pair(a: NodeId, b: NodeId) -> Pair {
    (a.min(b), a.max(b))
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            delay: Duration::ZERO..=Duration::ZERO,
            silence: crate::SILENCE,
            number: 0,
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            links: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, info: PeerInfo, now: Instant) {
        let node = info.id.node;
        self.remove(node, now);
        let fresh = Node {
            info,
            attached: false,
            due: BinaryHeap::new(),
            bell: Arc::default(),
            up: BTreeMap::new(),
            calls: HashMap::new(),
        };
        self.nodes.insert(node, fresh);
    }

    pub(super) fn remove(&mut self, node: NodeId, now: Instant) {
        let pairs: Vec<Pair> =
            self.links.keys().filter(|(a, b)| *a == node || *b == node).copied().collect();
        for (a, b) in pairs {
            self.break_link(a, b, now);
            self.links.remove(&(a, b));
        }
        if let Some(gone) = self.nodes.remove(&node) {
            gone.bell.notify_one();
        }
    }

    /// Whether that start of the node is still there.
    pub(super) fn attach(&mut self, me: PeerId, now: Instant) -> bool {
        let Some(node) = self.nodes.get_mut(&me.node).filter(|node| node.info.id == me) else {
            return false;
        };
        let fresh = !node.attached;
        node.attached = true;
        let others: Vec<NodeId> = self.nodes.keys().copied().collect();
        for other in others {
            self.connect(me.node, other, now);
        }
        fresh
    }

    fn connect(&mut self, a: NodeId, b: NodeId, now: Instant) {
        let attached = |node| self.nodes.get(node).is_some_and(|node: &Node| node.attached);
        let is_cut = self.cuts.contains(&(a, b)) || self.cuts.contains(&(b, a));
        let known = self.links.contains_key(&pair(a, b));
        if a == b || is_cut || known || !attached(&a) || !attached(&b) {
            return;
        }
        self.number += 1;
        let link = self.number;
        self.links.insert(pair(a, b), Link { number: link, breaks_at: None });
        let at = now + self.travel();
        self.enqueue(a, b, (at, link), Event::Up);
        self.enqueue(b, a, (at, link), Event::Up);
    }

    fn break_link(&mut self, a: NodeId, b: NodeId, at: Instant) {
        let Some(link) = self.links.get_mut(&pair(a, b)) else { return };
        link.breaks_at = Some(at);
        let number = link.number;
        self.enqueue(a, b, (at, number), Event::Down);
        self.enqueue(b, a, (at, number), Event::Down);
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId, now: Instant) {
        let fresh = self.cuts.insert((from, to));
        let whole = self.links.get(&pair(from, to)).is_some_and(|link| link.breaks_at.is_none());
        if fresh && whole {
            self.break_link(from, to, now + self.silence);
        }
    }

    pub(super) fn heal(&mut self, a: NodeId, b: NodeId, now: Instant) {
        self.cuts.remove(&(a, b));
        self.cuts.remove(&(b, a));
        match self.links.get_mut(&pair(a, b)) {
            Some(link) if link.breaks_at.is_some_and(|at| now < at) => {
                link.breaks_at = None;
                let number = link.number;
                for node in [a, b] {
                    if let Some(node) = self.nodes.get_mut(&node) {
                        node.due.retain(|Reverse(due)| {
                            due.link != number || !matches!(due.event, Event::Down)
                        });
                    }
                }
            }
            Some(link) if link.breaks_at.is_none() => {}
            Some(_) | None => {
                self.links.remove(&pair(a, b));
                self.connect(a, b, now);
            }
        }
    }

    pub(super) fn heal_all(&mut self, now: Instant) {
        let cuts: Vec<Pair> = self.cuts.iter().copied().collect();
        for (a, b) in cuts {
            self.heal(a, b, now);
        }
    }

    fn travel(&mut self) -> Duration {
        let (least, most) = (*self.delay.start(), *self.delay.end());
        if least >= most { least } else { self.rng.random_range(least..=most) }
    }

    /// False if there is no room or nobody.
    fn enqueue(
        &mut self,
        from: NodeId,
        to: NodeId,
        (at, link): (Instant, u64),
        event: Event,
    ) -> bool {
        let Some(from) = self.nodes.get(&from).map(|node| node.info.clone()) else { return false };
        self.number += 1;
        let number = self.number;
        let Some(node) = self.nodes.get_mut(&to) else { return false };
        let is_parcel = !matches!(event, Event::Up | Event::Down);
        if is_parcel && node.due.len() >= WAITING_MAX {
            return false;
        }
        node.due.push(Reverse(Due { at, number, from, link, event }));
        node.bell.notify_one();
        true
    }

    /// Sends a parcel on a link: it may be cut or lost. False if it cannot even be sent.
    fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        (now, link): (Instant, u64),
        event: Event,
    ) -> bool {
        let at = now + self.travel();
        if self.rng.random_bool(self.loss) || self.cuts.contains(&(from, to)) {
            return true;
        }
        self.enqueue(from, to, (at, link), event)
    }

    /// The link that this start of a node has to another one.
    fn link(&self, from: PeerId, to: NodeId) -> Option<u64> {
        let node = self.nodes.get(&from.node).filter(|node| node.info.id == from)?;
        node.up.get(&to).map(|(_, link)| *link)
    }

    pub(super) fn cast(&mut self, from: PeerId, to: NodeId, parcel: Bytes, now: Instant) -> bool {
        let Some(link) = self.link(from, to) else { return false };
        self.send(from.node, to, (now, link), Event::Cast(parcel))
    }

    pub(super) fn call(
        &mut self,
        from: PeerId,
        to: NodeId,
        (parcel, deadline): (Bytes, Instant),
        waiting: Waiting,
    ) -> Result<u64, CallError> {
        let link = self.link(from, to).ok_or(CallError::NotUp)?;
        self.number += 1;
        let call = self.number;
        let request = Event::Request { call, parcel, deadline };
        if !self.send(from.node, to, (Instant::now(), link), request) {
            return Err(CallError::Full);
        }
        if let Some(node) = self.nodes.get_mut(&from.node) {
            node.calls.insert(call, (link, waiting));
        }
        Ok(call)
    }

    pub(super) fn forget(&mut self, me: PeerId, call: u64) {
        if let Some(node) = self.nodes.get_mut(&me.node).filter(|node| node.info.id == me) {
            node.calls.remove(&call);
        }
    }

    pub(super) fn respond(
        &mut self,
        me: PeerId,
        to: PeerId,
        (link, call): (u64, u64),
        (answer, now): (Bytes, Instant),
    ) {
        if self.link(me, to.node) == Some(link) {
            self.send(me.node, to.node, (now, link), Event::Response { call, answer });
        }
    }

    pub(super) fn up(&self, me: PeerId) -> Vec<PeerInfo> {
        let node = self.nodes.get(&me.node).filter(|node| node.info.id == me);
        node.map(|node| node.up.values().map(|(info, _)| info.clone()).collect())
            .unwrap_or_default()
    }

    pub(super) fn next(&mut self, me: PeerId, now: Instant) -> Next {
        let Some(node) = self.nodes.get_mut(&me.node).filter(|node| node.info.id == me) else {
            return Next::Gone;
        };
        loop {
            match node.due.peek() {
                None => return Next::Quiet(Arc::clone(&node.bell)),
                Some(Reverse(due)) if due.at > now => {
                    return Next::At(due.at, Arc::clone(&node.bell));
                }
                Some(Reverse(_)) => {}
            }
            if let Some(Reverse(due)) = node.due.pop()
                && let Some(arrival) = node.arrive(due)
            {
                return Next::Now(arrival);
            }
        }
    }
}

impl Node {
    fn arrive(&mut self, due: Due) -> Option<Arrival> {
        let Due { from, link, event, .. } = due;
        let id = from.id;
        if let Event::Up = event {
            self.up.insert(id.node, (from.clone(), link));
            return Some(Arrival::Up(from));
        }
        if self.up.get(&id.node).is_none_or(|(_, now)| *now != link) {
            return None;
        }
        match event {
            Event::Up => None,
            Event::Down => {
                self.up.remove(&id.node);
                let broken: Vec<u64> = self
                    .calls
                    .iter()
                    .filter(|(_, (on, _))| *on == link)
                    .map(|(call, _)| *call)
                    .collect();
                let calls = broken.iter().filter_map(|call| self.calls.remove(call));
                Some(Arrival::Down(id, calls.map(|(_, waiting)| waiting).collect()))
            }
            Event::Cast(parcel) => Some(Arrival::Cast(id, parcel)),
            Event::Request { call, parcel, deadline } => {
                Some(Arrival::Request { from: id, call, link, parcel, deadline })
            }
            Event::Response { call, answer } => {
                let (_, waiting) = self.calls.remove(&call)?;
                Some(Arrival::Response(waiting, answer))
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            node.bell.notify_one();
        }
    }
}
