//! One replica of a shard: runs the core that the shard's actor runs, and carries its actions out on a log, on
//! tables and on a network that are made up.

use crate::batch::list;
use crate::raft::Raft;
use crate::stage::{Message, NODES, NodeEvent, NotDone, Question, Stage, by};
use crate::table::{Table, place_of};
use actors::shard::{
    Action, Answered, Asked, Command, Disk, Failure, Fault, Hint, Item, Leadership, MachineLimits,
    NotForwarded, Outcome, ReplicaCore, Reply, Surroundings, Token,
};
use bytes::Bytes;
use membership::ClusterSettings;
use prost::Message as _;
use proto::cluster::{self, request};
use proto::{NodeId, ShardId, stored};
use std::collections::{BTreeMap, BTreeSet};

/// Wait before something that failed is tried again, in ms.
pub(crate) const AGAIN_MS: u64 = 500;

/// Wait before a question is put to a leader again, in ms.
const SOON_MS: u64 = 50;

/// How long a leader elsewhere may take, in ms.
const FORWARD_MS: u64 = 3_000;

/// Places at which replicas are compared.
const DIGEST_EVERY: u64 = 16;

/// A device is set aside when something has waited for it this long, in ms.
const IDLE_S: u32 = 30 * 24 * 3_600;

/// A node by its place among all.
pub(crate) fn number(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap()
}

/// A node's id.
pub(crate) fn id(node: usize) -> NodeId {
    NodeId(node as u64)
}

/// Who put a question.
pub(crate) enum By {
    Here(Question),
    /// Another node, under its number.
    Peer(usize, u64),
}

pub(crate) struct Seat {
    pub(crate) me: usize,
    pub(crate) shard: ShardId,
    pub(crate) limits: MachineLimits,
    pub(crate) fault: Option<Fault>,
    pub(crate) raft: Raft,
    pub(crate) table: Table,
    pub(crate) core: ReplicaCore,
    /// Which actor of the replica this is, in this life of the node.
    pub(crate) actor: u64,
    /// It dies after so many actions.
    pub(crate) dies_after: Option<u64>,
    tokens: Token,
    pub(crate) replies: BTreeMap<Token, Reply>,
    /// Batches of other nodes, and their numbers there.
    pub(crate) peers: BTreeMap<Token, (usize, u64)>,
    pub(crate) questions: BTreeMap<Token, By>,
    /// Our batches that a leader elsewhere has.
    pub(crate) forwarding: BTreeSet<u64>,
    /// Questions that a leader elsewhere has.
    pub(crate) asking: BTreeMap<u64, Asked>,
    /// The group waits until an entry is applied, or until the tables are read.
    pub(crate) busy: Option<Token>,
    /// The disk is nearly full.
    pub(crate) full: bool,
    /// Digest at each place, to be compared with the other replicas'.
    pub(crate) digests: Vec<(u64, u64)>,
}

impl Seat {
    pub(crate) fn new(
        (me, shard): (usize, ShardId),
        limits: MachineLimits,
        fault: Option<Fault>,
    ) -> Self {
        Self::on((Raft::new(me, shard), Table::default()), (me, shard), limits, fault)
    }

    /// A replica on a disk.
    fn on(
        (raft, table): (Raft, Table),
        (me, shard): (usize, ShardId),
        limits: MachineLimits,
        fault: Option<Fault>,
    ) -> Self {
        let loaded = table.load(shard, limits);
        Self {
            me,
            shard,
            limits,
            fault,
            raft,
            table,
            core: ReplicaCore::new(id(me), shard, loaded, 2_000).with_fault(fault),
            actor: 0,
            dies_after: None,
            tokens: 0,
            replies: BTreeMap::new(),
            peers: BTreeMap::new(),
            questions: BTreeMap::new(),
            forwarding: BTreeSet::new(),
            asking: BTreeMap::new(),
            busy: None,
            full: false,
            digests: Vec::new(),
        }
    }

    /// The node dies. What is left is the disk.
    pub(crate) fn crash(&mut self, stage: &mut Stage) {
        self.raft.crash(stage);
        let raft = std::mem::replace(&mut self.raft, Raft::new(self.me, self.shard));
        let table = std::mem::take(&mut self.table);
        *self = Self::on((raft, table), (self.me, self.shard), self.limits, self.fault);
    }

