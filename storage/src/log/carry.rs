//! Records of a group that stands still are written once more, at the end of the log.
//!
//! A shard without a majority, or one whose leader does not reach this node, has no checkpoint. Its last
//! records would keep all segments that came after them, of all groups, until the disk is full.
//!
//! ```text
//! segments   3 3 7 | 7 0 7 | 0 7 0 | 7 0 7 | 0 ...     3 stands still
//! after                                     | 0 ... 3 3
//! ```
//!
//! # Invariants
//! 1. All that counts of a group is written in one block: after a crash the log has the old records or
//!    the new ones, and they are the same.
//! 2. Nothing of the group was written or voided since its records were read, and nobody changes its
//!    tables meanwhile.

use super::block::{self, Content};
use super::ledger::StandsStill;
use super::{Shared, Waiting, segment};
use crate::StorageError;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use tracing::{debug, warn};

/// Bytes of records that are carried at once, at most. A group makes a checkpoint long before.
const CARRIED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A group's records, in the form of a block.
pub(super) struct Carried {
    pub(super) from: StandsStill,
    pub(super) block: Vec<u8>,
    pub(super) waiting: Vec<Waiting>,
}

impl Shared {
    /// Hands the flusher the records of a group to write again.
    pub(super) fn carry(&self, group: StandsStill) -> Result<(), StorageError> {
        let Some(carried) = read(group)? else { return Ok(()) };
        let (shard, records) = (carried.from.group, carried.waiting.len());
        debug!(%shard, records, "records of a group that stands still are written again");
        let mut queue = self.queue();
        queue.carried = Some(carried);
        self.wake(queue);
        Ok(())
    }
}

/// Reads all that counts of a group. `None` if it does not stand still after all, or is too large.
fn read(group: StandsStill) -> Result<Option<Carried>, StorageError> {
    let mut records = BTreeMap::new();
    for path in &group.segments {
        match fs::read(path) {
            Ok(bytes) => collect(path, &Bytes::from(bytes), &group, &mut records)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(path, error)),
        }
    }
    let bytes: u64 = records.values().map(|record: &Bytes| record.len() as u64).sum();
    if records.len() as u64 != group.end - group.height || bytes > CARRIED_BYTES_MAX {
        warn!(shard = %group.group, records = records.len(), bytes, "records not written again");
        return Ok(None);
    }
    let (mut block, mut waiting) = (Vec::new(), Vec::new());
    block::begin(&mut block);
    for (index, record) in records {
        if block::push(&mut block, group.group, index, Some(&record)).is_none() {
            return Ok(None);
        }
        waiting.push(Waiting { shard: group.group, index, cut: false, done: Box::new(|_| ()) });
    }
    Ok(Some(Carried { from: group, block, waiting }))
}

/// Of several records with one index the last one counts: those before were voided.
fn collect(
    path: &Path,
    bytes: &Bytes,
    group: &StandsStill,
    records: &mut BTreeMap<u64, Bytes>,
) -> Result<(), StorageError> {
    let damaged = |at: usize| StorageError::corrupt(path, at as u64, "a whole block is expected");
    let first = segment::first_of(path).ok_or_else(|| damaged(0))?;
    let salt = segment::read_header(bytes, first).ok_or_else(|| damaged(0))?;
    let mut at = segment::HEADER_BYTES;
    while let Some(found) = block::find(bytes, at, salt) {
        for record in block::records(bytes, at, found).ok_or_else(|| damaged(at))? {
            if let Content::Entry(content) = record.content
                && record.shard == group.group
                && (group.height..group.end).contains(&record.index)
            {
                records.insert(record.index, content);
            }
        }
        at += found.bytes;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use crate::engine::memory::Memory;
    use crate::{Engines, Storage, StorageOptions};
    use proto::ShardId;
    use std::path::Path;
    use std::sync::Arc;

    fn open(dir: &Path) -> (Storage, Vec<(u64, Vec<u8>)>) {
        let engine = || Arc::new(Memory::default());
        let engines = Engines { tables: engine(), sessions: engine() };
        let (storage, found) = Storage::open_with(dir, StorageOptions::default(), engines).unwrap();
        let records = found.records.into_iter().filter(|found| found.shard == ShardId(5));
        let records = records.flat_map(|found| found.records);
        (storage, records.map(|(index, record)| (index, record.to_vec())).collect())
    }

    fn append(storage: &Storage, index: u64, record: u8) {
        storage.log().append(ShardId(5), index, vec![record], Box::new(|_| ()));
        storage.log().settle().unwrap();
    }

    #[test]
    fn a_group_that_moved_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = open(dir.path());
        append(&storage, 0, 1);
        append(&storage, 1, 1);
        storage.close();
        let (storage, _) = open(dir.path());
        let stood = storage.log().stands_still(0).unwrap();
        append(&storage, 1, 2);
        storage.log().carry(stood.clone()).unwrap();
        storage.log().settle().unwrap();
        storage.close();
        let (storage, found) = open(dir.path());
        assert_eq!(found, [(0, vec![1]), (1, vec![2])]);

        let before = storage.log().usage().appended_records;
        storage.log().carry(storage.log().stands_still(0).unwrap()).unwrap();
        storage.log().settle().unwrap();
        assert_eq!(storage.log().usage().appended_records, before + 2, "it stood still now");
        storage.close();
        assert_eq!(open(dir.path()).1, found);
    }
}
