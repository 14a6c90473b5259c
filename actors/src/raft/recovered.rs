//! From the records that the log held at start to the entries of a group. Pure.
//!
//! # Invariants
//! 1. What comes out follows on what the tables hold, without a hole, in the order of terms.

use super::convert;
use super::types::{Id, LogEntry};
use bytes::Bytes;
use prost::Message as _;
use proto::stored;
use std::collections::VecDeque;

/// The entries after `applied`.
///
/// # Errors
/// The index of a record that is none, or that does not follow on the one before it.
pub(super) fn entries(
    applied: Option<Id>,
    records: Vec<(u64, Bytes)>,
) -> Result<VecDeque<LogEntry>, u64> {
    let mut before = applied;
    let read = |(index, record)| {
        let stored = stored::Entry::decode(record).ok();
        let entry = stored.and_then(convert::entry).ok_or(index)?;
        let expected = before.map_or(0, |id| id.index + 1);
        let follows = entry.log_id.index == expected && Some(entry.log_id) > before;
        before = Some(entry.log_id);
        if follows && index == expected { Ok(entry) } else { Err(index) }
    };
    records.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::super::types::Proposal;
    use super::*;
    use openraft::{CommittedLeaderId, Entry, EntryPayload, LogId};

    fn id(term: u64, index: u64) -> Id {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }

    fn record(term: u64, index: u64) -> (u64, Bytes) {
        let payload = EntryPayload::Normal(Proposal::default());
        let entry = Entry { log_id: id(term, index), payload };
        (index, convert::stored_entry(&entry).encode_to_vec().into())
    }

    fn recover(applied: Option<Id>, records: Vec<(u64, Bytes)>) -> Result<Vec<Id>, u64> {
        let entries = entries(applied, records)?;
        Ok(entries.into_iter().map(|entry| entry.log_id).collect())
    }

    #[test]
    fn records_become_the_entries_after_what_the_tables_hold() {
        let records = vec![record(1, 5), record(3, 6)];
        assert_eq!(recover(Some(id(1, 4)), records), Ok(vec![id(1, 5), id(3, 6)]));
        let first = (0, record(0, 0).1);
        assert_eq!(recover(None, vec![first]), Ok(vec![id(0, 0)]));
        assert_eq!(recover(Some(id(1, 4)), vec![]), Ok(vec![]));
    }

    #[test]
    fn a_hole_is_damage() {
        assert_eq!(recover(Some(id(1, 4)), vec![record(1, 5), record(1, 7)]), Err(7));
        assert_eq!(recover(Some(id(1, 4)), vec![record(1, 6)]), Err(6));
        assert_eq!(recover(None, vec![record(1, 1)]), Err(1));
    }

    #[test]
    fn an_older_term_after_a_newer_one_is_damage() {
        assert_eq!(recover(Some(id(2, 15)), vec![record(1, 16)]), Err(16));
    }

    #[test]
    fn what_is_no_record_is_an_error_with_its_index() {
        let garbage = (3, Bytes::from_static(&[0xff, 0xff]));
        assert_eq!(recover(None, vec![garbage]), Err(3));
        let (_, bytes) = record(1, 4);
        assert_eq!(recover(Some(id(1, 4)), vec![(5, bytes)]), Err(5));
    }
}
