//! The deterministic simulation: the real cores of three nodes over a network, disks and clocks that
//! are made up, one thread, one seed for each story.
//!
//! ```text
//!   devices --frames--> users (UserCore) --commands--> seats (ReplicaCore: Proposals, Machine, Streams)
//!                          ^                           |  ^
//!                          +------ pushes, pages ------+  | log with terms, fake disk, fake tables
//! ```
//!
//! What is real: the cores that the actors run, `UserCore`, `ReplicaCore`, `Rounds` and `Unanswered`, with all
//! that is in them, and the rows of checkpoints. What is made up: consensus (a log with terms whose unflushed
//! end is lost in a crash), the links, the sessions table, what carries out the actions of the cores, the people.
//! `faults.rs` builds faults into the real cores: each must be found.
//!
//! `NATTER_SIM_SEED=n cargo test -p simulation cluster -- --nocapture` tells one seed's story.
//! `NATTER_SIM_SEEDS=n` runs so many seeds instead of the usual number, `NATTER_SIM_FIRST=n` begins
//! with that one. `seeds.rs` runs them, `found.rs` has those that have found something, `scenes.rs`
//! stories that are arranged.

#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    clippy::redundant_closure_for_method_calls,
    reason = "tests end by panic and may speak; some types of the cores have no name outside"
)]

mod batch;
mod chance;
mod cluster;
mod device;
mod faults;
mod found;
mod gossip;
mod judge;
mod noise;
mod plan;
mod raft;
mod reads;
mod restart;
mod scenes;
mod seat;
mod seeds;
mod stage;
mod table;
mod users;
mod world;
