//! The send ids that a mailbox remembers of one sending device: how a retry is recognized.
//!
//! Devices count their sends up, so the last [`RECENT_IDS`] of them are nearly always one run.
//!
//! # Invariants
//! 1. At most [`RECENT_IDS`] ids are remembered, the oldest remembered is forgotten first.
//! 2. Runs are never empty and never overlap.

use proto::limits::RECENT_IDS;
use proto::stored;
use std::collections::VecDeque;

/// The last send ids of one device to one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentIds {
    /// First id and length of each run, oldest first.
    runs: VecDeque<(u64, u64)>,
    count: u64,
    /// When an id was last added, Unix time in ms.
    pub used_ms: u64,
}

impl RecentIds {
    /// Whether this id was added and not yet forgotten.
    pub fn contains(&self, id: u64) -> bool {
        self.runs.iter().rev().any(|(first, count)| id >= *first && id - *first < *count)
    }

    /// Remembers an id that is not contained.
    pub fn add(&mut self, id: u64, now_ms: u64) {
        match self.runs.back_mut() {
            Some((first, count)) if first.wrapping_add(*count) == id => *count += 1,
            _ => self.runs.push_back((id, 1)),
        }
        self.count += 1;
        self.used_ms = now_ms;
        if self.count > RECENT_IDS {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((first, count)) = self.runs.front_mut() else { return };
        *first += 1;
        *count -= 1;
        self.count -= 1;
        if *count == 0 {
            self.runs.pop_front();
        }
    }

    /// The row of table `recent`.
    pub fn to_row(&self) -> stored::RecentIds {
        let runs = self.runs.iter().map(|&(first, count)| stored::IdRun { first, count }).collect();
        stored::RecentIds { runs, used_ms: self.used_ms }
    }

    /// Reads the row of table `recent`.
    pub fn from_row(row: &stored::RecentIds) -> Self {
        let runs: VecDeque<_> = row.runs.iter().map(|run| (run.first, run.count)).collect();
        let count = runs.iter().map(|run| run.1).sum();
        Self { runs, count, used_ms: row.used_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_remembers_exactly_the_last_ids(ids in prop::collection::vec(0u64..400, 0..600)) {
            let mut recent = RecentIds::default();
            let mut model: Vec<u64> = Vec::new();
            for id in ids {
                let known = model.contains(&id);
                prop_assert_eq!(recent.contains(id), known);
                if !known {
                    recent.add(id, 1);
                    model.push(id);
                    if model.len() as u64 > RECENT_IDS {
                        model.remove(0);
                    }
                }
            }
            prop_assert_eq!(RecentIds::from_row(&recent.to_row()), recent);
        }
    }

    #[test]
    fn counting_up_costs_one_run() {
        let mut recent = RecentIds::default();
        (1..10_000).for_each(|id| recent.add(id, 1));
        assert_eq!(recent.runs.len(), 1);
        assert!(recent.contains(9_999 - RECENT_IDS + 1) && !recent.contains(9_999 - RECENT_IDS));
    }
}
