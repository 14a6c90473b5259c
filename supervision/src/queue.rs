//! A process's message queue. It lives outside the actor, so it survives a restart; it is counted and
//! bounded.
//!
//! Producers and the process share an [`Inbox`]. The first item in an idle inbox wakes the process by
//! one small message to its actor; further items cost one short lock.
//!
//! # Invariants
//! 1. No wake-up is lost: if items wait and a process is attached, a wake-up is on its way. A
//!    restarted process that attaches finds the items of its predecessor and is woken up for them.
//! 2. Order is kept, also by the items put back when a process fails in the middle of a batch.
//! 3. Only the attached incarnation takes items; a superseded one gets none.
//! 4. An idle inbox holds no buffer.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use ractor::ActorRef;

use crate::control::Control;
use crate::monitor::{self, Gauge, Reading};

/// Most items a process handles in one turn before it yields to other tasks.
pub const BATCH_ITEMS_MAX: usize = 64;

/// The two limits of a message queue, in items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// From this length on producers should slow down: [`Inbox::is_high`].
    pub high: usize,
    /// Capacity: from this length on [`Inbox::push`] returns [`Full`].
    pub critical: usize,
}

/// The queue is at capacity or closed; the item comes back.
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

/// A process's message queue, shared as `Arc<Inbox<T>>` by its producers and the process.
pub struct Inbox<T> {
    kind: &'static str,
    id: u64,
    limits: QueueLimits,
    /// Items ever put in. Changes only under the lock.
    entered: AtomicU64,
    /// Items ever handed to a process.
    left: AtomicU64,
    /// The process fails before its next item: a test wants it.
    doomed: AtomicBool,
    queue: Mutex<Queue<T>>,
}

struct Queue<T> {
    items: VecDeque<T>,
    actor: Option<ActorRef<Control>>,
    /// A wake-up was sent, and the process has not found the queue empty since.
    woken: bool,
    closed: bool,
    /// Number of the attached incarnation; the first is 1.
    incarnation: u32,
}

impl<T: Send + 'static> Inbox<T> {
    /// A new, empty queue, registered with the queue monitor under `kind` and `id`.
    pub fn new(kind: &'static str, id: u64, limits: QueueLimits) -> Arc<Self> {
        let inbox = Arc::new(Self {
            kind,
            id,
            limits,
            entered: AtomicU64::new(0),
            left: AtomicU64::new(0),
            doomed: AtomicBool::new(false),
            queue: Mutex::new(Queue {
                items: VecDeque::new(),
                actor: None,
                woken: false,
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
        wake(queue);
        Ok(())
    }

    /// Appends `item` whatever the length, for items that are bounded elsewhere. A closed queue drops
    /// it.
    pub fn force(&self, item: T) {
        let mut queue = self.lock();
        if !queue.closed {
            self.append(&mut queue, item);
            wake(queue);
        }
    }

    /// Appends all `items` in order under one lock and with one wake-up, whatever the length. The
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
            wake(queue);
        }
    }

    /// Number of items that wait, without the item being handled.
    pub fn len(&self) -> usize {
        let left = self.left.load(Relaxed);
        usize::try_from(self.entered.load(Relaxed).saturating_sub(left)).unwrap_or(usize::MAX)
    }

    /// True if no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if at least `high` items wait.
    pub fn is_high(&self) -> bool {
        self.len() >= self.limits.high
    }

    /// The limits of this queue.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// The queue monitor's name for queues of this kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The queue's number within its kind.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Closes the queue if no item waits: from then on `push` fails and `force` drops. A process that
    /// wants to end calls this before it returns `Flow::Stop`; `false` means that items arrived and it
    /// must go on.
    pub fn close_if_empty(&self) -> bool {
        let mut queue = self.lock();
        if self.is_empty() {
            queue.closed = true;
        }
        queue.closed
    }

    /// True once the queue is closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn append(&self, queue: &mut Queue<T>, item: T) {
        queue.items.push_back(item);
        self.entered.store(self.entered.load(Relaxed) + 1, Relaxed);
    }

    /// Makes `actor` the one that is woken, and wakes it if items wait. Returns the number of its
    /// incarnation.
    pub(crate) fn attach(&self, actor: ActorRef<Control>) -> u32 {
        let mut queue = self.lock();
        queue.incarnation += 1;
        queue.actor = Some(actor);
        queue.woken = false;
        let incarnation = queue.incarnation;
        if !queue.items.is_empty() {
            wake(queue);
        }
        incarnation
    }

    /// Forgets the actor of `incarnation`, which has ended.
    pub(crate) fn detach(&self, incarnation: u32) {
        let mut queue = self.lock();
        if queue.incarnation == incarnation {
            queue.actor = None;
        }
    }

    /// Takes up to [`BATCH_ITEMS_MAX`] items for `incarnation`; none if it was superseded. `spare` is an
    /// empty buffer to reuse.
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

    /// True if the process must fail now; once for each [`monitor::kill`].
    pub(crate) fn takes_doom(&self) -> bool {
        self.doomed.load(Relaxed) && self.doomed.swap(false, Relaxed)
    }

    /// Ends a turn of `incarnation`. `true`: items wait, and it must wake itself. `false`: the next item
    /// wakes it, and the queue's buffer is freed.
    pub(crate) fn end_turn(&self, incarnation: u32) -> bool {
        let mut queue = self.lock();
        if queue.incarnation != incarnation {
            return false;
        }
        if queue.items.is_empty() {
            queue.woken = false;
            queue.items = VecDeque::new();
            return false;
        }
        true
    }
}

impl<T> Inbox<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock()
    }
}

/// Wakes the attached process, unless a wake-up is on its way. `attach` wakes for what waits before.
fn wake<T>(mut queue: MutexGuard<'_, Queue<T>>) {
    if queue.woken {
        return;
    }
    let Some(actor) = queue.actor.clone() else { return };
    queue.woken = true;
    drop(queue);
    drop(actor.cast(Control::Wake)); // If the actor has ended, its successor wakes when it attaches.
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

    fn kill(&self) {
        self.doomed.store(true, Relaxed);
        wake(self.lock());
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        monitor::retire(self.kind, self.entered.load(Relaxed), self.left.load(Relaxed));
    }
}

/// Items taken in one turn. Dropping it puts items that were not handed out back to the front.
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

    /// The buffer, for reuse, if all items were handed out.
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
        // Items that arrived meanwhile go behind those that were taken.
        self.items.append(&mut queue.items);
        std::mem::swap(&mut self.items, &mut queue.items);
    }
}
