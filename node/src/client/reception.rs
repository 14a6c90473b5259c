//! What all connections of a node share: the actors' side, how aliases are proven, limits.
//!
//! **Invariant:** a connection keeps the limits that held when it came.

use parking_lot::RwLock;
use std::sync::Arc;

use actors::user::UserContext;
use links::Peers;
use supervision::Stopping;

use crate::client::client_limits::ClientLimits;
use crate::client::registration::Registration;

/// What all connections of a node share.
#[derive(Debug)]
pub struct Reception {
    /// The actors' side.
    pub context: Arc<UserContext>,
    /// The other nodes: clients are sent to them when this one goes away.
    pub peers: Peers,
    /// How aliases are proven.
    pub registration: Registration,
    /// The limits of connections that come from now on.
    pub limits: RwLock<Arc<ClientLimits>>,
    /// Tells strangers to go: the node ends. Who is attached hears it from their actor.
    pub closing: Stopping,
}

impl Reception {
    /// The limits of a connection that comes now.
    pub fn limits(&self) -> Arc<ClientLimits> {
        self.limits.read().clone()
    }

    /// Other limits for connections that come from now on.
    pub fn set_limits(&self, limits: ClientLimits) {
        *self.limits.write() = Arc::new(limits);
    }
}
