//! The stage of a run: virtual time, what is going to happen, and the network between the nodes.
//!
//! # Invariants
//! 1. Everything that happens is an [`Event`]; two at the same time happen in the order in which
//!    they were planned. So a seed is one story.
//! 2. What goes to or comes from an earlier life of a node never arrives.

use crate::chance::Chance;
use crate::device::{FromNode, ToNode};
use crate::raft::Append;
use crate::table::{Place, Table};
use actors::shard::{
    AccountView, Answered, Ask, Command, Item, NotForwarded, OriginsRead, Outcome, PageRead, Reply,
    Rounds, Token, Turn,
};
use actors::user::Sent;
use proto::{DeviceId, Seq, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::time::Instant;

/// Nodes of the cluster.
pub(crate) const NODES: usize = 3;

/// Silence after which a link counts as down, and the time until it is up again, in ms.
const LINK_MS: u64 = 1_500;

/// When a run begins, Unix time in ms.
const CLOCK_MS: u64 = 1_700_000_000_000;

/// Why a batch was not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotDone {
    NotLeader,
    Unknown,
}

/// A question of a user's actor, and which of its connections waits for the answer.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) connection: u64,
    pub(crate) user: UserId,
    pub(crate) ask: Ask,
}

/// A row of the sessions table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) version: u64,
    /// The start of the node that wrote it.
    pub(crate) life: u64,
    pub(crate) node: usize,
    pub(crate) online: bool,
}

/// What one node says to another.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Append(Append),
    Appended { shard: ShardId, term: u64, matched: Result<u64, u64> },
    Snapshot { shard: ShardId, term: u64, table: Arc<Table> },
    Propose { shard: ShardId, number: u64, commands: Vec<stored::Command> },
    Outcomes { shard: ShardId, number: u64, outcomes: Vec<Outcome> },
    Ask { shard: ShardId, number: u64, ask: Ask },
    Answer { shard: ShardId, number: u64, answered: Option<Answered> },
    Push { user: UserId, seq: Seq, envelope: Arc<stored::Envelope> },
    GrownTo { user: UserId, seq: Seq },
    Account { user: UserId, account: Option<Arc<AccountView>> },
    LeaderAppeared(ShardId, u64),
    Sessions(Vec<((UserId, DeviceId), Row)>),
}

/// What happens within a node.
pub(crate) enum NodeEvent {
    Tick,
    // The group.
    Beat(ShardId, u64),
    Flushed(ShardId, Place),
    Apply(ShardId),
    Stands(ShardId),
    SendSnapshot(ShardId, usize, u64),
    // The shard.
    Propose(ShardId, Command, Reply),
    ProposeLazily(ShardId, Command),
    NotProposed(ShardId, u64, NotDone),
    Forwarded(ShardId, u64, Result<Vec<Outcome>, NotForwarded>),
    /// Something that comes of an action of this actor of a replica.
    Came(ShardId, u64, Box<NodeEvent>),
    /// Something that the core of a replica waits for.
    Core(ShardId, Box<Item>),
    Confirm(ShardId),
    RoundBegins(ShardId),
    RoundLook,
    Ask(ShardId, Question),
    AskOver(ShardId, u64),
    ReadPage(ShardId, Token, Box<PageRead>),
    ReadOrigins(ShardId, Box<OriginsRead>),
    ReadDue(ShardId, u64),
    WriteCheckpoint(ShardId, Box<stored::Applied>, Vec<storage::Row>),
    Load(ShardId, Token),
    // The users.
    Answered(Question, Option<Answered>),
    Account(UserId, Option<Arc<AccountView>>),
    AccountNotRead(UserId),
    Push(UserId, Seq, Arc<stored::Envelope>),
    ReadAgain(ShardId),
    AckRefused(u64),
    TryAgain(u64),
    Outcome {
        sent: Sent,
        outcome: Outcome,
    },
    Readmitted {
        connection: u64,
        done: bool,
    },
    AttachAgain(UserId, DeviceId, u64),
    UserCrash(UserId),
    Gone(u64),
    PeerUp(usize),
    PeerDown(usize),
}

/// What happens.
pub(crate) enum Event {
    Node { node: usize, life: u64, what: NodeEvent },
    Arrive { from: (usize, u64), to: (usize, u64), message: Message },
    Frame { connection: u64, frame: ToNode },
    Told { connection: u64, frame: FromNode },
    Device { device: usize, what: DeviceEvent },
    Fault,
    Noise,
    CheckLeaders,
    Mend(usize, usize),
    LinkUp(usize, usize),
    LinkDown(usize, usize),
    Start(usize),
}

