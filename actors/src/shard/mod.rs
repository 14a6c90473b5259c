//! Shards: each keeps the accounts and mailboxes of the users whose ids fall to it.
//!
//! A replica of a shard is one actor that owns a pure [`ReplicaCore`], which decides, and in it the
//! [`Machine`], which is replicated; a Raft group under it agrees with
//! the other replicas on the order of commands. Every node has an actor for every shard: it is also
//! the one queue through which this node's commands and questions reach the shard's leader, here or
//! elsewhere.
//!
//! # Invariants
//! 1. Nothing is answered before a majority of the replicas has flushed the command.
//! 2. Commands are applied in the order of the log. What must keep its order is not under way twice.
//! 3. Only the leader acts on what follows from a command; all replicas write checkpoints.
//! 4. Everybody else holds [`Shards`], never an actor.
//! 5. A replica whose actor dies goes on with the tables, the log and what the actor left in its [`Seat`]: nothing
//!    that was handed over or asked for is lost, and what comes of an action of the dead actor is dropped.

mod account;
mod actor;
mod admission;
mod apply;
mod ask;
mod bucket;
mod chores;
mod claims;
mod command;
mod context;
mod core;
mod digest;
mod fault;
mod few;
mod inheritance;
mod kinds;
mod leadership;
mod lock;
mod machine;
mod mailbox;
mod pacing;
mod perform;
mod pins;
mod privacy;
#[cfg(test)]
mod promises_tests;
mod proposals;
mod propose;
mod questions;
mod reads;
mod receipts;
mod recipients;
mod registry;
#[cfg(test)]
mod registry_tests;
mod rest;
mod rounds;
mod seat;
mod set_aside;
mod streams;
mod surroundings;
mod sweep;
#[cfg(test)]
mod tests;
mod tickets;
mod translate;

pub use account::AccountView;
pub use actor::{ShardActor, ShardArgs};
pub use ask::{Answered, Ask, Asked};
pub use command::{Command, Effect, Judgment, Outcome, Spill};
pub use context::ShardContext;
pub use core::{Action, Hint, Item, Loaded, ReplicaCore, Token};
pub use digest::Digest;
pub use fault::Fault;
pub use few::FewMap;
pub use inheritance::Inheritance;
pub use machine::{Machine, MachineLimits, origin_row};
pub use mailbox::usage::{Usage, bytes_of};
pub use mailbox::{Entry, Origin};
pub use privacy::{Audience, Privacy};
pub use proposals::{Asker, Batch, Failure, Moment, Proposals};
pub use reads::{Attached, OriginsRead, Page, PageRead};
pub use recipients::{Outbound, Recipients};
pub use rounds::{Rounds, Takers, Turn, Wish};
pub use seat::Seat;
pub use surroundings::{Disk, Leadership, Surroundings};
pub(crate) use translate::account_from_wire;
pub use translate::account_to_wire;

use consensus::{Committed, GroupStatus, ProposeError};
use pacing::Pacing;
use parking_lot::Mutex;
use proto::{Alias, Code, DeviceId, NodeId, Seq, ShardId, UserId, cluster, ids::SHARDS, stored};
use std::sync::Arc;
use std::time::Duration;
use supervision::{Inbox, QueueLimits};

/// How often [`ShardItem::TickDue`] comes, in ms. Maintenance counts ticks, not the clock, which may jump.
pub const TICK_MS: u64 = 1_000;

/// How long a leader elsewhere may take. After it nobody knows what became of the batch.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);

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

opaque_debug!(Batch);
opaque_debug!(Proposals);
opaque_debug!(Query);
opaque_debug!(ShardItem);
opaque_debug!(Came);
opaque_debug!(Item);
opaque_debug!(Action);

/// What to do with the answer to a command.
pub type Reply = Box<dyn FnOnce(Outcome) + Send>;

