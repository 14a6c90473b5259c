//! Restart decisions: which children, and when to give up. Pure: no clock, no actor.
//!
//! # Invariants
//! 1. At most [`Intensity::restarts`] restarts are granted within any [`Intensity::within`].

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// The exits of a child that lead to a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Every exit.
    Permanent,
    /// Failures only.
    Transient,
    /// None; the child is not restarted with its siblings either.
    Temporary,
}

/// The children that are restarted when one must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// That one.
    OneForOne,
    /// All of them.
    OneForAll,
    /// That one and those started after it.
    RestForOne,
}

/// The number of restarts after which a supervisor gives up.
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

/// True if a child with `restart` is restarted after `exit`.
pub(crate) fn is_restarted(restart: Restart, exit: Exit) -> bool {
    match restart {
        Restart::Permanent => true,
        Restart::Transient => exit == Exit::Failed,
        Restart::Temporary => false,
    }
}

/// The range of the `count` children that are restarted because child `failed` must be.
pub(crate) fn affected(strategy: Strategy, failed: usize, count: usize) -> Range<usize> {
    match strategy {
        Strategy::OneForOne => failed..failed + 1,
        Strategy::OneForAll => 0..count,
        Strategy::RestForOne => failed..count,
    }
}

/// The restarts granted within the window. An empty one owns no memory.
#[derive(Debug, Default)]
pub(crate) struct RestartLog(VecDeque<Instant>);

impl RestartLog {
    /// Grants and records a restart at `now`, or returns `false`: give up.
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
    fn each_strategy_restarts_the_children_it_names() {
        assert_eq!(affected(Strategy::OneForOne, 1, 4), 1..2);
        assert_eq!(affected(Strategy::OneForAll, 1, 4), 0..4);
        assert_eq!(affected(Strategy::RestForOne, 1, 4), 1..4);
    }

    #[test]
    fn only_the_exits_named_by_its_spec_restart_a_child() {
        let table = [
            (Restart::Permanent, true, true),
            (Restart::Transient, false, true),
            (Restart::Temporary, false, false),
        ];
        for (restart, normal, failed) in table {
            assert_eq!(is_restarted(restart, Exit::Normal), normal, "{restart:?}");
            assert_eq!(is_restarted(restart, Exit::Failed), failed, "{restart:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_outside_the_window_do_not_count() {
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