/// What happens to a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeviceEvent {
    Connect,
    Write,
    Pump,
    Acknowledge,
    Lose,
}

/// How rough it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss_percent: u64,
    pub(crate) double_percent: u64,
    pub(crate) delay_ms: u64,
    pub(crate) flush_ms: u64,
    pub(crate) apply_ms: u64,
    pub(crate) table_ms: u64,
    /// Sends that come too fast for their user's rate.
    pub(crate) too_fast_percent: u64,
}

/// Virtual time, plans and the network.
pub(crate) struct Stage {
    pub(crate) chance: Chance,
    pub(crate) now: u64,
    pub(crate) weather: Weather,
    /// How far the clock of each node is ahead, in ms.
    pub(crate) ahead_ms: [u64; NODES],
    /// Which start of each node this is; 0: it is down.
    pub(crate) lives: [u64; NODES],
    shards: Vec<ShardId>,
    cut: [[bool; NODES]; NODES],
    down: [[bool; NODES]; NODES],
    shaken: [[bool; NODES]; NODES],
    events: BTreeMap<(u64, u64), Event>,
    /// How many events were planned so far.
    pub(crate) order: u64,
    said: Sender<(usize, u64, NodeEvent)>,
    heard: Receiver<(usize, u64, NodeEvent)>,
    tracing: bool,
    /// Users one of whose actors has crashed.
    pub(crate) crashed: BTreeSet<UserId>,
    /// The rounds in which the shards of each node propose.
    rounds: [Rounds; NODES],
    /// When somebody looks at them next.
    looks_at: [Option<u64>; NODES],
    /// Instant 0, for the rounds.
    begun: Instant,
}

/// How what was replied comes back into the plan.
#[derive(Clone)]
pub(crate) struct Voice {
    node: usize,
    life: u64,
    said: Sender<(usize, u64, NodeEvent)>,
}

impl Voice {
    pub(crate) fn say(&self, what: NodeEvent) {
        self.said.send((self.node, self.life, what)).unwrap();
    }
}

impl Stage {
    pub(crate) fn new(seed: u64, shards: Vec<ShardId>, tracing: bool) -> Self {
        let (said, heard) = channel();
        Self {
            chance: Chance::new(seed),
            now: 0,
            weather: Weather::default(),
            ahead_ms: [0; NODES],
            lives: [1; NODES],
            shards,
            cut: Default::default(),
            down: Default::default(),
            shaken: Default::default(),
            events: BTreeMap::new(),
            order: 0,
            said,
            heard,
            tracing,
            crashed: BTreeSet::new(),
            rounds: Default::default(),
            looks_at: [None; NODES],
            begun: Instant::now(),
        }
    }

    /// What a node's clock says, Unix time in ms. It may jump.
    pub(crate) fn clock(&self, node: usize) -> u64 {
        CLOCK_MS + self.now + self.ahead_ms[node]
    }

    /// Asks the rounds of a node for a turn. Whether it is there now; others are told.
    pub(crate) fn pace(
        &mut self,
        node: usize,
        step: impl FnOnce(&mut Rounds, Instant) -> Turn,
    ) -> bool {
        let now = self.begun + Duration::from_millis(self.now);
        let turn = step(&mut self.rounds[node], now);
        if let Some(due) = self.rounds[node].due() {
            let late = due.saturating_duration_since(now).as_millis();
            let late = u64::try_from(late).unwrap();
            if self.looks_at[node].is_none_or(|at| self.now + late < at) {
                self.looks_at[node] = Some(self.now + late);
                self.local(node, late, NodeEvent::RoundLook);
            }
        }
        for shard in turn.others {
            self.local(node, 0, NodeEvent::RoundBegins(shard));
        }
        turn.mine
    }

    /// Somebody looks whether the next round of a node is due.
    pub(crate) fn look_at_rounds(&mut self, node: usize) {
        self.looks_at[node] = None;
        self.pace(node, |rounds, now| rounds.looked_at(now));
    }

    /// A node has died, and its rounds with it.
    pub(crate) fn forget_rounds(&mut self, node: usize) {
        self.looks_at[node] = None;
        self.rounds[node] = Rounds::default();
    }

    /// Only these shards are there.
    pub(crate) fn only(&mut self, shards: &[ShardId]) {
        self.shards = shards.to_vec();
    }

