//! All connections of a node: which are up, who may come in, what arrives on them.
//!
//! ```text
//! listener, dialer --Connected--> [waits for a dying session of the same node] --> ractor_cluster
//!   --SessionReady--> our hello goes out, until it is answered
//!   --their hello--> up: their packets are taken   --their answer--> ours are sent
//!   --silence, end, newer start--> down
//! ```
//!
//! Owned by the actor `peer`; packets come straight from the wires, under its lock.
//!
//! # Invariants
//! 1. A connection is known by a number that both ends derive from its TLS keys: a packet without it
//!    is dropped, so nothing of an earlier connection or of someone else gets in.
//! 2. A node is up once, with its newest incarnation; an older one never comes back.
//! 3. `up` comes before a peer's parcels and `down` before its next `up`, also when this ends.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::NodeId;
use proto::cluster::{Hello, Packet};
use proto::names::printable;
use ractor::{ActorId, ActorRef};
use ractor_cluster::{ClusterBidiStream, NodeServerMessage};
use tracing::{debug, error, info, warn};

use crate::connections::hub::Hub;
use crate::connections::peer::{GROUP, PeerMsg};
use crate::connections::route::{Clock, Route, Stamp};
use crate::connections::wire::Tap;
use crate::counters::add;
use crate::discovery::greeting::{self, parse_session_name};
use crate::door::{Lane, PeerId, Service};
use crate::lanes::inbox::Inbox;
use crate::lanes::parcel::{Kind, Parcel};
use crate::limits::{ACKNOWLEDGE_BYTES, GREETING_WAIT, SCHEMA, SCHEMA_MIN};

/// Ticks of silence after which a connection gives way to a new one of the same node.
const SUSPECT_TICKS: u32 = 3;

/// Starts of peers that were refused and are remembered, so as to warn of each once.
const REFUSED_MAX: usize = 1_024;

/// Whole ticks for which a refused connection stays, so that the peer hears why: a hello takes one way.
const PARTING_TICKS: u32 = 3;

/// Least time between two errors about another process with this node's key.
const SAY_EVERY_MS: u64 = 60_000;

/// A connection that has shaken hands.
pub(crate) struct Connected {
    /// For `ractor_cluster`.
    pub(crate) stream: Box<dyn ClusterBidiStream>,
    /// Names the connection within this process.
    pub(crate) label: String,
    /// Names it at both ends.
    pub(crate) link: u64,
    /// Whom its certificate proves.
    pub(crate) node: NodeId,
    /// Where it comes from or goes to.
    pub(crate) source: IpAddr,
    /// Whether we dialed.
    pub(crate) dialed: bool,
    pub(crate) tap: Arc<Tap>,
}

struct Connection {
    link: u64,
    node: NodeId,
    source: IpAddr,
    tap: Arc<Tap>,
    /// What `ractor_cluster` says it is, once it is ready, and how to send.
    session: Option<(PeerId, Arc<Route>)>,
    hello: Option<Hello>,
    up: Option<PeerId>,
    inbox: Inbox,
    given_up: u64,
    unacknowledged: usize,
    silent_ticks: u32,
    age_ticks: u32,
    /// Refused: ticks until it is closed, in which the peer hears why.
    parting_ticks: Option<u32>,
}

/// How fast it must be noticed that a peer hangs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) heartbeat: Duration,
    pub(crate) silence: Duration,
}

impl Pace {
    /// How often [`Switchboard::tick`] must be called.
    pub(crate) fn tick(self) -> Duration {
        (self.heartbeat / 2).max(Duration::from_millis(5))
    }

    fn ticks(self, wait: Duration) -> u32 {
        let ticks = wait.as_millis().div_ceil(self.tick().as_millis().max(1));
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    }
}

/// What a switchboard needs.
pub(crate) struct Parts {
    pub(crate) hub: Arc<Hub>,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) server: ActorRef<NodeServerMessage>,
    pub(crate) hello: Arc<Mutex<Hello>>,
    pub(crate) pace: Pace,
}

impl Parts {
    fn hello(&self) -> Hello {
        self.hello.lock().clone()
    }
}

