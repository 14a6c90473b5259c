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
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::handshake::Handshakes;
use crate::limits::{HANDSHAKE_WAIT, HANDSHAKES_MAX};
use crate::peer::PeerMsg;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 1024;

/// Wait after an accept that failed for want of something, doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest wait after a failed accept: nodes dial again for longer than that.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Least time between two warnings of failed accepts.
const WARN_EVERY: Duration = Duration::from_mins(1);

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
    let mut failures = Failures::default();
    loop {
        let (stream, from) = match socket.accept().await {
            Ok(accepted) => {
                failures.pause = None;
                accepted
            }
            Err(error) => {
                let (pause, warns) = failures.another(Instant::now());
                if warns {
                    warn!(%error, "cannot accept a node, will try again");
                }
                tokio::time::sleep(pause).await;
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

/// Accepts that failed.
#[derive(Default)]
struct Failures {
    /// The last pause, since an accept that did not fail.
    pause: Option<Duration>,
    warned_at: Option<Instant>,
}

impl Failures {
    /// One more: how long to wait, and whether to say so.
    fn another(&mut self, now: Instant) -> (Duration, bool) {
        let pause = self.pause.map_or(PAUSE_MIN, |last| PAUSE_MAX.min(last * 2));
        self.pause = Some(pause);
        let warns = self.warned_at.is_none_or(|at| now >= at + WARN_EVERY);
        if warns {
            self.warned_at = Some(now);
        }
        (pause, warns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_file_descriptors_is_said_once_a_minute() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        let (mut tries, mut said) = (0, 0);
        let end = now + 2 * WARN_EVERY;
        while now < end {
            let (pause, warns) = failures.another(now);
            now += pause;
            tries += 1;
            said += u32::from(warns);
        }
        assert_eq!(said, 2);
        assert!(tries < 70, "{tries} tries");
        failures.pause = None;
        assert_eq!(failures.another(now).0, PAUSE_MIN, "an accept begins anew");
    }
}
