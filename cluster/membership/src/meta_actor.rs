//! The process that owns what the group `meta` has decided: it applies, answers, publishes and
//! writes checkpoints.
//!
//! # Invariants
//! 1. What is published was committed by a majority.
//! 2. A proposal is answered after it was applied here, or when it certainly came to nothing; one
//!    of which nothing is known is not answered.
//! 3. An actor that dies costs nothing: its successor reads the tables, applies what was committed after them,
//!    and finishes what was handed over.

use super::groups::GroupError;
use super::meta::{self, MetaRefusal};
use super::{Cluster, settings};
use bytes::Bytes;
use consensus::{Committed, GroupStatus, Task};
use prost::Message as _;
use proto::ShardId;
use proto::stored::{self, meta_command::Kind};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::Duration;
use supervision::timer::{self, Timer};
use supervision::{Flow, Inbox, Process, ProcessError, QueueLimits};
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// Members and operators fill it, so it is never long.
pub(super) const QUEUE: QueueLimits = QueueLimits { high: 1_000, critical: 10_000 };

/// Why a replica of `meta` stops rather than skip a command: it would hold another state than the others.
const UNKNOWN_COMMAND: &str = "meta stops: its log holds a command that this version of natter does not \
                               know; start a newer version on this node";

/// Why a start fails that meets newer tables: the next one reads those.
const PURGED: &str = "the tables of meta were replaced while they were read";

/// Entries after which a checkpoint is written.
const CHECKPOINT_ENTRIES: u64 = 64;

/// How often one is written if there is anything new: what is not in the tables keeps old segments
/// of the log. What was decided is written at once: a node that comes back with nobody to ask should
/// know whom it belongs to.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

/// What became of a proposal.
pub(super) type Decision = Result<(), NotDecided>;

/// Why a proposal was not carried out.
#[derive(Clone, Debug)]
pub(super) enum NotDecided {
    /// It makes no sense.
    Refused(MetaRefusal),
    /// Not here, or not now: it can be tried again.
    Elsewhere(GroupError),
}

/// What the message queue of `meta` holds.
pub enum MetaItem {
    /// Someone asks: propose this.
    Propose {
        /// What.
        command: stored::MetaCommand,
        /// What became of it.
        reply: Reply,
    },
    /// Someone asks for a digest.
    Digest(oneshot::Sender<MetaDigest>),
    /// The group tells: these were committed. The number of this task, see [`consensus::Handed`].
    Apply(Vec<Committed>, u64),
    /// The group tells: the tables were replaced.
    Reload(u64),
    /// A reader tells: this is what the tables hold.
    Loaded(Result<Box<(stored::Applied, stored::Meta)>, ProcessError>, u64),
    /// The group tells: a proposal came to nothing.
    NotProposed(u64, GroupError),
    /// A writer tells: the checkpoint is in the tables, or is not.
    Written(Result<(), ProcessError>),
    /// The clock tells.
    TickDue,
}

/// What this node's replica of `meta` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaDigest {
    /// Index of the last entry applied.
    pub applied: u64,
    /// The same on all replicas that have applied as much.
    pub digest: u64,
}

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply(pub(super) oneshot::Sender<Decision>);

impl fmt::Debug for MetaItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetaItem")
    }
}

/// The process.
pub(super) struct MetaActor {
    cluster: Cluster,
    inbox: Arc<Inbox<MetaItem>>,
    meta: stored::Meta,
    applied: stored::Applied,
    waiting: BTreeMap<u64, oneshot::Sender<Decision>>,
    /// Entries since the last checkpoint that was begun.
    unwritten: u64,
    writing: bool,
    timer: Timer,
}

impl Drop for MetaActor {
    fn drop(&mut self) {
        self.timer.cancel();
    }
}

impl Process for MetaActor {
    type Item = MetaItem;
    type Args = Cluster;

