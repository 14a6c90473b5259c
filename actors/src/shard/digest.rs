//! A digest of what a replica holds, to compare it with others at the same place of the log.

use prost::Message;
use std::hash::{DefaultHasher, Hasher};

/// What a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Log index up to which commands were applied.
    pub applied: u64,
    /// The same on all replicas that have applied as much.
    pub digest: u64,
    /// Accounts.
    pub accounts: u64,
}

/// What a digest is made of.
#[derive(Default)]
pub(super) struct Sum(DefaultHasher);

impl Sum {
    pub(super) fn number(&mut self, number: u64) {
        self.0.write_u64(number);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(super) fn row(&mut self, row: &impl Message) {
        self.0.write(&row.encode_to_vec());
    }

    pub(super) fn finish(&self) -> u64 {
        self.0.finish()
    }
}
