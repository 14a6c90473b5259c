//! Opening the links of a node, and running them.
//!
//! [`open()`] takes the port and gives the doors at once; the [`Runner`] is a child of the node's tree.
//! It starts a `ractor_cluster` node server, the actor `peer`, the listener and the dialer, and ends
//! when one of them does, so that its supervisor starts all of them anew.
//!
//! # Invariants
//! 1. A node without a port that knows of no other node starts nothing.
//! 2. When a run ends its links are down, and the service was told so.

use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::cluster::Hello;
use ractor::{Actor, ActorCell, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{NodeServer, NodeServerMessage};
use supervision::{ChildSpec, Stopping, TaskGroup};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, timeout};

use crate::connections::handshake::Handshakes;
use crate::connections::hub::Hub;
use crate::connections::inlet::Inlet;
use crate::connections::peer::{Desk, Events, Peer, PeerMsg};
use crate::connections::switchboard::{Pace, Parts, Switchboard};
use crate::counters::Counts;
use crate::dialer::dial;
use crate::discovery::greeting::session_name;
use crate::door::{PeerId, Peers, Service};
use crate::limits::{FRAME_BYTES_MAX, HEARTBEAT, SCHEMA, SCHEMA_MIN, SILENCE};
use crate::listener::{bind, listen};
use crate::security::identity::{Identity, IdentityError};
use crate::security::tls::{Tls, TlsError};

/// How long the end of a run waits for its actors.
const END_WAIT: Duration = Duration::from_secs(2);

/// How a node is linked to others.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where nodes reach this one; port 0 for any. `None`: it only dials.
    pub listen: Option<SocketAddr>,
    /// HOST:PORT of nodes to begin with. Names are looked up at each try.
    pub seeds: Vec<String>,
    /// Longest time for which nothing is sent. Default 200 ms, at least 10 ms.
    pub heartbeat: Duration,
    /// How long a peer may be silent before it is down. Default 1.5 s; several heartbeats.
    pub silence: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: None, seeds: Vec::new(), heartbeat: HEARTBEAT, silence: SILENCE }
    }
}

/// What this node says of itself.
#[derive(Clone, Debug, Default)]
pub struct Me {
    /// Which start of the node; grows with each.
    pub incarnation: u64,
    /// For people.
    pub name: String,
    /// Where nodes reach it, HOST:PORT. Empty: where it listens.
    pub address: String,
    /// Where clients reach it, HOST:PORT.
    pub client_address: String,
    /// The same for clients that speak WebSocket.
    pub websocket_address: String,
    /// Empty if there are no zones.
    pub zone: String,
    /// Of the program.
    pub version: String,
}

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the port.
    #[error(
        "cluster.listen {address}: the port is taken; stop the other process, or set another port (0 for any)"
    )]
    Taken {
        /// Its value.
        address: SocketAddr,
    },
    /// The address is not this machine's, or the port needs more rights.
    #[error(
        "cluster.listen {address}: cannot listen there; set an address of this machine and a port above 1023"
    )]
    Refused {
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No keys or certificates.
    #[error("the cluster's TLS cannot be set up")]
    Tls(#[from] TlsError),
}

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An actor did not start.
    #[error("the links cannot be started: {0}")]
    Start(String),
    /// An actor ended.
    #[error("{0} ended")]
    Ended(&'static str),
    /// No keys.
    #[error("the keys of the cluster cannot be used")]
    Identity(#[from] IdentityError),
}

/// The links of a node.
#[derive(Debug)]
pub struct Opened {
    /// For all who speak to other nodes.
    pub peers: Peers,
    /// For the node itself.
    pub port: Port,
    /// For its tree.
    pub runner: Runner,
}

/// This node's own end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Port {
    hub: Arc<Hub>,
    hello: Arc<Mutex<Hello>>,
    bound: Option<SocketAddr>,
}

impl Port {
    /// Where the node listens, with the real port.
    pub fn bound(&self) -> Option<SocketAddr> {
        self.bound
    }

    /// What other nodes are told, HOST:PORT.
    pub fn address(&self) -> String {
        self.hello().address.clone()
    }

    /// Sets where clients reach this node, HOST:PORT, over TCP and over WebSocket. Told on links that
    /// begin from here on.
    pub fn set_client_addresses(&self, tcp: String, websocket: String) {
        let mut hello = self.hello();
        (hello.client_address, hello.websocket_address) = (tcp, websocket);
    }

    /// Looks for a node at HOST:PORT from here on, as if it had been among the seeds.
    pub fn add_seed(&self, seed: String) {
        self.hub.change_wanted(|wanted| {
            if !wanted.seeds.contains(&seed) {
                wanted.seeds.push(seed);
            }
        });
    }

    /// What the links counted.
    pub fn counts(&self) -> Counts {
        self.hub.counters.counts()
    }

    fn hello(&self) -> parking_lot::MutexGuard<'_, Hello> {
        self.hello.lock()
    }
}

