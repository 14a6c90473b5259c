//! The send ids that a mailbox remembers of one sending device: how a retry is recognized.
//!
//! Devices count their sends up, so what they send to one person is a few runs of consecutive ids,
//! and a run costs the same however long it is.
//!
//! # Invariants
//! 1. Ids inside a run are never forgotten singly: a run goes as a whole.
//! 2. The last [`RECENT_IDS`] sends are remembered, and of the last [`RECENT_S`] seconds all that
//!    fit into [`RECENT_RUNS_MAX`] runs.
//! 3. Runs are never empty and never overlap. They lie in the order in which they were used last.

use crate::shard::mailbox::read_ids::ReadIds;
use proto::limits::{RECENT_IDS, RECENT_RUNS_MAX, RECENT_S};
use proto::stored;
use std::collections::VecDeque;

/// How long a run that was used is remembered in any case, in ms.
///
/// Long enough because a node holds a send for a shorter time, and a device that comes to another
/// node repeats there what it has no answer to before it sends anything new, which makes the run
/// young again. A send waits for at most [`HELD_MS`](crate::shard::proposals::HELD_MS) in the queue of its
/// node's shard actor, has [`FORWARD_TIMEOUT`](crate::shard::FORWARD_TIMEOUT) to reach the leader,
/// and waits as long again in the leader's queue: 43 s. The rest is for clocks that differ. What a
/// leader has proposed needs no span: it gets its place in the log in that leader's term or never.
///
/// Not bounded: what a node that was stopped has not yet read from its sockets. There the last
/// [`RECENT_IDS`] sends must do.
pub(in crate::shard) const KEPT_MS: u64 = RECENT_S * 1000;

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    count: u64,
    /// When one of them was added or recognized last, Unix time in ms.
    at_ms: u64,
}

impl Run {
    fn contains(&self, id: u64) -> bool {
        id >= self.first && id - self.first < self.count
    }

    fn ends_before(&self, id: u64) -> bool {
        self.first.checked_add(self.count) == Some(id)
    }
}

/// The last send ids of one device to one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentIds {
    /// Used last at the back.
    runs: VecDeque<Run>,
    /// When an id was last added or recognized, Unix time in ms.
    pub used_ms: u64,
    /// The highest id of a run that was forgotten.
    forgotten_to: u64,
    /// Which of the ids the recipient has marked read.
    read: ReadIds,
}

/// Whether a device sent something under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It did.
    Yes,
    /// Perhaps: it sent later ones, and what it sent then is forgotten.
    Perhaps,
    /// It did not.
    No,
}

impl RecentIds {
    /// Whether this id was added and not yet forgotten. A retry makes its run young again.
    pub fn recognize(&mut self, id: u64, now_ms: u64) -> bool {
        let Some(run) = self.take(|run| run.contains(id)) else { return false };
        self.put(Run { at_ms: now_ms, ..run });
        true
    }

    /// Remembers an id that is not contained.
    pub fn add(&mut self, id: u64, now_ms: u64) {
        let before = self.take(|run| run.ends_before(id));
        let after = self.take(|run| id.checked_add(1) == Some(run.first));
        let count = |run: Option<Run>| run.map_or(0, |run| run.count);
        self.put(Run {
            first: before.map_or(id, |run| run.first),
            count: count(before) + 1 + count(after),
            at_ms: now_ms,
        });
        self.trim(now_ms);
    }

    /// Forgets what is too old or too much. Whether more will become too old.
    pub fn trim(&mut self, now_ms: u64) -> bool {
        while self.has_too_many(now_ms) {
            if let Some(run) = self.runs.pop_front() {
                let last = run.first.saturating_add(run.count - 1);
                self.forgotten_to = self.forgotten_to.max(last);
            }
        }
        self.runs.shrink_to(RECENT_IDS);
        self.runs.len() > RECENT_IDS
    }

    /// Whether the device sent something under this id.
    pub fn sent(&self, id: u64) -> Sent {
        if self.runs.iter().any(|run| run.contains(id)) {
            Sent::Yes
        } else if id <= self.forgotten_to {
            Sent::Perhaps
        } else {
            Sent::No
        }
    }

    /// The recipient has read this; false if that was known.
    pub fn mark_read(&mut self, id: u64) -> bool {
        self.read.add(id)
    }

    fn take(&mut self, which: impl Fn(&Run) -> bool) -> Option<Run> {
        let place = self.runs.iter().rposition(which)?;
        self.runs.remove(place)
    }

    fn put(&mut self, run: Run) {
        self.used_ms = run.at_ms;
        self.runs.push_back(run);
    }

    fn has_too_many(&self, now_ms: u64) -> bool {
        let old = |run: &Run| now_ms.saturating_sub(run.at_ms) > KEPT_MS;
        self.runs.len() > RECENT_RUNS_MAX
            || self.runs.len() > RECENT_IDS && self.runs.front().is_some_and(old)
    }

    /// The row of table `recent`.
    pub fn to_row(&self) -> stored::RecentIds {
        let run = |&Run { first, count, at_ms }: &Run| stored::IdRun { first, count, at_ms };
        stored::RecentIds {
            runs: self.runs.iter().map(run).collect(),
            used_ms: self.used_ms,
            forgotten_to: self.forgotten_to,
            read: self.read.to_row(),
        }
    }

