//! The votes of this node in elections, one for each group.
//!
//! They have their own file, because an election must not wait for a compaction or for space: the whole
//! file is allocated when it is created.
//!
//! ```text
//! file   for each group two copies of 512 bytes
//! copy   crc 4 | number 8 | length 4 | stored::Vote | zeros
//! ```
//!
//! Little-endian; the crc (crc32c) covers all that follows it up to the zeros.
//!
//! # Invariants
//! 1. A vote is confirmed when both copies are on disk, flushed one after the other. A crash tears at most
//!    one copy, and the newer one only if its vote was not confirmed.
//! 2. After a failed flush no vote is accepted until a restart: the content of the disk is unknown.

use crate::StorageError;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use proto::{ShardId, stored};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a copy: a sector, which a disk writes atomically.
const COPY_BYTES: usize = 512;

const HEADER_BYTES: usize = 16;

/// The votes of this node.
#[derive(Debug)]
pub(crate) struct Votes {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The vote of each group with its number; number 0 and no vote at first.
    votes: Vec<(u64, Option<stored::Vote>)>,
    failed: bool,
}

impl Votes {
    /// Makes the file for `groups` groups.
    pub(crate) fn create(path: &Path, groups: usize) -> Result<Self, StorageError> {
        let fail = |error| StorageError::io(path, error);
        fs::write(path, vec![0; groups * 2 * COPY_BYTES]).map_err(fail)?;
        File::open(path).and_then(|file| file.sync_all()).map_err(fail)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all()).map_err(fail)?;
        Self::open(path, groups)
    }

    /// Reads the file.
    pub(crate) fn open(path: &Path, groups: usize) -> Result<Self, StorageError> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|error| unreadable(path, error))?;
        let mut bytes = vec![0; groups * 2 * COPY_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|error| unreadable(path, error))?;
        let mut votes = Vec::with_capacity(groups);
        for (place, copies) in bytes.chunks(2 * COPY_BYTES).enumerate() {
            let at = (place * 2 * COPY_BYTES) as u64;
            let vote = read(copies);
            votes.push(vote.ok_or_else(|| StorageError::corrupt(path, at, "a vote is expected"))?);
        }
        let state = Mutex::new(State { votes, failed: false });
        Ok(Self { path: path.to_owned(), file, state })
    }

    /// The vote of a group.
    pub(crate) fn get(&self, group: ShardId) -> Result<Option<stored::Vote>, StorageError> {
        let state = self.state();
        let vote = state.votes.get(usize::from(group.0)).map(|(_, vote)| *vote);
        vote.ok_or(StorageError::NoSuchGroup(group.0))
    }

    /// Replaces the vote of a group.
    pub(crate) fn save(&self, group: ShardId, vote: &stored::Vote) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.failed {
            let cause = io::Error::other("a write failed; the node must start again");
            return Err(StorageError::io(&self.path, cause));
        }
        let place = usize::from(group.0);
        let Some((number, present)) = state.votes.get_mut(place) else {
            return Err(StorageError::NoSuchGroup(group.0));
        };
        *number += 1;
        let written = self.write(place, *number, vote);
        if written.is_ok() {
            *present = Some(*vote);
        } else {
            state.failed = true;
        }
        written.map_err(|error| StorageError::io(&self.path, error))
    }

    fn write(&self, place: usize, number: u64, vote: &stored::Vote) -> io::Result<()> {
        let copy = encode(number, vote);
        for n in [0, 1] {
            self.file.write_all_at(&copy, ((2 * place + n) * COPY_BYTES) as u64)?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn unreadable(path: &Path, error: io::Error) -> StorageError {
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) {
        StorageError::corrupt(path, 0, "all of it is expected here")
    } else {
        StorageError::io(path, error)
    }
}

fn encode(number: u64, vote: &stored::Vote) -> Vec<u8> {
    let vote = vote.encode_to_vec();
    let length = u32::try_from(vote.len()).unwrap_or(u32::MAX);
    let mut copy = vec![0; 4];
    copy.extend_from_slice(&number.to_le_bytes());
    copy.extend_from_slice(&length.to_le_bytes());
    copy.extend_from_slice(&vote);
    let crc = crc32c::crc32c(&copy[4..]);
    copy[..4].copy_from_slice(&crc.to_le_bytes());
    copy.resize(COPY_BYTES, 0);
    copy
}

fn decode(copy: &[u8]) -> Option<(u64, Option<stored::Vote>)> {
    let (header, rest) = copy.split_first_chunk::<HEADER_BYTES>()?;
    let [c0, c1, c2, c3, n0, n1, n2, n3, n4, n5, n6, n7, length @ ..] = *header;
    let vote = rest.get(..u32::from_le_bytes(length) as usize)?;
    let crc = crc32c::crc32c(&copy[4..HEADER_BYTES + vote.len()]);
    if crc.to_le_bytes() != [c0, c1, c2, c3] {
        return None;
    }
    let number = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
    Some((number, Some(stored::Vote::decode(vote).ok()?)))
}

/// The newer of two copies; `None` if both are damaged.
fn read(copies: &[u8]) -> Option<(u64, Option<stored::Vote>)> {
    let (first, second) = copies.split_at(COPY_BYTES);
    let empty = second.iter().all(|byte| *byte == 0);
    let newest = decode(first).into_iter().chain(decode(second)).max_by_key(|(number, _)| *number);
    // A torn first vote has no second copy yet.
    newest.or(empty.then_some((0, None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: usize = 17;

    fn vote(term: u64) -> stored::Vote {
        stored::Vote { term, node: 7, committed: term > 2 }
    }

    #[test]
    fn the_last_vote_is_found_again_and_groups_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("votes");
        let votes = Votes::create(&path, GROUPS).unwrap();
        assert_eq!(votes.get(ShardId(0)).unwrap(), None);
        for term in 1..=5 {
            votes.save(ShardId(3), &vote(term)).unwrap();
            votes.save(ShardId::META, &vote(term + 10)).unwrap();
        }
        assert_eq!(votes.get(ShardId(3)).unwrap(), Some(vote(5)));
        drop(votes);
        let votes = Votes::open(&path, GROUPS).unwrap();
        assert_eq!(votes.get(ShardId(3)).unwrap(), Some(vote(5)));
        assert_eq!(votes.get(ShardId::META).unwrap(), Some(vote(15)));
        assert_eq!(votes.get(ShardId(4)).unwrap(), None);
        let none = votes.save(ShardId(17), &vote(1));
        assert!(matches!(none, Err(StorageError::NoSuchGroup(17))));
    }

    #[test]
    fn a_torn_copy_leaves_the_other_and_two_damaged_ones_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("votes");
        let votes = Votes::create(&path, GROUPS).unwrap();
        votes.save(ShardId(1), &vote(1)).unwrap();
        votes.save(ShardId(1), &vote(2)).unwrap();
        let whole = fs::read(&path).unwrap();
        let at = |copy: usize| 2 * COPY_BYTES + copy * COPY_BYTES;
        let newer = encode(3, &vote(3));
        for torn_bytes in 0..30 {
            // The first copy of the next vote is being written.
            let mut torn = whole.clone();
            torn[at(0)..at(0) + torn_bytes].copy_from_slice(&newer[..torn_bytes]);
            fs::write(&path, &torn).unwrap();
            let found = Votes::open(&path, GROUPS).unwrap().get(ShardId(1)).unwrap();
            assert!(found == Some(vote(2)) || found == Some(vote(3)), "{found:?}");
            // Then the second one.
            torn[at(0)..at(1)].copy_from_slice(&newer);
            torn[at(1)..at(1) + torn_bytes].copy_from_slice(&newer[..torn_bytes]);
            fs::write(&path, &torn).unwrap();
            assert_eq!(Votes::open(&path, GROUPS).unwrap().get(ShardId(1)).unwrap(), Some(vote(3)));
        }
        let mut first_ever = vec![0; whole.len()];
        first_ever[at(0)] = 9;
        fs::write(&path, &first_ever).unwrap();
        assert_eq!(Votes::open(&path, GROUPS).unwrap().get(ShardId(1)).unwrap(), None);
        let mut damaged = whole;
        damaged[at(0) + 6] ^= 1;
        damaged[at(1) + 6] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(Votes::open(&path, GROUPS), Err(StorageError::Corrupt { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(Votes::open(&path, GROUPS), Err(StorageError::Corrupt { .. })));
    }
}
