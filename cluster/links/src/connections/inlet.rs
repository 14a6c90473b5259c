//! Where packets come in: from the wires of all connections, and hellos from the actor `peer`.
//!
//! **Invariant:** the service hears one thing at a time, for all come through the switchboard's lock;
//! what is decoded is decoded outside of it.

use parking_lot::Mutex;
use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use prost::Message as _;
use proto::cluster::Packet;

use crate::connections::switchboard::Switchboard;
use crate::counters::{Counters, add};

/// The way to the switchboard, as long as it is there: the actor `peer` owns it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inlet {
    switchboard: Weak<Mutex<Switchboard>>,
    pub(crate) counters: Arc<Counters>,
}

impl fmt::Debug for Inlet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Inlet")
    }
}

impl Inlet {
    pub(crate) fn new(switchboard: &Arc<Mutex<Switchboard>>, counters: Arc<Counters>) -> Self {
        Self { switchboard: Arc::downgrade(switchboard), counters }
    }

    /// A packet came from somewhere.
    pub(crate) fn packet(&self, bytes: Bytes) {
        add(&self.counters.packets_received, 1);
        add(&self.counters.bytes_received, bytes.len() as u64);
        let Ok(packet) = Packet::decode(bytes) else {
            add(&self.counters.undecodable, 1);
            return;
        };
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.lock().packet(packet);
        }
    }
}
