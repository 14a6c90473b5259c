//! A hostile client: attacks that speak the wire themselves, on real sockets, from many addresses of
//! the loopback network. The stories in `it/hostile` run them against a real node, beside honest
//! people, and hold the node to a budget.
//!
//! ```text
//!   attackers 127.66.x.y --+                   +-- budget: memory, disk, descriptors
//!                          +--> one node <-----+
//!   honest    127.0.0.1  --+                   +-- judge: every send accepted, seen once, ticked
//! ```
//!
//! **Invariants:** an attack ends by itself or when it is dropped; it goes on when the node cuts it
//! off; nothing here asserts a time.

pub mod budget;
pub mod floods;
pub mod malformed;
pub mod siege;
pub mod silence;
pub mod sockets;
