//! A bucket of requests that fills again in a time, by the generic cell rate algorithm: only the time is kept
//! up to which requests are paid for. A pure core.

/// A number of requests and the time for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// The time in which an empty bucket fills, in the unit of what else is given.
    pub whole: u64,
    /// Requests in a full bucket; 0 counts as 1.
    pub count: u32,
    /// True if one more may be taken ahead of its time.
    pub credit: bool,
}

impl Bucket {
    /// The time that one request costs.
    pub(crate) fn step(&self) -> u64 {
        self.whole / u64::from(self.count.max(1))
    }

    /// Up to where requests are paid for if one more is taken. `paid_to` is where they are now.
    ///
    /// # Errors
    /// The time after which there is one.
    pub(crate) fn pay(&self, paid_to: &mut u64, now: u64) -> Result<u64, u64> {
        let step = self.step();
        // A clock that was set back empties the bucket at most.
        *paid_to = (*paid_to).min(now + self.whole + step);
        let more = (*paid_to).max(now) + step;
        let most = now + self.whole + if self.credit { step } else { 0 };
        if more <= most { Ok(more) } else { Err(more - most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_after_the_time_that_was_named_passes_and_a_moment_earlier_not() {
        let bucket = Bucket { whole: 3_600, count: 5, credit: false };
        let (mut paid_to, now) = (0, 10_000);
        for _ in 0..5 {
            paid_to = bucket.pay(&mut paid_to, now).unwrap();
        }
        let wait = bucket.pay(&mut paid_to, now).unwrap_err();
        assert_eq!(wait, 720);
        assert_eq!(bucket.pay(&mut paid_to, now + wait - 1), Err(1));
        assert!(bucket.pay(&mut paid_to, now + wait).is_ok());
    }
}
