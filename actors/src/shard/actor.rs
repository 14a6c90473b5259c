//! The shard process: one replica, and this node's way to the leader.
//!
//! It proposes commands or passes them on, applies what its group has committed, answers, and on the
//! leader does what follows.

use super::byte_rates::ByteRates;
use super::chores::Chores;
use super::command::{Command, Effect, Outcome, UnknownCommand, is_known, knows_notices};
use super::machine::{Machine, MachineLimits};
use super::proposals::{Moment, Proposals, Who};
use super::questions::Question;
use super::reads::Overlay;
use super::rest::Rest;
use super::{Loaded, Outbound, ShardContext, ShardItem, ShardReplica};
use bytes::Bytes;
use consensus::{Committed, Done, Group, Standing};
use prost::Message;
use proto::{Code, NodeId, ShardId, stored};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use supervision::{Flow, Inbox, Paced, Process, ProcessError};
use tokio::time::Instant;
use tracing::{debug, error};

/// Wait before something that failed for lack of space or of an answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Wait before a batch or question is put to a leader again that was not there.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// How often [`ShardItem::TickDue`] comes, in ms. Chores count ticks, not the clock, which may jump.
pub const TICK_MS: u64 = 1_000;

/// Ticks without a leader after which what waits for one is refused.
pub(super) const PATIENCE_TICKS: u64 = 4;

/// How often it is told that PINs are used up.
const PINS_USED_UP_AGAIN: Duration = Duration::from_mins(1);

/// What a shard actor is started with.
#[derive(Clone, Debug)]
pub struct ShardArgs {
    /// Which shard.
    pub shard: ShardId,
    /// What it may touch.
    pub context: Arc<ShardContext>,
}

/// Our batch under way.
pub(super) struct Proposed {
    pub(super) record: Bytes,
    /// The batch without its commands.
    pub(super) head: stored::Batch,
    pub(super) spills: bool,
}

/// A batch that is committed. Without commands if it is ours: they are in the queue.
struct Committing {
    batch: stored::Batch,
    ours: bool,
    spills: bool,
}

/// One replica of one shard.
pub struct ShardActor {
    pub(super) shard: ShardId,
    pub(super) context: Arc<ShardContext>,
    pub(super) inbox: Arc<Inbox<ShardItem>>,
    pub(super) group: Group,
    pub(super) machine: Machine,
    pub(super) proposals: Proposals,
    /// Our batch under way, if it was proposed here.
    pub(super) proposed: Option<Proposed>,
    /// It is this shard's turn to propose.
    pub(super) in_round: bool,
    pub(super) standing: Standing,
    /// Last index of the log when this node began to lead.
    pub(super) ready_from: u64,
    /// Term in which this node leads and has applied all that was committed before.
    pub(super) ready_in: Option<u64>,
    pub(super) applied: stored::Applied,
    pub(super) overlay: Overlay,
    pub(super) chores: Chores,
    /// Committed entries that wait for a checkpoint to be written.
    pub(super) deferred: VecDeque<(VecDeque<Committed>, Done)>,
    /// Committed entries are no longer taken.
    pub(super) rest: Rest,
    /// Questions that wait for the next confirmation, and for the one under way.
    pub(super) asked: Vec<Question>,
    pub(super) confirming: Option<Vec<Question>>,
    /// Who was last heard to lead, and in which term: this node may be no replica of the shard.
    pub(super) hint: Option<(u64, NodeId)>,
    /// Nodes to which pushes were lost.
    pub(super) lost: BTreeSet<NodeId>,
    pub(super) ticks: u64,
    pub(super) byte_rates: ByteRates,
    /// Since when nobody takes our commands, in ticks.
    pub(super) stuck_since: Option<u64>,
}

