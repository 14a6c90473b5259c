//! Faults that are built into the real cores: the simulation must find each of them within its share of CI.

use crate::cluster::run_with;
use crate::seeds::caught;
use actors::shard::Fault;

/// Seeds that are run until one finds the fault.
const SEEDS: u64 = 400;

fn finds(fault: Fault) {
    let found = (1..=SEEDS).find_map(|seed| {
        let why = caught(|| run_with(seed, false, Some(fault))).err()?;
        Some((seed, why))
    });
    let Some((seed, why)) = found else { panic!("{SEEDS} seeds do not find {fault:?}") };
    println!("{fault:?}: seed {seed}: {why}");
}

#[test]
fn a_dropped_notice_is_found() {
    finds(Fault::DroppedNotice);
}

#[test]
fn a_stale_page_is_found() {
    finds(Fault::StalePage);
}

#[test]
fn an_overtaken_retry_is_found() {
    finds(Fault::OvertakenRetry);
}

#[test]
fn a_batch_of_an_earlier_term_that_is_applied_is_found() {
    finds(Fault::EarlierTermBatch);
}

#[test]
fn a_window_that_overruns_is_found() {
    finds(Fault::WindowOverrun);
}
