//! Listeners: they accept clients, shake hands with many at once, and hand each on as a
//! [`Transport`].
//!
//! One task for each listener and one for each connection, which begins with its handshake.
//!
//! # Invariants
//! 1. Nothing that a client does ends a listener, nor does a lack of file descriptors.
//! 2. A client that is slow in its handshake holds up nobody else; how many there are is the gate's
//!    to bound, and how long the handshake's time limit. It costs no memory for TLS before it speaks.

mod crowd;
mod gate;
mod proxy;
mod transport;
mod upgrade;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use supervision::{Stopping, TaskGroup};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::error::Elapsed;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

pub use crowd::source_of;
pub use gate::{Caller, Counts, Gate, Permit, Refusal};
pub use proxy::{Proxies, read_client};
pub use transport::{ReadNow, Transport};
pub use upgrade::{Origins, SUBPROTOCOL};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 4096;

/// Wait after an accept that failed for want of something, doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest wait after a failed accept.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why a listener cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error(
        "{key} {address}: the port is taken; stop the other process, or set another port (0 for any)"
    )]
    Taken {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// The address is not this machine's, or the port needs more rights.
    #[error(
        "{key} {address}: cannot listen there; set an address of this machine and a port above 1023"
    )]
    Refused {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What is spoken on a port.
#[derive(Clone)]
pub enum Security {
    /// Frames over TLS.
    Tls(TlsAcceptor),
    /// WebSocket over TLS, for pages of these origins.
    WebSocket(TlsAcceptor, Origins),
    /// Frames over TCP.
    Plain,
}

/// The names of all listeners, for metrics.
pub(crate) const LISTENERS: [&str; 3] = ["client", "websocket", "plain"];

impl Security {
    /// A name for logs and metrics, from a closed set.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tls(_) => "client",
            Self::WebSocket(..) => "websocket",
            Self::Plain => "plain",
        }
    }
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Who has connected.
#[derive(Debug)]
pub struct Peer {
    /// The client's address and port; behind a proxy those that the proxy names.
    pub address: SocketAddr,
    /// Its place at the gate. Keep it as long as the connection.
    pub permit: Permit,
}

/// Takes `address`, so that clients queue until they are accepted. `key` is the setting's name.
/// Needs a tokio runtime around it.
///
/// # Errors
/// [`ListenError`] names the setting and the cure.
pub fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    listen(key, reserve(key, address)?, address)
}

/// Listens on what [`reserve`] has taken.
///
/// # Errors
/// [`ListenError`] names the setting and the cure.
pub fn listen(
    key: &'static str,
    socket: TcpSocket,
    address: SocketAddr,
) -> Result<TcpListener, ListenError> {
    socket.listen(BACKLOG).map_err(refused(key, address))
}

/// Takes `address` from whoever comes later. Clients are turned away until it listens.
///
/// # Errors
/// [`ListenError`] names the setting and the cure: somebody listens there, for example.
pub fn reserve(key: &'static str, address: SocketAddr) -> Result<TcpSocket, ListenError> {
    let reserve = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    reserve().map_err(refused(key, address))
}

fn refused(key: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> ListenError {
    move |source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ListenError::Taken { key, address }
        } else {
            ListenError::Refused { key, address, source }
        }
    }
}

