//! Latencies, in microseconds, by histogram.

use anyhow::Result;
use hdrhistogram::Histogram;

/// Longest latency that is told apart: a minute.
const MAX_US: u64 = 60_000_000;

/// Latencies of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u32>);

impl Latency {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, MAX_US, 3)?))
    }

    /// Counts one.
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record((ns / 1000).max(1));
    }

    /// The latency in microseconds that this share of all was not above; `None` if none was counted.
    pub(crate) fn us(&self, share: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(share))
    }
}
