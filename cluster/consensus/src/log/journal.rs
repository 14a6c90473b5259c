//! The log of a group: what openraft reads and writes of it.
//!
//! Entries since the last purge are in memory, for members that are behind; on disk they are records
//! of the log that all groups of a node share.
//!
//! Runs inside openraft's tasks; one task of the group's own, [`retry`], writes again what found no
//! space.
//!
//! # Invariants
//! 1. openraft hears that an entry is kept after the flush, never before.
//! 2. A full disk is waited out: openraft, for which any error of its log is the end, hears nothing
//!    meanwhile and neither appends nor votes. Only a log that is shut is an error.
//! 3. A record is written when the one before it is kept: the disk never has a hole.

use crate::convert;
use crate::log::held::{Held, bytes_of};
use crate::types::{Ballot, Id, LogEntry, StoreError, Types};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::{ShardId, stored};
use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use storage::{LogError, Storage, StorageError};
use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};

/// Wait before a write that found no space is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// Bytes of entries that one request to a follower carries, unless one entry alone has more.
const REQUEST_BYTES: usize = 512 * 1024;

/// The log of a group. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Inner>);

struct Inner {
    group: ShardId,
    /// Whose votes are read as not won; `None`: this node alone elects.
    demoted: Option<u64>,
    storage: Storage,
    held: Mutex<Held>,
    refused: Mutex<Refused>,
    wake: Notify,
    /// Something waits for space.
    stuck: AtomicBool,
    /// Told when something begins to.
    full: Notify,
    /// Writes that find the disk full.
    #[cfg(test)]
    refusals: AtomicUsize,
}

/// The write that found no space. openraft has one under way at a time.
#[derive(Default)]
struct Refused {
    write: Option<Arc<Write>>,
    closed: bool,
}

/// Who waits for a write.
enum Waiting {
    Append(LogFlushed<Types>),
    Truncate(oneshot::Sender<io::Result<()>>),
}

impl Waiting {
    fn answer(self, outcome: io::Result<()>) {
        match self {
            Self::Append(flushed) => flushed.log_io_completed(outcome),
            Self::Truncate(sender) => drop(sender.send(outcome)), // Nobody waits if the group stops.
        }
    }
}

/// What is written to the disk.
enum Content {
    Entries(Vec<stored::Entry>),
    /// There is nothing from this index on.
    End(u64),
}

/// Something on its way to the disk.
struct Write {
    journal: Journal,
    content: Content,
    /// Records that are kept.
    kept: AtomicUsize,
    waiting: Mutex<Option<Waiting>>,
}

