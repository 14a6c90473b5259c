//! Runs seeds: thousands of them, or one again with its story told.

use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads that share the seeds of a simulation.
const THREADS: usize = 2;

/// What became of a seed without a fault. Two runs of a seed are equal in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Story {
    /// Messages sent, or rows written.
    pub(crate) messages: usize,
    /// Everything that happened.
    pub(crate) events: u64,
}

/// One of the simulations.
pub(crate) struct Simulation {
    /// The test that runs its seeds.
    test: &'static str,
    run: fn(u64, bool) -> Result<Story, String>,
    /// How many seeds are run if nobody says otherwise.
    usual: u64,
}

pub(crate) const CLUSTER: Simulation = Simulation {
    test: "cluster_keeps_its_promises_for_all_seeds",
    run: crate::cluster::run,
    usual: 1_500,
};

pub(crate) const GOSSIP: Simulation = Simulation {
    test: "gossip_comes_to_one_table_for_all_seeds",
    run: crate::gossip::run,
    usual: 3_000,
};

/// A whole number from the environment.
#[allow(clippy::disallowed_methods, reason = "a seed is told to a test in no other way")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a story; a panic in it is a failure like any other.
pub(crate) fn caught(run: impl FnOnce() -> Result<Story, String>) -> Result<Story, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

impl Simulation {
    /// Runs a seed; a panic in a core is a failure like any other.
    pub(crate) fn run(&self, seed: u64, tracing: bool) -> Result<Story, String> {
        caught(|| (self.run)(seed, tracing))
    }

    /// Runs the seeds that the environment names, or the usual ones.
    fn run_all(&self) {
        if let Some(seed) = number("NATTER_SIM_SEED") {
            println!("seed {seed}");
            let story = self.run(seed, true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            return println!("{story:?}");
        }
        let first = number("NATTER_SIM_FIRST").unwrap_or(1);
        let count = number("NATTER_SIM_SEEDS").unwrap_or(self.usual);
        let failed = self.failing(first, count);
        let Some((seed, _)) = failed.first() else { return };
        let list: Vec<String> =
            failed.iter().map(|(seed, why)| format!("seed {seed}: {why}")).collect();
        panic!(
            "{} of {count} seeds failed:\n{}\nto see one: NATTER_SIM_SEED={seed} cargo test -p \
             simulation {} -- --nocapture",
            failed.len(),
            list.join("\n"),
            self.test
        );
    }

    fn failing(&self, first: u64, count: u64) -> Vec<(u64, String)> {
        let (next, messages) = (AtomicU64::new(first), AtomicU64::new(0));
        let failed = Mutex::new(Vec::new());
        let work = || {
            while let seed = next.fetch_add(1, Ordering::Relaxed)
                && seed < first + count
            {
                match self.run(seed, false) {
                    Ok(story) => {
                        messages.fetch_add(story.messages as u64, Ordering::Relaxed);
                    }
                    Err(why) => failed.lock().push((seed, why)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(work);
            }
        });
        println!("{}: {count} seeds, {} messages", self.test, messages.load(Ordering::Relaxed));
        let mut failed = failed.into_inner();
        failed.sort();
        failed
    }
}

#[test]
fn cluster_keeps_its_promises_for_all_seeds() {
    CLUSTER.run_all();
}

#[test]
fn gossip_comes_to_one_table_for_all_seeds() {
    GOSSIP.run_all();
}

#[test]
fn a_seed_is_the_same_story_each_time() {
    for simulation in [CLUSTER, GOSSIP] {
        let story = simulation.run(1, false);
        assert!(story.as_ref().is_ok_and(|story| story.messages > 0 && story.events > 1_000));
        assert_eq!(simulation.run(1, false), story, "{}", simulation.test);
        assert_ne!(simulation.run(2, false), story, "another seed is another story");
    }
}
