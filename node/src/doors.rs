//! The node's listeners: which ports are taken, and the children that serve them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use supervision::{ChildSpec, ProcessError, Stopping, TaskGroup};
use tokio::net::TcpListener;

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
    fn open(key: &'static str, address: &Address) -> Result<Option<Self>, ListenError> {
        let Some(address) = address.0 else { return Ok(None) };
        let socket = listener::bind(key, address)?;
        let address = socket.local_addr().unwrap_or(address);
        Ok(Some(Self { key, address, bound: Arc::new(Mutex::new(Some(socket))) }))
    }

    fn take(&self) -> Result<TcpListener, ListenError> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner).take();
        bound.map_or_else(|| listener::bind(self.key, self.address), Ok)
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

/// Takes all ports of the configuration.
pub(crate) fn open_doors(config: &NodeConfig, node: &Node) -> anyhow::Result<Doors> {
    let listen = &config.listen;
    let tls = || node.certificates.acceptor(b"natter/1").map(Security::Tls);
    let origins = Origins::new(&listen.websocket_origins);
    let web = || {
        let tls = node.certificates.acceptor(b"http/1.1");
        tls.map(|tls| Security::WebSocket(tls, origins.clone()))
    };
    let mut clients = Vec::new();
    if let Some(port) = Port::open("listen.client", &listen.client)? {
        clients.push((port, tls()?));
    }
    if let Some(port) = Port::open("listen.websocket", &listen.websocket)? {
        clients.push((port, web()?));
    }
    if let Some(port) = Port::open("listen.plain", &listen.plain)? {
        clients.push((port, Security::Plain));
    }
    let http = Port::open("listen.http", &listen.http)?;
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