/// All connections.
pub(crate) struct Switchboard {
    parts: Parts,
    clock: Clock,
    connections: BTreeMap<String, Connection>,
    labels: HashMap<u64, String>,
    /// Cut, but `ractor_cluster` has not let go yet.
    dying: BTreeMap<String, (NodeId, u32)>,
    held: Vec<Connected>,
    floors: BTreeMap<NodeId, u64>,
    refused: BTreeSet<PeerId>,
    /// When people were told that another process has this node's key.
    copy_said_ms: Option<u64>,
}

impl Switchboard {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            clock: Clock::start(),
            connections: BTreeMap::new(),
            labels: HashMap::new(),
            dying: BTreeMap::new(),
            held: Vec::new(),
            floors: BTreeMap::new(),
            refused: BTreeSet::new(),
            copy_said_ms: None,
        }
    }

    /// A handshake succeeded.
    pub(crate) fn connected(&mut self, fresh: Connected) {
        let node = fresh.node;
        if node == self.parts.hub.me.node {
            debug!("this node was dialed by itself, or by another one with its key");
            return;
        }
        let of_node = |connection: &&Connection| connection.node == node && connection.up.is_some();
        if let Some(now) = self.connections.values().find(of_node) {
            if now.silent_ticks >= SUSPECT_TICKS {
                let label = self.labels.get(&now.link).cloned().unwrap_or_default();
                self.close(&label, "it gives way to a new connection");
            } else if fresh.dialed {
                debug!(peer = %node, "dialed a node that is connected");
                return;
            }
        }
        if self.dying.values().any(|(dying, _)| *dying == node) {
            self.held.push(fresh);
        } else {
            self.open(fresh);
        }
    }

    fn open(&mut self, fresh: Connected) {
        let Connected { stream, label, link, node, source, dialed, tap } = fresh;
        let connection = Connection {
            link,
            node,
            source,
            tap,
            session: None,
            hello: None,
            up: None,
            inbox: Inbox::new(),
            given_up: 0,
            unacknowledged: 0,
            silent_ticks: 0,
            age_ticks: 0,
            parting_ticks: None,
        };
        self.labels.insert(link, label.clone());
        self.connections.insert(label, connection);
        let is_server = !dialed;
        let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server };
        drop(self.parts.server.cast(opened)); // If it is gone, so are we in a moment.
    }

    /// `ractor_cluster`'s own handshake is done at both ends.
    pub(crate) fn ready(&mut self, label: &str, session: u64, name: &str) {
        let Some(connection) = self.connections.get_mut(label) else { return };
        let peer = parse_session_name(name).filter(|peer| peer.node == connection.node);
        let members = ractor::pg::get_members(&GROUP.to_owned());
        let remote = members.into_iter().filter_map(|member| match member.get_id() {
            ActorId::Remote { node_id, pid } if node_id == session => Some((pid, member)),
            ActorId::Remote { .. } | ActorId::Local(_) => None,
        });
        let (Some(peer), Some((_, actor))) = (peer, remote.max_by_key(|(pid, _)| *pid)) else {
            let name = printable(name);
            warn!(peer = %connection.node, name, "peer refused: its session is not its key's");
            return self.close(label, "refused");
        };
        let actor: ActorRef<PeerMsg> = actor.into();
        let greeter = Box::new(move |hello| drop(actor.cast(PeerMsg::Greeting(hello))));
        let bell = connection.tap.bell();
        let me = self.parts.hub.me;
        let stamp = Stamp { incarnation: me.incarnation, link: connection.link };
        let counters = Arc::clone(&self.parts.hub.counters);
        let route = Arc::new(Route::new((greeter, bell), stamp, self.clock, counters));
        connection.tap.tell(&route);
        route.greet(self.parts.hello());
        if connection.hello.is_some() {
            route.greet(Hello { heard: true, ..self.parts.hello() });
        }
        connection.session = Some((peer, route));
        self.greeted(label);
    }

    /// Up, if the session is ready and their hello is there.
    fn greeted(&mut self, label: &str) {
        let Some(connection) = self.connections.get_mut(label) else { return };
        let (Some((peer, route)), Some(hello)) = (&connection.session, &connection.hello) else {
            return;
        };
        if connection.up.is_some() || connection.parting_ticks.is_some() {
            return;
        }
        let (peer, route) = (*peer, Arc::clone(route));
        let schema = match greeting::agree((SCHEMA_MIN, SCHEMA), peer, hello) {
            Ok(schema) => schema,
            Err(refusal) => {
                return self.refuse(label, peer, &refusal.to_string());
            }
        };
        if let Some(later) = self.floors.get(&peer.node).filter(|floor| peer.incarnation < **floor)
        {
            connection.parting_ticks = Some(PARTING_TICKS);
            route.greet(Hello { later: *later, ..self.parts.hello() });
            return self.complain(peer, "a later start of it was seen");
        }
        let info = greeting::info(peer, schema, connection.source, hello.clone());
        connection.up = Some(peer);
        self.floors.insert(peer.node, peer.incarnation);
        let older = self.connections.iter().find(|(other, connection)| {
            connection.node == peer.node && connection.up.is_some() && *other != label
        });
        if let Some(older) = older.map(|(label, _)| label.clone()) {
            self.close(&older, "another connection took its place");
        }
        info!(peer = %peer.node, name = %info.name, address = info.address, schema, "peer is up");
        self.parts.hub.insert(info.clone(), route);
        self.parts.service.up(info);
    }

    /// Closes a connection for good reason; says so once for each start of a peer.
    fn refuse(&mut self, label: &str, peer: PeerId, reason: &str) {
        self.complain(peer, reason);
        self.close(label, "refused");
    }

    /// Says why a peer is refused.
    fn complain(&mut self, peer: PeerId, reason: &str) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        if self.refused.insert(peer) {
            warn!(peer = %peer.node, reason, "peer refused");
        }
    }

    /// A peer refuses us because it has seen a later start of this node: two processes have its key.
    fn refused_for(&mut self, label: &str, later: u64) {
        let Some(connection) = self.connections.get(label) else { return };
        if later <= self.parts.hub.me.incarnation {
            return;
        }
        let now_ms = self.clock.now_ms();
        if self.copy_said_ms.is_none_or(|at_ms| now_ms >= at_ms + SAY_EVERY_MS) {
            self.copy_said_ms = Some(now_ms);
            error!(
                peer = %connection.node,
                later,
                "another process runs with a copy of this data directory; it was seen with a later \
                 start: stop one of them, then restart the other"
            );
        }
        self.close(label, "it refuses us");
    }

    /// A packet came from somewhere.
    pub(crate) fn packet(&mut self, mut packet: Packet) {
        let Some(label) = self.labels.get(&packet.link).cloned() else {
            add(&self.parts.hub.counters.unknown, 1);
            return;
        };
        let hello = packet.hello.take();
        self.refused_for(&label, hello.as_ref().map_or(0, |hello| hello.later));
        let again = self.hear(&label, hello);
        self.greeted(&label);
        self.take(&label, packet);
        if let Some(route) = again {
            route.greet(Hello { heard: true, ..self.parts.hello() });
        }
    }

    /// Something was heard. The route, if it was a hello that must be answered.
    fn hear(&mut self, label: &str, hello: Option<Hello>) -> Option<Arc<Route>> {
        let connection = self.connections.get_mut(label)?;
        connection.silent_ticks = 0;
        let hello = hello?;
        let heard = hello.heard;
        connection.hello.get_or_insert(hello);
        let (_, route) = connection.session.as_ref()?;
        if heard {
            route.heard();
        }
        // An answer is not answered, or two nodes would greet each other for ever.
        (!heard).then(|| Arc::clone(route))
    }

    fn take(&mut self, label: &str, packet: Packet) {
        let Some(connection) = self.connections.get_mut(label) else { return };
        let up = connection.up.filter(|peer| peer.incarnation == packet.incarnation);
        let (Some(from), Some((_, route))) = (up, &connection.session) else {
            // A hello may well come before we are ready.
            if !packet.pieces.is_empty() {
                add(&self.parts.hub.counters.unknown, 1);
            }
            return;
        };
        let (service, clock) = (&self.parts.service, self.clock);
        let number = packet.number;
        let on_parcel = |lane, parcel| dispatch(service, from, route, (lane, parcel), clock);
        let cost = connection.inbox.take(number, packet.pieces, clock.now_ms(), on_parcel);
        connection.unacknowledged += cost;
        let owing = connection.unacknowledged >= ACKNOWLEDGE_BYTES;
        if owing {
            connection.unacknowledged = 0;
        }
        route.received(packet.acknowledged, connection.inbox.newest(), owing);
        let given_up = connection.inbox.given_up();
        add(&self.parts.hub.counters.incomplete, given_up - connection.given_up);
        connection.given_up = given_up;
    }

    /// `ractor_cluster` has let go of a session.
    pub(crate) fn ended(&mut self, label: &str) {
        self.close(label, "the connection ended");
        self.dying.remove(label);
        self.open_held();
    }

    fn open_held(&mut self) {
        for fresh in std::mem::take(&mut self.held) {
            self.connected(fresh);
        }
    }

    /// Heartbeats, and who missed them. Counted in ticks: if this process was stopped itself, that
    /// is nobody's silence.
    pub(crate) fn tick(&mut self) {
        let pace = self.parts.pace;
        let mut overdue = Vec::new();
        for (label, connection) in &mut self.connections {
            connection.silent_ticks += 1;
            connection.age_ticks += 1;
            if let Some(left) = &mut connection.parting_ticks {
                if *left == 0 {
                    overdue.push((label.clone(), "refused"));
                }
                *left = left.saturating_sub(1);
            } else if connection.up.is_none() && connection.age_ticks > pace.ticks(GREETING_WAIT) {
                overdue.push((label.clone(), "it did not say hello"));
            } else if connection.up.is_some() && connection.silent_ticks > pace.ticks(pace.silence)
            {
                overdue.push((label.clone(), "it is silent"));
            } else if let Some((_, route)) = &connection.session {
                if route.is_heard() {
                    route.beat(pace.heartbeat);
                } else {
                    route.greet(self.parts.hello());
                }
            }
        }
        for (label, reason) in overdue {
            self.close(&label, reason);
        }
        // `ractor_cluster` always lets go of a session; should it not, new ones must not wait for ever.
        self.dying.values_mut().for_each(|(_, age)| *age += 1);
        let patience = pace.ticks(GREETING_WAIT);
        let before = self.dying.len();
        self.dying.retain(|_, (_, age)| *age <= patience);
        if self.dying.len() < before {
            self.open_held();
        }
    }

    fn close(&mut self, label: &str, reason: &'static str) {
        let Some(connection) = self.connections.remove(label) else { return };
        self.labels.remove(&connection.link);
        self.dying.insert(label.to_owned(), (connection.node, 0));
        connection.tap.cut();
        if let Some((_, route)) = &connection.session {
            route.close();
        }
        if let Some(peer) = connection.up {
            self.parts.hub.remove(peer);
            warn!(peer = %peer.node, reason, "peer is down");
            self.parts.service.down(peer);
        } else {
            debug!(peer = %connection.node, reason, "connection closed");
        }
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        let labels: Vec<String> = self.connections.keys().cloned().collect();
        for label in labels {
            self.close(&label, "we stop");
        }
    }
}

fn dispatch(
    service: &Arc<dyn Service>,
    from: PeerId,
    route: &Arc<Route>,
    (lane, parcel): (Lane, Parcel),
    clock: Clock,
) {
    let Parcel { kind, bytes } = parcel;
    match kind {
        Kind::Cast => service.cast(from, bytes),
        Kind::Response { call } => route.answered(call, bytes),
        Kind::Request { call, deadline_ms } => {
            let left = Duration::from_millis(deadline_ms.saturating_sub(clock.now_ms()));
            let route = Arc::clone(route);
            let respond = Box::new(move |answer| {
                // Refused or closed: the caller hears of it by its own means.
                drop(route.offer(lane, Kind::Response { call }, answer));
            });
            service.call(from, bytes, left, respond);
        }
    }
}
