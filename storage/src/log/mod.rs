//! The log: one ordered, checksummed, segmented file set for all groups, with group commit.
//!
//! Indexes of a group begin at 0. A record voids the group's earlier records with the same or a higher
//! index. So does a cut, a record without content. Wiping a group voids its records in all earlier
//! blocks; the tables keep the number of the first block that counts.
//!
//! Callers queue records and do not wait. One thread, the flusher, takes all queued records, writes them
//! as one block, flushes once and then answers all callers.
//!
//! # Invariants
//! 1. `done(Ok)` is called only after the record is on disk.
//! 2. Records of a group keep the order of the calls.
//! 3. After a failed flush the log accepts nothing until a restart: the content of the disk is unknown.
//! 4. Segments are unlinked oldest first, each only when its live records are in the tables or were
//!    rewritten.

mod block;
mod flusher;
mod ledger;
mod pace;
mod recover;
mod rewrite;
mod segment;

use crate::space::Space;
use crate::{Recovered, StorageError};
use flusher::Flusher;
use ledger::{IdleGroup, Ledger};
use parking_lot::{Condvar, Mutex, MutexGuard};
use proto::ShardId;
use rewrite::Rewrite;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use tracing::warn;

/// Why an append failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No space. The record was not written; later appends may succeed.
    #[error("no space left for the log")]
    Full,
    /// A flush failed, or the log is closed. It accepts nothing until a restart.
    #[error("the log is shut")]
    Failed,
}

/// Called once with the outcome of an append.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// The log of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The state that callers and the flusher share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    segment_bytes: u64,
    queue: Mutex<Queue>,
    wake: Condvar,
    ledger: Mutex<Ledger>,
    /// Held while segments are unlinked.
    reaper: Mutex<()>,
    space: Arc<Space>,
    next_block: AtomicU64,
    flushes: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
}

/// Records that wait for the flusher, already encoded as a block.
#[derive(Default)]
struct Queue {
    block: Vec<u8>,
    waiting: Vec<Waiting>,
    settled: Vec<Sender<()>>,
    rotate: bool,
    rewrite: Option<Rewrite>,
    shut: Option<Shut>,
    /// For each group the first index that found no space. Later indexes fail until the caller appends
    /// that index again, so that the log has no gap.
    refused: BTreeMap<u16, u64>,
    /// The flusher sleeps and must be woken up.
    asleep: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// Why the log accepts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shut {
    Closing,
    Failed,
}

struct Waiting {
    shard: ShardId,
    index: u64,
    cut: bool,
    done: Done,
}

/// What the tables record of a group's log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// Index of the first record that is not in the tables.
    pub(crate) height: u64,
    /// Number of the first block whose records of the group are not void.
    pub(crate) begin: u64,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// Moves all queued records to `waiting`; they find no space.
    fn refuse(&self, waiting: &mut Vec<Waiting>) {
        let mut queue = self.queue();
        block::begin(&mut queue.block);
        waiting.append(&mut queue.waiting);
        for Waiting { shard, index, .. } in waiting {
            let first = queue.refused.entry(shard.0).or_insert(*index);
            *first = (*index).min(*first);
        }
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Unlinks the segments whose live records are all in the tables, oldest first.
    fn unlink_spent(&self) {
        let _reaping = self.reaper.lock();
        let mut unlinked = false;
        loop {
            let Some(path) = self.ledger().spent() else { break };
            if let Err(error) = fs::remove_file(&path) {
                warn!(file = %path.display(), %error, "log segment not unlinked, will try again");
                break;
            }
            self.ledger().unlinked();
            unlinked = true;
        }
        if unlinked && let Err(error) = segment::sync_dir(&self.dir) {
            warn!(file = %self.dir.display(), %error, "directory of the log not flushed");
        }
    }
}

/// Figures of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogUsage {
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    pub(crate) flushes: u64,
    pub(crate) appended_records: u64,
    pub(crate) appended_bytes: u64,
}

