//! Rewrites the live records of an idle group at the tail of the log, so that old segments can go.
//!
//! A shard without a majority, or one that its leader does not reach, makes no checkpoint. Its last
//! records would pin their segment and all later ones, of all groups, until the disk is full.
//!
//! ```text
//! segments   3 3 7 | 7 0 7 | 0 7 0 | 7 0 7 | 0 ...     3 is idle
//! after                                     | 0 ... 3 3
//! ```
//!
//! # Invariants
//! 1. All live records of the group go into one block. After a crash the log has the old records or the
//!    new ones, and they are equal.
//! 2. Since its records were read, no record of the group was written or voided, and nobody changed its
//!    tables.

use super::block::{self, Content};
use super::ledger::IdleGroup;
use super::{Shared, Waiting, segment};
use crate::StorageError;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use tracing::{debug, warn};

/// Most bytes of records in one rewrite. A group makes a checkpoint long before it has as many.
const REWRITE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The live records of a group, encoded as a block.
pub(super) struct Rewrite {
    pub(super) from: IdleGroup,
    pub(super) block: Vec<u8>,
    pub(super) waiting: Vec<Waiting>,
}

impl Shared {
    /// Hands the live records of `group` to the flusher.
    pub(super) fn rewrite(&self, group: IdleGroup) -> Result<(), StorageError> {
        let Some(rewrite) = read(group)? else { return Ok(()) };
        let (shard, records) = (rewrite.from.group, rewrite.waiting.len());
        debug!(%shard, records, "records of an idle group are rewritten");
        let mut queue = self.queue();
        queue.rewrite = Some(rewrite);
        self.wake(queue);
        Ok(())
    }
}

/// Reads the live records of a group. `None` if it is no longer idle, or has too many bytes.
fn read(group: IdleGroup) -> Result<Option<Rewrite>, StorageError> {
    let mut records = BTreeMap::new();
    for path in &group.segments {
        match fs::read(path) {
            Ok(bytes) => collect(path, &Bytes::from(bytes), &group, &mut records)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(path, error)),
        }
    }
    let bytes: u64 = records.values().map(|record: &Bytes| record.len() as u64).sum();
    if records.len() as u64 != group.end - group.height || bytes > REWRITE_BYTES_MAX {
        warn!(shard = %group.group, records = records.len(), bytes, "records not rewritten");
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
    Ok(Some(Rewrite { from: group, block, waiting }))
}

/// Adds the group's records of one segment. Of several records with one index the last one is live.
fn collect(
    path: &Path,
    bytes: &Bytes,
    group: &IdleGroup,
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
    fn a_group_that_is_no_longer_idle_is_not_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = open(dir.path());
        append(&storage, 0, 1);
        append(&storage, 1, 1);
        storage.close();
        let (storage, _) = open(dir.path());
        let idle = storage.log().idle_group(0).unwrap();
        append(&storage, 1, 2);
        storage.log().rewrite(idle).unwrap();
        storage.log().settle().unwrap();
        storage.close();
        let (storage, found) = open(dir.path());
        assert_eq!(found, [(0, vec![1]), (1, vec![2])]);

        let before = storage.log().usage().appended_records;
        storage.log().rewrite(storage.log().idle_group(0).unwrap()).unwrap();
        storage.log().settle().unwrap();
        assert_eq!(storage.log().usage().appended_records, before + 2, "it is idle now");
        storage.close();
        assert_eq!(open(dir.path()).1, found);
    }
}
