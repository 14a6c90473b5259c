//! The node's listeners: which ports are taken, and the children that serve them.

use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;

use supervision::{ChildSpec, ProcessError, Stopping, TaskGroup};
use tokio::net::{TcpListener, TcpSocket};

use crate::boot::Addresses;
use crate::client::connection;
use crate::client::reception::Reception;
use crate::config::{Address, NodeConfig};
use crate::listener::{self, Gate, ListenError, Listener, Origins, Proxies, Security};
use crate::observe::http::{self, Readiness};
use crate::observe::telemetry;
use crate::parts::Node;

/// A port that is taken. The first run uses the socket that was bound at start; a restart binds
/// the same address again.
#[derive(Clone, Debug)]
struct Port {
    key: &'static str,
    address: SocketAddr,
    bound: Arc<Mutex<Option<TcpListener>>>,
}

impl Port {
    fn open(key: &'static str, reserved: Option<TcpSocket>) -> anyhow::Result<Option<Self>> {
        let Some(socket) = reserved else { return Ok(None) };
        let address = socket.local_addr()?;
        let socket = listener::listen(key, socket, address)?;
        Ok(Some(Self { key, address, bound: Arc::new(Mutex::new(Some(socket))) }))
    }

    fn take(&self) -> Result<TcpListener, ListenError> {
        let bound = self.bound.lock().take();
        bound.map_or_else(|| listener::bind(self.key, self.address), Ok)
    }
}

/// The ports of the settings, taken from other processes before this one makes anything. Nobody is served
/// there yet.
#[derive(Debug)]
pub(crate) struct Reserved {
    client: Option<TcpSocket>,
    websocket: Option<TcpSocket>,
    plain: Option<TcpSocket>,
    http: Option<TcpSocket>,
    /// Held until the links listen there.
    _cluster: Option<TcpSocket>,
}

impl Reserved {
    /// Takes all ports of the configuration.
    ///
    /// # Errors
    /// [`ListenError`] names the setting and the cure.
    pub(crate) fn take(config: &NodeConfig) -> Result<Self, ListenError> {
        let take = |key, address: &Address| {
            address.0.map(|address| listener::reserve(key, address)).transpose()
        };
        let listen = &config.listen;
        Ok(Self {
            client: take("listen.client", &listen.client)?,
            websocket: take("listen.websocket", &listen.websocket)?,
            plain: take("listen.plain", &listen.plain)?,
            http: take("listen.http", &listen.http)?,
            _cluster: take("cluster.listen", &config.cluster.listen)?,
        })
    }
}

/// All ports of a node.
#[derive(Debug)]
pub(crate) struct Doors {
    clients: Vec<(Port, Security)>,
    http: Option<(Port, Readiness, telemetry::Metrics)>,
    gate: Gate,
    proxies: Proxies,
    reception: Arc<Reception>,
    connections: TaskGroup,
}

/// Listens on all ports.
pub(crate) fn open_doors(
    config: &NodeConfig,
    ports: Reserved,
    node: &Node,
) -> anyhow::Result<Doors> {
    let listen = &config.listen;
    let tls = || node.certificates.acceptor(b"natter/1").map(Security::Tls);
    let origins = Origins::new(&listen.websocket_origins);
    let web = || {
        let tls = node.certificates.acceptor(b"http/1.1");
        tls.map(|tls| Security::WebSocket(tls, origins.clone()))
    };
    let mut clients = Vec::new();
    if let Some(port) = Port::open("listen.client", ports.client)? {
        clients.push((port, tls()?));
    }
    if let Some(port) = Port::open("listen.websocket", ports.websocket)? {
        clients.push((port, web()?));
    }
    if let Some(port) = Port::open("listen.plain", ports.plain)? {
        clients.push((port, Security::Plain));
    }
    let http = Port::open("listen.http", ports.http)?;
    Ok(Doors {
        clients,
        http: http.map(|port| (port, node.readiness.clone(), node.metrics.clone())),
        gate: node.gate.clone(),
        proxies: Proxies::new(&listen.proxy_from),
        reception: node.reception.clone(),
        connections: node.connections.clone(),
    })
}

impl Doors {
    /// Where the ports are.
    pub(crate) fn addresses(&self) -> Addresses {
        let of = |key| {
            let port = self.clients.iter().find(|(port, _)| port.key == key);
            port.map(|(port, _)| port.address.to_string())
        };
        Addresses {
            client: of("listen.client"),
            websocket: of("listen.websocket"),
            plain: of("listen.plain"),
            http: self.http.as_ref().map(|(port, ..)| port.address.to_string()),
            ..Addresses::default()
        }
    }

    /// One child for each port.
    pub(crate) fn into_children(self) -> Vec<ChildSpec> {
        let Self { clients, http, gate, proxies, reception, connections } = self;
        let serve = |(port, security): (Port, Security)| {
            let name = security.name();
            let shared = Shared {
                gate: gate.clone(),
                proxies: proxies.clone(),
                reception: reception.clone(),
                connections: connections.clone(),
            };
            ChildSpec::task(name, move |stopping| {
                serve_clients(port.clone(), security.clone(), shared.clone(), stopping)
            })
        };
        let pages = |(port, readiness, metrics): (Port, Readiness, telemetry::Metrics)| {
            let proxies = proxies.clone();
            ChildSpec::task("http", move |stopping| {
                let (port, readiness, metrics) = (port.clone(), readiness.clone(), metrics.clone());
                let proxies = proxies.clone();
                async move {
                    let socket = port.take()?;
                    Ok(http::serve(socket, readiness, metrics, proxies, stopping).await?)
                }
            })
        };
        clients.into_iter().map(serve).chain(http.map(pages)).collect()
    }
}

/// What the listeners of a node share.
#[derive(Clone)]
struct Shared {
    gate: Gate,
    proxies: Proxies,
    reception: Arc<Reception>,
    connections: TaskGroup,
}

async fn serve_clients(
    port: Port,
    security: Security,
    shared: Shared,
    stopping: Stopping,
) -> Result<(), ProcessError> {
    let Shared { gate, proxies, reception, connections } = shared;
    let limits = reception.clone();
    let handshake_timeout = Arc::new(move || limits.limits().times.handshake);
    let listener = Listener { socket: port.take()?, security, gate, proxies, handshake_timeout };
    let serve = move |transport, peer| connection::serve(reception.clone(), transport, peer);
    listener.run(stopping, connections, serve).await;
    Ok(())
}
