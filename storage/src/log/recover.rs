//! Reads the log at start. A torn tail is cut off; any other damage is an error.
//!
//! A record of a group voids its earlier records with the same or a higher index. The live records
//! beyond the tables must begin where the tables end and have no gap. Void records may have gaps, since
//! segments without live records are unlinked. Records of blocks before a wipe of the group are void.
//!
//! # Invariants
//! 1. Only the last block of the last segment may be torn: each flush ends before the next begins.
//! 2. Block numbers are contiguous; a missing segment or block is reported as damage.
//! 3. A gap among the live records is damage too: a segment is unlinked only when its live records are
//!    in the tables.

use super::block::{self, Content, Record};
use super::ledger::Ledger;
use super::{Known, segment};
use crate::{ShardRecords, StorageError};
use bytes::Bytes;
use proto::ShardId;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::warn;

/// The records of the log, while it is read.
#[derive(Debug, Default)]
pub(super) struct Replay<'a> {
    known: &'a [Known],
    groups: BTreeMap<u16, Survivors>,
    pub(super) ledger: Ledger,
    /// Number of the next block to write.
    pub(super) next_block: u64,
}

/// The live records of a group so far.
#[derive(Debug, Default)]
struct Survivors {
    records: Vec<(u64, Bytes)>,
    /// Records that do not follow the one before, with the error.
    gaps: Vec<(u64, StorageError)>,
}

impl Survivors {
    /// Voids the records from `index` on.
    fn cut(&mut self, index: u64) {
        self.records.truncate(self.records.partition_point(|(earlier, _)| *earlier < index));
        self.gaps.truncate(self.gaps.partition_point(|(earlier, _)| *earlier < index));
    }
}

/// Reads all segments of `dir`. `known` has a place for each group, in the order of their numbers.
pub(super) fn replay<'a>(dir: &Path, known: &'a [Known]) -> Result<Replay<'a>, StorageError> {
    // Block numbers continue after the last wipe even if no segment is left: records before a wipe are
    // void, records after it are not.
    let first_block = known.iter().map(|known| known.begin).fold(1, u64::max);
    let mut replay = Replay { known, next_block: first_block, ..Replay::default() };
    for (group, known) in (0..).map(ShardId).zip(known) {
        replay.ledger.applied(group, known.height);
    }
    let segments = list(dir)?;
    for (place, (first, path)) in segments.iter().enumerate() {
        let bytes = Bytes::from(fs::read(path).map_err(|error| StorageError::io(path, error))?);
        let next_first = segments.get(place + 1).map(|(first, _)| *first);
        if place == 0 {
            replay.next_block = *first;
        } else if replay.next_block != *first {
            return Err(StorageError::corrupt(path, 0, "the blocks before it are missing"));
        }
        Reading { path, bytes, first: *first, next_first }.read(&mut replay)?;
    }
    if replay.next_block < first_block {
        return Err(StorageError::corrupt(dir, 0, "the newest blocks are missing"));
    }
    Ok(replay)
}

impl Replay<'_> {
    /// The live records beyond the tables.
    pub(super) fn found(self) -> Result<(Ledger, Vec<ShardRecords>), StorageError> {
        let mut found = Vec::new();
        for (group, Survivors { records, gaps }) in self.groups {
            if let Some((_, damage)) = gaps.into_iter().next() {
                return Err(damage);
            }
            if !records.is_empty() {
                found.push(ShardRecords { shard: ShardId(group), records });
            }
        }
        Ok((self.ledger, found))
    }

    /// Takes the next record of block `number`, which is in `path` at `offset`.
    fn take(&mut self, number: u64, record: Record, (path, offset): (&Path, usize)) {
        let Record { shard: group, index, content } = record;
        let known = self.known.get(usize::from(group.0)).copied().unwrap_or_default();
        if number < known.begin {
            return;
        }
        let survivors = self.groups.entry(group.0).or_default();
        survivors.cut(index);
        match content {
            Content::Cut => self.ledger.cut(group, index),
            Content::Entry(bytes) => {
                self.ledger.entry(group, index);
                let last = survivors.records.last();
                let expected = last.map_or(known.height, |(last, _)| last.saturating_add(1));
                if index > expected {
                    let what = format!("record {expected} of group {group} is expected here");
                    let damage = StorageError::corrupt(path, offset as u64, what);
                    survivors.gaps.push((index, damage));
                }
                if index >= known.height {
                    survivors.records.push((index, bytes));
                }
            }
        }
    }
}

fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StorageError> {
    let fail = |error| StorageError::io(dir, error);
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        segments.extend(segment::first_of(&path).map(|first| (first, path)));
    }
    segments.sort();
    Ok(segments)
}

struct Reading<'a> {
    path: &'a Path,
    bytes: Bytes,
    first: u64,
    next_first: Option<u64>,
}

impl Reading<'_> {
    fn read(&self, replay: &mut Replay<'_>) -> Result<(), StorageError> {
        let Some(salt) = segment::read_header(&self.bytes, self.first) else {
            return self.remove_headerless();
        };
        let mut at = segment::HEADER_BYTES;
        while let Some(found) = block::find(&self.bytes, at, salt) {
            if found.number != replay.next_block {
                return Err(self.corrupt(at, "a block with another number is expected here"));
            }
            let taken = block::records(&self.bytes, at, found);
            let taken = taken.ok_or_else(|| self.corrupt(at, "records must fill their block"))?;
            for record in taken {
                replay.take(found.number, record, (self.path, at));
            }
            replay.next_block += 1;
            at += found.bytes;
        }
        self.end(at, salt, replay.next_block)?;
        if at == segment::HEADER_BYTES {
            self.unlink()
        } else {
            replay.ledger.seal(self.path.to_owned(), at as u64);
            Ok(())
        }
    }

    /// Checks the bytes after the last whole block, and cuts them off if they are a torn tail.
    fn end(&self, at: usize, salt: u32, next_block: u64) -> Result<(), StorageError> {
        let rest = &self.bytes[at..];
        let empty = rest.iter().all(|byte| *byte == 0);
        if let Some(next_first) = self.next_first {
            if next_first != next_block || !empty {
                return Err(self.corrupt(at, "a whole block is expected here"));
            }
        } else if !empty {
            if block::find_later(&self.bytes, at, salt).is_some() {
                return Err(self.corrupt(at, "a whole block follows a damaged one"));
            }
            warn!(file = %self.path.display(), offset = at, "torn end of the log cut off");
        }
        if rest.is_empty() {
            return Ok(());
        }
        segment::cut(self.path, at as u64).map_err(|error| StorageError::io(self.path, error))
    }

    /// Removes a segment without a header: a crash interrupted its creation, and it has no records.
    fn remove_headerless(&self) -> Result<(), StorageError> {
        let body = self.bytes.get(segment::HEADER_BYTES..).unwrap_or_default();
        if self.next_first.is_some() || body.iter().any(|byte| *byte != 0) {
            return Err(self.corrupt(0, "the header of a segment is expected here"));
        }
        self.unlink()
    }

    fn unlink(&self) -> Result<(), StorageError> {
        fs::remove_file(self.path).map_err(|error| StorageError::io(self.path, error))
    }

    fn corrupt(&self, at: usize, what: &str) -> StorageError {
        StorageError::corrupt(self.path, at as u64, what)
    }
}
