//! Connections to the other nodes, and what goes over which.

pub(crate) mod handshake;
pub(crate) mod hub;
pub(crate) mod inlet;
pub(crate) mod peer;
pub(crate) mod route;
pub(crate) mod switchboard;
pub(crate) mod wire;
