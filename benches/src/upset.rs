//! What happens to a cluster while people write: its last node is killed and started again, or one
//! more joins. Nobody is connected to those nodes; how long the others wait is what is measured.
//!
//! A *window* begins with each kill or join. The time outside of windows is *calm*.

use anyhow::Result;
use serde_json::{Value, json};

use crate::clock::SECOND_NS;
use crate::latency::Latency;
use crate::server::Server;

/// Calm time before the first, in seconds.
const FIRST_S: u64 = 8;

/// Calm time between the end of a window and the next, in seconds.
const CALM_S: u64 = 7;

/// Length of a window, in seconds.
const WINDOW_S: u64 = 8;

/// Seconds after a kill until the node is started again.
const DEAD_S: u64 = 5;

/// What happens, and when; times are from the beginning of the measurement.
#[derive(Debug)]
pub(crate) struct Upsets {
    steps: std::vec::IntoIter<(u64, Step)>,
    calm: Seen,
    windows: Vec<Seen>,
    in_window: bool,
}

/// A thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Kill,
    Start,
    Join,
    Calm,
}

/// Waits that were seen in some span of time.
#[derive(Clone, Debug)]
struct Seen {
    delivery: Latency,
    tick1: Latency,
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self { delivery: Latency::new()?, tick1: Latency::new()? })
    }
}

/// Seconds that `kills` kills and, with `join`, one joining node take.
pub(crate) fn seconds_of(kills: u64, join: bool) -> u64 {
    FIRST_S + (kills + u64::from(join)) * (WINDOW_S + CALM_S)
}

impl Upsets {
    pub(crate) fn new(kills: u64, join: bool) -> Result<Self> {
        let mut steps = Vec::new();
        for number in 0..kills + u64::from(join) {
            let at = FIRST_S + number * (WINDOW_S + CALM_S);
            if number < kills {
                steps.extend([(at, Step::Kill), (at + DEAD_S, Step::Start)]);
            } else {
                steps.push((at, Step::Join));
            }
            steps.push((at + WINDOW_S, Step::Calm));
        }
        let (calm, windows) = (Seen::new()?, Vec::new());
        Ok(Self { steps: steps.into_iter(), calm, windows, in_window: false })
    }

    /// Does what is due `elapsed_ns` after the beginning.
    pub(crate) fn advance(&mut self, elapsed_ns: u64, server: &mut Server<'_>) -> Result<()> {
        while let Some((at_s, step)) = self.steps.as_slice().first().copied()
            && at_s * SECOND_NS <= elapsed_ns
        {
            let _taken = self.steps.next();
            match step {
                Step::Kill => server.kill_last()?,
                Step::Start => server.start_last()?,
                Step::Join => server.add()?,
                Step::Calm => {}
            }
            if matches!(step, Step::Kill | Step::Join) {
                self.windows.push(Seen::new()?);
            }
            self.in_window = step != Step::Calm;
        }
        Ok(())
    }

    fn seen(&mut self) -> &mut Seen {
        match self.windows.last_mut() {
            Some(window) if self.in_window => window,
            Some(_) | None => &mut self.calm,
        }
    }

    /// A message was delivered so long after it was due.
    pub(crate) fn delivered(&mut self, ns: u64) {
        self.seen().delivery.record(ns);
    }

    /// A message was accepted so long after it was due.
    pub(crate) fn accepted(&mut self, ns: u64) {
        self.seen().tick1.record(ns);
    }

    /// Figures: of calm time, and for each window its longest waits.
    pub(crate) fn result(&self) -> Value {
        let mut longest: Vec<u64> =
            self.windows.iter().filter_map(|seen| seen.delivery.us(1.0)).collect();
        let in_order = longest.clone();
        longest.sort_unstable();
        let tick1: Vec<_> = self.windows.iter().map(|seen| seen.tick1.us(1.0)).collect();
        let p99: Vec<_> = self.windows.iter().map(|seen| seen.delivery.us(0.99)).collect();
        json!({
            "calm_p50_us": self.calm.delivery.us(0.5),
            "calm_p99_us": self.calm.delivery.us(0.99),
            "calm_longest_us": self.calm.delivery.us(1.0),
            "longest_us": in_order,
            "longest_tick1_us": tick1,
            "window_p99_us": p99,
            "longest_median_us": longest.get(longest.len() / 2),
            "longest_of_all_us": longest.last(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_has_a_start_and_calm_time_before_the_next() {
        let upsets = Upsets::new(2, true).unwrap();
        let steps: Vec<_> = upsets.steps.collect();
        assert_eq!(steps[..3], [(8, Step::Kill), (13, Step::Start), (16, Step::Calm)]);
        assert_eq!(steps[3], (23, Step::Kill));
        assert_eq!(steps[6..], [(38, Step::Join), (46, Step::Calm)]);
        assert_eq!(seconds_of(2, true), 53);
    }
}
