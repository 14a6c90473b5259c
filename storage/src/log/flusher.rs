//! The log's thread: takes the queued records, writes them as one block, flushes, answers.

use super::pace::Pace;
use super::rewrite::Rewrite;
use super::segment::{AppendError, Segment};
use super::{LogError, Shared, Shut, Waiting, block};
use crate::error::{is_full, is_out_of_files};
use crate::space::Reserve;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Instant;
use tracing::{error, warn};

/// Bytes set aside for a full disk: room for acknowledgments, which free space.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;

/// Capacity of the queue's buffer that is kept between flushes, in bytes.
const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

pub(super) struct Flusher {
    shared: Arc<Shared>,
    segment: Option<Segment>,
    reserve: Reserve,
    next_block: u64,
    failed: bool,
    /// The log has no room, and a warning was logged.
    lacking: bool,
    pace: Pace,
    took: metrics::Histogram,
}

/// The work taken from the queue for one flush.
#[derive(Default)]
struct Work {
    block: Vec<u8>,
    waiting: Vec<Waiting>,
    settled: Vec<Sender<()>>,
    rotate: bool,
    rewrite: Option<Rewrite>,
    shut: Option<Shut>,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>, next_block: u64) -> Self {
        let reserve =
            Reserve::new(shared.dir.join("reserve"), RESERVE_BYTES.min(shared.segment_bytes));
        let (failed, lacking) = (false, false);
        let took = metrics::histogram!(crate::FLUSH_SECONDS);
        Self {
            shared,
            segment: None,
            reserve,
            next_block,
            failed,
            lacking,
            pace: Pace::default(),
            took,
        }
    }

    pub(super) fn run(mut self) {
        self.restore_reserve();
        let mut work = Work::default();
        loop {
            self.take(&mut work);
            if let Some(rewrite) = work.rewrite.take() {
                self.write_rewrite(rewrite);
            }
            if !work.waiting.is_empty() {
                let outcome = self.flush(&mut work);
                answer(&mut work.waiting, outcome);
            }
            if work.rotate && self.shared.ledger().open_is_spent(1) {
                self.seal();
                self.restore_reserve();
            }
            work.settled.clear();
            // A shut log queues nothing, so nothing is left.
            if work.shut == Some(Shut::Closing) {
                break;
            }
        }
        self.seal();
    }

    /// Waits for work and takes it.
    fn take(&mut self, work: &mut Work) {
        work.block.shrink_to(BUFFER_BYTES_KEPT);
        block::begin(&mut work.block);
        let mut queue = self.shared.queue();
        let mut idle = false;
        while queue.waiting.is_empty()
            && queue.settled.is_empty()
            && !queue.rotate
            && queue.rewrite.is_none()
            && queue.shut != Some(Shut::Closing)
        {
            queue.asleep = true;
            idle = true;
            self.shared.wake.wait(&mut queue);
        }
        queue.asleep = false;
        if !queue.waiting.is_empty() {
            if let Some(wait) = self.pace.wait(idle, now()) {
                drop(queue);
                std::thread::sleep(wait);
                queue = self.shared.queue();
            }
            self.pace.begins(queue.waiting.len(), idle, now());
        }
        std::mem::swap(&mut queue.block, &mut work.block);
        std::mem::swap(&mut queue.waiting, &mut work.waiting);
        std::mem::swap(&mut queue.settled, &mut work.settled);
        work.rotate = std::mem::take(&mut queue.rotate);
        work.rewrite = queue.rewrite.take();
        work.shut = queue.shut;
    }

    fn flush(&mut self, work: &mut Work) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Failed);
        }
        let written = self.write(&mut work.block, &work.waiting);
        match &written {
            Ok(()) => {}
            Err(AppendError::Full) => {
                self.shared.space.set_full();
                self.shared.refuse(&mut work.waiting);
            }
            Err(AppendError::Failed(cause)) => self.shut_log(cause),
        }
        written.map_err(|refused| match refused {
            AppendError::Full => LogError::Full,
            AppendError::Failed(_) => LogError::Failed,
        })
    }

    fn shut_log(&mut self, cause: &io::Error) {
        error!(file = %self.shared.dir.display(), error = %cause, "log shut: a flush failed");
        self.failed = true;
        self.shared.queue().shut.get_or_insert(Shut::Failed);
    }

    /// Writes the records of an idle group again. Without space it does nothing; the next maintenance
    /// tries again.
    fn write_rewrite(&mut self, mut rewrite: Rewrite) {
        if self.failed || !self.shared.ledger().is_still_idle(&rewrite.from) {
            return;
        }
        match self.write(&mut rewrite.block, &rewrite.waiting) {
            Ok(()) => self.shared.unlink_spent(),
            Err(AppendError::Full) => {}
            Err(AppendError::Failed(cause)) => self.shut_log(&cause),
        }
    }

    fn write(&mut self, block: &mut [u8], waiting: &[Waiting]) -> Result<(), AppendError> {
        let bytes = block.len() as u64;
        let limit = self.shared.segment_bytes;
        let begun = |segment: &&Segment| segment.end > super::segment::HEADER_BYTES as u64;
        if self.segment.as_ref().filter(begun).is_some_and(|open| open.end + bytes > limit) {
            self.seal();
            self.restore_reserve();
        }
        match self.make_room(bytes) {
            Err(AppendError::Full) if self.reserve.give() => self.make_room(bytes)?,
            room => room?,
        }
        self.lacking = false;
        let Some(segment) = &mut self.segment else { return Err(AppendError::Full) };
        let records = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        block::seal(block, self.next_block, records, segment.salt);
        let begun = now();
        segment.append(block)?;
        self.took.record(now().duration_since(begun));
        self.next_block += 1;
        self.shared.next_block.store(self.next_block, Ordering::Release);
        let mut ledger = self.shared.ledger();
        for Waiting { shard, index, cut, .. } in waiting {
            if *cut { ledger.cut(*shard, *index) } else { ledger.entry(*shard, *index) }
        }
        ledger.grew(bytes);
        drop(ledger);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        self.shared.records.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that there is a segment with space for a block of `bytes`. Does not use the space kept
    /// for the tables: writing them is what empties the log.
    fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.segment.as_ref().is_some_and(|segment| segment.has_room(bytes)) {
            return Ok(());
        }
        let kept = self.shared.space.kept();
        let mut chunk = (self.shared.segment_bytes / 4).max(64 * 1024);
        if kept > 0 {
            chunk = 0;
            if self.shared.space.ask() < kept + bytes {
                self.shared.space.set_full();
                return Err(AppendError::Full);
            }
        }
        let room = if let Some(segment) = &mut self.segment {
            segment.make_room(bytes, chunk)
        } else {
            let space = bytes + super::segment::HEADER_BYTES as u64;
            let wish = space.max(chunk);
            let made = Segment::create(&self.shared.dir, self.next_block, wish)
                .or_else(|_| Segment::create(&self.shared.dir, self.next_block, space));
            made.map(|segment| self.segment = Some(segment))
        };
        room.map_err(|cause| self.handle_no_room(cause))
    }

    /// A lack of space or file descriptors may pass, so the log waits; any other error shuts it.
    fn handle_no_room(&mut self, cause: io::Error) -> AppendError {
        if !is_full(&cause) && !is_out_of_files(&cause) {
            return AppendError::Failed(cause);
        }
        if !std::mem::replace(&mut self.lacking, true) {
            warn!(file = %self.shared.dir.display(), error = %cause, "no room in the log: waiting");
        }
        self.shared.space.set_full();
        AppendError::Full
    }

    /// Seals the open segment; the next block begins a new one.
    fn seal(&mut self) {
        if let Some(segment) = self.segment.take() {
            if let Err(cause) = segment.finish() {
                warn!(file = %segment.path.display(), error = %cause, "log segment not trimmed");
            }
            self.shared.ledger().seal(segment.path, segment.end);
            self.shared.unlink_spent();
        }
    }

    fn restore_reserve(&mut self) {
        self.reserve.restore(&self.shared.space);
    }
}

fn answer(waiting: &mut Vec<Waiting>, outcome: Result<(), LogError>) {
    for waiting in waiting.drain(..) {
        // A panic in one caller's callback must not stop the log for the others.
        if catch_unwind(AssertUnwindSafe(|| (waiting.done)(outcome))).is_err() {
            error!(shard = waiting.shard.0, "the callback of an append panicked");
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "paces the disk; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
