//! The log: one ordered, checksummed, segmented file set for all groups, with group commit.
//!
//! Indexes of a group begin at 0. A record replaces all earlier ones of its group with the same or a
//! higher index; so does a cut, which is a record of nothing. When a group was wiped, its records in
//! blocks before that moment are void: the tables know the number of the block.
//!
//! Callers queue records and go on. One thread, the flusher, takes all that is queued, writes it as
//! one block, waits for the disk once and then answers all of it.
//!
//! # Invariants
//! 1. `done(Ok)` is called only after the record is on disk.
//! 2. Records of a group keep the order of the calls.
//! 3. After a failed flush nothing is accepted until a restart: nobody knows what the disk has.
//! 4. A segment is unlinked only when all that counts in it is in the tables or was written again,
//!    the oldest first.

mod block;
mod carry;
mod flusher;
mod ledger;
mod pace;
mod recover;
mod segment;

use crate::space::Space;
use crate::{Recovered, StorageError};
use carry::Carried;
use flusher::Flusher;
use ledger::{Ledger, StandsStill};
use proto::ShardId;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tracing::warn;

/// Why a record was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No space. Nothing was kept; later appends may succeed.
    #[error("no space left for the log")]
    Full,
    /// A flush failed, or the log is closed. It stays shut until a restart.
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

/// What callers and the flusher share.
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

/// Records that wait for the flusher, already in the form of a block.
#[derive(Default)]
struct Queue {
    block: Vec<u8>,
    waiting: Vec<Waiting>,
    settled: Vec<Sender<()>>,
    rotate: bool,
    carried: Option<Carried>,
    shut: Option<Shut>,
    /// For each group the first index that found no space. Nothing beyond it is taken before it
    /// comes again, so that the log has no gap.
    refused: BTreeMap<u16, u64>,
    /// The flusher sleeps and must be woken.
    asleep: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// Why nothing more is accepted.
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

/// What the tables say about the log of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// Index of the first record that is not in the tables.
    pub(crate) height: u64,
    /// Number of the first block whose records of the group count.
    pub(crate) begin: u64,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is queued to `waiting`, all of which finds no space.
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

    /// Unlinks the segments that are spent, oldest first.
    fn reap(&self) {
        let _reaping = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
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
        shared.reap();
        let flusher = Flusher::new(Arc::clone(&shared), next_block);
        let thread = thread::Builder::new().name("log-flusher".to_owned());
        let thread = thread.spawn(move || flusher.run()).map_err(fail)?;
        let log = Self(Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }));
        Ok((log, Recovered { records }))
    }

    /// Queues one encoded record. Never waits for the disk. It replaces what the log has of `shard`
    /// at `index` and beyond; otherwise `index` must follow the last one.
    ///
    /// `done` runs on the log's thread after the flush that made the record durable, or that
    /// failed; it must be quick. If the log is shut it runs at once, on the caller's thread, and so
    /// it does with [`LogError::Full`] until the first record of the group that found no space comes
    /// again.
    #[allow(clippy::needless_pass_by_value, reason = "that it is copied is the log's business")]
    pub fn append(&self, shard: ShardId, index: u64, record: Vec<u8>, done: Done) {
        self.push(shard, index, Some(&record), done);
    }

    /// Queues that there is nothing of `shard` from `index` on. Otherwise like [`Log::append`].
    ///
    /// Whoever appends at `index` next need not say so before.
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

    /// Records of `shard` below `height` are in the tables: segments may go.
    pub(crate) fn forget(&self, shard: ShardId, height: u64) {
        self.0.shared.ledger().applied(shard, height);
        // The tables went past what found no space.
        let mut queue = self.0.shared.queue();
        if queue.refused.get(&shard.0).is_some_and(|first| *first < height) {
            queue.refused.remove(&shard.0);
        }
        drop(queue);
        self.reap();
    }

    /// Records of `shard` in blocks written so far are void: segments may go.
    pub(crate) fn wipe(&self, shard: ShardId) {
        self.0.shared.ledger().wipe(shard);
        self.0.shared.queue().refused.remove(&shard.0);
        self.reap();
    }

    /// Index of the first record of `shard` that is not in the tables.
    pub(crate) fn height_in_tables(&self, shard: ShardId) -> u64 {
        self.0.shared.ledger().applied_of(shard)
    }

    fn reap(&self) {
        self.0.shared.reap();
        self.rotate_if_spent(self.0.shared.segment_bytes / 16);
    }

    /// Ends the open segment, and so unlinks it, if it holds at least `bytes` and only what is in
    /// the tables.
    pub(crate) fn rotate_if_spent(&self, bytes: u64) {
        if self.0.shared.ledger().open_is_spent(bytes) {
            let mut queue = self.0.shared.queue();
            queue.rotate = true;
            self.0.shared.wake(queue);
        }
    }

    /// Waits until the flusher has done all that was asked of it before, which it shows by dropping
    /// the sender. Says which block comes next, or `None` if the log is shut.
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

    /// A group whose records keep the oldest segment, while more than `segments_max` later ones hold
    /// nothing of it; see [`carry`].
    pub(crate) fn stands_still(&self, segments_max: usize) -> Option<StandsStill> {
        self.0.shared.ledger().stands_still(segments_max)
    }

    /// Has the records of such a group written again. Reads segments; blocking. The tables must have
    /// what they have of the group until [`Log::settle`] returns.
    pub(crate) fn carry(&self, group: StandsStill) -> Result<(), StorageError> {
        self.0.shared.carry(group)
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

    /// Flushes what is queued and ends the flusher.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

impl Handle {
    fn close(&self) {
        let mut queue = self.shared.queue();
        queue.shut = Some(Shut::Closing);
        self.shared.wake(queue);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may be dropped by a `done`, which runs on the thread itself.
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
