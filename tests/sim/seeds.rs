//! Runs seeds: thousands of them, one again, and by name those that have found something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Threads that share the seeds.
const THREADS: usize = 2;

type Run = fn(u64, bool) -> Result<usize, String>;

/// The simulations.
const ALL: [(&str, Run, u64); 2] =
    [("cluster", crate::cluster::run, 1_500), ("gossip", crate::gossip::run, 3_000)];

/// A whole number from the environment.
#[allow(clippy::disallowed_methods, reason = "a seed is told to a test in no other way")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a seed; a panic in a core is a failure like any other.
fn run(run: Run, seed: u64, tracing: bool) -> Result<usize, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, tracing)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

fn many(name: &str, core: Run, usual: u64) {
    let (first, count) =
        (number("NATTER_SIM_FIRST").unwrap_or(1), number("NATTER_SIM_SEEDS").unwrap_or(usual));
    let (next, messages) = (AtomicU64::new(first), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < first + count
                {
                    match run(core, seed, false) {
                        Ok(sent) => drop(messages.fetch_add(sent as u64, Ordering::Relaxed)),
                        Err(why) => failed.lock().unwrap().push((seed, why)),
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    println!("{name}: {count} seeds, {} messages", messages.load(Ordering::Relaxed));
    let Some((seed, _)) = failed.first() else { return };
    let list: Vec<String> =
        failed.iter().map(|(seed, why)| format!("seed {seed}: {why}")).collect();
    panic!(
        "{} of {count} seeds failed:\n{}\nto see one: NATTER_SIM_SEED={seed} cargo test -p tests \
         --test sim {name}_replay -- --nocapture",
        failed.len(),
        list.join("\n")
    );
}

fn replay((name, core, _): (&str, Run, u64)) {
    let Some(seed) = number("NATTER_SIM_SEED") else { return };
    println!("{name}, seed {seed}");
    if let Err(why) = run(core, seed, true) {
        panic!("{name}, seed {seed}: {why}");
    }
}

#[test]
fn cluster_keeps_its_promises_for_all_seeds() {
    let (name, core, usual) = ALL[0];
    many(name, core, usual);
}

#[test]
fn cluster_replay() {
    replay(ALL[0]);
}

#[test]
fn gossip_comes_to_one_table_for_all_seeds() {
    let (name, core, usual) = ALL[1];
    many(name, core, usual);
}

#[test]
fn gossip_replay() {
    replay(ALL[1]);
}

/// What a seed of a name must not find again.
#[allow(dead_code, reason = "for the seeds that will find something")]
fn holds(core: Run, seed: u64) {
    if let Err(why) = run(core, seed, false) {
        panic!("seed {seed}: {why}");
    }
}

#[test]
fn a_seed_is_the_same_story_each_time() {
    let (_, core, _) = ALL[0];
    assert_eq!(run(core, 1, false), run(core, 1, false));
    assert!(Duration::from_millis(1) > Duration::ZERO);
}
