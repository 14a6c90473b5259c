//! The cluster port: accepts, shakes hands with many at once, hands over to `peer`.
//!
//! # Invariants
//! 1. Handshakes are bounded in number and time; a silent client holds up nobody.
//! 2. Nothing that a client does ends the listener, nor does a lack of file descriptors.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use supervision::TaskGroup;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::handshake::Handshakes;
use crate::limits::{HANDSHAKE_WAIT, HANDSHAKES_MAX};
use crate::peer::PeerMsg;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 1024;

/// Wait after an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes `address`. Needs a tokio runtime around it.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts for ever.
pub(crate) async fn listen(
    socket: &TcpListener,
    handshakes: Arc<Handshakes>,
    peer: ActorRef<PeerMsg>,
    tasks: TaskGroup,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (stream, from) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a node, will try again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            debug!("too many handshakes with nodes at once");
            continue;
        };
        let (handshakes, peer) = (Arc::clone(&handshakes), peer.clone());
        tasks.spawn("peer handshake", async move {
            let _place = place;
            match timeout(HANDSHAKE_WAIT, Box::pin(handshakes.accept(stream, from))).await {
                Ok(Ok(connected)) => {
                    drop(peer.cast(PeerMsg::Connected(Box::new(connected)))); // It is gone: we end.
                }
                Ok(Err(error)) => handshakes.failed(&from.ip().to_string(), &error),
                Err(_elapsed) => {
                    handshakes.failed(&from.ip().to_string(), &io::ErrorKind::TimedOut.into());
                }
            }
        });
    }
}
