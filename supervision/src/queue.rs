//! A process's message queue: kept outside the actor, counted, bounded, and still there after a
//! restart.
//!
//! Producers and the process share an [`Inbox`]. The first item put into a quiet inbox rings the
//! bell (one small message to the actor); further items find the bell rung and cost one short lock.
//!
//! # Invariants
//! 1. If items wait and a process is attached, its bell is rung: no wake-up is lost. A successor
//!    that attaches finds what its predecessor left and rings for itself.
//! 2. Order is kept, also by the items put back when a process fails in the middle of a batch.
//! 3. Only the attached incarnation takes items; one that was given up for dead gets none.
//! 4. An idle inbox holds no buffer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ractor::ActorRef;

use crate::bell::Bell;
use crate::monitor::{self, Gauge, Reading};

/// Most items a process handles at one bell, before it settles and lets others run.
pub const BATCH_ITEMS_MAX: usize = 64;

/// The two marks of a message queue, in items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// From here on the sources should slow down: [`Inbox::is_high`].
    pub high: usize,
    /// Capacity: [`Inbox::push`] refuses from here on.
    pub critical: usize,
}

/// The queue took nothing, and here is the item back: it is at capacity, or closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the message queue is full or closed")
    }
}

impl<T> std::error::Error for Full<T> {}

/// A process's message queue. Shared as `Arc<Inbox<T>>` by all who push and the process itself.
pub struct Inbox<T> {
    kind: &'static str,
    id: u64,
    limits: QueueLimits,
    /// Items ever put in. Changes only under the lock.
    entered: AtomicU64,
    /// Items ever handed to a process.
    left: AtomicU64,
    queue: Mutex<Queue<T>>,
}

struct Queue<T> {
    items: VecDeque<T>,
    bell: Option<ActorRef<Bell>>,
    /// Set when the bell was rung and the process has not yet found the queue empty.
    rung: bool,
    closed: bool,
    /// Number of the attached incarnation; the first is 1.
    incarnation: u32,
}

