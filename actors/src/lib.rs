//! The messenger: everything natter does with messages, as actors with pure cores.
//!
//! ```text
//!   socket -- Connection --> user actor --> shard actor --> log
//!     ^                        ^   |            |
//!     |                        |   v            v
//!     +------ deliveries ------+  presence    user actors of the recipient, other shards
//! ```
//!
//! **Invariant:** this crate opens no socket and no file, and never asks the system for the time: each
//! process is given what it uses ([`shard::ShardContext`], [`user::UserContext`],
//! [`presence::PresenceContext`]).

mod actions;
pub mod connection;
pub mod delivery;
pub mod hooks;
pub mod live;
pub mod metrics;
pub mod presence;
pub mod rates;
pub mod replicas;
mod retry_order;
pub mod secrets;
pub mod service;
pub mod shard;
pub mod unanswered;
pub mod user;