/// What to do with the answer to a question.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// What a shard can be asked about its applied state. Nothing is logged. The leader answers; an
/// `Err` says that it was not reached.
pub enum Query {
    /// Someone asks who a user is.
    Account {
        /// Whom.
        user: UserId,
        /// `None`: no such user.
        answer: Answer<Result<Option<Arc<AccountView>>, Code>>,
    },
    /// Someone asks whose alias this is.
    Owner {
        /// The alias.
        alias: Alias,
        /// `None`: nobody's.
        answer: Answer<Result<Option<UserId>, Code>>,
    },
    /// A user actor asks where a device stands.
    Attach {
        /// The user.
        user: UserId,
        /// Their device.
        device: DeviceId,
        /// `None`: no such user or device.
        answer: Answer<Result<Option<Attached>, Code>>,
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
    /// Anyone here asks: propose this, answer what became of it.
    Propose {
        /// What to do.
        command: Command,
        /// Called after it was applied, or refused for good.
        reply: Reply,
    },
    /// Anyone here tells: propose this when something else is, or within a second.
    ProposeLazily(Command),
    /// Another node asks the leader: propose these, in this order. A command that is
    /// [`Outcome::Elsewhere`] was not proposed.
    ProposeAll {
        /// What to do.
        commands: Vec<stored::Command>,
        /// Called with an outcome for each.
        answer: Answer<Vec<Outcome>>,
    },
    /// Anyone here asks about the state.
    Query(Query),
    /// Another node asks the leader about the state. Called with `None` if the leader is elsewhere.
    Ask(Ask, Answer<Option<cluster::Answer>>),
    /// The group tells: these entries are committed. The number of this task, see [`consensus::Handed`]: it is
    /// finished when they are applied.
    Apply(Vec<Committed>, u64),
    /// The group tells: the tables were replaced by a snapshot, or emptied.
    Reload(u64),
    /// The group tells: it has ended and is about to be forgotten. Finished when nothing more is written.
    Rest(u64),
    /// The group tells: who leads has changed.
    Stands(GroupStatus),
    /// The shards of this node tell: it is this one's turn to propose.
    RoundBegins,
    /// This has come of an action of the actor with this number.
    Came(u64, Came),
    /// Something else happens to the replica, as its core has it.
    Core(Box<Item>),
    /// An operator asks what this replica holds.
    Digest(Answer<Digest>),
    /// The clock tells, about once a second.
    TickDue,
}

/// The result of an action. It concerns only the actor that has carried the action out.
pub enum Came {
    /// This batch of ours was not proposed, or nobody knows.
    NotProposed(u64, ProposeError),
    /// The leader elsewhere has answered a question of this node.
    Replied(Token, Answered),
    /// Anything else, as the core has it.
    Item(Box<Item>),
}

/// Why the leader elsewhere has not answered a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForwarded {
    /// It never got the batch, or does not lead.
    NotProposed,
    /// The batch may take effect or not.
    Unknown,
}

/// The door to all shards of this node. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    inboxes: Arc<[Arc<Inbox<ShardItem>>]>,
    rounds: Arc<Mutex<Pacing>>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").field("count", &self.inboxes.len()).finish_non_exhaustive()
    }
}

impl Default for Shards {
    fn default() -> Self {
        let inbox = |id| Inbox::new("shard", u64::from(id), QUEUE);
        Self { inboxes: (0..SHARDS).map(inbox).collect(), rounds: Arc::default() }
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

    /// Another node tells that it leads a shard.
    pub fn leads_elsewhere(&self, shard: ShardId, node: NodeId, term: u64) {
        self.tell(shard, Item::LeadsElsewhere(node, term));
    }

    /// A node came (true) or went.
    pub fn peer_changed(&self, node: NodeId, up: bool) {
        for inbox in self.inboxes.iter() {
            inbox.force(ShardItem::Core(Box::new(Item::PeerChanged(node, up))));
        }
    }

    /// A user has come to another node: pushes may have been sent before it was known.
    pub fn session_opened(&self, user: UserId, node: NodeId) {
        self.tell(user.shard(), Item::SessionOpened(user, node));
    }

    fn tell(&self, shard: ShardId, item: Item) {
        self.inbox(shard).force(ShardItem::Core(Box::new(item)));
    }

    /// Commands of another node for the leader, which should be this one.
    pub fn serve_proposal(&self, propose: cluster::Propose, answer: Answer<Vec<cluster::Outcome>>) {
        let shard = ShardId::from_number(propose.shard);
        let answer: Answer<Vec<Outcome>> = Box::new(move |outcomes| {
            answer(outcomes.iter().map(translate::outcome_to_wire).collect());
        });
        let commands = propose.commands;
        self.inbox(shard).force(ShardItem::ProposeAll { commands, answer });
    }

    /// A question of another node to the leader, which should be this one.
    pub fn serve_question(&self, ask: cluster::Ask, answer: Answer<Option<cluster::Answer>>) {
        let shard = ShardId::from_number(ask.shard);
        match ask.kind.and_then(translate::question_from_wire) {
            Some(ask) => self.inbox(shard).force(ShardItem::Ask(ask, answer)),
            None => answer(None),
        }
    }

    /// What each replica here holds, by shard; `None` if one does not answer within the time of a
    /// call.
    pub async fn digests(&self) -> Vec<Option<Digest>> {
        let mut answers = Vec::new();
        for inbox in self.inboxes.iter() {
            let (sender, answer) = tokio::sync::oneshot::channel();
            inbox.force(ShardItem::Digest(Box::new(move |digest| {
                sender.send(digest).ok();
            })));
            answers.push(answer);
        }
        let mut digests = Vec::new();
        for answer in answers {
            digests
                .push(tokio::time::timeout(CALL_TIMEOUT, answer).await.ok().and_then(Result::ok));
        }
        digests
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
        query: impl FnOnce(Answer<Result<T, Code>>) -> Query,
    ) -> Result<T, Code> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.query(shard, query(Box::new(move |answer| drop(sender.send(answer)))));
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Code::Unavailable),
        }
    }
}