/// The running part. Cheap to clone; only one may run at a time.
#[derive(Clone)]
pub struct Runner {
    port: Port,
    socket: Option<Arc<TcpListener>>,
    identity: Identity,
    tls: Tls,
    pace: Pace,
}

impl fmt::Debug for Runner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Runner").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Takes the port, if there is one to take, and gives the doors. Nothing is sent or accepted before
/// [`Runner::run`]. Needs a tokio runtime around it.
///
/// # Errors
/// [`OpenError`] names the setting and the cure.
pub fn open(config: Config, identity: Identity, me: Me) -> Result<Opened, OpenError> {
    let tls = Tls::new(&identity)?;
    let socket = match config.listen {
        Some(address) => Some(Arc::new(bind(address).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                OpenError::Taken { address }
            } else {
                OpenError::Refused { address, source }
            }
        })?)),
        None => None,
    };
    let bound = socket.as_ref().and_then(|socket| socket.local_addr().ok());
    let address = match bound {
        Some(bound) if me.address.is_empty() => bound.to_string(),
        Some(_) | None => me.address,
    };
    let id = PeerId { node: identity.node(), incarnation: me.incarnation };
    let hello = Hello {
        schema: SCHEMA,
        schema_min: SCHEMA_MIN,
        node: id.node.0,
        incarnation: id.incarnation,
        name: me.name,
        address,
        zone: me.zone,
        version: me.version,
        client_address: me.client_address,
        websocket_address: me.websocket_address,
        heard: false,
        later: 0,
    };
    let hub = Arc::new(Hub::new(id, config.seeds));
    let port = Port { hub: Arc::clone(&hub), hello: Arc::new(Mutex::new(hello)), bound };
    let heartbeat = config.heartbeat.max(Duration::from_millis(10));
    let pace = Pace { heartbeat, silence: config.silence };
    let runner = Runner { port: port.clone(), socket, identity, tls, pace };
    Ok(Opened { peers: hub, port, runner })
}

impl Runner {
    /// The running part as a child of a supervisor. `service` is told of peers and parcels.
    pub fn into_child(self, name: &'static str, service: Arc<dyn Service>) -> ChildSpec {
        ChildSpec::task(name, move |stopping| {
            let (runner, service) = (self.clone(), Arc::clone(&service));
            async move { Ok(runner.run(service, stopping).await?) }
        })
    }

    /// Runs the links until `stopping`.
    ///
    /// # Errors
    /// [`RunError`]: something ended that must not; run it again.
    pub async fn run(&self, service: Arc<dyn Service>, stopping: Stopping) -> Result<(), RunError> {
        while self.knows_nobody() {
            tokio::select! {
                () = stopping.wait() => return Ok(()),
                () = self.port.hub.bell.notified() => {}
            }
        }
        Box::pin(self.run_links(service, stopping)).await
    }

    fn knows_nobody(&self) -> bool {
        let wanted = self.port.hub.wanted();
        let me = self.port.hub.me.node;
        let others = wanted.learned.iter().any(|(node, _)| *node != me);
        self.socket.is_none() && wanted.seeds.is_empty() && !others
    }

