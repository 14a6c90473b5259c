//! From the records that the log held at start to the entries of a group. Pure.
//!
//! # Invariants
//! 1. What comes out follows on what the tables hold, without a hole, in the order of terms.

use crate::convert;
use crate::types::{Id, LogEntry};
use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message as _;
use proto::stored;
use std::collections::VecDeque;

/// The entries after `applied`.
///
/// # Errors
/// The index of a record that is none, or that does not follow on the one before it.
pub(crate) fn entries(
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

/// Whether `me` is the only voter, by the newest membership in the tables or in the entries after them.
pub(crate) fn elects_alone(
    me: u64,
    tables: Option<&stored::Applied>,
    entries: &VecDeque<LogEntry>,
) -> bool {
    let in_log = entries.iter().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(members) => Some(members.clone()),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    });
    let in_tables = || tables?.membership.as_ref().map(convert::membership);
    in_log.or_else(in_tables).is_some_and(|members| members.voter_ids().eq([me]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Proposal;
    use openraft::{CommittedLeaderId, Entry, LogId, Membership};
    use std::collections::BTreeSet;

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
    fn who_elects_alone_is_said_by_the_newest_membership() {
        let of = |voters: &[u64]| Membership::new(vec![voters.iter().copied().collect()], ());
        let entry = |index, members: Membership<u64, openraft::EmptyNode>| LogEntry {
            log_id: id(1, index),
            payload: EntryPayload::Membership(members),
        };
        let membership = Some(convert::stored_membership(&of(&[1, 2, 3])));
        let tables = stored::Applied { membership, ..stored::Applied::default() };
        let alone = VecDeque::from([entry(7, of(&[1]))]);
        assert!(!elects_alone(1, None, &VecDeque::new()));
        assert!(!elects_alone(1, Some(&tables), &VecDeque::new()));
        assert!(elects_alone(1, Some(&tables), &alone) && !elects_alone(2, None, &alone));
        let leaving = Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1])], ());
        let back = VecDeque::from([entry(7, of(&[1])), entry(8, leaving)]);
        assert!(!elects_alone(1, None, &back), "the others still vote");
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
