//! Counts what repeats, so that a log has one line now and then with a number instead of a line each.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Counts events, and says when a line about them is due: for the first, and then after `every`.
#[derive(Debug)]
pub struct Paced {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    said: Option<Instant>,
}

impl Paced {
    /// At most one line in `every`.
    pub const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(State { count: 0, said: None }) }
    }

    /// Counts one more at `now`. `Some`: a line is due, and so many came since the last one.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        state.count += 1;
        if state.said.is_some_and(|said| now.duration_since(said) < self.every) {
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_said_at_once_and_then_with_its_count() {
        let (paced, start) = (Paced::new(Duration::from_mins(1)), Instant::now());
        let at = |second| paced.count(start + Duration::from_secs(second));
        assert_eq!(at(0), Some(1));
        assert_eq!((at(1), at(30), at(59)), (None, None, None));
        assert_eq!(at(60), Some(4));
        assert_eq!(at(600), Some(1));
    }
}
