//! The entries of a group's log that are in memory: those since the last purge. Pure.
//!
//! Owned by the journal.
//!
//! **Invariant:** each entry follows on the one before it, and the first on what was purged.

use crate::types::{Id, LogEntry};
use openraft::EntryPayload;
use std::collections::VecDeque;

#[derive(Default)]
pub(crate) struct Held {
    purged: Option<Id>,
    entries: VecDeque<LogEntry>,
    /// For each entry what it takes, and all that were ever before it. Bytes.
    ends: VecDeque<u64>,
    /// The same of what was purged.
    begin: u64,
}

impl Held {
    pub(crate) fn new(purged: Option<Id>, entries: VecDeque<LogEntry>) -> Self {
        let mut held = Self { purged, ..Self::default() };
        for entry in entries {
            held.push(entry);
        }
        held
    }

    pub(crate) fn purged(&self) -> Option<Id> {
        self.purged
    }

    pub(crate) fn push(&mut self, entry: LogEntry) {
        let before = self.ends.back().copied().unwrap_or(self.begin);
        self.ends.push_back(before + (bytes_of(&entry) + size_of::<LogEntry>()) as u64);
        self.entries.push_back(entry);
    }

    /// Takes back the entries from `index` on.
    pub(crate) fn truncate(&mut self, index: u64) {
        let kept = self.place(index);
        self.entries.truncate(kept);
        self.ends.truncate(kept);
    }

    /// Lets go of the entries up to `id`. Nothing follows what was skipped.
    pub(crate) fn purge(&mut self, id: Id) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= id.index) {
            self.entries.pop_front();
            self.begin = self.ends.pop_front().unwrap_or(self.begin);
        }
        if self.purged.is_none_or(|purged| purged.index < id.index) {
            self.purged = Some(id);
        }
    }

    fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    pub(crate) fn last(&self) -> Option<Id> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    fn place(&self, index: u64) -> usize {
        let place = usize::try_from(index.saturating_sub(self.first())).unwrap_or(usize::MAX);
        place.min(self.entries.len())
    }

    /// The entries from `start` to before `end`, as far as they are here.
    pub(crate) fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &LogEntry> {
        let (start, end) = (self.place(start), self.place(end));
        self.entries.range(start.min(end)..end)
    }

    /// All of them, the last one first.
    pub(crate) fn backwards(&self) -> impl Iterator<Item = &LogEntry> {
        self.entries.iter().rev()
    }

    /// What the entries from `start` to before `end` take, as far as they are here. Bytes.
    pub(crate) fn bytes_in(&self, start: u64, end: u64) -> u64 {
        let before = |index| match self.place(index) {
            0 => self.begin,
            place => self.ends[place - 1],
        };
        before(end).saturating_sub(before(start))
    }
}

/// Bytes that somebody proposed.
pub(crate) fn bytes_of(entry: &LogEntry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.content.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Proposal;
    use openraft::{CommittedLeaderId, LogId};

    const EACH: u64 = size_of::<LogEntry>() as u64;

    fn entry(index: u64, bytes: usize) -> LogEntry {
        let proposal = Proposal { content: vec![0; bytes].into(), ..Proposal::default() };
        LogEntry { log_id: id(index), payload: EntryPayload::Normal(proposal) }
    }

    fn id(index: u64) -> Id {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    #[test]
    fn bytes_are_those_of_the_entries_that_are_here() {
        let entries = (5..10).map(|index| entry(index, 100)).collect();
        let mut held = Held::new(Some(id(4)), entries);
        assert_eq!(held.bytes_in(0, 100), 5 * (100 + EACH));
        assert_eq!(held.bytes_in(6, 8), 2 * (100 + EACH));
        assert_eq!(held.bytes_in(8, 6), 0);

        held.purge(id(6));
        assert_eq!(held.bytes_in(0, 100), 3 * (100 + EACH));
        held.truncate(8);
        held.push(entry(8, 1000));
        assert_eq!(held.bytes_in(0, 100), 1100 + 2 * EACH);
        assert_eq!(held.bytes_in(8, 9), 1000 + EACH);

        held.purge(id(20));
        assert_eq!((held.last(), held.bytes_in(0, 100)), (Some(id(20)), 0));
        held.push(entry(21, 1));
        assert_eq!(held.bytes_in(21, 22), 1 + EACH);
    }
}
