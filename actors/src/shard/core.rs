//! What a replica of a shard decides: batches and their order, forwarding to the leader, questions,
//! notices, maintenance and leadership. A pure core: [`super::ShardActor`] carries its actions out, and so
//! does the simulator.
//!
//! # Invariants
//! 1. One item gives the same actions in the same state: it knows no clock, disk, task or chance.
//! 2. Actions are carried out in their order. What answers one comes back as an item.
//! 3. Each token is named by one action at the end: what waits for it is told, or forgotten.

use super::ask::{Answered, Ask, Asked};
use super::chores::Chores;
use super::fault::Fault;
use super::machine::Machine;
use super::proposals::{Asker, Failure, Moment, Proposals};
use super::reads::{OriginsRead, Overlay, PageRead};
use super::rest::Rest;
use super::rounds::{Takers, Wish};
use super::surroundings::{Leadership, Surroundings};
use super::{AccountView, Command, NotForwarded, Outcome};
use crate::actions::Actions;
use bytes::Bytes;
use consensus::Committed;
use proto::{DeviceId, NodeId, Seq, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use storage::Row;

/// Names what waits for an answer, or must be told that something is done. Whoever hands it in knows what it
/// means.
pub type Token = u64;

/// What happens to a replica.
pub enum Item {
    /// Someone on this node asks: propose this.
    Propose(Command, Token),
    /// Someone on this node asks: propose this when something else is, or within a second.
    ProposeLazily(Command),
    /// Another node asks the leader: propose these, in this order. Answered by [`Action::AnswerAll`].
    ProposeAll(Vec<stored::Command>, Token),
    /// Someone on this node asks about the state. `followed`: as in [`Surroundings`].
    Ask {
        /// What is asked.
        ask: Ask,
        /// Who waits.
        token: Token,
        /// A majority followed this leader a moment ago; only pages need it.
        followed: bool,
    },
    /// Another node asks the leader about the state.
    AskOfPeer {
        /// What is asked.
        ask: Ask,
        /// Who waits.
        token: Token,
        /// As above.
        followed: bool,
    },
    /// A question could not be put to the leader: try again.
    AskAgain(Asked),
    /// The group tells: these entries are committed.
    Committed(Vec<Committed>, Token),
    /// The group tells: the tables were replaced by a snapshot, or emptied.
    Reload(Token),
    /// The group tells: it has ended and is about to be forgotten.
    Rest(Token),
    /// The machine as the tables have it.
    Loaded(Box<Loaded>, Token),
    /// The machine could not be read.
    NotLoaded(Token),
    /// This batch of ours was not proposed, or nobody knows.
    NotProposed(u64, Failure),
    /// The leader elsewhere answers this batch of ours.
    Forwarded(u64, Result<Vec<Outcome>, NotForwarded>),
    /// The group stands so now.
    Stands(Leadership),
    /// Whether this node still led when these questions were taken up.
    Confirmed(bool),
    /// It is this replica's turn to propose.
    RoundBegins(Box<Surroundings>),
    /// Some time has passed since a batch could not be proposed.
    RetryDue,
    /// The origins of released rows; `None`: they could not be read.
    OriginsRead(UserId, Option<stored::Release>),
    /// Some time has passed since the origins of a user's released rows could not be read or proposed.
    OriginsDue(UserId),
    /// Another shard has taken the notices that it was offered, or has not.
    NoticesTaken {
        /// Which shard.
        to: ShardId,
        /// Which offer.
        which: u64,
        /// Up to which number, if it took them.
        taken: Option<u64>,
    },
    /// The checkpoint is in the tables.
    CheckpointWritten(Box<stored::Applied>),
    /// The checkpoint could not be written; some time has passed since.
    CheckpointFailed {
        /// As of this place in the log.
        applied: Box<stored::Applied>,
        /// Its rows.
        rows: Vec<Row>,
        /// The disk is full: space will come.
        disk_is_full: bool,
    },
    /// These stored entries have outlived their time.
    DueRead(Vec<stored::Expired>),
    /// These devices of the shard have session rows.
    SessionsRead(Vec<(UserId, DeviceId)>),
    /// Another node leads in this term.
    LeadsElsewhere(NodeId, u64),
    /// A node came (true) or went.
    PeerChanged(NodeId, bool),
    /// A user has come to another node.
    SessionOpened(UserId, NodeId),
    /// Hints to these nodes were lost.
    Lost(BTreeSet<NodeId>),
    /// A second has passed.
    Tick(Box<Surroundings>),
    /// The items that waited are through.
    Settle,
}

/// A machine as it was read from the tables.
#[derive(Debug)]
pub struct Loaded {
    /// The machine.
    pub machine: Machine,
    /// As of which place of the log.
    pub applied: Option<stored::Applied>,
}

/// What must be done.
pub enum Action {
    /// Tell someone on this node what became of a command.
    Answer(Token, Outcome),
    /// Tell another node what became of its commands.
    AnswerAll(Token, Vec<Outcome>),
    /// Answer a question.
    Reply(Token, Answered),
    /// The leader is not reached: refuse a question of this node, tell another node that it asks in vain.
    ReplyNothing(Token),
    /// Read the rest of a page from the tables, and answer with [`PageRead::finish`].
    ReadPage(Token, Box<PageRead>),
    /// Put a question to the leader. [`Item::AskAgain`] later, if it does not answer.
    AskLeader(NodeId, Asked),
    /// This is done: tell the group.
    Done(Token),
    /// This comes to nothing: the group has ended.
    Forget(Token),
    /// Read the machine from the tables: [`Item::Loaded`].
    Load(Token),
    /// Propose a batch of this number: [`Item::Committed`], or [`Item::NotProposed`].
    Log(u64, Bytes),
    /// Send a batch of this number to the leader: [`Item::Forwarded`]. The bytes are a `cluster.Request`.
    Forward(NodeId, u64, Bytes),
    /// Make sure that this node leads: [`Item::Confirmed`].
    Confirm,
    /// Ask for a turn to propose: [`Item::RoundBegins`], at once or later.
    WantRound(Wish),
    /// This replica's part of the round is over; it may want the next one.
    EndRound(Takers, Option<Wish>),
    /// Hand this item in after some time.
    Later(Duration, Box<Item>),
    /// Read who sent the rows of a range, and hand [`OriginsRead::finish`] in: [`Item::OriginsRead`].
    ReadOrigins(Box<OriginsRead>),
    /// Read which entries have outlived their time at this moment, in ms: [`Item::DueRead`].
    ReadDue(u64),
    /// Read the next rows of the sessions table: [`Item::SessionsRead`].
    ReadSessions,
    /// Write a checkpoint: [`Item::CheckpointWritten`], or later [`Item::CheckpointFailed`].
    WriteCheckpoint(Box<stored::Applied>, Vec<Row>),
    /// The tables are as of this place: the group lets go of older entries.
    Checkpointed(stored::LogId),
    /// Offer notices to another shard: [`Item::NoticesTaken`].
    Offer {
        /// Which shard.
        to: ShardId,
        /// Which offer.
        which: u64,
        /// The number of the last one.
        number: u64,
        /// The notices.
        notices: stored::TakeNotices,
    },
    /// Tell users, other nodes or the operator.
    Hint(Hint),
    /// This replica cannot go on, for this reason.
    Stop(String),
}

/// What users, other nodes or the operator are told. What users and nodes are told may be lost.
#[derive(Clone, Debug)]
pub enum Hint {
    /// A mailbox has a new entry: its user, wherever they are.
    Push(UserId, Seq, Arc<stored::Envelope>),
    /// The account changed: its user and whoever watches them. `None`: it is no more.
    AccountChanged(UserId, Option<Arc<AccountView>>),
    /// This node leads in this term: all nodes.
    LeaderAppeared(u64),
    /// This node leads in this term: one node. If that is lost: [`Item::Lost`].
    TellLeader(NodeId, u64),
    /// The mailbox of a user ends here: one node. If that is lost: [`Item::Lost`].
    GrownTo(NodeId, UserId, Seq),
    /// A device was unlinked: remove the row of its session.
    RemoveSession(UserId, DeviceId),
    /// So many wrong PINs came in this hour: the operator.
    WrongPins(u32),
    /// A PIN was not sent, for the PINs of the hour to all aliases are used up: the operator.
    PinsUsedUp,
}

/// Outcomes of another node's commands, as they come.
pub(super) struct Gathering {
    pub(super) outcomes: Vec<Option<Outcome>>,
    pub(super) missing: usize,
    pub(super) token: Token,
}

/// The state of one replica.
pub struct ReplicaCore {
    pub(super) node: NodeId,
    pub(super) shard: ShardId,
    pub(super) machine: Machine,
    pub(super) proposals: Proposals,
    /// Our batch under way, if it was proposed here.
    pub(super) proposed: Option<super::apply::Proposed>,
    /// It is this replica's turn to propose.
    pub(super) in_round: bool,
    /// Commands that nobody waits for are reason enough to propose.
    pub(super) lazy_due: bool,
    pub(super) standing: Leadership,
    /// Last index of the log when this node began to lead.
    pub(super) ready_from: u64,
    /// Term in which this node leads and has applied all that was committed before.
    pub(super) ready_in: Option<u64>,
    pub(super) applied: stored::Applied,
    pub(super) overlay: Overlay,
    pub(super) chores: Chores,
    /// Committed entries that wait for a checkpoint to be written.
    pub(super) deferred: VecDeque<(VecDeque<Committed>, Token)>,
    /// Committed entries are no longer taken.
    pub(super) rest: Rest,
    /// Questions that wait for the next confirmation, and for the one under way.
    pub(super) asked: Vec<super::questions::Question>,
    pub(super) confirming: Option<Vec<super::questions::Question>>,
    /// Who was last heard to lead, and in which term: this node may be no replica of the shard.
    pub(super) hint: Option<(u64, NodeId)>,
    /// Nodes to which hints were lost.
    pub(super) lost: BTreeSet<NodeId>,
    pub(super) ticks: u64,
    /// Since when nobody takes our commands, in ticks.
    pub(super) stuck_since: Option<u64>,
    /// Commands of other nodes, by the number that [`Asker::Peer`] names.
    pub(super) gathering: BTreeMap<u64, Gathering>,
    pub(super) gatherings: u64,
    pub(super) fault: Option<Fault>,
    now_ms: u64,
    pub(super) actions: Actions<Action>,
}

impl std::fmt::Debug for ReplicaCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaCore").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl ReplicaCore {
    /// A replica on `node` whose state is what the tables hold.
    pub fn new(node: NodeId, shard: ShardId, loaded: Loaded, checkpoint_every_ms: u64) -> Self {
        Self {
            node,
            shard,
            machine: loaded.machine,
            proposals: Proposals::default(),
            proposed: None,
            in_round: false,
            lazy_due: false,
            standing: Leadership::default(),
            ready_from: 0,
            ready_in: None,
            applied: loaded.applied.unwrap_or_default(),
            overlay: Overlay::default(),
            chores: Chores::new(shard, checkpoint_every_ms),
            deferred: VecDeque::new(),
            rest: Rest::No,
            asked: Vec::new(),
            confirming: None,
            hint: None,
            lost: BTreeSet::new(),
            ticks: 0,
            stuck_since: None,
            gathering: BTreeMap::new(),
            gatherings: 0,
            fault: None,
            now_ms: 0,
            actions: Actions::default(),
        }
    }

    /// Builds a fault in, to see whether a simulation finds it. Nothing but tests calls this.
    #[must_use]
    pub fn with_fault(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        if fault == Some(Fault::OvertakenRetry) {
            self.proposals.let_overtake();
        }
        self
    }

    /// Takes an item at this moment, Unix time in ms. [`Self::next_action`] says what must be done.
    pub fn step(&mut self, item: Item, now_ms: u64) {
        let before = self.actions.len();
        self.now_ms = now_ms;
        match item {
            Item::Propose(command, token) => self.propose(command, token),
            Item::ProposeLazily(command) => self.proposals.push_lazy(command),
            Item::ProposeAll(commands, token) => self.propose_all(commands, token),
            Item::Ask { ask, token, followed } => self.ask(ask, token, followed),
            Item::AskOfPeer { ask, token, followed } => self.ask_of_peer(ask, token, followed),
            Item::AskAgain(asked) => self.ask_again(asked),
            Item::Confirmed(leads) => self.confirmed(leads),
            Item::Committed(entries, token) => self.committed(entries.into(), token),
            Item::Reload(token) => self.reload(token),
            Item::Rest(token) => self.rest(token),
            Item::Loaded(loaded, token) => self.loaded(*loaded, token),
            Item::NotLoaded(token) => self.actions.push(Action::Forget(token)),
            Item::NotProposed(number, failure) => self.not_proposed(number, failure),
            Item::Forwarded(number, outcomes) => self.forwarded(number, outcomes),
            Item::Stands(standing) => self.stands(standing),
            Item::RoundBegins(around) => self.round_begins(&around),
            Item::RetryDue => self.chores.retry_asked = false,
            Item::OriginsRead(user, release) => self.origins_read(user, release),
            Item::OriginsDue(user) => self.origins_due(user),
            Item::NoticesTaken { to, which, taken } => self.notices_taken(to, which, taken),
            Item::CheckpointWritten(applied) => self.checkpoint_written(&applied),
            Item::CheckpointFailed { applied, rows, disk_is_full } => {
                self.checkpoint_failed(*applied, rows, disk_is_full);
            }
            Item::DueRead(entries) => self.due_read(entries),
            Item::SessionsRead(found) => self.sessions_read(found),
            Item::LeadsElsewhere(node, term) => self.leads_elsewhere(node, term),
            Item::PeerChanged(node, up) => self.peer_changed(node, up),
            Item::SessionOpened(user, node) => self.session_opened(user, node),
            Item::Lost(mut nodes) => self.lost.append(&mut nodes),
            Item::Tick(around) => self.tick(&around),
            Item::Settle => self.settle(),
        }
        self.tell_outcomes();
        self.actions.put_first(before);
    }

    /// Takes the first of what must be done. If it leads to another item at once, what that one leads to comes
    /// next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.next()
    }

    // ---- What others may look at -------------------------------------------------------------

    /// The state machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Up to which place of the log it has applied.
    pub fn applied(&self) -> &stored::Applied {
        &self.applied
    }

    /// Whether this node leads and knows all that was committed before it did.
    pub fn is_ready(&self) -> bool {
        self.standing.me_leads && self.ready_in == Some(self.standing.term)
    }

    /// Whether this node leads several voters: whether they follow it must be known for pages.
    pub fn leads_several(&self) -> bool {
        self.standing.me_leads && self.standing.voters > 1
    }

    /// Who is written to by sends that wait to be proposed.
    pub fn recipients(&self) -> impl Iterator<Item = UserId> {
        self.proposals.recipients()
    }

    // ---- Time --------------------------------------------------------------------------------

    pub(super) fn moment(&self) -> Moment {
        Moment { tick: self.ticks, ms: self.now_ms }
    }

    pub(super) fn hint(&mut self, hint: Hint) {
        self.actions.push(Action::Hint(hint));
    }

    pub(super) fn later(&mut self, wait: Duration, item: Item) {
        self.actions.push(Action::Later(wait, Box::new(item)));
    }

    fn tick(&mut self, around: &Surroundings) {
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
        let lost = std::mem::take(&mut self.lost);
        if self.is_ready() {
            let term = self.standing.term;
            for node in lost {
                self.hint(Hint::TellLeader(node, term));
            }
            self.do_chores(around);
            // Another leader may have linked a device that this one does not know.
            if around.followed {
                self.actions.push(Action::ReadSessions);
            }
        }
        self.lazy_due = true;
    }

    // ---- Outcomes ----------------------------------------------------------------------------

    /// Tells who waits what became of commands, as far as that is known.
    pub(super) fn tell_outcomes(&mut self) {
        while let Some((asker, outcome)) = self.proposals.next_outcome() {
            match asker {
                Asker::Caller(token) => self.actions.push(Action::Answer(token, outcome)),
                Asker::Peer { number, place } => self.gather(number, place, outcome),
                Asker::Origins(user) => self.origins_proposed(user, &outcome),
                Asker::Nobody => {}
            }
        }
    }

    pub(super) fn gather(&mut self, number: u64, place: usize, outcome: Outcome) {
        let Some(gathering) = self.gathering.get_mut(&number) else { return };
        if gathering.outcomes[place].replace(outcome).is_none() {
            gathering.missing -= 1;
        }
        if gathering.missing == 0
            && let Some(Gathering { outcomes, token, .. }) = self.gathering.remove(&number)
        {
            let outcomes = outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Elsewhere));
            self.actions.push(Action::AnswerAll(token, outcomes.collect()));
        }
    }
}

/// Ticks without a leader after which what waits for one is refused.
pub(super) const PATIENCE_TICKS: u64 = 4;

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
