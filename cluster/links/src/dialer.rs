//! Dials seeds and nodes that were learned, for ever, and hands whom it meets to `peer`.
//!
//! One task decides ([`Addresses`] does); one for each try looks the name up, and one for each
//! socket address behind it connects.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use supervision::TaskGroup;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tracing::debug;

use crate::connections::handshake::Handshakes;
use crate::connections::hub::Hub;
use crate::connections::peer::PeerMsg;
use crate::connections::route::Clock;
use crate::discovery::addresses::{Addresses, Tried};
use crate::limits::HANDSHAKE_WAIT;

/// Socket addresses behind one name that are tried.
const LOOKUP_MAX: usize = 64;

/// What a try needs.
#[derive(Clone)]
struct Dial {
    hub: Arc<Hub>,
    handshakes: Arc<Handshakes>,
    peer: ActorRef<PeerMsg>,
    tasks: TaskGroup,
    addresses: Arc<Mutex<Addresses>>,
    clock: Clock,
}

/// Dials for ever.
pub(crate) async fn dial(
    hub: Arc<Hub>,
    handshakes: Arc<Handshakes>,
    peer: ActorRef<PeerMsg>,
    tasks: TaskGroup,
) {
    let addresses = Arc::new(Mutex::new(Addresses::new(hub.me.node)));
    let dial = Dial { hub, handshakes, peer, tasks, addresses, clock: Clock::start() };
    loop {
        let (due, next_ms) = dial.decide();
        for address in due {
            let attempt =
                Attempt { address, dial: dial.clone(), met_someone_new: AtomicBool::new(false) };
            dial.tasks.spawn("peer dial", dial_name(Arc::new(attempt)));
        }
        let now_ms = dial.clock.now_ms();
        let wait = next_ms.map(|next_ms| Duration::from_millis(next_ms.saturating_sub(now_ms)));
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = dial.hub.bell.notified() => {}
            () = due => {}
        }
    }
}

impl Dial {
    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock()
    }

    fn decide(&self) -> (Vec<String>, Option<u64>) {
        let wanted = self.hub.wanted();
        let up = BTreeSet::from_iter(self.hub.nodes_up());
        let now_ms = self.clock.now_ms();
        let mut addresses = self.lock();
        addresses.know(&wanted.seeds, &wanted.learned, now_ms);
        addresses.see(up, now_ms, rand::random());
        (addresses.due(now_ms), addresses.next_ms())
    }
}

/// A try of one address, over when the last of its tasks drops it.
struct Attempt {
    address: String,
    dial: Dial,
    met_someone_new: AtomicBool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let tried = if self.met_someone_new.load(Ordering::Relaxed) {
            Tried::Again
        } else {
            Tried::NobodyNew
        };
        let now_ms = self.dial.clock.now_ms();
        self.dial.lock().tried(&self.address, tried, now_ms, rand::random());
        self.dial.hub.bell.notify_one();
    }
}

impl Attempt {
    fn failed(&self, error: &io::Error) {
        self.met_someone_new.store(true, Ordering::Relaxed);
        self.dial.handshakes.failed(&self.address, error);
    }

    fn unresolved(&self, error: &io::Error) {
        self.met_someone_new.store(true, Ordering::Relaxed);
        self.dial.handshakes.unresolved(&self.address, error);
    }
}

async fn dial_name(attempt: Arc<Attempt>) {
    let found = match timeout(HANDSHAKE_WAIT, lookup_host(&attempt.address)).await {
        Ok(Ok(found)) => found.take(LOOKUP_MAX).collect::<Vec<_>>(),
        Ok(Err(error)) => return attempt.unresolved(&error),
        Err(_elapsed) => return attempt.unresolved(&io::ErrorKind::TimedOut.into()),
    };
    let strangers = attempt.dial.lock().strangers(&found);
    for at in strangers {
        let tasks = attempt.dial.tasks.clone();
        tasks.spawn("peer dial", dial_socket(Arc::clone(&attempt), at));
    }
}

async fn dial_socket(attempt: Arc<Attempt>, at: SocketAddr) {
    let dial = &attempt.dial;
    match timeout(HANDSHAKE_WAIT, Box::pin(dial.handshakes.connect(at))).await {
        Ok(Ok(connected)) => {
            dial.lock().met(&attempt.address, at, connected.node);
            if connected.node == dial.hub.me.node {
                debug!(address = attempt.address, "this address is our own");
                return;
            }
            attempt.met_someone_new.store(true, Ordering::Relaxed);
            drop(dial.peer.cast(PeerMsg::Connected(Box::new(connected)))); // It is gone: we end.
        }
        Ok(Err(error)) => {
            dial.lock().missed(at);
            attempt.failed(&error);
        }
        Err(_elapsed) => {
            dial.lock().missed(at);
            attempt.failed(&io::ErrorKind::TimedOut.into());
        }
    }
}
