//! The messenger: everything natter does with messages, as actors with pure cores.
//!
//! ```text
//!   socket -- Connection --> user actor --> shard actor --> log
//!     ^                        ^   |            |
//!     |                        |   v            v
//!     +------ deliveries ------+  presence    user actors of the recipient, other shards
//! ```
//!
//! **Invariant:** this crate opens no socket and no file, and never asks the system for the time:
//! all it may touch is in [`context::Context`].

pub mod connection;
pub mod context;
pub mod delivery;
pub mod metrics;
pub mod presence;
pub mod rates;
pub mod replicas;
mod retry_order;
pub mod service;
pub mod shard;
pub mod user;
