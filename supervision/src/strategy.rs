//! Who is restarted, and when to give up. Pure: no clock, no actor.
//!
//! # Invariants
//! 1. At most [`Intensity::restarts`] restarts are granted within any [`Intensity::within`].

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// Which ends of a child ask for a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Every end.
    Permanent,
    /// Failures only.
    Transient,
    /// None; nor is it restarted with its siblings.
    Temporary,
}

/// Which children are restarted when one asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// That one.
    OneForOne,
    /// All of them.
    OneForAll,
    /// That one and those started after it.
    RestForOne,
}

/// How many restarts are granted before a supervisor gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts granted within `within`; 0 gives up at the first failure.
    pub restarts: u32,
    /// The sliding window.
    pub within: Duration,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Normal,
    Failed,
}

/// Whether a child that ended so asks for a restart.
pub(crate) fn comes_back(restart: Restart, exit: Exit) -> bool {
    match restart {
        Restart::Permanent => true,
        Restart::Transient => exit == Exit::Failed,
        Restart::Temporary => false,
    }
}

/// The children, of `count`, that stop and start again because `failed` asks for a restart.
pub(crate) fn affected(strategy: Strategy, failed: usize, count: usize) -> Range<usize> {
    match strategy {
        Strategy::OneForOne => failed..failed + 1,
        Strategy::OneForAll => 0..count,
        Strategy::RestForOne => failed..count,
    }
}

/// The restarts granted of late. Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct RestartLog(VecDeque<Instant>);

impl RestartLog {
    /// Asks for one more restart at `now`; `false` means give up.
    pub(crate) fn grant(&mut self, now: Instant, intensity: Intensity) -> bool {
        while self.0.front().is_some_and(|at| now.duration_since(*at) >= intensity.within) {
            self.0.pop_front();
        }
        if self.0.len() >= usize::try_from(intensity.restarts).unwrap_or(usize::MAX) {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_strategy_touches_the_children_it_names() {
        assert_eq!(affected(Strategy::OneForOne, 1, 4), 1..2);
        assert_eq!(affected(Strategy::OneForAll, 1, 4), 0..4);
        assert_eq!(affected(Strategy::RestForOne, 1, 4), 1..4);
    }

    #[test]
    fn only_the_ends_that_a_child_names_bring_it_back() {
        let table = [
            (Restart::Permanent, true, true),
            (Restart::Transient, false, true),
            (Restart::Temporary, false, false),
        ];
        for (restart, normal, failed) in table {
            assert_eq!(comes_back(restart, Exit::Normal), normal, "{restart:?}");
            assert_eq!(comes_back(restart, Exit::Failed), failed, "{restart:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_restarts_are_forgiven_and_recent_ones_counted() {
        let intensity = Intensity { restarts: 2, within: Duration::from_secs(10) };
        let start = Instant::now();
        let mut log = RestartLog::default();
        assert!(log.grant(start, intensity));
        assert!(log.grant(start + Duration::from_secs(6), intensity));
        assert!(!log.grant(start + Duration::from_secs(9), intensity));
        assert!(log.grant(start + Duration::from_secs(10), intensity));
        assert!(!log.grant(start + Duration::from_secs(15), intensity));
    }
}
