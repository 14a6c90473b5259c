//! Reads the log at start and judges what it finds: a torn tail is cut, damage is an error.
//!
//! # Invariants
//! 1. Only the last block of the last segment may be torn: each flush ends before the next begins.
//! 2. Block numbers have no hole; a missing segment or block is damage, never silence.

use super::block::{self, Record};
use super::ledger::{Heights, Sealed};
use super::segment;
use crate::{ShardRecords, StorageError};
use bytes::Bytes;
use proto::ShardId;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::warn;

/// What the log held.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) records: BTreeMap<u16, ShardRecords>,
    pub(super) sealed: Vec<Sealed>,
    /// Number of the block that will be written next.
    pub(super) next_block: u64,
}

/// Reads all segments of `dir`. Records up to `applied` of their shard are left out.
pub(super) fn replay(
    dir: &Path,
    applied: &mut dyn FnMut(ShardId) -> Result<u64, StorageError>,
) -> Result<Replay, StorageError> {
    let mut replay = Replay { next_block: 1, ..Replay::default() };
    let mut heights = BTreeMap::new();
    let segments = list(dir)?;
    for (place, (first, path)) in segments.iter().enumerate() {
        let bytes = Bytes::from(fs::read(path).map_err(|error| StorageError::io(path, error))?);
        let next_first = segments.get(place + 1).map(|(first, _)| *first);
        if place == 0 {
            replay.next_block = *first;
        } else if replay.next_block != *first {
            return Err(StorageError::corrupt(path, 0, "the blocks before it are missing"));
        }
        let mut segment =
            Reading { path, bytes, first: *first, next_first, highest: Heights::new() };
        let records = segment.read(&mut replay)?;
        for record in records {
            let shard = record.shard;
            let height = match heights.get(&shard.0) {
                Some(height) => *height,
                None => *heights.entry(shard.0).or_insert(applied(shard)?),
            };
            if record.index > height {
                let entry = replay.records.entry(shard.0);
                let of_shard = entry.or_insert(ShardRecords { shard, records: Vec::new() });
                of_shard.records.push((record.index, record.bytes));
            }
        }
    }
    Ok(replay)
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
    highest: Heights,
}

impl Reading<'_> {
    fn read(&mut self, replay: &mut Replay) -> Result<Vec<Record>, StorageError> {
        let Some(salt) = segment::read_header(&self.bytes, self.first) else {
            return self.unborn().map(|()| Vec::new());
        };
        let mut records = Vec::new();
        let mut at = segment::HEADER_BYTES;
        while let Some(found) = block::find(&self.bytes, at, salt) {
            if found.number != replay.next_block {
                return Err(self.corrupt(at, "a block with another number is expected here"));
            }
            let taken = block::records(&self.bytes, at, found);
            let taken = taken.ok_or_else(|| self.corrupt(at, "records must fill their block"))?;
            for record in &taken {
                self.highest.raise(record.shard, record.index);
            }
            records.extend(taken);
            replay.next_block += 1;
            at += found.bytes;
        }
        self.end(at, salt, replay.next_block)?;
        if at == segment::HEADER_BYTES {
            self.unlink()?;
        } else {
            let path = self.path.to_owned();
            let highest = std::mem::take(&mut self.highest);
            replay.sealed.push(Sealed { path, bytes: at as u64, highest });
        }
        Ok(records)
    }

    /// Judges what follows the last whole block, and cuts it off if it is a torn tail.
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

    /// A segment without a header: it was being made, and holds nothing.
    fn unborn(&self) -> Result<(), StorageError> {
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
