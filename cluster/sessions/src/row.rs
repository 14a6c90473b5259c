//! ◇ One row of the sessions table: which of two counts, its hash, its place in the digest.
//!
//! # Invariants
//! 1. [`rank`] orders all rows of a key totally and looks at nothing but the rows, so every node
//!    chooses alike.
//! 2. The states `online` and `away` weigh least in it, and nobody is away who is not online: a row
//!    that was [`put_offline`] never beats its original, and of two rows put offline the same one
//!    counts as before.
//! 3. The hash and the buckets are the same on every machine and in every version.

use proto::stored::Session;
use proto::{DeviceId, UserId};

/// What names a row.
pub type Key = (UserId, DeviceId);

/// Buckets of the digest. A bucket is a range of users: their ids are random, so that buckets are
/// alike in size, and a bucket is read in one go.
pub(super) const BUCKETS: usize = 1_024;

/// Parts of a bucket, by the hash of the key.
pub(super) const PARTS: usize = 64;

/// An id of a user has 53 bits; the first ten say which bucket.
const BUCKET_SHIFT: u32 = 43;

/// What decides which of two rows of a key counts: the greater.
pub(super) fn rank(row: &Session) -> impl Ord + use<> {
    let stamp = (row.version, row.incarnation, row.node);
    (stamp, row.gone, row.last_seen_ms, row.since_ms, row.online, row.away)
}

/// The row as it is once nobody is there any longer. The times stay.
pub(super) fn put_offline(mut row: Session) -> Session {
    row.online = false;
    row.away = false;
    row
}

/// Whether this is a tombstone that is dropped: everyone who could still hold the row has seen it.
pub(super) fn is_spent(row: &Session, cutoff_ms: u64) -> bool {
    row.gone && row.last_seen_ms < cutoff_ms
}

/// The bucket of a key.
pub(super) fn bucket_of(key: Key) -> usize {
    usize::try_from(key.0.0 >> BUCKET_SHIFT).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// First key of a bucket.
pub(super) fn bucket_begin(bucket: usize) -> Key {
    (UserId((bucket as u64) << BUCKET_SHIFT), DeviceId(0))
}

/// The part of its bucket that a key is in.
#[allow(clippy::cast_possible_truncation, reason = "the rest of a division by 64")]
pub(super) fn part_of(key: Key) -> usize {
    (hash(&[key.0.0, u64::from(key.1.0)]) % PARTS as u64) as usize
}

/// Strong 64-bit hash of a row and its key. A digest is a sum of these.
pub(super) fn hash_of(key: Key, row: &Session) -> u64 {
    let states = u64::from(row.online) | u64::from(row.away) << 1 | u64::from(row.gone) << 2;
    hash(&[
        key.0.0,
        u64::from(key.1.0) << 8 | states,
        row.node,
        row.incarnation,
        row.version,
        row.last_seen_ms,
        row.since_ms,
    ])
}

/// Multiply and fold, as wyhash does.
pub(super) fn hash(words: &[u64]) -> u64 {
    let fold =
        |hash: u64, word: u64| mix(hash ^ word ^ 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db);
    let hash =
        words.iter().fold(words.len() as u64, |hash, word| fold(hash.rotate_left(23), *word));
    mix(hash ^ 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3)
}

#[allow(clippy::cast_possible_truncation, reason = "both halves of the product are taken")]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// A key as bytes, in the order of the table.
pub(super) fn key_bytes(key: Key) -> Vec<u8> {
    [&key.0.0.to_be_bytes()[..], &key.1.0.to_be_bytes()].concat()
}

/// A key from its bytes.
pub(super) fn key_from(bytes: &[u8]) -> Option<Key> {
    let (user, rest) = bytes.split_first_chunk::<8>()?;
    let device = rest.try_into().ok()?;
    Some((UserId(u64::from_be_bytes(*user)), DeviceId(u32::from_be_bytes(device))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_for_ever() {
        let row =
            Session { node: 7, incarnation: 3, version: 9, online: true, ..Session::default() };
        assert_eq!(hash_of((UserId(1), DeviceId(2)), &row), GOLDEN);
        assert_eq!(part_of((UserId(1), DeviceId(2))), GOLDEN_PART);
    }

    const GOLDEN: u64 = 16_318_378_799_424_931_408;
    const GOLDEN_PART: usize = 42;

    #[test]
    fn buckets_are_ranges_of_keys_and_cover_all() {
        let ends = [0, 1, (1 << 43) - 1, 1 << 43, UserId::MAX.0, u64::MAX];
        let buckets: Vec<usize> =
            ends.iter().map(|user| bucket_of((UserId(*user), DeviceId(1)))).collect();
        assert_eq!(buckets, [0, 0, 0, 1, BUCKETS - 1, BUCKETS - 1]);
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(bucket_begin(bucket)), bucket);
        }
    }

    #[test]
    fn every_field_changes_the_hash() {
        let key = (UserId(5), DeviceId(1));
        let base = Session::default();
        let mut hashes = vec![hash_of(key, &base), hash_of((UserId(5), DeviceId(2)), &base)];
        let changes: [fn(&mut Session); 8] = [
            |row| row.node = 1,
            |row| row.incarnation = 1,
            |row| row.version = 1,
            |row| row.online = true,
            |row| row.away = true,
            |row| row.last_seen_ms = 1,
            |row| row.since_ms = 1,
            |row| row.gone = true,
        ];
        for change in changes {
            let mut row = base;
            change(&mut row);
            hashes.push(hash_of(key, &row));
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 10);
    }
}