impl<T: Send + 'static> Inbox<T> {
    /// A new, empty queue, known to the queue monitor under `kind` and `id`.
    pub fn new(kind: &'static str, id: u64, limits: QueueLimits) -> Arc<Self> {
        let inbox = Arc::new(Self {
            kind,
            id,
            limits,
            entered: AtomicU64::new(0),
            left: AtomicU64::new(0),
            queue: Mutex::new(Queue {
                items: VecDeque::new(),
                bell: None,
                rung: false,
                closed: false,
                incarnation: 0,
            }),
        });
        let known: Weak<Self> = Arc::downgrade(&inbox);
        monitor::register(known);
        inbox
    }

    /// Appends `item`.
    ///
    /// # Errors
    /// [`Full`] with the item when `critical` items wait, or the queue is closed.
    pub fn push(&self, item: T) -> Result<(), Full<T>> {
        let mut queue = self.lock();
        if queue.closed || self.len() >= self.limits.critical {
            return Err(Full(item));
        }
        self.append(&mut queue, item);
        ring(queue);
        Ok(())
    }

    /// Appends `item` whatever the length: for facts whose number is bounded elsewhere. A closed
    /// queue drops it.
    pub fn force(&self, item: T) {
        self.force_all([item]);
    }

    /// Appends all `items` in order under one lock and with one bell, whatever the length. The
    /// iterator runs under the lock and must not use this inbox. A closed queue drops them.
    pub fn force_all(&self, items: impl IntoIterator<Item = T>) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        for item in items {
            self.append(&mut queue, item);
        }
        if !queue.items.is_empty() {
            ring(queue);
        }
    }

    /// Number of items that wait. The item being handled no longer counts.
    pub fn len(&self) -> usize {
        let left = self.left.load(Relaxed);
        usize::try_from(self.entered.load(Relaxed).saturating_sub(left)).unwrap_or(usize::MAX)
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether at least `high` items wait.
    pub fn is_high(&self) -> bool {
        self.len() >= self.limits.high
    }

    /// The marks this queue was made with.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// What the queue monitor calls this queue.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Which one of its kind this queue is.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Closes the queue if nothing waits: from then on `push` refuses and `force` drops. A process
    /// that wants to end calls this before it answers `Flow::Stop`; `false` means that more came
    /// and it must go on.
    pub fn close_if_empty(&self) -> bool {
        let mut queue = self.lock();
        if self.is_empty() {
            queue.closed = true;
        }
        queue.closed
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn append(&self, queue: &mut Queue<T>, item: T) {
        queue.items.push_back(item);
        self.entered.store(self.entered.load(Relaxed) + 1, Relaxed);
    }

    /// Makes `bell` the one that is rung, and rings it if something waits. Returns the number of
    /// the incarnation.
    pub(crate) fn attach(&self, bell: ActorRef<Bell>) -> u32 {
        let mut queue = self.lock();
        queue.incarnation += 1;
        queue.bell = Some(bell);
        queue.rung = false;
        let incarnation = queue.incarnation;
        if !queue.items.is_empty() {
            ring(queue);
        }
        incarnation
    }

    /// Forgets the bell of `incarnation`, whose actor is gone.
    pub(crate) fn detach(&self, incarnation: u32) {
        let mut queue = self.lock();
        if queue.incarnation == incarnation {
            queue.bell = None;
        }
    }

    /// Takes up to [`BATCH_ITEMS_MAX`] items for `incarnation`; none for one that was superseded.
    /// `spare` is an empty buffer to use again.
    pub(crate) fn take(&self, incarnation: u32, mut spare: VecDeque<T>) -> Batch<'_, T> {
        let mut queue = self.lock();
        if queue.incarnation == incarnation {
            if queue.items.len() <= BATCH_ITEMS_MAX {
                std::mem::swap(&mut queue.items, &mut spare);
            } else {
                spare.extend(queue.items.drain(..BATCH_ITEMS_MAX));
            }
        }
        drop(queue);
        Batch { inbox: self, items: spare }
    }

    /// Ends a turn of `incarnation`: `true` if it must ring for itself because more waits;
    /// otherwise the bell is armed again and the buffer given up.
    pub(crate) fn more_waits(&self, incarnation: u32) -> bool {
        let mut queue = self.lock();
        if queue.incarnation != incarnation {
            return false;
        }
        if queue.items.is_empty() {
            queue.rung = false;
            queue.items = VecDeque::new();
            return false;
        }
        true
    }
}

impl<T> Inbox<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings unless the bell is rung already or nobody is attached (who attaches rings for itself).
fn ring<T>(mut queue: MutexGuard<'_, Queue<T>>) {
    if queue.rung {
        return;
    }
    let Some(bell) = queue.bell.clone() else { return };
    queue.rung = true;
    drop(queue);
    drop(bell.cast(Bell::Ring)); // An actor that is gone has a successor, which rings for itself.
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Inbox")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Gauge for Inbox<T> {
    fn read(&self) -> Reading {
        let left = self.left.load(Relaxed);
        let entered = self.entered.load(Relaxed).max(left);
        Reading { kind: self.kind, id: self.id, entered, left, limits: self.limits }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        monitor::retire(self.kind, self.entered.load(Relaxed), self.left.load(Relaxed));
    }
}

/// Items taken at one bell. Whatever was not handed out goes back to the front when this drops.
pub(crate) struct Batch<'a, T> {
    inbox: &'a Inbox<T>,
    items: VecDeque<T>,
}

impl<T> Batch<'_, T> {
    /// Hands out the next item.
    pub(crate) fn next(&mut self) -> Option<T> {
        let item = self.items.pop_front()?;
        self.inbox.left.fetch_add(1, Relaxed);
        Some(item)
    }

    /// The buffer, to use again, if everything was handed out.
    pub(crate) fn reclaim(mut self) -> VecDeque<T> {
        if self.items.is_empty() { std::mem::take(&mut self.items) } else { VecDeque::new() }
    }
}

impl<T> Drop for Batch<'_, T> {
    fn drop(&mut self) {
        if self.items.is_empty() {
            return;
        }
        let mut queue = self.inbox.lock();
        // What came meanwhile moves behind what was taken first.
        self.items.append(&mut queue.items);
        std::mem::swap(&mut self.items, &mut queue.items);
    }
}
