//! Which records the segments hold, and which of them are in the tables by now. Pure.

use proto::ShardId;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;

/// A log index for each shard, 0 where there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Heights(Vec<u64>);

impl Heights {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Raises the index of `shard` to `index`, if it is lower.
    pub(super) fn raise(&mut self, shard: ShardId, index: u64) {
        let place = usize::from(shard.0);
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] = self.0[place].max(index);
    }

    /// Shards in which `self` is above `other`.
    fn above<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = ShardId> + 'a {
        (0u16..).zip(&self.0).filter_map(|(shard, index)| {
            let other = other.0.get(usize::from(shard)).copied().unwrap_or(0);
            (*index > other).then_some(ShardId(shard))
        })
    }

    fn is_within(&self, other: &Self) -> bool {
        self.above(other).next().is_none()
    }
}

/// A segment that is no longer written to.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) highest: Heights,
}

/// All segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    applied: Heights,
    sealed: VecDeque<Sealed>,
    open: Heights,
    open_bytes: u64,
}

impl Ledger {
    pub(super) fn new(sealed: Vec<Sealed>) -> Self {
        Self { sealed: sealed.into(), ..Self::default() }
    }

    /// Records of `shard` up to `index` are in the tables.
    pub(super) fn applied(&mut self, shard: ShardId, index: u64) {
        self.applied.raise(shard, index);
    }

    /// A block of `bytes` was written to the open segment.
    pub(super) fn written(&mut self, records: impl Iterator<Item = (ShardId, u64)>, bytes: u64) {
        records.for_each(|(shard, index)| self.open.raise(shard, index));
        self.open_bytes += bytes;
    }

    /// The open segment was closed.
    pub(super) fn seal(&mut self, path: PathBuf, bytes: u64) {
        let highest = std::mem::take(&mut self.open);
        self.open_bytes = 0;
        self.sealed.push_back(Sealed { path, bytes, highest });
    }

    /// The oldest segment, if all of it is in the tables. Segments go in order, so that recovery
    /// can tell a segment that was unlinked from one that was lost.
    pub(super) fn spent(&self) -> Option<PathBuf> {
        let oldest = self.sealed.front()?;
        oldest.highest.is_within(&self.applied).then(|| oldest.path.clone())
    }

    /// The oldest segment was unlinked.
    pub(super) fn unlinked(&mut self) {
        self.sealed.pop_front();
    }

    /// Whether the open segment holds at least `bytes`, and nothing that is not in the tables.
    pub(super) fn open_is_spent(&self, bytes: u64) -> bool {
        self.open_bytes >= bytes.max(1) && self.open.is_within(&self.applied)
    }

    /// Shards of which the oldest segment holds records that are not in the tables.
    pub(super) fn held_by(&self) -> BTreeSet<ShardId> {
        let oldest = self.sealed.front().map_or(&self.open, |sealed| &sealed.highest);
        oldest.above(&self.applied).collect()
    }

    /// Bytes and number of the segments.
    pub(super) fn size(&self) -> (u64, u64) {
        let sealed: u64 = self.sealed.iter().map(|segment| segment.bytes).sum();
        let open = u64::from(self.open_bytes > 0);
        (sealed + self.open_bytes, self.sealed.len() as u64 + open)
    }
}
