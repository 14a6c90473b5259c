//! Links between several nodes of one process, for tests and simulations: no socket, no actor.
//!
//! One task for each node delivers what is due for it, in the order in which it is due. All chance
//! comes from the seed. With tokio's paused clock and one thread a run repeats itself exactly.
//!
//! ```text
//! let network = memory::Network::new(7);
//! let (peers, attach) = network.node(NodeId(1), 1);
//! attach.attach(service);                  // others hear `up` from here on
//! network.cut(NodeId(1), NodeId(2));       // silence, then `down` at both ends
//! network.heal(NodeId(1), NodeId(2));      // `up` again
//! ```
//!
//! # Invariants
//! 1. What the real links promise holds: `up` before the first parcel, `down` before the next `up`,
//!    nothing from an earlier link or incarnation, every call ends.
//! 2. What waits for one node is bounded; what is over it is lost.

mod state;

#[cfg(test)]
mod tests;

use parking_lot::{Mutex, MutexGuard};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use proto::NodeId;
use supervision::TaskGroup;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::door::{Answered, CallError, Lane, Links, PeerId, PeerInfo, Peers, Respond, Service};
use state::{Arrival, State};

/// The host in the addresses of nodes, which nobody can reach.
const ADDRESS: &str = "memory";

/// A network in memory. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

pub(super) struct Shared {
    state: Mutex<State>,
    tasks: TaskGroup,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Network {
    /// A network without nodes, loss or delay. The same seed gives the same chances.
    pub fn new(seed: u64) -> Self {
        let state = Mutex::new(State::new(seed));
        Self(Arc::new(Shared { state, tasks: TaskGroup::new() }))
    }

    /// One start of a node. An earlier start of the same node is gone, as if it were killed. Others
    /// see it when it is attached.
    pub fn node(&self, node: NodeId, incarnation: u64) -> (Peers, Attach) {
        let id = PeerId { node, incarnation };
        let address = format!("{ADDRESS}:{node}");
        let info = PeerInfo {
            id,
            name: format!("node-{node}"),
            address: address.clone(),
            client_address: address,
            websocket_address: String::new(),
            zone: String::new(),
            version: String::new(),
            schema: crate::SCHEMA,
        };
        self.0.lock().add(info, Instant::now());
        let peers = Arc::new(MemoryLinks { me: id, shared: Arc::clone(&self.0) });
        (peers, Attach { me: id, network: self.clone() })
    }

    /// Kills a node: its peers hear `down` at once, its calls end.
    pub fn remove(&self, node: NodeId) {
        self.0.lock().remove(node, Instant::now());
    }

    /// Loses everything between two nodes. After the silence both hear `down`.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        let mut state = self.0.lock();
        state.cut(a, b, Instant::now());
        state.cut(b, a, Instant::now());
    }

    /// Loses everything from one node to another. After the silence both hear `down`: links need
    /// both ways.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut(from, to, Instant::now());
    }

    /// Ends all cuts between two nodes.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.0.lock().heal(a, b, Instant::now());
    }

    /// Ends all cuts.
    pub fn heal_all(&self) {
        self.0.lock().heal_all(Instant::now());
    }

    /// Chance, 0 to 1, that a parcel is lost. Default 0.
    pub fn set_loss(&self, chance: f64) {
        self.0.lock().loss = chance.clamp(0.0, 1.0);
    }

    /// How long a parcel travels. Parcels overtake each other if it is a range. Default zero.
    pub fn set_delay(&self, delay: RangeInclusive<Duration>) {
        self.0.lock().delay = delay;
    }

    /// How long a cut lasts before it is noticed. Default [`crate::SILENCE`].
    pub fn set_silence(&self, silence: Duration) {
        self.0.lock().silence = silence;
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Network").finish_non_exhaustive()
    }
}

/// Connects a node once its service is there.
#[derive(Debug)]
pub struct Attach {
    me: PeerId,
    network: Network,
}

impl Attach {
    /// From here on `service` is told of peers and parcels. Needs a tokio runtime around it.
    pub fn attach(self, service: Arc<dyn Service>) {
        let shared = &self.network.0;
        if shared.lock().attach(self.me, Instant::now()) {
            let weak = Arc::downgrade(shared);
            shared.tasks.spawn("memory node", deliver(self.me, weak, service));
        }
    }
}

/// Delivers to one node until it or the network is gone.
async fn deliver(me: PeerId, shared: Weak<Shared>, service: Arc<dyn Service>) {
    loop {
        let Some(network) = shared.upgrade() else { return };
        let next = network.lock().next(me, Instant::now());
        match next {
            state::Next::Now(arrival) => hand_over(me, arrival, &network, &service),
            state::Next::At(due, bell) => {
                drop(network);
                tokio::select! {
                    () = bell.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                }
            }
            state::Next::Quiet(bell) => {
                drop(network);
                bell.notified().await;
            }
            state::Next::Gone => return,
        }
    }
}

fn hand_over(me: PeerId, arrival: Arrival, network: &Arc<Shared>, service: &Arc<dyn Service>) {
    match arrival {
        Arrival::Up(peer) => service.up(peer),
        Arrival::Down(peer, calls) => {
            for waiting in calls {
                drop(waiting.send(Err(CallError::Broken))); // The caller may have given up.
            }
            service.down(peer);
        }
        Arrival::Cast(from, parcel) => service.cast(from, parcel),
        Arrival::Request { from, call, link, parcel, deadline } => {
            let left = deadline.saturating_duration_since(Instant::now());
            let network = Arc::clone(network);
            let respond: Respond = Box::new(move |answer| {
                network.lock().respond(me, from, (link, call), (answer, Instant::now()));
            });
            service.call(from, parcel, left, respond);
        }
        Arrival::Response(waiting, answer) => {
            drop(waiting.send(Ok(answer))); // The caller may have given up.
        }
    }
}

struct MemoryLinks {
    me: PeerId,
    shared: Arc<Shared>,
}

impl fmt::Debug for MemoryLinks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("MemoryLinks").field("me", &self.me).finish_non_exhaustive()
    }
}

/// A call that waits; forgotten when it ends or nobody waits any longer.
struct Asked {
    me: PeerId,
    call: u64,
    shared: Arc<Shared>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.shared.lock().forget(self.me, self.call);
    }
}

impl Links for MemoryLinks {
    fn me(&self) -> PeerId {
        self.me
    }

    fn cast(&self, to: NodeId, _lane: Lane, parcel: Bytes) -> bool {
        self.shared.lock().cast(self.me, to, parcel, Instant::now())
    }

    fn call(&self, to: NodeId, _lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        let deadline = Instant::now() + within;
        let (waiting, answer) = oneshot::channel();
        let asked = self.shared.lock().call(self.me, to, (parcel, deadline), waiting);
        let asked = asked.map(|call| Asked { me: self.me, call, shared: Arc::clone(&self.shared) });
        Box::pin(async move {
            let _asked = asked?;
            match timeout_at(deadline, answer).await {
                Ok(Ok(answered)) => answered,
                Ok(Err(_gone)) => Err(CallError::Broken),
                Err(_elapsed) => Err(CallError::TimedOut),
            }
        })
    }

    fn up(&self) -> Vec<PeerInfo> {
        self.shared.lock().up(self.me)
    }

    fn learn(&self, _addresses: Vec<(NodeId, String)>) {
        // All nodes of the network know each other.
    }
}