    /// The shards that there are.
    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.shards.clone()
    }

    pub(crate) fn note(&self, say: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>6} ms  {}", self.now, say());
        }
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + ms, self.order), event);
    }

    pub(crate) fn local(&mut self, node: usize, ms: u64, what: NodeEvent) {
        let life = self.lives[node];
        self.after(ms, Event::Node { node, life, what });
    }

    pub(crate) fn voice(&self, node: usize) -> Voice {
        Voice { node, life: self.lives[node], said: self.said.clone() }
    }

    /// The next thing that happens, not later than `until`.
    pub(crate) fn next(&mut self, until: u64) -> Option<Event> {
        while let Ok((node, life, what)) = self.heard.try_recv() {
            self.after(0, Event::Node { node, life, what });
        }
        let first = self.events.first_entry().filter(|entry| entry.key().0 <= until)?;
        self.now = first.key().0;
        Some(first.remove())
    }

    pub(crate) fn flush_delay(&mut self) -> u64 {
        let long = if self.chance.one_in(20) { 10 } else { 1 };
        self.chance.between(1, self.weather.flush_ms * long + 1)
    }

    pub(crate) fn apply_delay(&mut self) -> u64 {
        let long = if self.chance.one_in(20) { 10 } else { 1 };
        self.chance.below(self.weather.apply_ms * long + 1)
    }

    pub(crate) fn table_delay(&mut self) -> u64 {
        self.chance.between(1, self.weather.table_ms + 1)
    }

    // ---- The network -------------------------------------------------------------------------

    /// False: it is known to be lost, for there is no link.
    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) -> bool {
        if self.down[from][to] {
            return false;
        }
        if self.cut[from][to] {
            self.shake(from, to);
            return true;
        }
        let copies = if self.chance.percent(self.weather.double_percent) { 2 } else { 1 };
        let mut delays = Vec::new();
        for _ in 0..copies {
            if self.chance.percent(self.weather.loss_percent) {
                self.shake(from, to);
                continue;
            }
            let long = if self.chance.one_in(30) { 20 } else { 1 };
            delays.push(self.chance.between(1, self.weather.delay_ms * long + 1));
        }
        let (from, to) = ((from, self.lives[from]), (to, self.lives[to]));
        if delays.len() == 2 {
            self.after(delays[1], Event::Arrive { from, to, message: message.clone() });
        }
        if let Some(delay) = delays.first() {
            self.after(*delay, Event::Arrive { from, to, message });
        }
        true
    }

    /// Something was lost: this link breaks, and comes again.
    fn shake(&mut self, from: usize, to: usize) {
        if !std::mem::replace(&mut self.shaken[from][to], true) {
            let late = self.chance.between(LINK_MS / 2, LINK_MS);
            self.after(late, Event::LinkDown(from, to));
        }
    }

    pub(crate) fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from][to] = cut;
        if cut {
            self.shake(from, to);
        }
    }

    pub(crate) fn link_down(&mut self, from: usize, to: usize) {
        for (a, b) in [(from, to), (to, from)] {
            self.down[a][b] = true;
            self.shaken[a][b] = true;
        }
        let late = self.chance.between(10, LINK_MS);
        self.after(late, Event::LinkUp(from, to));
    }

    /// Whether the link is up again; tried again later if not.
    pub(crate) fn link_up(&mut self, from: usize, to: usize) -> bool {
        if self.cut[from][to] || self.cut[to][from] || self.lives[from] * self.lives[to] == 0 {
            self.after(LINK_MS / 2, Event::LinkUp(from, to));
            return false;
        }
        for (a, b) in [(from, to), (to, from)] {
            self.down[a][b] = false;
            self.shaken[a][b] = false;
        }
        true
    }

    /// Whether two nodes can speak with each other.
    pub(crate) fn are_joined(&self, a: usize, b: usize) -> bool {
        !self.cut[a][b] && !self.cut[b][a]
    }

    pub(crate) fn calm(&mut self) {
        self.cut = Default::default();
        let slow = self.weather.delay_ms.min(20);
        self.weather = Weather {
            loss_percent: 0,
            double_percent: 0,
            too_fast_percent: 0,
            delay_ms: slow,
            ..self.weather
        };
    }
}

/// Says who did something.
pub(crate) fn by(node: usize, what: impl Display) -> String {
    format!("node {node}  {what}")
}
