//! How many bytes each sender may store in a shard: a token bucket for each. A pure core, kept by the
//! leader alone; a new leader begins with full buckets.

use proto::UserId;
use std::collections::BTreeMap;

/// A bucket holds the bytes of so many seconds: a device that was offline sends what it has written.
const BURST_S: u64 = 32;

/// Senders whose buckets are not full. Beyond it those who used the least are forgotten.
const SENDERS_MAX: usize = 10_000;

/// What senders have used of their buckets.
#[derive(Debug, Default)]
pub(super) struct ByteRates(BTreeMap<UserId, Used>);

#[derive(Clone, Copy, Debug)]
struct Used {
    bytes: u64,
    at_ms: u64,
}

impl Used {
    /// What is left of it after some time. A clock that was set back fills no bucket.
    fn now(self, rate: u64, now_ms: u64) -> u64 {
        let refilled = now_ms.saturating_sub(self.at_ms).saturating_mul(rate) / 1000;
        self.bytes.saturating_sub(refilled)
    }
}

impl ByteRates {
    /// Whether `from` may store `bytes` now; they are taken from the bucket then. `rate` is in bytes for
    /// each second; 0: no limit.
    pub(super) fn admit(&mut self, from: UserId, bytes: u64, rate: u64, now_ms: u64) -> bool {
        if rate == 0 {
            return true;
        }
        let used = self.0.get(&from).map_or(0, |used| used.now(rate, now_ms));
        // One message always fits into a full bucket, however long it is.
        if used > 0 && used + bytes > rate.saturating_mul(BURST_S) {
            return false;
        }
        if self.0.len() >= SENDERS_MAX && !self.0.contains_key(&from) {
            self.make_room(rate, now_ms);
        }
        self.0.insert(from, Used { bytes: used + bytes, at_ms: now_ms });
        true
    }

    fn make_room(&mut self, rate: u64, now_ms: u64) {
        for least in [0, rate, rate.saturating_mul(BURST_S)] {
            self.0.retain(|_, used| used.now(rate, now_ms) > least);
            if self.0.len() < SENDERS_MAX / 2 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVE: UserId = UserId(1);

    #[test]
    fn a_burst_goes_through_and_then_the_rate_holds() {
        let mut rates = ByteRates::default();
        let stored = (0..100).filter(|_| rates.admit(EVE, 1_000, 1_000, 0)).count();
        assert_eq!(stored, 32);
        assert!(rates.admit(UserId(2), 1_000, 1_000, 0), "others have their own");
        let later = (0..100).filter(|_| rates.admit(EVE, 1_000, 1_000, 5_000)).count();
        assert_eq!(later, 5);
        assert!((0..100).all(|_| rates.admit(EVE, 1_000, 0, 0)), "no limit");
    }

    #[test]
    fn a_long_message_fits_into_a_full_bucket_and_many_senders_cost_little() {
        let mut rates = ByteRates::default();
        assert!(rates.admit(EVE, 100_000, 1_000, 0));
        for sender in 2..100_000 {
            assert!(rates.admit(UserId(sender), 10, 1_000, sender));
        }
        assert!(rates.0.len() <= SENDERS_MAX);
        assert!(!rates.admit(EVE, 1_000, 1_000, 20), "who used the most is remembered");
    }
}
