//! Task groups: dynamic tasks, such as connections, that are counted and stopped together.
//!
//! # Invariants
//! 1. A panic is logged with the task's name and touches no other task.
//! 2. After [`TaskGroup::finish`] no task of the group runs, and none can be added.

use parking_lot::{Mutex, MutexGuard};
use pin_project_lite::pin_project;
use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::error;

use crate::stopping::{StopSource, Stopping};

/// A group of tasks. Cheap to clone.
#[derive(Clone)]
pub struct TaskGroup(Arc<Group>);

struct Group {
    source: StopSource,
    stopping: Stopping,
    roster: Mutex<Roster>,
    empty: Notify,
}

#[derive(Default)]
struct Roster {
    next: u64,
    closed: bool,
    aborting: bool,
    /// `None`: about to be spawned.
    tasks: HashMap<u64, Option<AbortHandle>>,
}

impl TaskGroup {
    /// An empty group.
    pub fn new() -> Self {
        let (source, stopping) = StopSource::new();
        let roster = Mutex::default();
        Self(Arc::new(Group { source, stopping, roster, empty: Notify::new() }))
    }

    /// Runs `future` as a task of this group. Returns `false` without running it if the group is
    /// finishing.
    #[allow(clippy::disallowed_methods, reason = "counted and ended by the group")]
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> bool {
        let place = {
            let mut roster = self.0.lock();
            if roster.closed {
                return false;
            }
            roster.next += 1;
            let place = roster.next;
            roster.tasks.insert(place, None);
            place
        };
        let leave = Leave { group: Arc::clone(&self.0), place, name };
        // Spawned without the lock: a runtime that shuts down drops the task at once.
        let handle = tokio::spawn(Member { future, leave }).abort_handle();
        let mut roster = self.0.lock();
        if roster.aborting {
            handle.abort();
        } else if let Some(entry) = roster.tasks.get_mut(&place) {
            *entry = Some(handle);
        }
        true
    }

    /// Number of running tasks.
    pub fn count(&self) -> usize {
        self.0.lock().tasks.len()
    }

    /// The stop signal of the group's tasks; [`TaskGroup::finish`] fires it.
    pub fn stopping(&self) -> Stopping {
        self.0.stopping.clone()
    }

    /// Asks all tasks to stop, accepts no new ones, waits up to `within` and aborts the rest. Returns
    /// the number of aborted tasks.
    pub async fn finish(&self, within: Duration) -> usize {
        self.0.lock().closed = true;
        self.0.source.fire();
        if tokio::time::timeout(within, self.emptied()).await.is_ok() {
            return 0;
        }
        let late = {
            let mut roster = self.0.lock();
            roster.aborting = true;
            roster.tasks.values().flatten().for_each(AbortHandle::abort);
            roster.tasks.len()
        };
        self.emptied().await;
        late
    }

    async fn emptied(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.0.empty.notified());
            emptied.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock()
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskGroup").field("count", &self.count()).finish_non_exhaustive()
    }
}

pin_project! {
    /// A task of a group. An `async` block that waits for `future` would have room for it twice.
    struct Member<F> {
        #[pin]
        future: F,
        // Dropped after the future.
        leave: Leave,
    }
}

impl<F: Future<Output = ()>> Future for Member<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.project().future.poll(context)
    }
}

/// Removes a task from the group however it ends.
struct Leave {
    group: Arc<Group>,
    place: u64,
    name: &'static str,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!(task = self.name, "task panicked");
        }
        let mut roster = self.group.lock();
        roster.tasks.remove(&self.place);
        if roster.tasks.is_empty() {
            roster.tasks = HashMap::new();
            self.group.empty.notify_waiters();
        }
    }
}
