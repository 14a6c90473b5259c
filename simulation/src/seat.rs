//! One replica of a shard with its part in the group: what `ShardActor` does around the cores, here
//! without tasks and clocks. The cores are the real ones.

use crate::ask::Ask;
use crate::batch::{Collect, list};
use crate::chores::Chores;
use crate::raft::Raft;
use crate::stage::{Message, NodeEvent, NotDone, Stage, by};
use crate::table::{Applied, Place, Table};
use actors::shard::{
    Command, Effect, Entry, Failure, Machine, MachineLimits, Moment, Outcome, Proposals, Reply, Who,
};
use bytes::Bytes;
use prost::Message as _;
use proto::{Seq, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Ticks without a leader after which what waits for one is refused.
pub(crate) const PATIENCE_TICKS: u64 = 4;

/// Wait before a batch or question is put to a leader again, in ms.
const SOON_MS: u64 = 50;

/// How long a leader elsewhere may take, in ms.
const FORWARD_MS: u64 = 3_000;

/// Places at which replicas are compared, beside checkpoints.
const DIGEST_EVERY: u64 = 16;

/// Who leads, as the shard was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) leader: Option<usize>,
    pub(crate) me_leads: bool,
    pub(crate) term: u64,
}

struct Proposed {
    record: Bytes,
    number: u64,
    spills: bool,
}

pub(crate) struct Seat {
    pub(crate) me: usize,
    pub(crate) shard: ShardId,
    pub(crate) limits: MachineLimits,
    pub(crate) raft: Raft,
    pub(crate) table: Table,
    pub(crate) machine: Machine,
    pub(crate) proposals: Proposals,
    proposed: Option<Proposed>,
    /// Our batches that a leader elsewhere has, and in which life it got each.
    forwarding: BTreeSet<u64>,
    pub(crate) standing: Standing,
    /// Last index of the log when this node began to lead.
    ready_from: u64,
    ready_in: Option<u64>,
    /// Who was last heard to lead, and in which term.
    pub(crate) hint: Option<(u64, usize)>,
    /// Nodes to which pushes were lost.
    pub(crate) lost: BTreeSet<usize>,
    pub(crate) applied: Applied,
    pub(crate) overlay: BTreeMap<UserId, VecDeque<Entry>>,
    /// Expired entries whose rows are being deleted.
    pub(crate) gone: BTreeSet<(UserId, Seq)>,
    pub(crate) chores: Chores,
    deferred: Option<(Place, Option<Bytes>)>,
    pub(crate) loading: bool,
    /// Questions that a leader elsewhere has.
    pub(crate) asking: BTreeMap<u64, Ask>,
    pub(crate) asked: Vec<Ask>,
    pub(crate) confirming: Option<Vec<Ask>>,
    pub(crate) ticks: u64,
    stuck_since: Option<u64>,
    /// The disk is nearly full.
    pub(crate) full: bool,
    /// Digest at each place, to be compared with the other replicas'.
    pub(crate) digests: Vec<(u64, u64)>,
}

impl Seat {
    pub(crate) fn new(me: usize, shard: ShardId, limits: MachineLimits) -> Self {
        Self {
            me,
            shard,
            limits,
            raft: Raft::new(me, shard),
            table: Table::default(),
            machine: Machine::new(shard, limits),
            proposals: Proposals::default(),
            proposed: None,
            forwarding: BTreeSet::new(),
            standing: Standing::default(),
            ready_from: 0,
            ready_in: None,
            hint: None,
            lost: BTreeSet::new(),
            applied: Applied::default(),
            overlay: BTreeMap::new(),
            gone: BTreeSet::new(),
            chores: Chores::default(),
            deferred: None,
            loading: false,
            asking: BTreeMap::new(),
            asked: Vec::new(),
            confirming: None,
            ticks: 0,
            stuck_since: None,
            full: false,
            digests: Vec::new(),
        }
    }

    /// The node dies. What is left is the disk.
    pub(crate) fn crash(&mut self, stage: &mut Stage) {
        self.raft.crash(stage);
        let fresh = Self::new(self.me, self.shard, self.limits);
        let old = std::mem::replace(self, fresh);
        (self.raft, self.table) = (old.raft, old.table);
    }