    #[allow(clippy::disallowed_methods, reason = "the run ends with them, and they with the run")]
    async fn run_links(
        &self,
        service: Arc<dyn Service>,
        stopping: Stopping,
    ) -> Result<(), RunError> {
        let hub = &self.port.hub;
        let failed = |error: ractor::SpawnErr| RunError::Start(error.to_string());
        // Every node needs a host name of its own: `ractor_cluster` takes equal ones for itself.
        let server = NodeServer::new(
            0,
            self.identity.ractor_cookie()?,
            "natter".to_owned(),
            session_name(hub.me),
            None,
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(FRAME_BYTES_MAX as u64);
        let (server, mut server_ended) = Actor::spawn(None, server, ()).await.map_err(failed)?;
        let _server = StopOnDrop(server.get_cell());
        close_inner_port(&server).await;

        let switchboard = Arc::new(Mutex::new(Switchboard::new(Parts {
            hub: Arc::clone(hub),
            service,
            server: server.clone(),
            hello: Arc::clone(&self.port.hello),
            pace: self.pace,
        })));
        let inlet = Inlet::new(&switchboard, Arc::clone(&hub.counters));
        let desk = Desk { switchboard, inlet: inlet.clone() };
        let (peer, mut peer_ended) = Actor::spawn(None, Peer, desk).await.map_err(failed)?;
        let _peer = StopOnDrop(peer.get_cell());
        let subscription = Box::new(Events(peer.clone()));
        let subscribe =
            NodeServerMessage::SubscribeToEvents { id: "natter".to_owned(), subscription };
        server.cast(subscribe).map_err(|_gone| RunError::Ended("the node server"))?;

        let tasks = TaskGroup::new();
        let handshakes = Arc::new(Handshakes::new(self.tls.clone(), inlet, tasks.clone()));
        let outcome = tokio::select! {
            () = stopping.wait() => Ok(()),
            _ended = &mut server_ended => Err(RunError::Ended("the node server")),
            _ended = &mut peer_ended => Err(RunError::Ended("the actor `peer`")),
            () = self.listen(Arc::clone(&handshakes), peer.clone(), tasks.clone()) => {
                Err(RunError::Ended("the listener"))
            }
            () = dial(Arc::clone(hub), handshakes, peer.clone(), tasks.clone()) => {
                Err(RunError::Ended("the dialer"))
            }
            () = beat(peer.clone(), self.pace.tick()) => Err(RunError::Ended("the ticker")),
        };
        tasks.finish(Duration::ZERO).await;
        peer.stop(None);
        // Once it is gone its connections are cut, and the sessions of the node server end.
        if !peer_ended.is_finished() {
            drop(timeout(END_WAIT, &mut peer_ended).await);
        }
        server.stop(None);
        if !server_ended.is_finished() {
            drop(timeout(END_WAIT, &mut server_ended).await);
        }
        outcome
    }

    async fn listen(&self, handshakes: Arc<Handshakes>, peer: ActorRef<PeerMsg>, tasks: TaskGroup) {
        match &self.socket {
            Some(socket) => listen(socket, handshakes, peer, tasks).await,
            None => std::future::pending().await,
        }
    }
}

/// Ends the listener that `ractor_cluster` opens on a loopback port. Nodes come through our own port, by
/// TLS; there strangers of this machine would be let in without limit and kept without end.
async fn close_inner_port(server: &ActorRef<NodeServerMessage>) {
    let cell = server.get_cell();
    // It is the only child before the first connection. Unlinked, it is not started again.
    for listener in cell.get_children() {
        listener.unlink(cell.clone());
        drop(listener.kill_and_wait(Some(END_WAIT)).await);
    }
}

/// Tells the actor to beat, never twice before it has done so.
async fn beat(peer: ActorRef<PeerMsg>, every: Duration) {
    let due = Arc::new(AtomicBool::new(false));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !due.swap(true, Ordering::Relaxed) {
            drop(peer.cast(PeerMsg::TickDue(Arc::clone(&due)))); // If it is gone, the run ends.
        }
    }
}

/// Stops an actor even if the run is dropped.
struct StopOnDrop(ActorCell);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(None);
    }
}

#[cfg(test)]
mod tests {
    use supervision::StopSource;

    use super::*;
    use crate::door::{PeerInfo, Respond};

    struct Nobody;

    impl Service for Nobody {
        fn up(&self, _peer: PeerInfo) {}
        fn down(&self, _peer: PeerId) {}
        fn cast(&self, _from: PeerId, _parcel: bytes::Bytes) {}
        fn call(&self, _: PeerId, _: bytes::Bytes, _: Duration, _respond: Respond) {}
    }

    fn identity() -> Identity {
        Identity::new(&[1; 32], "a cookie").unwrap()
    }

    fn listening(at: &str) -> Config {
        Config { listen: Some(at.parse().unwrap()), ..Config::default() }
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let first = open(listening("127.0.0.1:0"), identity(), Me::default()).unwrap();
        let address = first.port.address();
        let error = open(listening(&address), identity(), Me::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("cluster.listen {address}")), "{text}");
        assert!(text.contains("taken"), "{text}");
    }

    #[tokio::test]
    async fn what_is_advertised_wins_over_where_we_listen() {
        let me = Me { address: "ada.example:7403".to_owned(), ..Me::default() };
        let opened = open(listening("127.0.0.1:0"), identity(), me).unwrap();
        assert_eq!(opened.port.address(), "ada.example:7403");
        assert_ne!(opened.port.bound().unwrap().port(), 0);
    }

    #[tokio::test]
    async fn a_node_alone_starts_no_actor_and_ends_when_told() {
        let opened = open(Config::default(), identity(), Me::default()).unwrap();
        let (source, stopping) = StopSource::new();
        let run = opened.runner.run(Arc::new(Nobody), stopping);
        let look = async {
            tokio::task::yield_now().await;
            assert!(ractor::registry::registered().is_empty());
            assert!(
                ractor::pg::get_members(&crate::connections::peer::GROUP.to_owned()).is_empty()
            );
            assert!(opened.peers.is_alone());
            source.fire();
        };
        let (ran, ()) = tokio::join!(run, look);
        ran.unwrap();
    }
}
