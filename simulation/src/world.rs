//! The world of a run: three nodes, their users, the judge; and who gets what happens.

use crate::device::{Device, Socket};
use crate::judge::Judge;
use crate::plan::Plan;
use crate::seat::{Seat, id};
use crate::stage::{DeviceEvent, Event, Message, NODES, NodeEvent, Stage};
use crate::users::{Told, Users};
use actors::shard::{Entry, Fault, Item};
use proto::ShardId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Between two ticks of a node, in ms.
const TICK_MS: u64 = 1_000;

/// Between two heartbeats of a leader, in ms.
const BEAT_MS: u64 = 250;

/// Each node compares its sessions table with the others' once in so many ticks.
const EXCHANGE_TICKS: u64 = 8;

pub(crate) struct Node {
    pub(crate) seats: BTreeMap<ShardId, Seat>,
    pub(crate) users: Users,
    /// Built into its cores.
    pub(crate) fault: Option<Fault>,
    /// How often it has started.
    pub(crate) starts: u64,
}

pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) nodes: Vec<Node>,
    pub(crate) devices: Vec<Device>,
    pub(crate) judge: Judge,
    pub(crate) plan: Plan,
    /// Open connections: whose, and at which node.
    pub(crate) connections: BTreeMap<u64, (usize, Socket)>,
    pub(crate) connection_ids: u64,
    /// What replicas held at each place of each log.
    digests: BTreeMap<(ShardId, u64), (u64, usize)>,
}

impl World {
    pub(crate) fn new(stage: Stage, nodes: Vec<Node>, plan: Plan) -> Self {
        Self {
            stage,
            nodes,
            devices: Vec::new(),
            judge: Judge::default(),
            plan,
            connections: BTreeMap::new(),
            connection_ids: 0,
            digests: BTreeMap::new(),
        }
    }

