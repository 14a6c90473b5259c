//! Links between nodes: who is there, and a way to tell them something or ask them.
//!
//! Others hold [`Peers`] and see parcels of bytes: a cast may be lost, a call is answered or times
//! out. Nothing is promised about order or delivery; whoever needs it numbers and repeats.
//!
//! # Invariants
//! 1. What waits for one peer is bounded in bytes; what is over it is refused, never queued.
//! 2. A large parcel does not delay a small urgent one: it travels in pieces.
//! 3. A peer that hangs is noticed by missed heartbeats, dropped, and dialed again for ever.

mod door;
pub mod memory;

use std::time::Duration;

pub use door::{Answered, CallError, Lane, Links, PeerId, PeerInfo, Peers, Respond, Service};

/// Newest version of `cluster.proto` that this program speaks.
pub const SCHEMA: u32 = 1;

/// Oldest version of `cluster.proto` that this program speaks.
pub const SCHEMA_MIN: u32 = 1;

/// How long a peer may be silent before it counts as down. Several heartbeats, for a busy machine
/// skips some.
pub const SILENCE: Duration = Duration::from_millis(1500);
