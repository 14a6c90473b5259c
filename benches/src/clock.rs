//! Time: nanoseconds since the program began. The one place that reads the clock.
//!
//! **Invariant:** one clock for both ends of a message, so latency needs no agreement of clocks.

use std::time::Instant;

/// The clock of this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts at zero.
    #[allow(clippy::disallowed_methods, reason = "the edge where a measurement reads the clock")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Seconds in a span of nanoseconds.
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// Nanoseconds in a millisecond.
pub(crate) const MS_NS: u64 = 1_000_000;