    /// The node starts: the machine was read from the tables.
    pub(crate) fn start(&mut self, life: u64) {
        self.tokens = life << 32;
        self.raft.restart(place_of(&self.table.applied));
    }

    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    /// Hands an item to the core, as the actor does, and carries out what it decides.
    pub(crate) fn step(&mut self, item: Item, stage: &mut Stage) {
        let before = self.core.applied().id.map(|id| id.index);
        self.core.step(item, stage.clock(self.me));
        let index = self.core.applied().id.map(|id| id.index);
        if let Some(index) = index
            && before != Some(index)
            && index % DIGEST_EVERY == 0
        {
            self.digests.push((index, self.core.machine().digest()));
        }
        while let Some(action) = self.core.next_action() {
            if self.dies() {
                self.restart(stage);
            } else {
                self.perform(action, stage);
            }
        }
    }

    fn perform(&mut self, action: Action, stage: &mut Stage) {
        let (me, shard) = (self.me, self.shard);
        match action {
            Action::Answer(token, outcome) => {
                if let Some(reply) = self.replies.remove(&token) {
                    reply(outcome);
                }
            }
            Action::AnswerAll(token, outcomes) => {
                if let Some((to, number)) = self.peers.remove(&token) {
                    stage.send(me, to, Message::Outcomes { shard, number, outcomes });
                }
            }
            Action::Reply(token, answered) => self.reply(token, Some(answered), stage),
            Action::ReplyNothing(token) => self.reply(token, None, stage),
            Action::ReadPage(token, read) => {
                let late = stage.table_delay();
                self.comes(late, NodeEvent::ReadPage(shard, token, read), stage);
            }
            Action::AskLeader(leader, asked) => self.ask_leader(number(leader), asked, stage),
            Action::Done(token) | Action::Forget(token) => {
                if self.busy.take_if(|busy| *busy == token).is_some() {
                    stage.local(me, 0, NodeEvent::Apply(shard));
                }
            }
            Action::Load(token) => {
                let late = stage.table_delay();
                self.comes(late, NodeEvent::Load(shard, token), stage);
            }
            Action::Log(number, record) => {
                let batch = || stored::Batch::decode(record.clone()).unwrap();
                stage.note(|| by(me, format_args!("shard {shard}: {}", list(&batch()))));
                self.raft.propose(record.clone(), self.actor << 32 | number, stage);
            }
            Action::Forward(leader, number, parcel) => {
                self.forward(crate::seat::number(leader), number, parcel, stage);
            }
            Action::Confirm => {
                let late = stage.chance.between(1, 2 * stage.weather.delay_ms + 1);
                self.comes(late, NodeEvent::Confirm(shard), stage);
            }
            Action::WantRound(wish) => {
                if stage.pace(me, |rounds, now| rounds.wants(shard, wish, now)) {
                    self.begin_round(stage);
                }
            }
            Action::EndRound(takers, wish) => {
                if stage.pace(me, |rounds, now| rounds.ended((shard, takers), wish, now)) {
                    self.begin_round(stage);
                }
            }
            Action::Later(wait, item) => {
                let late = u64::try_from(wait.as_millis()).unwrap();
                self.comes(late, NodeEvent::Core(shard, item), stage);
            }
            Action::Offer { to, which, number, notices } => {
                self.offer(to, (which, number), notices, stage);
            }
            Action::Hint(hint) => self.tell(hint, stage),
            Action::Stop(why) => panic!("node {me}: shard {shard}: {why}"),
            tables => self.use_tables(tables, stage),
        }
    }

    fn offer(
        &self,
        to: ShardId,
        (which, number): (u64, u64),
        notices: stored::TakeNotices,
        stage: &mut Stage,
    ) {
        if !stage.shards().contains(&to) {
            return; // Nobody of this story lives there.
        }
        let (voice, shard, actor) = (stage.voice(self.me), self.shard, self.actor);
        let reply = Box::new(move |outcome| {
            let taken = (outcome == Outcome::Done).then_some(number);
            let item = Item::NoticesTaken { to, which, taken };
            let taken = Box::new(NodeEvent::Core(shard, Box::new(item)));
            voice.say(NodeEvent::Came(shard, actor, taken));
        });
        let take = Command::TakeNotices(notices);
        stage.local(self.me, 0, NodeEvent::Propose(to, take, reply));
    }

