//! Black-box stories on real `natter serve` processes, named after the promises of the design.
//! `cargo test -p tests --test it` runs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests end by panic, and expect one answer of many"
)]

mod accounts;
mod chat;
mod clusters;
mod connections;
mod devices;
mod hostile;
mod linking;
mod mailboxes;
mod manuals;
mod operators;
mod operators_clocks;
mod operators_clusters;
mod operators_directories;
mod operators_logs;
mod operators_outputs;
mod operators_signals;
mod people;
mod presence;
mod promise_10_nobody_in;
mod promise_10_silence;
mod promise_10_tickets;
mod promise_1_accepted_is_durable;
mod promise_2_nothing_accepted_is_lost;
mod promise_3_seen_once_in_order;
mod promise_4_deleted_on_delivery;
mod promise_5_bounded;
mod promise_5_small_disk;
mod promise_6_let_it_crash;
mod promise_7_a_node_may_die;
mod promise_7_replicas_move;
mod promise_8_a_split_heals;
mod protocol;
mod rates;
mod readme;
mod registration;
mod terminals;
mod unstored;
