//! The cluster port: accepts, shakes hands with many at once, hands over to `peer`.
//!
//! # Invariants
//! 1. Handshakes are bounded in number, for each source and in all, and in time; a silent client holds
//!    up nobody.
//! 2. Nothing that a client does ends the listener, nor does a lack of file descriptors.

use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use supervision::TaskGroup;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::connections::handshake::Handshakes;
use crate::connections::peer::PeerMsg;
use crate::discovery::places::{Places, Source};
use crate::limits::HANDSHAKE_WAIT;

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
    let places = Arc::new(Mutex::new(Places::default()));
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
        let place = Place::take(&places, from);
        let (handshakes, peer) = (Arc::clone(&handshakes), peer.clone());
        tasks.spawn("peer handshake", async move {
            let mut place = place;
            let handshake = timeout(HANDSHAKE_WAIT, Box::pin(handshakes.accept(stream, from)));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                _lost = &mut place.lost => {
                    debug!(address = %from.ip(), "too many handshakes with nodes at once");
                    return;
                }
            };
            match shaken {
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

type Shared = Arc<Mutex<Places<oneshot::Sender<()>>>>;

/// The place of one handshake; given back when it is dropped.
struct Place {
    places: Shared,
    number: u64,
    /// Ends when another takes the place.
    lost: oneshot::Receiver<()>,
}

impl Place {
    fn take(places: &Shared, from: SocketAddr) -> Self {
        let (holds, lost) = oneshot::channel();
        let mut taken = places.lock();
        // Whoever had to go hears of it: the other end of what is dropped here.
        let (number, _gone) = taken.take(Source::of(from.ip()), holds);
        Self { places: Arc::clone(places), number, lost }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().leave(self.number);
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