    fn use_tables(&mut self, action: Action, stage: &mut Stage) {
        let (shard, late) = (self.shard, stage.table_delay());
        match action {
            Action::ReadOrigins(read) => {
                self.comes(late, NodeEvent::ReadOrigins(shard, read), stage);
            }
            Action::ReadDue(now_ms) => self.comes(late, NodeEvent::ReadDue(shard, now_ms), stage),
            Action::WriteCheckpoint(applied, rows) => {
                let event = if stage.chance.one_in(30) {
                    let item = Item::CheckpointFailed { applied, rows, disk_is_full: false };
                    NodeEvent::Core(shard, Box::new(item))
                } else {
                    NodeEvent::WriteCheckpoint(shard, applied, rows)
                };
                self.comes(late, event, stage);
            }
            Action::Checkpointed(log_id) => self.raft.purge(crate::table::place(&log_id)),
            _ => {}
        }
    }

    fn begin_round(&mut self, stage: &mut Stage) {
        let around = Box::new(self.surroundings(stage));
        self.core.step(Item::RoundBegins(around), stage.clock(self.me));
    }

    fn surroundings(&self, stage: &mut Stage) -> Surroundings {
        Surroundings {
            settings: ClusterSettings {
                mailbox_messages: self.limits.mailbox_messages,
                mailbox_bytes: self.limits.mailbox_bytes,
                contact_share: self.limits.contact_share,
                stranger_share: self.limits.stranger_share,
                strangers_share: self.limits.strangers_share,
                device_idle_max_s: IDLE_S,
                ..ClusterSettings::default()
            },
            checkpoint_every_ms: stage.chance.pick(&[1_000, 2_000, 6_000]),
            disk: if self.full { Disk::NearlyFull } else { Disk::HasSpace },
            free_percent: 1_000,
            followed: self.raft.has_quorum(stage.now),
            may_expire: true,
            away: BTreeSet::new(),
        }
    }

    pub(crate) fn tick(&mut self, stage: &mut Stage) {
        let around = Box::new(self.surroundings(stage));
        self.step(Item::Tick(around), stage);
    }

    /// It is this shard's turn to propose.
    pub(crate) fn round_begins(&mut self, stage: &mut Stage) {
        let around = Box::new(self.surroundings(stage));
        self.step(Item::RoundBegins(around), stage);
    }

    fn tell(&mut self, hint: Hint, stage: &mut Stage) {
        let (me, shard) = (self.me, self.shard);
        let mut lost = BTreeSet::new();
        match hint {
            Hint::Push(user, seq, envelope) => {
                stage.local(me, 0, NodeEvent::Push(user, seq, envelope));
            }
            Hint::AccountChanged(user, account) => {
                stage.local(me, 0, NodeEvent::Account(user, account));
            }
            Hint::LeaderAppeared(term) => {
                stage.local(me, 0, NodeEvent::ReadAgain(shard));
                for to in (0..NODES).filter(|to| *to != me) {
                    if !stage.send(me, to, Message::LeaderAppeared(shard, term)) {
                        lost.insert(id(to));
                    }
                }
            }
            Hint::TellLeader(node, term) => {
                if !stage.send(me, number(node), Message::LeaderAppeared(shard, term)) {
                    lost.insert(node);
                }
            }
            Hint::GrownTo(node, user, seq) => {
                if !stage.send(me, number(node), Message::GrownTo { user, seq }) {
                    lost.insert(node);
                }
            }
            Hint::RemoveSession(..) | Hint::WrongPins(_) | Hint::PinsUsedUp => {}
        }
        if !lost.is_empty() {
            self.step(Item::Lost(lost), stage);
        }
    }

    pub(crate) fn propose(&mut self, command: Command, reply: Reply, stage: &mut Stage) {
        let token = self.token();
        self.replies.insert(token, reply);
        self.step(Item::Propose(command, token), stage);
    }

    /// Another node's batch.
    pub(crate) fn propose_all(
        &mut self,
        (from, number): (usize, u64),
        commands: Vec<stored::Command>,
        stage: &mut Stage,
    ) {
        let token = self.token();
        self.peers.insert(token, (from, number));
        self.step(Item::ProposeAll(commands, token), stage);
    }

