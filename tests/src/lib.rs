//! The harness of the black-box stories in `it/`: real `natter serve` processes, a client of its
//! own on the bare protocol, a seeded workload and a judge. Only tests use it.
//!
//! **Invariant:** nothing here looks inside a node; it uses what an operator and a client have.

#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    reason = "a test names the answer it expects, all others fail it; and it may speak"
)]

pub mod checker;
pub mod cluster;
pub mod disk;
pub mod faults;
pub mod fuzz;
pub mod hostile;
pub mod netns;
pub mod node;
pub mod pause;
mod person;
pub mod relay;
pub mod round;
pub mod status;
pub mod under_test;
pub mod wire;
pub mod workload;