    /// Lets things happen until a time.
    pub(crate) fn run(&mut self, until: u64) -> Result<(), String> {
        while let Some(event) = self.stage.next(until) {
            self.happen(event);
            if let Some(fault) = self.judge.faults().first() {
                return Err(fault.clone());
            }
        }
        self.stage.now = until;
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Node { node, life, what } => {
                if life != 0 && self.stage.lives[node] == life {
                    self.within(node, what);
                    self.settle(node);
                }
            }
            Event::Arrive { from, to, message } => {
                let alive =
                    |(node, life): (usize, u64)| life != 0 && self.stage.lives[node] == life;
                if alive(from) && alive(to) && self.stage.are_joined(from.0, to.0) {
                    self.arrive(from.0, to.0, message);
                    self.settle(to.0);
                }
            }
            Event::Frame { connection, frame } => {
                let Some((_, socket)) = self.connections.get(&connection).copied() else { return };
                if socket.life == self.stage.lives[socket.node] {
                    self.nodes[socket.node].users.frame(connection, frame, &mut self.stage);
                    self.settle(socket.node);
                }
            }
            Event::Told { connection, frame } => {
                let Some((device, _)) = self.connections.get(&connection).copied() else { return };
                let device = &mut self.devices[device];
                if device.socket.is_some_and(|socket| socket.id == connection)
                    && let Some(socket) = device.told(frame, &mut self.judge, &mut self.stage)
                {
                    self.connections.remove(&socket.id);
                }
            }
            Event::Device { device, what } => self.device(device, what),
            Event::Fault => self.fault(),
            Event::Noise => self.noise(),
            Event::CheckLeaders => self.check_leaders(),
            Event::Mend(from, to) => self.stage.set_cut(from, to, false),
            Event::LinkDown(a, b) => {
                self.stage.link_down(a, b);
                self.stage.local(a, 0, NodeEvent::PeerDown(b));
                self.stage.local(b, 0, NodeEvent::PeerDown(a));
            }
            Event::LinkUp(a, b) => {
                if self.stage.link_up(a, b) {
                    self.peers_meet(a, b);
                }
            }
            Event::Start(node) => self.start(node),
        }
    }

    fn device(&mut self, number: usize, what: DeviceEvent) {
        let (device, stage) = (&mut self.devices[number], &mut self.stage);
        match what {
            DeviceEvent::Connect => {
                let node = stage.chance.index(NODES);
                self.connect(number, node);
            }
            DeviceEvent::Write => {
                let (ttl_s, body) = (self.plan.ttl_s(stage), self.plan.body(stage));
                device.write(ttl_s, body, &mut self.judge, stage);
            }
            DeviceEvent::Pump => device.pump(stage),
            DeviceEvent::Acknowledge => device.acknowledge(&mut self.judge, stage),
            DeviceEvent::Lose => {
                if let Some(socket) = device.lose(stage) {
                    // What it said last may still arrive; the node may notice late.
                    let late = stage.chance.pick(&[0, 10, 3_000, 20_000]);
                    stage.local(socket.node, late, NodeEvent::Gone(socket.id));
                }
            }
        }
    }

    /// A device connects to a node, if it is not connected.
    pub(crate) fn connect(&mut self, device: usize, node: usize) {
        self.connection_ids += 1;
        let socket = self.devices[device].connect(self.connection_ids, node, &mut self.stage);
        if let Some(socket) = socket {
            self.connections.insert(socket.id, (device, socket));
        }
    }

    // ---- Nodes -------------------------------------------------------------------------------

    fn seat(&mut self, node: usize, shard: ShardId) -> (&mut Seat, &mut Stage) {
        (self.nodes[node].seats.get_mut(&shard).unwrap(), &mut self.stage)
    }

    /// After each event: what waits is proposed.
    fn settle(&mut self, node: usize) {
        let told = self.nodes[node].users.take_told();
        self.tell_rows(node, &told);
        for (shard, seat) in &mut self.nodes[node].seats {
            seat.step(Item::Settle, &mut self.stage);
            for (index, digest) in seat.digests.drain(..) {
                let first = *self.digests.entry((*shard, index)).or_insert((digest, node));
                if first.0 != digest {
                    let others = first.1;
                    self.judge.wrong(format!(
                        "shard {shard} at {index}: nodes {node} and {others} hold different things"
                    ));
                }
            }
        }
    }

    fn within(&mut self, node: usize, what: NodeEvent) {
        match what {
            NodeEvent::Tick => {
                self.stage.local(node, TICK_MS, NodeEvent::Tick);
                let stage = &mut self.stage;
                self.nodes[node].seats.values_mut().for_each(|seat| seat.tick(stage));
                if (stage.now / TICK_MS) % EXCHANGE_TICKS == node as u64 {
                    (0..NODES).for_each(|peer| self.tell_table(node, peer));
                }
            }
            NodeEvent::Beat(shard, term) => {
                let (seat, stage) = self.seat(node, shard);
                if seat.raft.leads && seat.raft.term == term {
                    seat.raft.beat(stage);
                    stage.local(node, BEAT_MS, NodeEvent::Beat(shard, term));
                }
            }
            NodeEvent::Flushed(shard, place) => {
                let (seat, stage) = self.seat(node, shard);
                seat.raft.flush(place, stage);
            }
            NodeEvent::Apply(shard) => {
                let (seat, stage) = self.seat(node, shard);
                seat.apply(stage);
            }
            NodeEvent::Came(shard, actor, what) => {
                if self.seat(node, shard).0.actor == actor {
                    self.within(node, *what);
                }
            }
            NodeEvent::Stands(shard) => {
                let (seat, stage) = self.seat(node, shard);
                seat.stands(stage);
            }
            NodeEvent::SendSnapshot(shard, to, term) => {
                let (seat, stage) = self.seat(node, shard);
                if seat.raft.leads && seat.raft.term == term {
                    let table = Arc::new(seat.table.clone());
                    stage.send(node, to, Message::Snapshot { shard, term, table });
                }
            }
            NodeEvent::Answered(..)
            | NodeEvent::Push(..)
            | NodeEvent::Account(..)
            | NodeEvent::AccountNotRead(_)
            | NodeEvent::ReadAgain(_)
            | NodeEvent::AckRefused(_)
            | NodeEvent::TryAgain(_)
            | NodeEvent::Outcome { .. }
            | NodeEvent::Readmitted { .. }
            | NodeEvent::AttachAgain(..)
            | NodeEvent::UserCrash(_)
            | NodeEvent::Gone(_)
            | NodeEvent::PeerUp(_)
            | NodeEvent::PeerDown(_) => self.within_users(node, what),
            other => self.within_shard(node, other),
        }
    }

    fn within_shard(&mut self, node: usize, what: NodeEvent) {
        let shard = match &what {
            NodeEvent::Propose(shard, ..)
            | NodeEvent::ProposeLazily(shard, _)
            | NodeEvent::NotProposed(shard, ..)
            | NodeEvent::Forwarded(shard, ..)
            | NodeEvent::Core(shard, _)
            | NodeEvent::Confirm(shard)
            | NodeEvent::RoundBegins(shard)
            | NodeEvent::Ask(shard, _)
            | NodeEvent::AskOver(shard, _)
            | NodeEvent::ReadPage(shard, ..)
            | NodeEvent::ReadOrigins(shard, _)
            | NodeEvent::ReadDue(shard, _)
            | NodeEvent::WriteCheckpoint(shard, ..)
            | NodeEvent::Load(shard, _) => *shard,
            NodeEvent::RoundLook => {
                self.stage.look_at_rounds(node);
                return;
            }
            _ => return,
        };
        let leads = self.leads_for_certain(node, shard);
        let (seat, stage) = self.seat(node, shard);
        match what {
            NodeEvent::Propose(_, command, reply) => seat.propose(command, reply, stage),
            NodeEvent::ProposeLazily(_, command) => seat.step(Item::ProposeLazily(command), stage),
            NodeEvent::NotProposed(_, number, why) => seat.not_proposed(number, why, stage),
            NodeEvent::Forwarded(_, number, outcomes) => seat.forwarded(number, outcomes, stage),
            NodeEvent::Core(_, item) => seat.step(*item, stage),
            NodeEvent::Confirm(_) => seat.step(Item::Confirmed(leads), stage),
            NodeEvent::RoundBegins(_) => seat.round_begins(stage),
            NodeEvent::Ask(_, question) => seat.question(question, stage),
            NodeEvent::AskOver(_, number) => seat.asked_elsewhere(number, None, stage),
            NodeEvent::ReadPage(_, token, read) => seat.read_page(token, *read, stage),
            NodeEvent::ReadOrigins(_, read) => seat.read_origins(*read, stage),
            NodeEvent::ReadDue(_, now_ms) => seat.read_due(now_ms, stage),
            NodeEvent::WriteCheckpoint(_, applied, rows) => {
                seat.write_checkpoint(applied, rows, stage);
            }
            NodeEvent::Load(_, token) => seat.load(token, stage),
            _ => {}
        }
    }

    fn within_users(&mut self, node: usize, what: NodeEvent) {
        let (Node { users, seats, .. }, stage) = (&mut self.nodes[node], &mut self.stage);
        match what {
            NodeEvent::Answered(question, answered) => users.answered(question, answered, stage),
            NodeEvent::Push(user, seq, envelope) => {
                for to in users.elsewhere(user, stage) {
                    let push = Message::Push { user, seq, envelope: envelope.clone() };
                    let lost = BTreeSet::from([id(to)]);
                    if !stage.send(node, to, push)
                        && let Some(seat) = seats.get_mut(&user.shard())
                    {
                        seat.step(Item::Lost(lost), stage);
                    }
                }
                users.push(user, Entry { seq, envelope }, stage);
            }
            NodeEvent::Account(user, account) => {
                for to in users.elsewhere(user, stage) {
                    let account = account.clone();
                    let lost = BTreeSet::from([id(to)]);
                    if !stage.send(node, to, Message::Account { user, account })
                        && let Some(seat) = seats.get_mut(&user.shard())
                    {
                        seat.step(Item::Lost(lost), stage);
                    }
                }
                users.account(user, account, stage);
            }
            NodeEvent::AccountNotRead(user) => users.read_account(user, stage),
            NodeEvent::ReadAgain(shard) => users.read_again(shard, stage),
            NodeEvent::AckRefused(connection) => {
                stage.local(node, crate::seat::AGAIN_MS, NodeEvent::TryAgain(connection));
            }
            NodeEvent::TryAgain(connection) => users.try_again(connection, stage),
            NodeEvent::Outcome { sent, outcome } => users.outcome(sent, &outcome, stage),
            NodeEvent::Readmitted { connection, done } => users.readmitted(connection, done, stage),
            NodeEvent::AttachAgain(user, device, of) => users.attach(user, device, of, stage),
            NodeEvent::UserCrash(user) => users.crash(user, stage),
            NodeEvent::Gone(connection) => {
                users.gone(connection, stage);
                self.connections.remove(&connection);
            }
            NodeEvent::PeerUp(peer) => {
                for seat in seats.values_mut() {
                    seat.step(Item::PeerChanged(id(peer), true), stage);
                }
                self.tell_table(node, peer);
            }
            NodeEvent::PeerDown(peer) => {
                for seat in seats.values_mut() {
                    seat.step(Item::PeerChanged(id(peer), false), stage);
                }
            }
            _ => {}
        }
    }

    /// Tells all other nodes rows of the sessions table.
    fn tell_rows(&mut self, node: usize, rows: &[Told]) {
        for to in (0..NODES).filter(|to| *to != node && !rows.is_empty()) {
            self.stage.send(node, to, Message::Sessions(rows.to_vec()));
        }
    }

    /// Tells another node all rows: in the place of digests.
    fn tell_table(&mut self, node: usize, to: usize) {
        if to != node {
            let known = &self.nodes[node].users.known;
            let rows = known.iter().map(|(key, row)| (*key, *row)).collect();
            self.stage.send(node, to, Message::Sessions(rows));
        }
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        match message {
            Message::Append(append) => {
                let (seat, stage) = self.seat(to, append.shard);
                seat.raft.append(from, append, stage);
            }
            Message::Appended { shard, term, matched } => {
                let (seat, stage) = self.seat(to, shard);
                seat.raft.appended(from, term, matched, stage);
            }
            Message::Snapshot { shard, term, table } => {
                let (seat, stage) = self.seat(to, shard);
                if term >= seat.raft.term {
                    seat.raft.follow_term(term, stage);
                    seat.raft.has_leader(from, stage);
                    seat.take_snapshot(&table, stage);
                    seat.raft.acknowledge(from, stage);
                }
            }
            Message::Propose { shard, number, commands } => {
                let (seat, stage) = self.seat(to, shard);
                seat.propose_all((from, number), commands, stage);
            }
            Message::Outcomes { shard, number, outcomes } => {
                let (seat, stage) = self.seat(to, shard);
                seat.forwarded(number, Ok(outcomes), stage);
            }
            Message::Ask { shard, number, ask } => {
                let (seat, stage) = self.seat(to, shard);
                seat.question_of_peer((from, number), ask, stage);
            }
            Message::Answer { shard, number, answered } => {
                let (seat, stage) = self.seat(to, shard);
                seat.asked_elsewhere(number, answered, stage);
            }
            Message::Push { user, seq, envelope } => {
                self.nodes[to].users.push(user, Entry { seq, envelope }, &mut self.stage);
            }
            Message::GrownTo { user, seq } => {
                self.nodes[to].users.grown_to(user, seq, &mut self.stage);
            }
            Message::Account { user, account } => {
                self.nodes[to].users.account(user, account, &mut self.stage);
            }
            Message::LeaderAppeared(shard, term) => {
                let (seat, stage) = self.seat(to, shard);
                seat.step(Item::LeadsElsewhere(id(from), term), stage);
                self.nodes[to].users.read_again(shard, &mut self.stage);
            }
            Message::Sessions(rows) => {
                let opened = self.nodes[to].users.merge(rows, &mut self.stage);
                for (user, node) in opened {
                    let (seat, stage) = self.seat(to, user.shard());
                    seat.step(Item::SessionOpened(user, id(node)), stage);
                }
            }
        }
    }
}
