//! Makes a TCP stream a connection to a node of our cluster, or not.
//!
//! Run by listener and dialer, one task for each handshake.
//!
//! **Invariant:** what comes out has proved its key under our cookie, and its number is derived from
//! the TLS keys, so that both ends know it and nobody else.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::NodeId;
use rustls::ConnectionCommon;
use supervision::TaskGroup;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::connections::inlet::Inlet;
use crate::connections::route::Clock;
use crate::connections::switchboard::Connected;
use crate::connections::wire::{Tap, Wire};
use crate::counters::{Counters, add};
use crate::security::tls::{Tls, cookie_differs, node_at};

/// What the exported number is for (RFC 8446, 7.5).
const EXPORTER: &[u8] = b"EXPERIMENTAL natter link";

/// Least time between two warnings about one address.
const WARN_EVERY_MS: u64 = 60_000;

/// Addresses that were warned about and are remembered.
const WARNED_MAX: usize = 1_024;

/// Names connections within this process.
static LABELS: AtomicU64 = AtomicU64::new(1);

/// Shakes hands, and complains when that fails.
#[derive(Debug)]
pub(crate) struct Handshakes {
    tls: Tls,
    counters: Arc<Counters>,
    inlet: Inlet,
    /// Those of the connections.
    tasks: TaskGroup,
    clock: Clock,
    warned: Mutex<BTreeMap<String, u64>>,
}

impl Handshakes {
    pub(crate) fn new(tls: Tls, inlet: Inlet, tasks: TaskGroup) -> Self {
        let counters = Arc::clone(&inlet.counters);
        Self { tls, counters, inlet, tasks, clock: Clock::start(), warned: Mutex::default() }
    }

    /// Dials a node.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<Connected> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(stream).await?;
        let (node, link) = proven(stream.get_ref().1)?;
        Ok(self.connected(stream, (node, link), to, true))
    }

    /// Lets a node in.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> io::Result<Connected> {
        stream.set_nodelay(true)?;
        let stream = self.tls.acceptor.accept(stream).await?;
        let (node, link) = proven(stream.get_ref().1)?;
        Ok(self.connected(stream, (node, link), from, false))
    }

    fn connected<S>(
        &self,
        stream: S,
        (node, link): (NodeId, u64),
        address: SocketAddr,
        dialed: bool,
    ) -> Connected
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let label = format!("link-{}", LABELS.fetch_add(1, Ordering::Relaxed));
        let tap = Tap::new();
        let wire = Wire {
            stream,
            label: label.clone(),
            tap: Arc::clone(&tap),
            inlet: self.inlet.clone(),
            tasks: self.tasks.clone(),
        };
        Connected { stream: Box::new(wire), label, link, node, source: address.ip(), dialed, tap }
    }

    /// A handshake with `whom` failed.
    pub(crate) fn failed(&self, whom: &str, error: &io::Error) {
        add(&self.counters.handshakes_failed, 1);
        if !cookie_differs(error) {
            debug!(address = whom, %error, "no handshake with a node");
            return;
        }
        add(&self.counters.cookies_differed, 1);
        if self.may_warn(whom) {
            warn!(
                address = whom,
                "cluster cookie differs: give both nodes the same cluster.cookie"
            );
        }
    }

    /// The name in an address has no address.
    pub(crate) fn unresolved(&self, address: &str, error: &io::Error) {
        if self.may_warn(address) {
            warn!(
                address,
                %error,
                "the name of another node cannot be resolved; is cluster.seeds, or the other node's \
                 cluster.advertise, right?"
            );
        }
    }

    fn may_warn(&self, whom: &str) -> bool {
        let now_ms = self.clock.now_ms();
        let mut warned = self.warned.lock();
        if warned.get(whom).is_some_and(|at_ms| now_ms < at_ms + WARN_EVERY_MS) {
            return false;
        }
        if warned.len() >= WARNED_MAX {
            warned.clear();
        }
        warned.insert(whom.to_owned(), now_ms);
        true
    }
}

fn proven<D>(connection: &ConnectionCommon<D>) -> io::Result<(NodeId, u64)> {
    let node = node_at(connection).ok_or_else(|| io::Error::other("the certificate has no key"))?;
    let exported = connection.export_keying_material([0; 8], EXPORTER, None);
    let link = exported.map(u64::from_be_bytes).map_err(io::Error::other)?;
    Ok((node, link))
}