impl Log {
    /// Reads the log in `dir` and starts its flusher. `known` has a place for each group.
    pub(crate) fn open(
        dir: &Path,
        segment_bytes: u64,
        space: Arc<Space>,
        known: &[Known],
    ) -> Result<(Self, Recovered), StorageError> {
        let fail = |error| StorageError::io(dir, error);
        fs::create_dir_all(dir).map_err(fail)?;
        dir.parent().map_or(Ok(()), segment::sync_dir).map_err(fail)?;
        let replay = recover::replay(dir, known)?;
        let next_block = replay.next_block;
        let (ledger, records) = replay.found()?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            segment_bytes,
            queue: Mutex::default(),
            wake: Condvar::new(),
            ledger: Mutex::new(ledger),
            reaper: Mutex::new(()),
            space,
            next_block: AtomicU64::new(next_block),
            flushes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        block::begin(&mut shared.queue().block);
        shared.unlink_spent();
        let flusher = Flusher::new(Arc::clone(&shared), next_block);
        let thread = thread::Builder::new().name("log-flusher".to_owned());
        let thread = thread.spawn(move || flusher.run()).map_err(fail)?;
        let log = Self(Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }));
        Ok((log, Recovered { records }))
    }

    /// Queues one encoded record. Never waits for the disk. The record voids those of `shard` at `index`
    /// and beyond; if there are none, `index` must follow the last one.
    ///
    /// `done` runs on the log's thread after the flush, with its outcome; it must be quick. It runs at
    /// once on the caller's thread if the log is shut, and with [`LogError::Full`] if an earlier record of
    /// the group found no space and was not appended again.
    #[allow(clippy::needless_pass_by_value, reason = "that it is copied is the log's business")]
    pub fn append(&self, shard: ShardId, index: u64, record: Vec<u8>, done: Done) {
        self.push(shard, index, Some(&record), done);
    }

    /// Queues a cut: it voids the records of `shard` from `index` on. Otherwise like [`Log::append`].
    ///
    /// Not needed before an append at `index`, which does the same.
    pub fn truncate(&self, shard: ShardId, index: u64, done: Done) {
        self.push(shard, index, None, done);
    }

    fn push(&self, shard: ShardId, index: u64, record: Option<&[u8]>, done: Done) {
        let mut queue = self.0.shared.queue();
        if queue.refused.get(&shard.0).is_some_and(|first| index > *first) {
            drop(queue);
            done(Err(LogError::Full));
            return;
        }
        if queue.shut.is_some() || block::push(&mut queue.block, shard, index, record).is_none() {
            drop(queue);
            done(Err(LogError::Failed));
            return;
        }
        queue.refused.remove(&shard.0);
        queue.waiting.push(Waiting { shard, index, cut: record.is_none(), done });
        self.0.shared.wake(queue);
    }

    /// Records of `shard` below `height` are in the tables: segments may be unlinked.
    pub(crate) fn forget(&self, shard: ShardId, height: u64) {
        self.0.shared.ledger().applied(shard, height);
        // The tables are beyond the record that found no space.
        let mut queue = self.0.shared.queue();
        if queue.refused.get(&shard.0).is_some_and(|first| *first < height) {
            queue.refused.remove(&shard.0);
        }
        drop(queue);
        self.unlink_spent();
    }

    /// Voids the records of `shard` in all blocks so far: segments may be unlinked.
    pub(crate) fn wipe(&self, shard: ShardId) {
        self.0.shared.ledger().wipe(shard);
        self.0.shared.queue().refused.remove(&shard.0);
        self.unlink_spent();
    }

    /// Index of the first record of `shard` that is not in the tables.
    pub(crate) fn height_in_tables(&self, shard: ShardId) -> u64 {
        self.0.shared.ledger().applied_of(shard)
    }

    fn unlink_spent(&self) {
        self.0.shared.unlink_spent();
        self.rotate_if_spent(self.0.shared.segment_bytes / 16);
    }

    /// Seals and unlinks the open segment, if it holds at least `bytes` and its live records are in the
    /// tables.
    pub(crate) fn rotate_if_spent(&self, bytes: u64) {
        if self.0.shared.ledger().open_is_spent(bytes) {
            let mut queue = self.0.shared.queue();
            queue.rotate = true;
            self.0.shared.wake(queue);
        }
    }

    /// Waits until the flusher has done all work queued before; it then drops the sender. Returns the
    /// number of the next block, or `None` if the log is shut.
    pub(crate) fn settle(&self) -> Option<u64> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut queue = self.0.shared.queue();
        if queue.shut.is_some() {
            return None;
        }
        queue.settled.push(sender);
        self.0.shared.wake(queue);
        receiver.recv().ok();
        let shut = self.0.shared.queue().shut;
        shut.is_none().then(|| self.0.shared.next_block.load(Ordering::Acquire))
    }

    /// An idle group that pins the oldest segment and has no record in more than `segments_max` later
    /// ones; see [`rewrite`].
    pub(crate) fn idle_group(&self, segments_max: usize) -> Option<IdleGroup> {
        self.0.shared.ledger().idle_group(segments_max)
    }

    /// Queues a rewrite of the records of an idle group. Reads segments; blocking. The tables of the group
    /// must not change until [`Log::settle`] returns.
    pub(crate) fn rewrite(&self, group: IdleGroup) -> Result<(), StorageError> {
        self.0.shared.rewrite(group)
    }

    pub(crate) fn usage(&self) -> LogUsage {
        let shared = &self.0.shared;
        let (bytes, segments) = shared.ledger().size();
        LogUsage {
            bytes,
            segments,
            flushes: shared.flushes.load(Ordering::Relaxed),
            appended_records: shared.records.load(Ordering::Relaxed),
            appended_bytes: shared.bytes.load(Ordering::Relaxed),
        }
    }

    /// Flushes the queued records and ends the flusher.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

impl Handle {
    fn close(&self) {
        let mut queue = self.shared.queue();
        queue.shut = Some(Shut::Closing);
        self.shared.wake(queue);
        let thread = self.thread.lock().take();
        // A `done` callback may drop the last handle on the log's own thread, which cannot join itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
            && thread.join().is_err()
        {
            warn!("the log's thread ended in a panic");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