impl std::fmt::Debug for ShardActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardActor").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Process for ShardActor {
    type Item = ShardItem;
    type Args = ShardArgs;

    async fn start(args: ShardArgs, inbox: Arc<Inbox<ShardItem>>) -> Result<Self, ProcessError> {
        let ShardArgs { shard, context } = args;
        let loaded = super::replica::load(&context, shard).await?;
        let replica = Arc::new(ShardReplica(inbox.clone()));
        let group = context.groups.open(shard, replica).await?;
        let standing = super::replica::watch(&context, &group, &inbox);
        let applied = loaded.applied.unwrap_or_default();
        debug!(%shard, index = applied.id.map_or(0, |id| id.index), "shard opened");
        let chores = Chores::new(shard, context.settings().checkpoint_every_ms);
        let mut actor = Self {
            shard,
            context,
            inbox,
            group,
            machine: loaded.machine,
            proposals: Proposals::default(),
            proposed: None,
            in_round: false,
            standing: Standing::default(),
            ready_from: 0,
            ready_in: None,
            applied,
            overlay: Overlay::default(),
            chores,
            deferred: VecDeque::new(),
            rest: Rest::No,
            asked: Vec::new(),
            confirming: None,
            hint: None,
            lost: BTreeSet::new(),
            ticks: 0,
            byte_rates: ByteRates::default(),
            stuck_since: None,
        };
        actor.stands(standing);
        Ok(actor)
    }

    fn handle(&mut self, item: ShardItem) -> Result<Flow, ProcessError> {
        match item {
            ShardItem::Propose { command, reply } if knows_notices(&command) => {
                self.proposals.push(command, reply, Who::Caller, self.moment());
            }
            ShardItem::Propose { reply, .. } => reply(Outcome::Refused(Code::NotSupported)),
            ShardItem::ProposeLazily(command) => self.proposals.push_lazy(command),
            ShardItem::ProposeAll { commands, answer } => self.take_all(commands, answer),
            ShardItem::Query(query) => self.question(query, self.ticks),
            ShardItem::Ask(query, elsewhere) => self.question_of_peer(query, elsewhere),
            ShardItem::AskAgain(query, since) => self.question(query, since),
            ShardItem::Confirmed(leads) => self.confirmed(leads),
            ShardItem::Apply(entries, done) => self.committed(entries.into(), done)?,
            ShardItem::Reload(done) => self.reload(done),
            ShardItem::Rest(done) => self.rest(done),
            ShardItem::Loaded(loaded, done) => self.loaded(*loaded, done),
            ShardItem::NotProposed(number, error) => self.not_proposed(number, error)?,
            ShardItem::Forwarded(number, outcomes) => self.forwarded(number, outcomes),
            ShardItem::Stands(standing) => self.stands(standing),
            ShardItem::RoundBegins => self.round_begins(),
            ShardItem::RetryDue => self.chores.retry_asked = false,
            ShardItem::OriginsRead { user, read } => self.origins_read(user, read),
            ShardItem::NoticesTaken { to, which, taken } => self.notices_taken(to, which, taken),
            ShardItem::CheckpointWritten { applied, failed } => {
                self.checkpoint_written(applied, failed)?;
            }
            ShardItem::DueRead(entries) => self.due_read(entries),
            ShardItem::LeadsElsewhere(node, term) => self.leads_elsewhere(node, term),
            ShardItem::PeerChanged(node, up) => self.peer_changed(node, up),
            ShardItem::SessionOpened(user, node) => self.session_opened(user, node),
            ShardItem::Digest(answer) => answer(super::Digest {
                applied: self.applied.id.map_or(0, |id| id.index),
                digest: self.machine.digest(),
                accounts: self.machine.accounts(),
            }),
            ShardItem::TickDue => self.tick(),
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        self.leave_round();
        self.propose_next(false);
        Ok(Flow::Continue)
    }
}

impl ShardActor {
    /// Whether this node leads and knows all that was committed before it did.
    pub(super) fn is_ready(&self) -> bool {
        self.standing.me_leads && self.ready_in == Some(self.standing.term)
    }

    /// Now.
    pub(super) fn moment(&self) -> Moment {
        Moment { tick: self.ticks, ms: self.context.clock.now_ms() }
    }

    fn committed(
        &mut self,
        mut entries: VecDeque<Committed>,
        done: Done,
    ) -> Result<(), ProcessError> {
        if self.rest.is_on() {
            return Ok(());
        }
        if !self.deferred.is_empty() {
            self.deferred.push_back((entries, done));
            return Ok(());
        }
        let mut outbound = Outbound::default();
        while let Some(entry) = entries.pop_front() {
            let batch =
                entry.content.as_ref().map(|record| self.read(record, entry.id)).transpose()?;
            let spills = batch.as_ref().is_some_and(|batch| batch.spills);
            if spills && self.chores.is_writing() {
                entries.push_front(entry);
                self.deferred.push_back((entries, done));
                return Ok(());
            }
            self.chores.count_logged(entry.content.as_ref().map_or(1, Bytes::len));
            self.applied.id = Some(entry.id);
            if let Some(membership) = entry.membership {
                self.applied.membership = Some(membership);
                self.applied.membership_at = Some(entry.id);
            }
            if let Some(batch) = batch {
                self.apply_batch(batch, &mut outbound);
            } else {
                self.lead_if_caught_up();
            }
        }
        self.send(outbound);
        done();
        self.offer_notices();
        Ok(())
    }

    fn read(&self, record: &Bytes, at: stored::LogId) -> Result<Committing, ProcessError> {
        if let Some(ours) = &self.proposed
            // The same memory: what was proposed here comes back as it was handed over.
            && ours.record.as_ptr() == record.as_ptr()
            && ours.record.len() == record.len()
            && self.proposals.is_under_way(ours.head.number)
        {
            return Ok(Committing { batch: ours.head.clone(), ours: true, spills: ours.spills });
        }
        let batch = stored::Batch::decode(record.clone())?;
        if !batch.commands.iter().all(is_known) {
            return Err(UnknownCommand { shard: self.shard, index: at.index }.into());
        }
        let spills = ends_in_spill(&batch);
        Ok(Committing { batch, ours: false, spills })
    }