    async fn start(cluster: Cluster, inbox: Arc<Inbox<MetaItem>>) -> Result<Self, ProcessError> {
        let (groups, handed) = (cluster.0.groups.clone(), cluster.0.meta_handed.clone());
        groups.open_meta(inbox.clone(), handed.clone()).await?;
        // Before the tables are read: what is handed over later comes to the message queue.
        let unfinished = handed.unfinished();
        let reader = groups.clone();
        let (applied, meta) = tokio::task::spawn_blocking(move || reader.load()).await??;
        let index = applied.id.as_ref().map(|id| id.index);
        debug!(index, cluster = meta.cluster, members = meta.members.len(), "meta recovered");
        let not_in_tables =
            unfinished.up_to.filter(|up_to| index.is_none_or(|index| index < *up_to));
        let entries = not_in_tables.map(|up_to| groups.committed(index, up_to).ok_or(PURGED));
        let entries = entries.transpose()?.unwrap_or_default();
        let timer = timer::push_every(&inbox, CHECKPOINT_EVERY, || MetaItem::TickDue);
        let mut actor = Self {
            cluster,
            inbox,
            meta,
            applied,
            waiting: BTreeMap::new(),
            unwritten: 0,
            writing: false,
            timer,
        };
        match unfinished.task {
            Some((number, Task::Apply)) => actor.apply_all(entries, number)?,
            Some((number, Task::Reload | Task::Rest)) => handed.finish(number),
            None => actor.apply(entries)?,
        }
        actor.cluster.publish(&actor.meta);
        Ok(actor)
    }

    fn handle(&mut self, item: MetaItem) -> Result<Flow, ProcessError> {
        match item {
            MetaItem::Propose { command, reply } => self.propose(command, reply.0),
            MetaItem::Digest(answer) => {
                let applied = self.applied.id.as_ref().map_or(0, |id| id.index);
                let mut hasher = DefaultHasher::new();
                hasher.write(&self.meta.encode_to_vec());
                answer.send(MetaDigest { applied, digest: hasher.finish() }).ok();
            }
            MetaItem::Apply(entries, number) if self.is_current(number) => {
                self.apply_all(entries, number)?;
            }
            MetaItem::Reload(number) if self.is_current(number) => self.reload(number),
            MetaItem::Loaded(loaded, number) if self.is_current(number) => {
                (self.applied, self.meta) = *loaded?;
                self.unwritten = 0;
                self.cluster.publish(&self.meta);
                self.cluster.0.meta_handed.finish(number);
            }
            // This actor finished it when it started.
            MetaItem::Apply(..) | MetaItem::Reload(_) | MetaItem::Loaded(..) => {}
            MetaItem::NotProposed(number, error) => {
                if let Some(reply) = self.waiting.remove(&number) {
                    drop(reply.send(Err(NotDecided::Elsewhere(error))));
                }
            }
            MetaItem::Written(written) => {
                self.writing = false;
                if let Err(error) = written {
                    self.unwritten = self.unwritten.max(1);
                    warn!(%error, "meta not written to the tables; tried again");
                }
            }
            MetaItem::TickDue => {
                self.waiting.retain(|_, reply| !reply.is_closed());
                self.checkpoint(1);
            }
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        self.checkpoint(CHECKPOINT_ENTRIES);
        Ok(Flow::Continue)
    }
}

impl MetaActor {
    fn propose(&mut self, mut command: stored::MetaCommand, reply: oneshot::Sender<Decision>) {
        let shared = &self.cluster.0;
        let status = shared.groups.status(ShardId::META).unwrap_or_default();
        if let Err(refusal) = self.checked(&status, &mut command) {
            drop(reply.send(Err(refusal)));
            return;
        }
        let number = shared.next_number();
        let batch =
            stored::MetaBatch { commands: vec![command], proposer: shared.about.node, number };
        self.waiting.insert(number, reply);
        let inbox = Arc::downgrade(&self.inbox);
        let failed = move |error| {
            if let Some(inbox) = inbox.upgrade() {
                inbox.force(MetaItem::NotProposed(number, error));
            }
        };
        shared.groups.propose(Bytes::from(batch.encode_to_vec()), Box::new(failed));
    }

