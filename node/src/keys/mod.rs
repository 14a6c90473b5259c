//! The keys of this node and of its cluster.

pub mod identity;
pub mod secrets;
