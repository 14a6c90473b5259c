//! The log's thread: takes what is queued, writes it, waits for the disk, answers.

use super::carry::Carried;
use super::pace::Pace;
use super::segment::{AppendError, Segment};
use super::{LogError, Shared, Shut, Waiting, block};
use crate::error::{is_full, is_out_of_files};
use crate::space::Reserve;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use tracing::{error, warn};

/// Space that is set aside for the time when there is none, in bytes: acknowledgments of what is
/// held fit in it, and they are what frees space.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;

/// Memory for queued records that is kept from one flush to the next, in bytes.
const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

pub(super) struct Flusher {
    shared: Arc<Shared>,
    segment: Option<Segment>,
    reserve: Reserve,
    next_block: u64,
    failed: bool,
    /// There was no room, and people were told.
    lacking: bool,
    pace: Pace,
    took: metrics::Histogram,
}

/// What the flusher took from the queue.
#[derive(Default)]
struct Work {
    block: Vec<u8>,
    waiting: Vec<Waiting>,
    settled: Vec<Sender<()>>,
    rotate: bool,
    carried: Option<Carried>,
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
            if let Some(carried) = work.carried.take() {
                self.write_again(carried);
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
            // Nothing is queued after the log was shut, so nothing is left.
            if work.shut == Some(Shut::Closing) {
                break;
            }
        }
        self.seal();
    }

    /// Waits for something to do, and takes it.
    fn take(&mut self, work: &mut Work) {
        work.block.shrink_to(BUFFER_BYTES_KEPT);
        block::begin(&mut work.block);
        let mut queue = self.shared.queue();
        let mut idle = false;
        while queue.waiting.is_empty()
            && queue.settled.is_empty()
            && !queue.rotate
            && queue.carried.is_none()
            && queue.shut != Some(Shut::Closing)
        {
            queue.asleep = true;
            idle = true;
            queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
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
        work.carried = queue.carried.take();
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
                self.shared.space.met_its_end();
                self.shared.refuse(&mut work.waiting);
            }
            Err(AppendError::Failed(cause)) => self.fails(cause),
        }
        written.map_err(|refused| match refused {
            AppendError::Full => LogError::Full,
            AppendError::Failed(_) => LogError::Failed,
        })
    }

    fn fails(&mut self, cause: &io::Error) {
        error!(file = %self.shared.dir.display(), error = %cause, "log shut: a flush failed");
        self.failed = true;
        self.shared.queue().shut.get_or_insert(Shut::Failed);
    }

    /// Nobody waits for it: if there is no space it is tried again later.
    fn write_again(&mut self, mut carried: Carried) {
        if self.failed || !self.shared.ledger().still_stands(&carried.from) {
            return;
        }
        match self.write(&mut carried.block, &carried.waiting) {
            Ok(()) => self.shared.reap(),
            Err(AppendError::Full) => {}
            Err(AppendError::Failed(cause)) => self.fails(&cause),
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

    /// Makes sure that there is a segment with space for a block of `bytes`. What is kept for the
    /// tables is left to them: they are what empties the log.
    fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.segment.as_ref().is_some_and(|segment| segment.has_room(bytes)) {
            return Ok(());
        }
        let kept = self.shared.space.kept();
        let mut chunk = (self.shared.segment_bytes / 4).max(64 * 1024);
        if kept > 0 {
            chunk = 0;
            if self.shared.space.ask() < kept + bytes {
                self.shared.space.met_its_end();
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
        room.map_err(|cause| self.no_room(cause))
    }

    /// What is lacking may come back, and is waited for; anything else is the end of the log.
    fn no_room(&mut self, cause: io::Error) -> AppendError {
        if !is_full(&cause) && !is_out_of_files(&cause) {
            return AppendError::Failed(cause);
        }
        if !std::mem::replace(&mut self.lacking, true) {
            warn!(file = %self.shared.dir.display(), error = %cause, "no room in the log: waiting");
        }
        self.shared.space.met_its_end();
        AppendError::Full
    }

    /// Ends the open segment; the next block begins another.
    fn seal(&mut self) {
        if let Some(segment) = self.segment.take() {
            if let Err(cause) = segment.finish() {
                warn!(file = %segment.path.display(), error = %cause, "log segment not trimmed");
            }
            self.shared.ledger().seal(segment.path, segment.end);
            self.shared.reap();
        }
    }

    fn restore_reserve(&mut self) {
        self.reserve.restore(&self.shared.space);
    }
}

fn answer(waiting: &mut Vec<Waiting>, outcome: Result<(), LogError>) {
    for waiting in waiting.drain(..) {
        // Whoever asked may be broken; the log must go on for the others.
        if catch_unwind(AssertUnwindSafe(|| (waiting.done)(outcome))).is_err() {
            error!(shard = waiting.shard.0, "the answer to an append panicked");
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "paces the disk; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}
