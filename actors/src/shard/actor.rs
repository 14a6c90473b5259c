//! The shard process: hands items to its core, and carries out what the core decides.

use super::admission::PLENTY_PERCENT;
use super::core::{Action, Item, ReplicaCore};
use super::perform::{Waiting, Waits};
use super::proposals::Failure;
use super::rounds::Takers;
use super::seat::{Begin, Left, Line, Seat};
use super::surroundings::{Disk, Leadership, Surroundings};
use super::{Came, Outbound, Outcome, Query, ShardContext, ShardItem};
use consensus::{Committed, Group, GroupStatus, ProposeError, Task, Unfinished};
use proto::{Code, DeviceId, NodeId, ShardId, UserId};
use std::collections::BTreeSet;
use std::sync::Arc;
use supervision::{Flow, Inbox, Process, ProcessError};
use tracing::debug;

/// The number of no task: nobody waits until it is finished.
const NO_TASK: u64 = 0;

/// What a shard actor is started with.
#[derive(Clone, Debug)]
pub struct ShardArgs {
    /// Which shard.
    pub shard: ShardId,
    /// What it may touch.
    pub context: Arc<ShardContext>,
    /// The part of the replica that outlives this actor.
    pub seat: Arc<Seat>,
}

/// One replica of one shard.
pub struct ShardActor {
    pub(super) shard: ShardId,
    pub(super) context: Arc<ShardContext>,
    pub(super) seat: Arc<Seat>,
    /// For what comes of its actions.
    pub(super) line: Line,
    pub(super) group: Group,
    pub(super) core: ReplicaCore,
    /// Who waits for what the core was asked.
    pub(super) waiting: Waiting,
    /// Hints that wait to be sent to other nodes.
    pub(super) outbound: Outbound,
    /// When the commands came that were queued last, Unix time in ms: those that come together, with nothing
    /// between them, come at the same time.
    queued_ms: Option<u64>,
    /// Free space on the scarcest disk among the replicas, as of the last tick: [`Group::free_percent`].
    pub(super) free_percent: u64,
    /// The row of the sessions table that the sweep read last.
    pub(super) swept_to: Option<(UserId, DeviceId)>,
}

impl std::fmt::Debug for ShardActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardActor").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Process for ShardActor {
    type Item = ShardItem;
    type Args = ShardArgs;

    async fn start(args: ShardArgs, _inbox: Arc<Inbox<ShardItem>>) -> Result<Self, ProcessError> {
        let ShardArgs { shard, context, seat } = args;
        let group = context.groups.open(shard, seat.clone()).await?;
        let begin = seat.read((&context, shard), &group).await?;
        let Begin { unfinished, loaded, entries } = begin;
        let index = loaded.applied.as_ref().and_then(|applied| applied.id).map_or(0, |id| id.index);
        debug!(%shard, index, after = entries.len(), "shard opened");
        let status = seat.watch(&context, &group);
        let every_ms = context.checkpoint_every_ms;
        let core = ReplicaCore::new(context.node, shard, loaded, every_ms);
        let line = seat.line();
        let free_percent = context.storage.free_percent_of_min();
        let mut actor = Self {
            shard,
            context,
            seat,
            line,
            group,
            core,
            waiting: Waiting::default(),
            outbound: Outbound::default(),
            queued_ms: None,
            free_percent,
            swept_to: None,
        };
        if let Some(left) = actor.seat.take_left() {
            actor.inherit(left);
        }
        actor.finish(unfinished, entries)?;
        actor.stands(&status)?;
        actor.leave_round();
        Ok(actor)
    }

    fn handle(&mut self, item: ShardItem) -> Result<Flow, ProcessError> {
        match item {
            ShardItem::Propose { command, reply } => {
                let token = self.waiting.replies.add(reply);
                self.queue(Item::Propose(command, token))?;
            }
            ShardItem::ProposeLazily(command) => self.queue(Item::ProposeLazily(command))?,
            ShardItem::ProposeAll { commands, answer } => {
                let token = self.waiting.peers.add(answer);
                self.step(Item::ProposeAll(commands, token))?;
            }
            ShardItem::Query(query) => self.query(query)?,
            ShardItem::Ask(ask, answer) => {
                let followed = ask.is_page() && self.is_followed();
                let token = self.waiting.questions.add(Waits::Peer(answer));
                self.step(Item::AskOfPeer { ask, token, followed })?;
            }
            ShardItem::Apply(entries, number) if self.is_current(number) => {
                self.step(Item::Committed(entries, number))?;
            }
            ShardItem::Reload(number) if self.is_current(number) => {
                self.step(Item::Reload(number))?;
            }
            ShardItem::Rest(number) if self.is_current(number) => self.step(Item::Rest(number))?,
            ShardItem::Came(actor, came) if self.line.is_of(actor) => self.came(came)?,
            // Finished when this actor started, or meant for the one before.
            ShardItem::Apply(..)
            | ShardItem::Reload(_)
            | ShardItem::Rest(_)
            | ShardItem::Came(..) => {}
            ShardItem::Stands(status) => self.stands(&status)?,
            ShardItem::RoundBegins => {
                let (around, now_ms) = self.surroundings();
                self.step_at(Item::RoundBegins(around), now_ms)?;
            }
            ShardItem::Core(item) => self.step(*item)?,
            ShardItem::Digest(answer) => answer(super::Digest {
                applied: self.core.applied().id.map_or(0, |id| id.index),
                digest: self.core.machine().digest(),
                accounts: self.core.machine().accounts(),
            }),
            ShardItem::TickDue => {
                self.free_percent = self.group.free_percent();
                let (around, now_ms) = self.surroundings();
                self.step_at(Item::Tick(around), now_ms)?;
            }
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        self.step(Item::Settle)?;
        Ok(Flow::Continue)
    }
}