    fn checked(
        &self,
        status: &GroupStatus,
        command: &mut stored::MetaCommand,
    ) -> Result<(), NotDecided> {
        if !status.leads_a_majority() {
            return Err(NotDecided::Elsewhere(GroupError::NotLeader(status.leader)));
        }
        if let Err(refusal) = meta::check(&self.meta, command) {
            // A new leader may not have applied everything: then nobody can say yet.
            if status.applied < status.last {
                return Err(NotDecided::Elsewhere(GroupError::NotLeader(None)));
            }
            return Err(NotDecided::Refused(refusal));
        }
        if let Some(Kind::SetSetting(setting)) = &mut command.kind
            && let Ok(value) = settings::normalized(&setting.key, &setting.value)
        {
            setting.value = value;
        }
        Ok(())
    }

    fn is_current(&self, number: u64) -> bool {
        self.cluster.0.meta_handed.is_current(number)
    }

    /// Applies what the group has handed over under this number. What this version cannot apply no other actor
    /// of it can: then the group ends.
    fn apply_all(&mut self, entries: Vec<Committed>, number: u64) -> Result<(), ProcessError> {
        let handed = self.cluster.0.meta_handed.clone();
        self.apply(entries).inspect_err(|_| handed.give_up(number))?;
        handed.finish(number);
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), ProcessError> {
        let before = self.meta.version;
        for Committed { id, content, membership } in entries {
            if let Some(membership) = membership {
                self.applied.membership_at = Some(id);
                self.applied.membership = Some(membership);
            }
            self.applied.id = Some(id);
            self.unwritten += 1;
            if let Some(content) = content {
                self.apply_batch(content)?;
            }
        }
        if self.meta.version != before {
            self.unwritten = self.unwritten.max(CHECKPOINT_ENTRIES);
            self.cluster.publish(&self.meta);
        }
        Ok(())
    }

    fn apply_batch(&mut self, content: Bytes) -> Result<(), ProcessError> {
        let batch = stored::MetaBatch::decode(content)?;
        if batch.commands.iter().any(|command| command.kind.is_none()) {
            return Err(UNKNOWN_COMMAND.into());
        }
        let mut decision = Ok(());
        for command in batch.commands {
            match meta::apply(&mut self.meta, command) {
                Ok(changed) => debug!(changed, version = self.meta.version, "meta applied"),
                Err(refusal) => {
                    debug!(%refusal, "meta refused");
                    decision = Err(NotDecided::Refused(refusal));
                }
            }
        }
        if batch.proposer == self.cluster.0.about.node
            && let Some(reply) = self.waiting.remove(&batch.number)
        {
            drop(reply.send(decision));
        }
        Ok(())
    }

    fn reload(&self, number: u64) {
        let (groups, inbox) = (self.cluster.0.groups.clone(), self.inbox.clone());
        self.cluster.0.tasks.spawn("meta reader", async move {
            let read = tokio::task::spawn_blocking(move || groups.load()).await;
            let read = read.unwrap_or_else(|error| Err(error.into()));
            inbox.force(MetaItem::Loaded(read.map(Box::new), number));
        });
    }

    /// Writes a checkpoint if at least `entries` were applied since the last.
    fn checkpoint(&mut self, entries: u64) {
        if self.unwritten < entries || self.writing {
            return;
        }
        (self.writing, self.unwritten) = (true, 0);
        let (applied, meta) = (self.applied.clone(), self.meta.clone());
        let (groups, inbox) = (self.cluster.0.groups.clone(), self.inbox.clone());
        self.cluster.0.tasks.spawn("meta writer", async move {
            let written = tokio::task::spawn_blocking(move || groups.save(applied, meta)).await;
            let written = written.unwrap_or_else(|error| Err(error.into()));
            inbox.force(MetaItem::Written(written));
        });
    }
}