impl Journal {
    /// The log as it was found at start: what the tables hold, and the records after it.
    pub(crate) fn new(
        (group, demoted, storage): (ShardId, Option<u64>, Storage),
        applied: Option<Id>,
        entries: VecDeque<LogEntry>,
    ) -> Self {
        Self(Arc::new(Inner {
            group,
            demoted,
            storage,
            held: Mutex::new(Held::new(applied, entries)),
            refused: Mutex::default(),
            wake: Notify::new(),
            stuck: AtomicBool::new(false),
            full: Notify::new(),
            #[cfg(test)]
            refusals: AtomicUsize::new(0),
        }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock()
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.0.refused.lock()
    }

    /// Whether openraft waits for space and answers nobody.
    pub(crate) fn is_stuck(&self) -> bool {
        self.0.stuck.load(Ordering::Relaxed)
    }

    /// Returns when a write finds no space.
    pub(crate) async fn found_no_space(&self) {
        self.0.full.notified().await;
    }

    /// Something begins to wait for space; says whether nothing did so far.
    fn gets_stuck(&self) -> bool {
        let first = !self.0.stuck.swap(true, Ordering::Relaxed);
        if first {
            self.0.full.notify_one();
        }
        first
    }

    /// Gives up what waits for space, now and later: the group ends.
    pub(crate) fn close(&self) {
        let mut refused = self.refused();
        refused.closed = true;
        let write = refused.write.take();
        drop(refused);
        if let Some(write) = write {
            write.answer(Err(shut()));
        }
        self.0.wake.notify_waiters();
    }

    /// Does `what` unless the journal is closed: when [`Journal::close`] has returned it is done, or
    /// never will be.
    pub(crate) fn unless_closed(&self, what: impl FnOnce()) {
        let refused = self.refused();
        if !refused.closed {
            what();
        }
    }

    fn is_closed(&self) -> bool {
        self.refused().closed
    }

    /// Where the log ends.
    pub(crate) fn last(&self) -> Option<Id> {
        self.held().last()
    }

    /// What the entries after `applied`, up to `committed`, take. Bytes.
    pub(crate) fn backlog(&self, applied: Option<u64>, committed: u64) -> u64 {
        self.held().bytes_in(applied.map_or(0, |index| index + 1), committed + 1)
    }

    /// The highest index such that the entries after it, up to `applied`, have at most `bytes`.
    pub(crate) fn before_tail(&self, applied: u64, bytes: usize) -> u64 {
        let held = self.held();
        let mut total = 0;
        let tail = held.backwards().skip_while(|entry| entry.log_id.index > applied);
        let fits = tail.take_while(|entry| {
            total += bytes_of(entry);
            total <= bytes
        });
        let kept = fits.count() as u64;
        applied.saturating_sub(kept)
    }

    /// A vote as openraft should find it when it starts.
    ///
    /// It would lead on with a vote that says that this node was elected, and claim so until another
    /// node tells it better; meanwhile others may have elected another. So it is told only that this
    /// node has voted for itself in that term, which is true. That is safe: what it had committed is
    /// in the log of a majority and binds whoever is elected next, and its promise is no less than it
    /// was. It has to stand for election again, in a later term. A node that elects alone needs none
    /// of that, and could not even write the begin of a term if its disk is full.
    fn as_promised(&self, mut vote: Ballot) -> Ballot {
        vote.committed &= self.0.demoted != Some(vote.leader_id().node_id);
        vote
    }

    fn write(&self, content: Content, waiting: Waiting) {
        let write = Write {
            journal: self.clone(),
            content,
            kept: AtomicUsize::new(0),
            waiting: Mutex::new(Some(waiting)),
        };
        Arc::new(write).go_on();
    }

    /// Makes the disk forget the records from `index` on. Returns when that is flushed.
    pub(crate) async fn end_before(&self, index: u64) -> io::Result<()> {
        let (sender, flushed) = oneshot::channel();
        self.write(Content::End(index), Waiting::Truncate(sender));
        flushed.await.unwrap_or_else(|_| Err(shut()))
    }

    /// The entry with this index, if the log still knows which it is.
    pub(crate) fn id_at(&self, index: u64) -> Option<Id> {
        let held = self.held();
        let purged = held.purged().filter(|purged| purged.index == index);
        purged.or_else(|| held.range(index, index + 1).next().map(|entry| entry.log_id))
    }

    /// The entries after index `after`, up to `up_to`, if none of them is purged.
    pub(crate) fn between(&self, after: Option<u64>, up_to: u64) -> Option<Vec<LogEntry>> {
        let start = after.map_or(0, |index| index + 1);
        let entries: Vec<_> = self.held().range(start, up_to + 1).cloned().collect();
        let all = entries.len() as u64 == (up_to + 1).saturating_sub(start);
        let first = entries.first().is_none_or(|first| first.log_id.index == start);
        (all && first).then_some(entries)
    }

    /// Runs `attempt` on a thread that may block, again and again while the disk is full.
    pub(crate) async fn outlast<T: Send + 'static>(
        &self,
        attempt: impl Fn(&Storage) -> Result<T, StorageError> + Clone + Send + 'static,
    ) -> Result<T, StorageError> {
        loop {
            let (storage, attempt) = (self.0.storage.clone(), attempt.clone());
            let done = tokio::task::spawn_blocking(move || attempt(&storage)).await;
            match done.unwrap_or(Err(StorageError::Closed)) {
                Err(StorageError::DiskFull { path }) if !self.is_closed() => {
                    if self.gets_stuck() {
                        warn!(shard = %self.0.group, path = %path.display(), "no space: waiting");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                outcome => {
                    self.0.stuck.store(false, Ordering::Relaxed);
                    return outcome;
                }
            }
        }
    }
}

impl Write {
    /// Hands the log the next record, or answers after the last. One at a time: the log may refuse
    /// one block and take the next, and must never hold an entry without the one before it.
    fn go_on(self: Arc<Self>) {
        let Inner { group, storage, .. } = self.journal.0.as_ref();
        let (log, group) = (storage.log().clone(), *group);
        let kept = self.kept.load(Ordering::Acquire);
        match &self.content {
            Content::Entries(entries) => {
                let Some(entry) = entries.get(kept) else { return self.all_kept() };
                let index = entry.id.map(|id| id.index).unwrap_or_default();
                let record = entry.encode_to_vec();
                log.append(group, index, record, Box::new(move |outcome| self.done(outcome)));
            }
            Content::End(_) if kept > 0 => self.all_kept(),
            Content::End(index) => {
                let index = *index;
                log.truncate(group, index, Box::new(move |outcome| self.done(outcome)));
            }
        }
    }

    fn done(self: Arc<Self>, outcome: Result<(), LogError>) {
        #[cfg(test)]
        let outcome = self.journal.refused_first(outcome);
        match outcome {
            Ok(()) => {
                self.kept.fetch_add(1, Ordering::AcqRel);
                self.go_on();
            }
            Err(LogError::Full) => self.wait_for_space(),
            Err(LogError::Failed) => self.answer(Err(shut())),
        }
    }

    fn all_kept(&self) {
        if self.journal.0.stuck.swap(false, Ordering::Relaxed) {
            info!(shard = %self.journal.0.group, "there is space again");
        }
        self.answer(Ok(()));
    }

    fn wait_for_space(self: Arc<Self>) {
        let journal = self.journal.clone();
        if journal.gets_stuck() {
            warn!(shard = %journal.0.group, "no space for the log: waiting");
        }
        let mut refused = journal.refused();
        if refused.closed {
            drop(refused);
            self.answer(Err(shut()));
        } else {
            refused.write = Some(self);
            journal.0.wake.notify_one();
        }
    }

    fn answer(&self, outcome: io::Result<()>) {
        let waiting = self.waiting.lock().take();
        if let Some(waiting) = waiting {
            waiting.answer(outcome);
        }
    }
}

/// Writes again what found no space, until the journal is closed.
pub(crate) async fn retry(journal: Journal) {
    while !journal.is_closed() {
        journal.0.wake.notified().await;
        tokio::time::sleep(RETRY).await;
        let write = journal.refused().write.take();
        if let Some(write) = write {
            write.go_on();
        }
    }
}

#[cfg(test)]
impl Journal {
    /// The next writes find the disk full.
    pub(crate) fn refuse(&self, writes: usize) {
        self.0.refusals.store(writes, Ordering::Relaxed);
    }

    fn refused_first(&self, outcome: Result<(), LogError>) -> Result<(), LogError> {
        let left = |left: usize| left.checked_sub(1);
        let refused = self.0.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        if refused.is_ok() { Err(LogError::Full) } else { outcome }
    }
}

fn shut() -> io::Error {
    io::Error::other("the log is shut")
}

impl RaftLogReader<Types> for Journal {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.held().range(start, end).cloned().collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let mut total = 0;
        let held = self.held();
        let fits = held.range(start, end).take_while(|entry| {
            let first = total == 0;
            total += bytes_of(entry).max(1);
            first || total <= REQUEST_BYTES
        });
        Ok(fits.cloned().collect())
    }
}

impl RaftLogStorage<Types> for Journal {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StoreError> {
        let held = self.held();
        Ok(LogState { last_purged_log_id: held.purged(), last_log_id: held.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Ballot) -> Result<(), StoreError> {
        let (group, vote) = (self.0.group, convert::stored_vote(vote));
        let saved = self.outlast(move |storage| storage.save_vote(group, &vote)).await;
        saved.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Ballot>, StoreError> {
        let group = self.0.group;
        let read = self.outlast(move |storage| storage.vote(group)).await;
        let vote = read.map_err(|error| StorageIOError::read_vote(AnyError::new(&error)))?;
        Ok(vote.as_ref().map(convert::vote).map(|vote| self.as_promised(vote)))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StoreError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut held = self.held();
        for entry in entries {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                proposal.logged.set();
            }
            records.push(convert::stored_entry(&entry));
            held.push(entry);
        }
        drop(held);
        self.write(Content::Entries(records), Waiting::Append(callback));
        Ok(())
    }

    async fn truncate(&mut self, id: Id) -> Result<(), StoreError> {
        self.held().truncate(id.index);
        info!(shard = %self.0.group, from = id.index, "entries that were never committed taken back");
        let truncated = self.end_before(id.index).await;
        truncated.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn purge(&mut self, id: Id) -> Result<(), StoreError> {
        self.held().purge(id);
        Ok(())
    }
}

impl Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("shard", &self.0.group).finish_non_exhaustive()
    }
}
