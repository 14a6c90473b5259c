//! The task that a group has handed to its replica and the replica has not finished. It is kept outside the replica's
//! process: one that dies loses none of it, and its successor finishes it.
//!
//! # Invariants
//! 1. At most one task is unfinished, and it is finished once.
//! 2. A task whose number is not the current one was finished by another process: nothing is to be done for it.

use super::{Committed, Done, Group, machine};
use parking_lot::Mutex;
use std::fmt;

/// A task that a group gives its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// [`super::Replica::apply`]
    Apply,
    /// [`super::Replica::reload`]
    Reload,
    /// [`super::Replica::rest`]
    Rest,
}

/// The state that a process that owns a replica finds when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// The task that its predecessor has not finished, and its number.
    pub task: Option<(u64, Task)>,
    /// Index of the last entry that was handed over since the tables were replaced; `None`: none was.
    pub up_to: Option<u64>,
    /// The group has ended and is about to be forgotten: nothing may be written until a reload is finished.
    pub resting: bool,
}

/// Keeps what was handed over until it is finished. One for each replica of this node.
#[derive(Default)]
pub struct Handed(Mutex<Hands>);

#[derive(Default)]
struct Hands {
    found: Unfinished,
    done: Option<Done>,
    numbers: u64,
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").field("unfinished", &self.unfinished()).finish_non_exhaustive()
    }
}

impl Handed {
    /// The group hands entries over. Returns the number of this task, which is never 0.
    pub fn apply(&self, entries: &[Committed], done: Done) -> u64 {
        self.begin(Task::Apply, done, |found| {
            found.up_to = entries.last().map(|entry| entry.id.index).or(found.up_to);
        })
    }

    /// The group tells that the tables were replaced. Returns the number of this task.
    pub fn reload(&self, done: Done) -> u64 {
        self.begin(Task::Reload, done, |found| found.up_to = None)
    }

    /// The group tells that it is about to be forgotten. Returns the number of this task.
    pub fn rest(&self, done: Done) -> u64 {
        self.begin(Task::Rest, done, |found| found.resting = true)
    }

    fn begin(&self, task: Task, done: Done, note: impl FnOnce(&mut Unfinished)) -> u64 {
        let mut hands = self.0.lock();
        hands.numbers += 1;
        let number = hands.numbers;
        hands.found.task = Some((number, task));
        note(&mut hands.found);
        let before = hands.done.replace(done);
        drop(hands);
        drop(before); // Of a group that has ended since.
        number
    }

    /// True if this task is not finished yet.
    pub fn is_current(&self, number: u64) -> bool {
        self.0.lock().found.task.is_some_and(|(current, _)| current == number)
    }

    /// This task is finished: tells the group. Does nothing for a task that is not current.
    pub fn finish(&self, number: u64) {
        if let Some((task, done)) = self.end(number) {
            if task == Task::Reload {
                self.0.lock().found.resting = false;
            }
            done();
        }
    }

    /// This task cannot be finished, by no other process either: the group ends.
    pub fn give_up(&self, number: u64) {
        drop(self.end(number));
    }

    fn end(&self, number: u64) -> Option<(Task, Done)> {
        let mut hands = self.0.lock();
        let (_, task) = hands.found.task.take_if(|(current, _)| *current == number)?;
        hands.done.take().map(|done| (task, done))
    }

    /// The unfinished task. Read it before the tables.
    pub fn unfinished(&self) -> Unfinished {
        self.0.lock().found
    }
}

impl Group {
    /// The committed entries after index `after` (`None`: from the first on), up to index `up_to`, which must be
    /// committed. For a replica whose process has died: it applies again what is not in the tables. `None`: some
    /// of them are purged, because newer tables hold them.
    pub fn committed(&self, after: Option<u64>, up_to: u64) -> Option<Vec<Committed>> {
        let entries = self.inner().journal.between(after, up_to)?;
        Some(entries.into_iter().map(machine::committed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::stored;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn entries(index: u64) -> Vec<Committed> {
        let id = stored::LogId { term: 1, node: 1, index };
        vec![Committed { id, content: None, membership: None }]
    }

    fn counted(finished: &Arc<AtomicUsize>) -> Done {
        let finished = finished.clone();
        Box::new(move || {
            finished.fetch_add(1, Relaxed);
        })
    }

    #[test]
    fn what_a_process_leaves_unfinished_its_successor_finishes_once() {
        let (handed, finished) = (Handed::default(), Arc::new(AtomicUsize::new(0)));
        assert_eq!(handed.unfinished(), Unfinished::default());
        let number = handed.apply(&entries(7), counted(&finished));
        let found = handed.unfinished();
        assert_eq!((found.task, found.up_to), (Some((number, Task::Apply)), Some(7)));
        handed.finish(number + 1);
        assert_eq!(finished.load(Relaxed), 0, "another task");
        handed.finish(number);
        handed.finish(number);
        assert_eq!(finished.load(Relaxed), 1);
        assert!(!handed.is_current(number));
        assert_eq!(
            handed.unfinished().up_to,
            Some(7),
            "applied, and perhaps not in the tables yet"
        );
    }

    #[test]
    fn after_a_reload_the_tables_have_all_that_was_handed_over() {
        let (handed, finished) = (Handed::default(), Arc::new(AtomicUsize::new(0)));
        handed.finish(handed.apply(&entries(7), counted(&finished)));
        handed.finish(handed.rest(counted(&finished)));
        assert!(handed.unfinished().resting, "until the tables were read again");
        let number = handed.reload(counted(&finished));
        assert_eq!(handed.unfinished().up_to, None);
        handed.finish(number);
        assert_eq!((handed.unfinished(), finished.load(Relaxed)), (Unfinished::default(), 3));
    }

    #[test]
    fn a_task_that_is_given_up_is_never_finished() {
        let (handed, finished) = (Handed::default(), Arc::new(AtomicUsize::new(0)));
        let number = handed.apply(&entries(7), counted(&finished));
        handed.give_up(number);
        handed.finish(number);
        assert_eq!((finished.load(Relaxed), Arc::strong_count(&finished)), (0, 1), "and dropped");
    }
}