    fn apply_batch(&mut self, committing: Committing, outbound: &mut Outbound) {
        let Committing { batch, ours, .. } = committing;
        let stored::Batch { now_ms, commands, number, limits, .. } = batch;
        self.machine.set_limits(MachineLimits::from_stored(limits.unwrap_or_default()));
        if ours {
            self.proposed = None;
            self.not_stuck();
            self.proposals.apply(number, |command| self.machine.apply(now_ms, command));
        } else {
            for command in commands.into_iter().filter_map(|command| command.kind) {
                self.machine.apply(now_ms, command);
            }
        }
        self.machine.note_clock(&mut self.applied);
        self.follow(outbound);
        self.lead_if_caught_up();
    }

    pub(super) fn follow_effects(&mut self) {
        let mut outbound = Outbound::default();
        self.follow(&mut outbound);
        self.send(outbound);
    }

    fn send(&mut self, outbound: Outbound) {
        let mut lost = self.context.recipients.send(outbound);
        self.lost.append(&mut lost);
    }

    fn follow(&mut self, outbound: &mut Outbound) {
        let leads = self.is_ready();
        let mut effects = self.machine.take_effects();
        // A checkpoint first: what it takes out of the tables is not to be read.
        effects.sort_by_key(|effect| !matches!(effect, Effect::Checkpoint(_)));
        for effect in effects {
            match effect {
                Effect::Checkpoint(spill) => self.begin_checkpoint(spill),
                Effect::Push { user, seq, envelope } if leads => {
                    self.context.recipients.push(outbound, user, seq, envelope);
                }
                Effect::ReadOrigins { user, first, up_to } if leads => {
                    self.read_origins(user, first, up_to);
                }
                Effect::AccountChanged { user, account } if leads => {
                    self.context.recipients.account_changed(outbound, user, account);
                }
                Effect::WrongPins { in_hour } if leads => {
                    self.context.wrong_pins_alarms.increment(1);
                    let shard = self.shard;
                    error!(%shard, in_hour, "somebody guesses PINs: until the hour ends only long ones count");
                }
                Effect::PinsUsedUp if leads => self.pins_used_up(),
                Effect::Push { .. }
                | Effect::ReadOrigins { .. }
                | Effect::WrongPins { .. }
                | Effect::PinsUsedUp
                | Effect::AccountChanged { .. } => {}
            }
        }
    }

    fn pins_used_up(&self) {
        static SAID: Paced = Paced::new(PINS_USED_UP_AGAIN);
        self.context.pins_used_up.increment(1);
        if let Some(times) = SAID.count(Instant::now()) {
            error!(times, "PINs not sent: registration.pins_per_hour is used up for now");
        }
    }

    pub(super) fn resume_deferred(&mut self) -> Result<(), ProcessError> {
        while let Some((entries, done)) = self.deferred.pop_front() {
            let rest = std::mem::take(&mut self.deferred);
            self.committed(entries, done)?;
            let waits = !self.deferred.is_empty();
            self.deferred.extend(rest);
            if waits {
                break;
            }
        }
        Ok(())
    }

    fn reload(&mut self, done: Done) {
        self.rest.reload();
        let (context, shard, inbox) = (self.context.clone(), self.shard, self.inbox.clone());
        self.context.tasks.spawn("reload", async move {
            match super::replica::load(&context, shard).await {
                Ok(loaded) => inbox.force(ShardItem::Loaded(Box::new(loaded), done)),
                // `done` is dropped, and so the group ends.
                Err(error) => tracing::error!(%shard, %error, "snapshot not loaded"),
            }
        });
    }

    fn loaded(&mut self, loaded: Loaded, done: Done) {
        if !self.rest.loaded() {
            return;
        }
        self.machine = loaded.machine;
        self.applied = loaded.applied.unwrap_or_default();
        self.overlay = Overlay::default();
        self.chores.snapshot_taken();
        debug!(shard = %self.shard, index = self.applied.id.map_or(0, |id| id.index), "snapshot");
        done();
    }

    fn tick(&mut self) {
        self.ticks += 1;
        if !self.standing.me_leads && self.leader().is_none() {
            self.stuck_since.get_or_insert(self.ticks);
        }
        if let Some(since) = self.stuck_since
            && self.ticks >= since + PATIENCE_TICKS
        {
            self.proposals.give_up(self.ticks - PATIENCE_TICKS);
        }
        self.look_at_questions();
        if self.is_ready() {
            let (recipients, term) = (&self.context.recipients, self.standing.term);
            self.lost.retain(|node| !recipients.leads_here(*node, self.shard, term));
            self.do_chores();
        } else {
            self.lost.clear();
        }
        self.propose_next(true);
    }
}

pub(super) fn ends_in_spill(batch: &stored::Batch) -> bool {
    let last = batch.commands.last().and_then(|command| command.kind.as_ref());
    matches!(last, Some(Command::Spill(_)))
}