    /// The node starts: the machine is read from the tables.
    pub(crate) fn start(&mut self) {
        self.raft.restart(self.table.applied.place);
        self.machine = self.table.load(self.shard, self.limits);
        self.applied = self.table.applied;
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.standing.me_leads && self.ready_in == Some(self.standing.term)
    }

    // ---- Leadership --------------------------------------------------------------------------

    pub(crate) fn stands(&mut self, stage: &mut Stage) {
        let Raft { leader, leads: me_leads, term, .. } = self.raft;
        let now = Standing { leader, me_leads, term };
        let before = std::mem::replace(&mut self.standing, now);
        if before.me_leads && (!now.me_leads || before.term != now.term) {
            self.ready_in = None;
            self.proposals.not_leading();
            self.chores.not_leading();
        }
        if before.me_leads != now.me_leads || before.term != now.term {
            self.ready_from = self.raft.last().index;
        }
        if before != now {
            let shard = self.shard;
            stage.note(|| by(self.me, format_args!("shard {shard}: {now:?}")));
        }
        self.lead_if_caught_up(stage);
    }

    /// Who leads elsewhere, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<usize> {
        let by_group = self.standing.leader.map(|leader| (self.standing.term, leader));
        by_group.max(self.hint).map(|(_, leader)| leader).filter(|node| *node != self.me)
    }

    pub(crate) fn leads_elsewhere(&mut self, node: usize, term: u64) {
        if self.hint.is_none_or(|(known, _)| known <= term) {
            self.hint = Some((term, node));
        }
    }

    pub(crate) fn peer_changed(&mut self, node: usize, up: bool, stage: &mut Stage) {
        if up && self.is_ready() {
            self.leads_here(node, stage);
        }
        if !up && self.hint.is_some_and(|(_, hint)| hint == node) {
            self.hint = None;
        }
    }

    pub(crate) fn session_opened(&mut self, user: UserId, node: usize, stage: &mut Stage) {
        let mailbox = self.machine.mailbox(user).filter(|_| self.is_ready());
        if let Some(seq) = mailbox.map(|mailbox| mailbox.last()) {
            stage.send(self.me, node, Message::GrownTo { user, seq });
        }
    }

    fn leads_here(&self, node: usize, stage: &mut Stage) -> bool {
        stage.send(self.me, node, Message::LeaderAppeared(self.shard, self.standing.term))
    }

    fn lead_if_caught_up(&mut self, stage: &mut Stage) {
        let term = self.standing.term;
        let caught_up = self.applied.place.index >= self.ready_from;
        if self.standing.me_leads && !self.is_ready() && caught_up {
            self.ready_in = Some(term);
            self.machine.take_effects();
            self.machine.resume();
            for to in 0..crate::stage::NODES {
                if to == self.me {
                    stage.local(to, 0, NodeEvent::ReadAgain(self.shard));
                } else {
                    self.leads_here(to, stage);
                }
            }
            stage.note(|| by(self.me, format_args!("shard {}: ready in {term}", self.shard)));
            self.follow(stage);
            self.offer_notices(stage);
            self.confirm(stage);
        }
    }

    // ---- Proposing ---------------------------------------------------------------------------

    pub(crate) fn moment(&self, stage: &Stage) -> Moment {
        Moment { tick: self.ticks, ms: stage.clock(self.me) }
    }

    pub(crate) fn propose(&mut self, command: Command, reply: Reply, stage: &Stage) {
        let now = self.moment(stage);
        self.proposals.push(command, reply, Who::Caller, now);
    }

    /// Another node's batch.
    pub(crate) fn take_all(
        &mut self,
        commands: Vec<Command>,
        answer: impl FnOnce(Vec<Outcome>) + Send + 'static,
        stage: &Stage,
    ) {
        if !self.standing.me_leads {
            answer(vec![Outcome::Elsewhere; commands.len()]);
            return;
        }
        let (collect, now) = (Collect::new(commands.len(), Box::new(answer)), self.moment(stage));
        for (place, command) in commands.into_iter().enumerate() {
            let collect = collect.clone();
            let reply = Box::new(move |outcome| collect.put(place, outcome));
            self.proposals.push(command, reply, Who::Peer, now);
        }
    }

    pub(crate) fn propose_next(&mut self, lazily: bool, stage: &mut Stage) {
        if self.chores.retry_asked {
            return;
        }
        if self.standing.me_leads {
            if self.proposals.is_idle() {
                self.propose_here(lazily, stage);
            }
        } else if let Some(leader) = self.leader() {
            self.proposals.not_leading();
            self.forward_next(leader, lazily, stage);
        }
    }

    fn propose_here(&mut self, lazily: bool, stage: &mut Stage) {
        if self.full {
            self.proposals.refuse_storing();
        }
        let unrivaled = self.hint <= Some((self.standing.term, self.me));
        let knows = self.is_ready() && unrivaled && self.raft.has_quorum(stage.now);
        let (now, machine) = (self.moment(stage), &self.machine);
        let refuses =
            |append: &stored::Append| knows.then(|| machine.would_refuse(append)).flatten();
        let Some(batch) = self.proposals.next_admitted(lazily, now, refuses) else { return };
        let number = batch.number;
        let head = stored::Batch {
            now_ms: stage.clock(self.me),
            commands: batch.commands.clone(),
            proposer: self.me as u64,
            number,
            limits: Some(self.limits.to_stored()),
        };
        let record = Bytes::from(head.encode_to_vec());
        self.proposed =
            Some(Proposed { record: record.clone(), number, spills: ends_in_spill(&head) });
        stage.note(|| by(self.me, format_args!("shard {}: {}", self.shard, list(&head))));
        self.raft.propose(record, number, stage);
    }

    fn forward_next(&mut self, leader: usize, lazily: bool, stage: &mut Stage) {
        let Some(batch) = self.proposals.next_beside(lazily, self.moment(stage)) else { return };
        let shard = self.shard;
        let number = stage.lives[self.me] << 32 | batch.number;
        self.forwarding.insert(number);
        let commands = batch.commands.iter().filter_map(|command| command.kind.clone()).collect();
        if stage.send(self.me, leader, Message::Propose { shard, number, commands }) {
            let over = NodeEvent::Forwarded(shard, number, Err(NotDone::Unknown));
            stage.local(self.me, FORWARD_MS, over);
        } else {
            let never = NodeEvent::Forwarded(shard, number, Err(NotDone::NotLeader));
            stage.local(self.me, 0, never);
        }
    }

    pub(crate) fn forwarded(
        &mut self,
        number: u64,
        outcomes: Result<Vec<Outcome>, NotDone>,
        stage: &mut Stage,
    ) {
        // A call is answered or times out, not both.
        if !self.forwarding.remove(&number) {
            return;
        }
        let number = number & u64::from(u32::MAX);
        match outcomes {
            Ok(outcomes) => {
                if outcomes.contains(&Outcome::Elsewhere) {
                    self.try_soon(stage);
                } else {
                    self.stuck_since = None;
                }
                self.proposals.answered(number, outcomes);
            }
            Err(why) => {
                self.proposals.failed(number, failure(why));
                self.try_soon(stage);
            }
        }
    }

    pub(crate) fn not_proposed(&mut self, number: u64, why: NotDone, stage: &mut Stage) {
        stage.note(|| by(self.me, format_args!("shard {}: batch {number} {why:?}", self.shard)));
        let proposed = self.proposed.take_if(|proposed| proposed.number == number);
        if why != NotDone::Unknown && proposed.is_some_and(|proposed| proposed.spills) {
            self.chores.checkpoint_failed();
        }
        self.proposals.failed(number, failure(why));
        self.try_soon(stage);
    }

    fn try_soon(&mut self, stage: &mut Stage) {
        self.stuck_since.get_or_insert(self.ticks);
        if !std::mem::replace(&mut self.chores.retry_asked, true) {
            stage.local(self.me, SOON_MS, NodeEvent::Retry(self.shard));
        }
    }

    // ---- Applying ----------------------------------------------------------------------------

    /// Applies what is committed, as far as nothing waits for the tables.
    pub(crate) fn apply(&mut self, stage: &mut Stage) {
        while !self.loading {
            let Some((place, record)) = self.deferred.take().or_else(|| self.raft.hand_over())
            else {
                return;
            };
            let batch = record.as_ref().map(|r| stored::Batch::decode(r.clone()).unwrap());
            let spilled = batch.as_ref().is_some_and(ends_in_spill);
            if spilled && self.chores.is_writing() {
                self.deferred = Some((place, record));
                return;
            }
            self.applied.place = place;
            self.chores.logged += 1;
            if let (Some(batch), Some(record)) = (batch, record) {
                self.apply_batch(batch, &record, stage);
            }
            self.lead_if_caught_up(stage);
            self.offer_notices(stage);
            if spilled || place.index % DIGEST_EVERY == 0 {
                self.digests.push((place.index, self.machine.digest()));
            }
        }
    }

    fn apply_batch(&mut self, batch: stored::Batch, record: &Bytes, stage: &mut Stage) {
        self.machine.set_limits(MachineLimits::from_stored(batch.limits.unwrap_or_default()));
        let ours = self.proposed.take_if(|proposed| {
            proposed.record.as_ptr() == record.as_ptr()
                && proposed.record.len() == record.len()
                && self.proposals.is_under_way(proposed.number)
        });
        if let Some(ours) = ours {
            self.stuck_since = None;
            let machine = &mut self.machine;
            self.proposals.apply(ours.number, |command| machine.apply(batch.now_ms, command));
        } else {
            for command in batch.commands.into_iter().filter_map(|command| command.kind) {
                self.machine.apply(batch.now_ms, command);
            }
        }
        let mut clock = stored::Applied::default();
        self.machine.note_clock(&mut clock);
        (self.applied.now_ms, self.applied.steady_ms) = (clock.now_ms, clock.steady_ms);
        self.applied.pins_paid_to_us = clock.pins_paid_to_us;
        self.follow(stage);
    }

    fn follow(&mut self, stage: &mut Stage) {
        let leads = self.is_ready();
        let mut effects = self.machine.take_effects();
        // A checkpoint first: what it takes out of the tables is not to be read.
        effects.sort_by_key(|effect| !matches!(effect, Effect::Checkpoint(_)));
        for effect in effects {
            match effect {
                Effect::Checkpoint(spill) => self.begin_checkpoint(spill, stage),
                Effect::Push { user, seq, envelope } if leads => {
                    stage.local(self.me, 0, NodeEvent::Push(user, seq, envelope));
                }
                Effect::ReadOrigins { user, first, up_to } if leads => {
                    self.read_origins(user, first, up_to, stage);
                }
                Effect::Push { .. }
                | Effect::ReadOrigins { .. }
                | Effect::WrongPins { .. }
                | Effect::PinsUsedUp
                | Effect::AccountChanged { .. } => {}
            }
        }
    }

    // ---- Snapshots ---------------------------------------------------------------------------

    pub(crate) fn take_snapshot(&mut self, table: &Table, stage: &mut Stage) {
        let place = table.applied.place;
        if place.index <= self.raft.committed {
            return;
        }
        stage.note(|| by(self.me, format_args!("shard {}: snapshot {place:?}", self.shard)));
        self.table = table.clone();
        self.raft.install(place);
        self.loading = true;
        let late = stage.table_delay();
        stage.local(self.me, late, NodeEvent::Loaded(self.shard));
    }

    pub(crate) fn loaded(&mut self, stage: &mut Stage) {
        if !self.loading {
            return;
        }
        self.machine = self.table.load(self.shard, self.limits);
        self.applied = self.table.applied;
        self.overlay.clear();
        self.gone.clear();
        self.deferred = None;
        self.loading = false;
        self.digests.push((self.applied.place.index, self.machine.digest()));
        self.lead_if_caught_up(stage);
        self.apply(stage);
    }

    // ---- Time --------------------------------------------------------------------------------

    pub(crate) fn tick(&mut self, stage: &mut Stage) {
        self.ticks += 1;
        if !self.standing.me_leads && self.leader().is_none() {
            self.stuck_since.get_or_insert(self.ticks);
        }
        if let Some(since) = self.stuck_since
            && self.ticks >= since + PATIENCE_TICKS
        {
            self.proposals.give_up(self.ticks - PATIENCE_TICKS);
        }
        if !self.standing.me_leads {
            self.pass_questions_on(stage);
        }
        let lost = std::mem::take(&mut self.lost);
        if self.is_ready() {
            self.lost = lost.into_iter().filter(|node| !self.leads_here(*node, stage)).collect();
            self.do_chores(stage);
        }
        self.propose_next(true, stage);
    }
}

fn failure(why: NotDone) -> Failure {
    match why {
        NotDone::NotLeader => Failure::NotProposed,
        NotDone::Unknown => Failure::Unknown,
    }
}

fn ends_in_spill(batch: &stored::Batch) -> bool {
    let last = batch.commands.last().and_then(|command| command.kind.as_ref());
    matches!(last, Some(Command::Spill(_)))
}
