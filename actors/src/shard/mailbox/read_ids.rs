//! The send ids of one device that a reader has marked read: each counts once. A pure core.
//!
//! People read in order, so this is a floor and a few runs above it. If there are more runs than
//! [`RUNS_MAX`], the floor rises over the lowest: ids in the gaps below it count as read.

use std::collections::BTreeMap;

/// Runs of consecutive ids above the floor.
const RUNS_MAX: usize = 64;

/// Which ids were marked read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct ReadIds {
    /// Every id up to here counts as read.
    floor: u64,
    /// First and last of each run above it; they never touch.
    runs: BTreeMap<u64, u64>,
}

impl ReadIds {
    /// Marks an id read; false if it was already.
    pub(in crate::shard) fn add(&mut self, id: u64) -> bool {
        if id <= self.floor {
            return false;
        }
        let before = self.runs.range(..=id).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| id <= last) {
            return false;
        }
        let joined = before.filter(|(_, last)| *last + 1 == id);
        let first = joined.map_or(id, |(first, _)| first);
        let after = id.checked_add(1).and_then(|next| self.runs.remove(&next));
        self.runs.insert(first, after.unwrap_or(id));
        if self.runs.len() > RUNS_MAX
            && let Some((_, last)) = self.runs.pop_first()
        {
            self.floor = last;
        }
        true
    }

    /// The floor, then first and last of each run.
    pub(in crate::shard) fn to_row(&self) -> Vec<u64> {
        let runs = self.runs.iter().flat_map(|(first, last)| [*first, *last]);
        if self.floor == 0 && self.runs.is_empty() {
            return Vec::new();
        }
        std::iter::once(self.floor).chain(runs).collect()
    }

    /// Reads what [`Self::to_row`] wrote.
    pub(in crate::shard) fn from_row(row: &[u64]) -> Self {
        let Some((floor, runs)) = row.split_first() else { return Self::default() };
        let runs = runs.chunks_exact(2).map(|run| (run[0], run[1])).collect();
        Self { floor: *floor, runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_counts_once_in_any_order() {
        let mut read = ReadIds::default();
        for id in [5, 7, 6, 1, 9, 8, u64::MAX] {
            assert!(read.add(id), "{id}");
            assert!(!read.add(id), "{id} twice");
        }
        assert_eq!(read.runs, BTreeMap::from([(1, 1), (5, 9), (u64::MAX, u64::MAX)]));
        assert_eq!(ReadIds::from_row(&read.to_row()), read);
    }

    #[test]
    fn ids_with_gaps_cost_no_more_than_64_runs_and_are_never_told_twice() {
        let mut read = ReadIds::default();
        assert!((1..1_000).all(|id| read.add(id * 2)));
        assert_eq!(read.runs.len(), RUNS_MAX);
        assert!((1..1_000).all(|id| !read.add(id * 2)));
    }
}
