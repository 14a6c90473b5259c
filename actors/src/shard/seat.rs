//! What outlives the actor of a replica: the shard's side of its Raft group, what the group has handed over,
//! and who waits for an answer. An actor that dies leaves it here, and its successor goes on with it.
//!
//! # Invariants
//! 1. The tables are read when no write of the dead actor is under way.
//! 2. What comes of an action reaches only the actor that has carried it out.

use super::core::{Item, Loaded};
use super::inheritance::Inheritance;
use super::machine::{Machine, MachineLimits};
use super::perform::Waiting;
use super::{Came, ShardContext, ShardItem};
use consensus::{Committed, Done, Group, GroupStatus, Handed, Replica, Unfinished};
use parking_lot::Mutex;
use proto::ShardId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use supervision::{Inbox, ProcessError, timer};
use tokio::sync::OwnedMutexGuard;

/// How often the tables are read again if they are replaced meanwhile.
const READS: usize = 20;

/// Wait before that.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// The state that the actors of one replica, one after the other, have in common.
#[derive(Debug)]
pub struct Seat {
    inbox: Arc<Inbox<ShardItem>>,
    pub(super) handed: Handed,
    /// Held while a checkpoint is written.
    writing: Arc<tokio::sync::Mutex<()>>,
    left: Mutex<Option<Left>>,
    /// The number of actors so far.
    actors: AtomicU64,
    watched: AtomicBool,
}

/// An actor's inheritance for the next one.
#[derive(Default)]
pub(super) struct Left {
    pub(super) waiting: Waiting,
    pub(super) inheritance: Inheritance,
}

impl std::fmt::Debug for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Left")
    }
}

/// The state that an actor begins with.
pub(super) struct Begin {
    pub(super) unfinished: Unfinished,
    pub(super) loaded: Loaded,
    /// Committed, handed over, and not in the tables.
    pub(super) entries: Vec<Committed>,
}

/// The way into the message queue for what comes of an actor's actions.
#[derive(Clone)]
pub(super) struct Line {
    inbox: Arc<Inbox<ShardItem>>,
    actor: u64,
}

impl Line {
    pub(super) fn came(&self, came: Came) {
        self.inbox.force(ShardItem::Came(self.actor, came));
    }

    pub(super) fn tell(&self, item: Item) {
        self.came(Came::Item(Box::new(item)));
    }

    pub(super) fn tell_after(&self, wait: Duration, item: Box<Item>) {
        if wait.is_zero() {
            self.came(Came::Item(item));
        } else {
            timer::push_after(&self.inbox, wait, ShardItem::Came(self.actor, Came::Item(item)));
        }
    }

    /// It is this replica's turn to propose.
    pub(super) fn round_begins(&self) {
        self.inbox.force(ShardItem::RoundBegins);
    }

    /// Whether something came of an action of this actor.
    pub(super) fn is_of(&self, actor: u64) -> bool {
        self.actor == actor
    }
}

impl Replica for Seat {
    fn apply(&self, entries: Vec<Committed>, done: Done) {
        let number = self.handed.apply(&entries, done);
        self.inbox.force(ShardItem::Apply(entries, number));
    }

    fn reload(&self, done: Done) {
        let number = self.handed.reload(done);
        self.inbox.force(ShardItem::Reload(number));
    }

    fn rest(&self, done: Done) {
        let number = self.handed.rest(done);
        self.inbox.force(ShardItem::Rest(number));
    }
}

impl Seat {
    /// For the actors that serve this message queue.
    pub fn new(inbox: Arc<Inbox<ShardItem>>) -> Self {
        Self {
            inbox,
            handed: Handed::default(),
            writing: Arc::default(),
            left: Mutex::default(),
            actors: AtomicU64::new(0),
            watched: AtomicBool::new(false),
        }
    }

    /// The line of the next actor.
    pub(super) fn line(&self) -> Line {
        let actor = self.actors.fetch_add(1, Ordering::Relaxed) + 1;
        Line { inbox: self.inbox.clone(), actor }
    }

    /// An actor ends.
    pub(super) fn leave(&self, left: Left) {
        *self.left.lock() = Some(left);
    }

    /// The inheritance of the actor before.
    pub(super) fn take_left(&self) -> Option<Left> {
        self.left.lock().take()
    }

    /// To be kept while a checkpoint is written.
    pub(super) fn writes(&self) -> Option<OwnedMutexGuard<()>> {
        self.writing.clone().try_lock_owned().ok()
    }

    /// Reads what an actor begins with.
    ///
    /// # Errors
    /// Those of the storage. Also if the tables are replaced again and again.
    pub(super) async fn read(
        &self,
        (context, shard): (&Arc<ShardContext>, ShardId),
        group: &Group,
    ) -> Result<Begin, ProcessError> {
        let _no_writes = self.writing.lock().await;
        for _ in 0..READS {
            // Before the tables are read: what is handed over later comes to the message queue.
            let unfinished = self.handed.unfinished();
            let loaded = load(context, shard).await?;
            let applied = loaded.applied.as_ref().and_then(|applied| applied.id);
            let index = applied.map(|id| id.index);
            let missing = unfinished.up_to.filter(|up_to| index.is_none_or(|index| index < *up_to));
            let entries = match missing.filter(|_| !unfinished.resting) {
                Some(up_to) => group.committed(index, up_to),
                None => Some(Vec::new()),
            };
            if let Some(entries) = entries {
                return Ok(Begin { unfinished, loaded, entries });
            }
            tokio::time::sleep(READ_AGAIN).await;
        }
        Err("the tables are replaced again and again".into())
    }

    /// Tells the shard whenever the group stands differently. Returns how it stands now.
    pub(super) fn watch(&self, context: &Arc<ShardContext>, group: &Group) -> GroupStatus {
        let mut statuses = group.watch();
        let now = statuses.borrow_and_update().clone();
        if self.watched.swap(true, Ordering::Relaxed) {
            return now;
        }
        let (inbox, mut told) = (Arc::downgrade(&self.inbox), now.clone());
        context.tasks.spawn("status", async move {
            while statuses.changed().await.is_ok() {
                let status = statuses.borrow_and_update().clone();
                let Some(inbox) = inbox.upgrade() else { return };
                if who_is_who(&status) != who_is_who(&told) {
                    told = status.clone();
                    inbox.force(ShardItem::Stands(status));
                }
            }
        });
        now
    }
}

/// Reads a machine from the tables.
pub(super) async fn load(
    context: &Arc<ShardContext>,
    shard: ShardId,
) -> Result<Loaded, ProcessError> {
    let (storage, limits) = (context.storage.clone(), MachineLimits::from(&context.settings()));
    let read = move || -> Result<Loaded, storage::StorageError> {
        let mut machine = Machine::new(shard, limits);
        let applied = storage.load(shard, &mut |row| machine.load(row))?;
        if let Some(applied) = &applied {
            machine.set_clock(applied);
        }
        Ok(Loaded { machine, applied })
    };
    Ok(tokio::task::spawn_blocking(read).await??)
}

/// What a shard must know; places in the log change with every batch.
fn who_is_who(status: &GroupStatus) -> (Option<proto::NodeId>, bool, u64, usize) {
    (status.leader, status.me_leads, status.term, status.voters.len())
}