impl Drop for ShardActor {
    fn drop(&mut self) {
        let (waiting, inheritance) = (std::mem::take(&mut self.waiting), self.core.leave());
        self.seat.leave(Left { waiting, inheritance });
    }
}

impl ShardActor {
    // ---- After another actor -----------------------------------------------------------------

    /// Takes over what the actor before has left. Its commands are proposed once more; who waits for anything
    /// else is told that nobody knows, and asks again.
    fn inherit(&mut self, left: Left) {
        let known = self.core.inherit(left.inheritance);
        self.waiting = left.waiting;
        for reply in self.waiting.replies.take_all_but(&known) {
            reply(Outcome::Refused(Code::Unavailable));
        }
        let none = BTreeSet::new();
        self.waiting.peers.take_all_but(&none).for_each(|answer| answer(Vec::new()));
        self.waiting.questions.take_all_but(&none).for_each(|waits| waits.tell(None));
    }

    /// Applies what is committed and not in the tables, and finishes what the group has handed over.
    fn finish(
        &mut self,
        unfinished: Unfinished,
        entries: Vec<Committed>,
    ) -> Result<(), ProcessError> {
        match unfinished.task {
            // The tables were read after they were replaced.
            Some((number, Task::Reload)) => self.seat.handed.finish(number),
            Some((number, Task::Rest)) => self.step(Item::Rest(number))?,
            Some((number, Task::Apply)) => self.step(Item::Committed(entries, number))?,
            None if unfinished.resting => self.step(Item::Rest(NO_TASK))?,
            None if !entries.is_empty() => self.step(Item::Committed(entries, NO_TASK))?,
            None => {}
        }
        Ok(())
    }

    /// If the actor before died in a round, the others of this node need not wait for it.
    fn leave_round(&mut self) {
        let takers = if self.core.leads_several() { Takers::Several } else { Takers::Alone };
        if self.context.shards.round_ended((self.shard, takers), None) {
            self.line.round_begins();
        }
    }

    fn is_current(&self, number: u64) -> bool {
        self.seat.handed.is_current(number)
    }

    fn came(&mut self, came: Came) -> Result<(), ProcessError> {
        match came {
            Came::NotProposed(number, error) => self.not_proposed(number, error)?,
            Came::Replied(token, answered) => {
                if let Some(waits) = self.waiting.questions.take(token) {
                    waits.tell(Some(answered));
                }
            }
            Came::Item(item) => self.step(*item)?,
        }
        Ok(())
    }