    fn forward(&mut self, leader: usize, number: u64, parcel: Bytes, stage: &mut Stage) {
        let request = cluster::Request::decode(parcel).unwrap();
        let Some(request::Kind::Propose(propose)) = request.kind else { panic!("no batch") };
        let (shard, commands) = (self.shard, propose.commands);
        // An answer to an earlier life is none.
        let number = stage.lives[self.me] << 32 | number;
        self.forwarding.insert(number);
        let linked = stage.send(self.me, leader, Message::Propose { shard, number, commands });
        let (late, why) = if linked {
            (FORWARD_MS, NotForwarded::Unknown)
        } else {
            (0, NotForwarded::NotProposed)
        };
        stage.local(self.me, late, NodeEvent::Forwarded(shard, number, Err(why)));
    }

    /// A call is answered or times out, not both.
    pub(crate) fn forwarded(
        &mut self,
        number: u64,
        outcomes: Result<Vec<Outcome>, NotForwarded>,
        stage: &mut Stage,
    ) {
        if self.forwarding.remove(&number) {
            self.step(Item::Forwarded(number & u64::from(u32::MAX), outcomes), stage);
        }
    }

    pub(crate) fn not_proposed(&mut self, number: u64, why: NotDone, stage: &mut Stage) {
        stage.note(|| by(self.me, format_args!("shard {}: batch {number} {why:?}", self.shard)));
        let failure = match why {
            NotDone::NotLeader => Failure::NotProposed,
            NotDone::Unknown => Failure::Unknown,
        };
        if number >> 32 == self.actor {
            self.step(Item::NotProposed(number & u64::from(u32::MAX), failure), stage);
        }
    }

    pub(crate) fn question(&mut self, question: Question, stage: &mut Stage) {
        let followed = self.raft.has_quorum(stage.now);
        let (token, ask) = (self.token(), question.ask.clone());
        self.questions.insert(token, By::Here(question));
        self.step(Item::Ask { ask, token, followed }, stage);
    }

    pub(crate) fn question_of_peer(
        &mut self,
        (from, number): (usize, u64),
        ask: actors::shard::Ask,
        stage: &mut Stage,
    ) {
        let (token, followed) = (self.token(), self.raft.has_quorum(stage.now));
        self.questions.insert(token, By::Peer(from, number));
        self.step(Item::AskOfPeer { ask, token, followed }, stage);
    }

    fn ask_leader(&mut self, leader: usize, asked: Asked, stage: &mut Stage) {
        let (shard, number, ask) = (self.shard, self.token(), asked.ask.clone());
        self.asking.insert(number, asked);
        let linked = stage.send(self.me, leader, Message::Ask { shard, number, ask });
        let late = if linked { FORWARD_MS } else { 0 };
        stage.local(self.me, late, NodeEvent::AskOver(shard, number));
    }

    /// A leader elsewhere has answered, or has not.
    pub(crate) fn asked_elsewhere(
        &mut self,
        number: u64,
        answered: Option<Answered>,
        stage: &mut Stage,
    ) {
        let Some(asked) = self.asking.remove(&number) else { return };
        if answered.is_some() {
            self.reply(asked.token, answered, stage);
        } else {
            let again = NodeEvent::Core(self.shard, Box::new(Item::AskAgain(asked)));
            self.comes(SOON_MS, again, stage);
        }
    }

    pub(crate) fn reply(&mut self, token: Token, answered: Option<Answered>, stage: &mut Stage) {
        match self.questions.remove(&token) {
            Some(By::Here(question)) => {
                stage.local(self.me, 0, NodeEvent::Answered(question, answered));
            }
            Some(By::Peer(to, number)) => {
                let shard = self.shard;
                stage.send(self.me, to, Message::Answer { shard, number, answered });
            }
            None => panic!("a question is answered once"),
        }
    }

    pub(crate) fn stands(&mut self, stage: &mut Stage) {
        let Raft { leader, leads: me_leads, term, .. } = self.raft;
        let leader = leader.map(id);
        let last_index = self.raft.last().index;
        let now = Leadership { leader, me_leads, term, voters: NODES, last_index };
        stage.note(|| by(self.me, format_args!("shard {}: {now:?}", self.shard)));
        self.step(Item::Stands(now), stage);
    }

    /// Hands over what is committed, one entry after the other.
    pub(crate) fn apply(&mut self, stage: &mut Stage) {
        if self.busy.is_some() {
            return;
        }
        if let Some(entry) = self.raft.hand_over() {
            let token = self.token();
            self.busy = Some(token);
            self.step(Item::Committed(vec![entry], token), stage);
        }
    }
}
