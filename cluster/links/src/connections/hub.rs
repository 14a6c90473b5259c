//! What the doors of a node share with its running part: who is up, whom to look for, the counts.
//!
//! **Invariant:** a route in the table is that of a peer that is up; there is one for each node.

use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::NodeId;
use tokio::sync::Notify;

use crate::connections::route::Route;
use crate::counters::{Counters, add};
use crate::door::{Answered, CallError, Lane, Links, PeerId, PeerInfo};
use crate::lanes::parcel::Kind;
use crate::limits::PARCEL_BYTES_MAX;

/// A peer that is up.
#[derive(Debug)]
struct Up {
    info: PeerInfo,
    route: Arc<Route>,
}

/// Where nodes may be found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) seeds: Vec<String>,
    pub(crate) learned: Vec<(NodeId, String)>,
}

/// Shared by the doors and the running part.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) me: PeerId,
    pub(crate) counters: Arc<Counters>,
    /// Rung when there is someone else to look for, or a peer went.
    pub(crate) bell: Notify,
    up: RwLock<BTreeMap<NodeId, Up>>,
    wanted: Mutex<Wanted>,
}

impl Hub {
    pub(crate) fn new(me: PeerId, seeds: Vec<String>) -> Self {
        let wanted = Mutex::new(Wanted { seeds, learned: Vec::new() });
        Self { me, counters: Arc::default(), bell: Notify::new(), up: RwLock::default(), wanted }
    }

    /// A peer is up.
    pub(crate) fn insert(&self, info: PeerInfo, route: Arc<Route>) {
        let mut up = self.up.write();
        up.insert(info.id.node, Up { info, route });
        self.count(up.len());
    }

    /// This start of a peer is down.
    pub(crate) fn remove(&self, peer: PeerId) {
        let mut up = self.up.write();
        if up.get(&peer.node).is_some_and(|up| up.info.id == peer) {
            up.remove(&peer.node);
            add(&self.counters.links_ended, 1);
            self.count(up.len());
        }
        self.bell.notify_one();
    }

    fn count(&self, up: usize) {
        self.counters.links_up.store(up as u64, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted.lock().clone()
    }

    pub(crate) fn change_wanted(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock());
        self.bell.notify_one();
    }

    /// The nodes that are up.
    pub(crate) fn nodes_up(&self) -> Vec<NodeId> {
        self.read(|up| up.keys().copied().collect())
    }

    fn route(&self, node: NodeId) -> Option<Arc<Route>> {
        self.read(|up| up.get(&node).map(|up| Arc::clone(&up.route)))
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<NodeId, Up>) -> T) -> T {
        read(&self.up.read())
    }
}

impl Links for Hub {
    fn me(&self) -> PeerId {
        self.me
    }

    fn cast(&self, to: NodeId, lane: Lane, parcel: Bytes) -> bool {
        self.route(to).is_some_and(|route| route.offer(lane, Kind::Cast, parcel).is_ok())
    }

    fn call(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        match self.route(to) {
            Some(route) => route.call(lane, parcel, within),
            None => Box::pin(std::future::ready(Err(CallError::NotUp))),
        }
    }

    fn call_vital(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        match self.route(to) {
            Some(route) => route.call_vital(lane, parcel, within),
            None => Box::pin(std::future::ready(Err(CallError::NotUp))),
        }
    }

    fn up(&self) -> Vec<PeerInfo> {
        self.read(|up| up.values().map(|up| up.info.clone()).collect())
    }

    fn is_alone(&self) -> bool {
        self.read(BTreeMap::is_empty)
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.read(|up| up.contains_key(&node))
    }

    fn learn(&self, addresses: Vec<(NodeId, String)>) {
        self.change_wanted(|wanted| wanted.learned = addresses);
    }
}

const _: () = assert!(PARCEL_BYTES_MAX < u32::MAX as usize, "offsets are 32 bits");