    // ---- Its core ----------------------------------------------------------------------------

    /// Hands an item to the core, and carries out what it decides, in order.
    pub(super) fn step(&mut self, item: Item) -> Result<(), ProcessError> {
        self.queued_ms = None;
        let now_ms = self.context.clock.now_ms();
        self.step_at(item, now_ms)
    }

    /// The same for a command that waits for the next batch.
    fn queue(&mut self, item: Item) -> Result<(), ProcessError> {
        let now_ms = *self.queued_ms.get_or_insert_with(|| self.context.clock.now_ms());
        self.step_at(item, now_ms)
    }

    fn step_at(&mut self, item: Item, now_ms: u64) -> Result<(), ProcessError> {
        self.core.step(item, now_ms);
        while let Some(action) = self.core.next_action() {
            if matches!(action, Action::Done(_)) {
                self.send();
            }
            self.perform(action)?;
        }
        self.send();
        Ok(())
    }

    pub(super) fn decide(&mut self, item: Item) {
        let now_ms = self.context.clock.now_ms();
        self.core.step(item, now_ms);
    }

    /// Sends what was gathered for other nodes.
    fn send(&mut self) {
        if !self.outbound.is_empty() {
            let lost = self.context.recipients.send(std::mem::take(&mut self.outbound));
            self.lost(lost);
        }
    }

    pub(super) fn lost(&mut self, nodes: BTreeSet<NodeId>) {
        if !nodes.is_empty() {
            // Nothing follows from that at once.
            self.decide(Item::Lost(nodes));
        }
    }

    fn is_followed(&self) -> bool {
        self.core.leads_several() && self.group.is_followed()
    }

    fn query(&mut self, query: Query) -> Result<(), ProcessError> {
        let (ask, waits) = Waits::split(query);
        let followed = ask.is_page() && self.is_followed();
        let token = self.waiting.questions.add(waits);
        self.step(Item::Ask { ask, token, followed })
    }

    fn stands(&mut self, status: &GroupStatus) -> Result<(), ProcessError> {
        self.step(Item::Stands(Leadership {
            leader: status.leader,
            me_leads: status.me_leads,
            term: status.term,
            voters: status.voters.len(),
            last_index: self.group.status().last,
        }))
    }

    fn not_proposed(&mut self, number: u64, error: ProposeError) -> Result<(), ProcessError> {
        let failure = match error {
            ProposeError::NotLeader(_) | ProposeError::NoMajority | ProposeError::Busy => {
                Failure::NotProposed
            }
            ProposeError::Unknown => Failure::Unknown,
            ProposeError::Full if self.group.gives_way() => Failure::NotProposed,
            ProposeError::Full => Failure::Refused(Code::StorageFull),
            ProposeError::Failed => Failure::Refused(Code::Unavailable),
        };
        self.step(Item::NotProposed(number, failure))?;
        if error == ProposeError::Failed {
            // Nobody knows what the disk has: only a new start of the node can read it.
            return Err("the log is shut".into());
        }
        Ok(())
    }

    /// The situation around the replica, and the moment, Unix time in ms.
    pub(super) fn surroundings(&self) -> (Box<Surroundings>, u64) {
        // The clock is read before its members are asked: whoever asks sees a jump.
        let now_ms = self.context.clock.now_ms();
        let may_expire = self.context.clocks.may_expire();
        let (storage, settings) = (&self.context.storage, self.context.settings());
        let free_percent = self.free_percent;
        let disk = match storage.nearly_full() {
            false => Disk::HasSpace,
            true if self.group.gives_way() => Disk::GivesWay,
            true => Disk::NearlyFull,
        };
        let away = |user: &UserId| !self.context.recipients.is_connected(*user);
        let away = if free_percent < PLENTY_PERCENT {
            self.core.recipients().filter(away).collect()
        } else {
            BTreeSet::new()
        };
        let around = Surroundings {
            settings,
            checkpoint_every_ms: self.context.checkpoint_every_ms,
            disk,
            free_percent,
            followed: self.group.is_followed(),
            may_expire,
            away,
        };
        (Box::new(around), now_ms)
    }
}
