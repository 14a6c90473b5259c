//! What must hold of the wire, seen from outside the crate: frozen bytes, properties of the codec,
//! and that PROTOCOL.md says what the code does. `cargo test -p proto` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests end by panic")]

mod any;
mod golden;
mod known;
mod properties;
mod protocol_md;
