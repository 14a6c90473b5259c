//! Tracks which records each segment holds and which of them are in the tables. Pure.
//!
//! A segment may be unlinked when all of its live records are in the tables and all older segments are
//! unlinked. A record at index `n` voids the group's earlier records from `n` on, so it lowers the
//! group's height to `n` in all older segments. An older segment may then be unlinked before the one
//! with the newer record. That is safe: segments are unlinked oldest first, so recovery never reads a
//! void record without the later record that voids it.

use proto::ShardId;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

/// For each group the index after its last record, or 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Heights(Vec<u64>);

impl Heights {
    pub(super) fn of(&self, group: ShardId) -> u64 {
        self.0.get(usize::from(group.0)).copied().unwrap_or(0)
    }

    fn set(&mut self, group: ShardId, height: u64) {
        let place = usize::from(group.0);
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] = height;
    }

    fn lower(&mut self, group: ShardId, height: u64) {
        if self.of(group) > height {
            self.set(group, height);
        }
    }

    /// Groups in which `self` is above `other`.
    fn above<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = ShardId> + 'a {
        (0u16..)
            .map(ShardId)
            .zip(&self.0)
            .filter_map(|(group, height)| (*height > other.of(group)).then_some(group))
    }

    fn is_within(&self, other: &Self) -> bool {
        self.above(other).next().is_none()
    }
}

/// A segment that is complete.
#[derive(Debug)]
struct SealedSegment {
    path: PathBuf,
    bytes: u64,
    heights: Heights,
}

/// All segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Heights of the groups in the tables.
    applied: Heights,
    /// Heights of the groups in the log.
    ends: Heights,
    sealed: VecDeque<SealedSegment>,
    open: Heights,
    open_bytes: u64,
    /// Number of writes and voids of each group.
    changes: BTreeMap<ShardId, u64>,
}

/// An idle group that pins the oldest segment while others write on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdleGroup {
    pub(crate) group: ShardId,
    /// Index of the first record that is not in the tables, and the index after the last one.
    pub(super) height: u64,
    pub(super) end: u64,
    /// The segments with these records, oldest first.
    pub(super) segments: Vec<PathBuf>,
    changes: u64,
}

impl Ledger {
    /// Records of `group` below `height` are in the tables.
    pub(super) fn applied(&mut self, group: ShardId, height: u64) {
        if self.applied.of(group) < height {
            self.applied.set(group, height);
        }
    }

    /// The height of `group` in the tables.
    pub(super) fn applied_of(&self, group: ShardId) -> u64 {
        self.applied.of(group)
    }

    /// A record was written to the open segment.
    pub(super) fn entry(&mut self, group: ShardId, index: u64) {
        self.cut(group, index);
        let height = index.saturating_add(1);
        self.open.set(group, height);
        self.ends.set(group, height);
    }

    /// All records of `group` from `index` on are void.
    pub(super) fn cut(&mut self, group: ShardId, index: u64) {
        *self.changes.entry(group).or_default() += 1;
        if index < self.ends.of(group) {
            self.ends.set(group, index);
            self.open.lower(group, index);
            for segment in &mut self.sealed {
                segment.heights.lower(group, index);
            }
        }
    }

    /// All records of `group` are void, and the tables have nothing of it.
    pub(super) fn wipe(&mut self, group: ShardId) {
        self.cut(group, 0);
        self.applied.set(group, 0);
    }

    /// The open segment grew.
    pub(super) fn grew(&mut self, bytes: u64) {
        self.open_bytes += bytes;
    }

    /// The open segment was closed.
    pub(super) fn seal(&mut self, path: PathBuf, bytes: u64) {
        let heights = std::mem::take(&mut self.open);
        self.open_bytes = 0;
        self.sealed.push_back(SealedSegment { path, bytes, heights });
    }

    /// The oldest segment, if all of its live records are in the tables. Segments are unlinked in order,
    /// so that recovery can tell an unlinked segment from a lost one.
    pub(super) fn spent(&self) -> Option<PathBuf> {
        let oldest = self.sealed.front()?;
        oldest.heights.is_within(&self.applied).then(|| oldest.path.clone())
    }

    /// The oldest segment was unlinked.
    pub(super) fn unlinked(&mut self) {
        self.sealed.pop_front();
    }

    /// True if the open segment holds at least `bytes`, and all of its live records are in the tables.
    pub(super) fn open_is_spent(&self, bytes: u64) -> bool {
        self.open_bytes >= bytes.max(1) && self.open.is_within(&self.applied)
    }

    /// A group that pins the oldest segment and has no record in the last `segments_max` segments. `None`
    /// if an active group pins that segment too: its checkpoint will come.
    pub(super) fn idle_group(&self, segments_max: usize) -> Option<IdleGroup> {
        let oldest = &self.sealed.front()?.heights;
        let later = self.sealed.len().checked_sub(segments_max).filter(|old| *old > 0)?;
        let later = || self.sealed.iter().skip(later).map(|segment| &segment.heights);
        let has = |heights: &Heights, group| heights.of(group) > self.applied.of(group);
        let still = |group: &ShardId| later().chain([&self.open]).all(|s| !has(s, *group));
        let keepers = || oldest.above(&self.applied);
        let group = keepers().next().filter(|_| keepers().all(|group| still(&group)))?;
        let segments = self.sealed.iter().filter(|segment| has(&segment.heights, group));
        Some(IdleGroup {
            group,
            height: self.applied.of(group),
            end: self.ends.of(group),
            segments: segments.map(|segment| segment.path.clone()).collect(),
            changes: self.changes_of(group),
        })
    }

    /// True if no record of the group was written or voided since.
    pub(super) fn is_still_idle(&self, group: &IdleGroup) -> bool {
        self.changes_of(group.group) == group.changes
    }

    fn changes_of(&self, group: ShardId) -> u64 {
        self.changes.get(&group).copied().unwrap_or(0)
    }

    /// Bytes and number of the segments.
    pub(super) fn size(&self) -> (u64, u64) {
        let sealed: u64 = self.sealed.iter().map(|segment| segment.bytes).sum();
        let open = u64::from(self.open_bytes > 0);
        (sealed + self.open_bytes, self.sealed.len() as u64 + open)
    }
}
