//! ◇ Sums over the rows of the table, by which two nodes find out cheaply what differs.
//!
//! # Invariant
//! Each bucket is the sum of the hashes of exactly the rows that are stored, in whatever order they
//! came and went.

use super::row::{self, BUCKETS, Key, PARTS};
use proto::stored::Session;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The sums of all buckets: 8 KiB.
#[derive(Debug)]
pub struct Digest(Box<[AtomicU64]>);

impl Default for Digest {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Digest {
    /// A row took the place of another.
    pub(super) fn replace(&self, key: Key, before: Option<&Session>, after: Option<&Session>) {
        let hash = |row: Option<&Session>| row.map_or(0, |row| row::hash_of(key, row));
        let bucket = &self.0[row::bucket_of(key)];
        bucket.fetch_add(hash(after).wrapping_sub(hash(before)), Relaxed);
    }

    /// All sums as of now.
    pub(super) fn sums(&self) -> Vec<u64> {
        self.0.iter().map(|sum| sum.load(Relaxed)).collect()
    }

    /// Whether a bucket has no rows.
    pub(super) fn is_empty(&self, bucket: usize) -> bool {
        self.0[bucket].load(Relaxed) == 0
    }

    /// The buckets whose sums are not `theirs`.
    pub(super) fn differing(&self, theirs: &[u64]) -> Vec<u32> {
        let theirs = theirs.iter().copied().chain(std::iter::repeat(0));
        let pairs = (0u32..).zip(self.0.iter().zip(theirs));
        pairs.filter(|(_, (ours, theirs))| ours.load(Relaxed) != *theirs).map(|(n, _)| n).collect()
    }

    /// One number for the whole table.
    pub fn whole(&self) -> u64 {
        row::hash(&self.sums())
    }
}

/// The sums of the parts of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartSums(pub(super) [u64; PARTS]);

impl Default for PartSums {
    fn default() -> Self {
        Self([0; PARTS])
    }
}

impl PartSums {
    /// Adds a row.
    pub(super) fn add(&mut self, key: Key, row: &Session) {
        let part = &mut self.0[row::part_of(key)];
        *part = part.wrapping_add(row::hash_of(key, row));
    }

    /// Which parts differ, as bits; `None`: none do.
    pub(super) fn differing(&self, theirs: &Self) -> Option<u64> {
        let pairs = self.0.iter().zip(&theirs.0).enumerate();
        let bits = pairs.filter(|(_, (a, b))| a != b).fold(0, |bits, (n, _)| bits | 1u64 << n);
        (bits != 0).then_some(bits)
    }
}