/// A port that is taken and not yet served.
pub struct Listener {
    /// From [`bind`].
    pub socket: TcpListener,
    /// What is spoken there.
    pub security: Security,
    /// Who may connect.
    pub gate: Gate,
    /// Who speaks for clients.
    pub proxies: Proxies,
    /// Longest time for a proxy's header and the handshakes of TLS and WebSocket together.
    pub handshake_timeout: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Listener {
    /// Accepts clients until `stopping`; then the port is closed and the connections go on. Each
    /// connection is a task in `connections`: its handshake, then `on_connection`.
    pub async fn run<C, F>(self, stopping: Stopping, connections: TaskGroup, on_connection: C)
    where
        C: Fn(Transport, Peer) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let on_connection = Arc::new(on_connection);
        let mut pause = PAUSE_MIN;
        loop {
            let accepted = tokio::select! {
                () = stopping.wait() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    pause = PAUSE_MIN;
                    self.open(stream, address, &connections, &on_connection);
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    warn!(listener = self.security.name(), %error, "cannot accept, will try again");
                    tokio::time::sleep(pause).await;
                    pause = PAUSE_MAX.min(pause * 2);
                }
            }
        }
    }

    fn open<C, F>(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        connections: &TaskGroup,
        on_connection: &Arc<C>,
    ) where
        C: Fn(Transport, Peer) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = self.security.name();
        let is_proxy = self.proxies.contain(address.ip());
        let caller = if is_proxy { Caller::Proxy } else { Caller::Client };
        let permit = match self.gate.admit(address.ip(), caller) {
            Ok(permit) => permit,
            Err(refusal) => {
                debug!(listener, reason = refusal.name(), "connection refused");
                return;
            }
        };
        counter!("natter_connections_accepted_total", "listener" => listener).increment(1);
        let on_connection = Arc::clone(on_connection);
        let (limit, gate) = ((self.handshake_timeout)(), self.gate.clone());
        let opening = Opening { stream, security: self.security.clone(), address, permit };
        // Boxed, so that its memory goes when it is done.
        let opened = Box::pin(tokio::time::timeout(limit, opening.open(is_proxy.then_some(gate))));
        let task = async move {
            // No `match`, which would keep room for the handshake's result as long as the client is there.
            let Some((transport, peer)) = unless_failed(opened.await, listener) else { return };
            on_connection(transport, peer).await;
        };
        // A group that is finishing takes no more, and the connection ends here.
        connections.spawn("connection", task);
    }
}

/// Counts and logs a handshake that failed.
fn unless_failed(
    opened: Result<io::Result<(Transport, Peer)>, Elapsed>,
    listener: &'static str,
) -> Option<(Transport, Peer)> {
    let why = match opened {
        Ok(Ok(opened)) => return Some(opened),
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => "it took too long".to_owned(),
    };
    counter!("natter_handshakes_failed_total", "listener" => listener).increment(1);
    debug!(listener, why, "handshake failed");
    None
}

/// A connection before its handshake.
struct Opening {
    stream: TcpStream,
    security: Security,
    address: SocketAddr,
    permit: Permit,
}

impl Opening {
    /// Reads the proxy's header if it comes from one, and shakes hands. `behind_proxy`: the gate that
    /// admits the client which the proxy names.
    async fn open(self, behind_proxy: Option<Gate>) -> io::Result<(Transport, Peer)> {
        let Self { mut stream, security, mut address, mut permit } = self;
        stream.set_nodelay(true)?;
        if let Some(gate) = behind_proxy {
            address = unless_evicted(&permit, read_client(&mut stream, address)).await?;
            let admitted = gate.admit(address.ip(), Caller::Client);
            permit = admitted.map_err(|refusal| io::Error::other(refusal.name()))?;
        }
        let transport = unless_evicted(&permit, shake_hands(stream, security)).await?;
        Ok((transport, Peer { address, permit }))
    }
}

/// Gives up when the place of this connection was given to another.
async fn unless_evicted<T>(
    permit: &Permit,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::select! {
        biased;
        () = permit.evicted() => Err(io::Error::other("its place was given to another")),
        done = work => done,
    }
}

async fn shake_hands(stream: TcpStream, security: Security) -> io::Result<Transport> {
    match security {
        Security::Plain => Ok(Transport::plain(stream)),
        Security::Tls(tls) => {
            // The memory of a handshake is for who speaks.
            stream.readable().await?;
            Ok(Transport::tls(Box::new(Box::pin(tls.accept(stream)).await?)))
        }
        Security::WebSocket(tls, origins) => {
            stream.readable().await?;
            let stream = Box::pin(tls.accept(stream)).await?;
            let (stream, bytes) = Box::pin(upgrade::upgrade(stream, origins)).await?;
            Ok(Transport::websocket(Box::new(stream), bytes))
        }
    }
}

/// Whether an accept failed because of the one client that it would have returned.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
