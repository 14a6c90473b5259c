//! Shards: each keeps the accounts and mailboxes of the users whose ids fall to it.
//!
//! A shard is one actor that owns a pure [`Machine`]. It logs commands, applies them once they are
//! flushed, answers, and does what follows.
//!
//! # Invariants
//! 1. Nothing is answered before the log has flushed the command.
//! 2. Commands are applied in the order of the log, and one batch is under way at a time.
//! 3. Everybody else holds [`Shards`], never an actor.

mod account;
mod actor;
mod checkpoint;
mod command;
mod machine;
mod mailbox;
mod proposals;
mod reads;
mod recent;
mod registry;
mod streams;
#[cfg(test)]
mod tests;

pub use account::AccountView;
pub use actor::{ShardActor, ShardArgs, TICK_MS};
pub use command::{Command, Effect, Outcome, Spill};
pub use machine::{Machine, MachineLimits};
pub use mailbox::{Entry, Origin, bytes_of};
pub use reads::{Attached, Page};

use proto::{Alias, Code, DeviceId, Seq, ShardId, UserId, ids::SHARDS, stored};
use std::sync::Arc;
use std::time::Duration;
use supervision::{Inbox, QueueLimits};

/// How long a call waits for its answer. A timeout leaves unknown whether the command took effect.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A shard's message queue: senders are bounded by their windows, so this is a sign of trouble.
const QUEUE: QueueLimits = QueueLimits { high: 20_000, critical: 200_000 };

macro_rules! opaque_debug {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

opaque_debug!(Query);
opaque_debug!(ShardItem);

/// What to do with the answer to a command.
pub type Reply = Box<dyn FnOnce(Outcome) + Send>;

/// What to do with the answer to a question.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// What a shard can be asked about its applied state. Nothing is logged.
pub enum Query {
    /// Someone asks who a user is.
    Account {
        /// Whom.
        user: UserId,
        /// `None`: no such user.
        answer: Answer<Option<Arc<AccountView>>>,
    },
    /// Someone asks whose alias this is.
    Owner {
        /// The alias.
        alias: Alias,
        /// `None`: nobody's.
        answer: Answer<Option<UserId>>,
    },
    /// A user actor asks where a device stands.
    Attach {
        /// The user.
        user: UserId,
        /// Their device.
        device: DeviceId,
        /// `None`: no such user or device.
        answer: Answer<Option<Attached>>,
    },
    /// A user actor asks for entries of a mailbox.
    Page {
        /// Whose mailbox.
        user: UserId,
        /// Entries after this place.
        after: Seq,
        /// So many at most.
        limit: usize,
        /// So many bytes of bodies, but at least one entry.
        bytes_max: usize,
        /// The page.
        answer: Answer<Page>,
    },
}

/// What a shard's message queue holds.
pub enum ShardItem {
    /// Anyone asks: log this, apply it, answer.
    Propose {
        /// What to do.
        command: Command,
        /// Called after it was applied, or refused for good.
        reply: Reply,
    },
    /// Anyone tells: log and apply this when something else is, or within a second.
    ProposeLazily(Command),
    /// Anyone asks about the state.
    Query(Query),
    /// The log tells: the batch under way is flushed, or is not.
    Logged(Result<(), storage::LogError>),
    /// A reader tells: these are the origins of released rows.
    OriginsRead {
        /// Whose mailbox.
        user: UserId,
        /// What was read, or why not.
        read: Result<stored::Release, String>,
    },
    /// Another shard has taken the notices up to a number, or has not.
    NoticesTaken {
        /// Which shard.
        to: ShardId,
        /// Up to where.
        number: u64,
        /// Whether it took them.
        taken: bool,
    },
    /// A writer tells: the checkpoint is in the tables, or is not and must be tried again.
    CheckpointWritten {
        /// As of this place in the log.
        applied: u64,
        /// The rows, if they have to be written again.
        again: Option<Vec<storage::Row>>,
    },
    /// A reader tells: these stored entries have outlived their time.
    DueRead(Vec<stored::Expired>),
    /// The clock tells, about once a second.
    TickDue,
}

/// The door to all shards of this node. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    inboxes: Arc<[Arc<Inbox<ShardItem>>]>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").field("count", &self.inboxes.len()).finish_non_exhaustive()
    }
}

impl Default for Shards {
    fn default() -> Self {
        let inbox = |id| Inbox::new("shard", u64::from(id), QUEUE);
        Self { inboxes: (0..SHARDS).map(inbox).collect() }
    }
}

impl Shards {
    /// The message queue of one shard: for its child spec, its timer and what it starts.
    pub fn inbox(&self, shard: ShardId) -> &Arc<Inbox<ShardItem>> {
        &self.inboxes[usize::from(shard.0 % SHARDS)]
    }

    /// Proposes a command; `reply` is called with what became of it. Commands from one caller to
    /// one shard are applied in the order of the calls.
    pub fn propose(&self, shard: ShardId, command: Command, reply: Reply) {
        self.inbox(shard).force(ShardItem::Propose { command, reply });
    }

    /// Proposes a command that nobody waits for: it travels with others, or within a second.
    pub fn propose_lazily(&self, shard: ShardId, command: Command) {
        self.inbox(shard).force(ShardItem::ProposeLazily(command));
    }

    /// Asks about the state.
    pub fn query(&self, shard: ShardId, query: Query) {
        self.inbox(shard).force(ShardItem::Query(query));
    }

    /// Proposes and waits. An [`Outcome::Refused`] with [`Code::Unavailable`] may come after the
    /// command took effect: every command may be proposed again.
    pub async fn call(&self, shard: ShardId, command: Command) -> Outcome {
        let (answer, outcome) = tokio::sync::oneshot::channel();
        self.propose(shard, command, Box::new(move |outcome| drop(answer.send(outcome))));
        match tokio::time::timeout(CALL_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Outcome::Refused(Code::Unavailable),
        }
    }

    /// Asks who a user is and waits.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if the shard does not answer.
    pub async fn account(&self, user: UserId) -> Result<Option<Arc<AccountView>>, Code> {
        self.ask(user.shard(), |answer| Query::Account { user, answer }).await
    }

    /// Asks whose alias this is and waits.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if the shard does not answer.
    pub async fn owner(&self, alias: Alias) -> Result<Option<UserId>, Code> {
        self.ask(alias.shard(), |answer| Query::Owner { alias, answer }).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        shard: ShardId,
        query: impl FnOnce(Answer<T>) -> Query,
    ) -> Result<T, Code> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.query(shard, query(Box::new(move |answer| drop(sender.send(answer)))));
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(Code::Unavailable),
        }
    }
}