    /// Reads the row of table `recent`.
    pub fn from_row(row: &stored::RecentIds) -> Self {
        let run =
            |&stored::IdRun { first, count, at_ms }: &stored::IdRun| Run { first, count, at_ms };
        Self {
            runs: row.runs.iter().map(run).collect(),
            used_ms: row.used_ms,
            forgotten_to: row.forgotten_to,
            read: ReadIds::from_row(&row.read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Ids and when each was used last, as time and order.
    #[derive(Default)]
    struct Model {
        used: BTreeMap<u64, (u64, usize)>,
        uses: usize,
    }

    impl Model {
        fn use_it(&mut self, id: u64, now_ms: u64) {
            self.uses += 1;
            self.used.insert(id, (now_ms, self.uses));
        }

        /// Whether it is one of the last 128 or of the last minute.
        fn must_know(&self, id: u64, now_ms: u64) -> bool {
            let Some((at_ms, order)) = self.used.get(&id).copied() else { return false };
            let later = self.used.values().filter(|used| used.1 > order).count();
            later < RECENT_IDS || now_ms - at_ms <= KEPT_MS
        }
    }

    /// A device's next send, seen from its last: the next id, one after a gap, or an old one; soon,
    /// or after a pause.
    fn step() -> impl Strategy<Value = (i64, u64)> {
        let id = prop_oneof![4 => Just(1i64), 4 => 2i64..5, 2 => -8i64..0, 1 => -900i64..900];
        let ms = prop_oneof![100 => 0u64..100, 1 => 10_000u64..90_000];
        (id, ms)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
        #[test]
        fn the_last_128_sends_and_those_of_the_last_minute_are_known(
            steps in prop::collection::vec(step(), 0..700)
        ) {
            let (mut recent, mut model) = (RecentIds::default(), Model::default());
            let (mut id, mut now_ms) = (1_000u64, 1u64);
            for (by, ms) in steps {
                (id, now_ms) = (id.saturating_add_signed(by), now_ms + ms);
                let must = model.must_know(id, now_ms);
                let known = recent.recognize(id, now_ms);
                prop_assert!(known || !must, "{id} is forgotten");
                prop_assert!(!known || model.used.contains_key(&id), "{id} was never added");
                if !known {
                    recent.add(id, now_ms);
                    let mut aged = recent.runs.iter().rev().skip(RECENT_IDS);
                    prop_assert!(aged.all(|run| now_ms - run.at_ms <= KEPT_MS), "old runs stay");
                }
                model.use_it(id, now_ms);
            }
            prop_assert_eq!(RecentIds::from_row(&recent.to_row()), recent.clone());
            let mut runs: Vec<_> = recent.runs.iter().map(|run| (run.first, run.count)).collect();
            runs.sort_unstable();
            let apart = runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0);
            prop_assert!(apart, "runs overlap or touch: {runs:?}");
        }
    }

    #[test]
    fn counting_up_costs_one_run_and_forgets_nothing() {
        let mut recent = RecentIds::default();
        (1..10_000).for_each(|id| recent.add(id, id * KEPT_MS));
        assert_eq!(recent.runs.len(), 1);
        assert!((1..10_000).all(|id| recent.recognize(id, u64::MAX)));
        assert!(!recent.recognize(0, 1) && !recent.recognize(10_000, 1));
    }

    #[test]
    fn ids_in_any_order_join_their_neighbors() {
        let mut recent = RecentIds::default();
        for id in [7, 9, 3, 8, 10, 6, 1, u64::MAX, 0] {
            recent.add(id, 5);
        }
        let runs: Vec<_> = recent.runs.iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(runs, [(3, 1), (6, 5), (u64::MAX, 1), (0, 2)]);
    }

    #[test]
    fn a_device_that_jumps_costs_no_more_than_4096_runs() {
        let mut recent = RecentIds::default();
        (0..10_000).for_each(|id| recent.add(id * 2, 1));
        assert_eq!(recent.runs.len(), RECENT_RUNS_MAX);
        recent.add(1_000_000, 1 + KEPT_MS);
        assert_eq!(recent.runs.len(), RECENT_RUNS_MAX, "a minute has not passed");
        recent.add(1_000_002, 2 + KEPT_MS);
        assert_eq!(recent.runs.len(), RECENT_IDS);
    }

    #[test]
    fn what_was_never_sent_is_told_from_what_is_forgotten() {
        let mut recent = RecentIds::default();
        (1..=200).for_each(|id| recent.add(id * 2, 1));
        assert!(recent.trim(1), "a minute has not passed");
        assert!(!recent.trim(2 + KEPT_MS));
        let sent = [2, 100, 400, 401, 1_000].map(|id| recent.sent(id));
        assert_eq!(sent, [Sent::Perhaps, Sent::Perhaps, Sent::Yes, Sent::No, Sent::No]);
    }

    #[test]
    fn a_retry_that_is_recognized_makes_its_run_young_again() {
        let mut recent = RecentIds::default();
        recent.add(1, 1);
        assert!(recent.recognize(1, 3 * KEPT_MS));
        (2..1_000).for_each(|id| recent.add(id * 2, 3 * KEPT_MS + 1));
        assert!(recent.recognize(1, 3 * KEPT_MS + 1));
    }
}
