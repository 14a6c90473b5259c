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
pub(crate) struct ByteRates(BTreeMap<UserId, Used>);

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
    /// Takes `bytes` that `from` stores now from the bucket. `rate` is in bytes for each second; 0: no
    /// limit.
    ///
    /// # Errors
    /// After how many ms they would fit.
    pub(crate) fn admit(
        &mut self,
        from: UserId,
        bytes: u64,
        rate: u64,
        now_ms: u64,
    ) -> Result<(), u64> {
        if rate == 0 {
            return Ok(());
        }
        let used = self.0.get(&from).map_or(0, |used| used.now(rate, now_ms));
        // One message always fits into a full bucket, however long it is.
        let over = (used + bytes).saturating_sub(rate.saturating_mul(BURST_S)).min(used);
        if over > 0 {
            return Err(over.saturating_mul(1000).div_ceil(rate));
        }
        if self.0.len() >= SENDERS_MAX && !self.0.contains_key(&from) {
            self.make_room(rate, now_ms);
        }
        self.0.insert(from, Used { bytes: used + bytes, at_ms: now_ms });
        Ok(())
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
        let stored = (0..100).filter(|_| rates.admit(EVE, 1_000, 1_000, 0).is_ok()).count();
        assert_eq!(stored, 32);
        assert!(rates.admit(UserId(2), 1_000, 1_000, 0).is_ok(), "others have their own");
        let later = (0..100).filter(|_| rates.admit(EVE, 1_000, 1_000, 5_000).is_ok()).count();
        assert_eq!(later, 5);
        assert!((0..100).all(|_| rates.admit(EVE, 1_000, 0, 0).is_ok()), "no limit");
    }

    #[test]
    fn a_message_that_does_not_fit_is_told_when_it_does() {
        let mut rates = ByteRates::default();
        rates.admit(EVE, 32_000, 1_000, 0).unwrap();
        let wait = rates.admit(EVE, 7_500, 1_000, 0).unwrap_err();
        assert_eq!(wait, 7_500);
        assert_eq!(rates.admit(EVE, 7_500, 1_000, wait - 1), Err(1));
        rates.admit(EVE, 7_500, 1_000, wait).unwrap();
        assert_eq!(rates.admit(EVE, 100_000, 1_000, wait), Err(32_000), "longer than the bucket");
    }

    #[test]
    fn a_long_message_fits_into_a_full_bucket_and_many_senders_cost_little() {
        let mut rates = ByteRates::default();
        rates.admit(EVE, 100_000, 1_000, 0).unwrap();
        for sender in 2..100_000 {
            rates.admit(UserId(sender), 10, 1_000, sender).unwrap();
        }
        assert!(rates.0.len() <= SENDERS_MAX);
        assert!(rates.admit(EVE, 1_000, 1_000, 20).is_err(), "who used the most is remembered");
    }
}
