//! Links between nodes: who is there, and a way to tell them something or ask them.
//!
//! Others hold [`Peers`] and see parcels of bytes: a cast may be lost, a call is answered or times
//! out. Nothing is promised about order or delivery; whoever needs it numbers and repeats.
//!
//! ```text
//! cast, call -> route (outbox: lanes, pieces, credit) -> wire, over mutual TLS -> the other node's
//!   switchboard (inbox: parcels again) -> Service, or the caller
//! hello -> the other node's actor `peer`, by ractor_cluster on the same connection -> switchboard
//! ```
//!
//! [`open()`] takes the port, [`Runner`] is the child that runs, [`memory`] is a network for tests.
//! Pure are `outbox`, `inbox`, `addresses` and `greeting`. `ractor_cluster` logs whole messages at
//! debug: keep its filter at `warn`.
//!
//! # Invariants
//! 1. What waits for one peer is bounded in bytes; what is over it is refused, never queued.
//! 2. A large parcel does not delay a small urgent one: it travels in pieces.
//! 3. A peer that hangs is noticed by missed heartbeats, dropped, and dialed again for ever.

mod connections;
mod counters;
mod dialer;
mod discovery;
mod door;
mod lanes;
pub mod limits;
mod listener;
pub mod memory;
mod open;
mod security;

/// The pure parts of a link, as the processes drive them; simulations do the same.
pub mod cores {
    pub use crate::lanes::inbox::Inbox;
    pub use crate::lanes::outbox::{Outbox, Refused};
    pub use crate::lanes::parcel::{Kind, Parcel};
}

pub use counters::{Counts, METRICS, Metric};
pub use door::{Answered, CallError, Lane, Links, PeerId, PeerInfo, Peers, Respond, Service};
pub use limits::{SCHEMA, SCHEMA_MIN, SILENCE};
pub use open::{Config, Me, OpenError, Opened, Port, RunError, Runner, open};
pub use security::identity::{Identity, IdentityError};
pub use security::tls::TlsError;
