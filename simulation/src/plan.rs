//! What a seed does to the world: who is there, how rough it is, what breaks and when.

use crate::device::Device;
use crate::seat::Seat;
use crate::stage::{DeviceEvent, Event, NODES, NodeEvent, Stage, Weather};
use crate::users::Users;
use crate::world::{Node, World};
use actors::shard::{Command, Fault, MachineLimits};
use bytes::Bytes;
use proto::{DeviceId, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet};

/// What people write begins like this.
static BODY: [u8; 150_000] = [7; 150_000];

/// What a seed has chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Faults and sends end then, in ms.
    pub(crate) rough_until: u64,
    /// Longest wait between two faults, in ms.
    fault_every: u64,
    /// Messages end after a few seconds, in percent.
    short_lived: u64,
    pub(crate) small_mailboxes: bool,
    /// Some bodies are so long that few fit into a window.
    long_bodies: bool,
}

impl Plan {
    pub(crate) fn ttl_s(&self, stage: &mut Stage) -> u32 {
        let short = stage.chance.percent(self.short_lived);
        if short { stage.chance.pick(&[1, 3, 8]) } else { 3_600 * 24 }
    }

    pub(crate) fn body(&self, stage: &mut Stage) -> Bytes {
        let long = self.long_bodies && stage.chance.one_in(3);
        Bytes::from_static(&BODY[..stage.chance.index(if long { BODY.len() } else { 20 })])
    }
}

fn users_in(shards: &[ShardId], count: usize) -> Vec<UserId> {
    let ids = (1..).map(UserId).filter(|user| shards.contains(&user.shard()));
    ids.take(count).collect()
}

fn nodes(shards: &[ShardId], limits: MachineLimits, fault: Option<Fault>) -> Vec<Node> {
    let node = |me| Node {
        seats: shards.iter().map(|s| (*s, Seat::new((me, *s), limits, fault))).collect(),
        users: Users::new(me, 1, BTreeMap::new(), fault),
        fault,
        starts: 1,
    };
    (0..NODES).map(node).collect()
}

impl World {
    /// The world of a seed, before anything has happened, with a fault in its cores.
    pub(crate) fn of_seed(seed: u64, tracing: bool, fault: Option<Fault>) -> Self {
        let shards = [ShardId(1), ShardId(6), ShardId(11)];
        let mut stage = Stage::new(seed, shards.to_vec(), tracing);
        let chance = &mut stage.chance;
        let shards = &shards[..=chance.index(3)];
        let small_mailboxes = chance.one_in(4);
        let mailbox_messages = if small_mailboxes { chance.between(2, 6) } else { 1_000 };
        let plan = Plan {
            rough_until: chance.between(4_000, 20_000),
            fault_every: chance.pick(&[400, 1_500, 5_000]),
            short_lived: chance.pick(&[0, 0, 0, 30]),
            small_mailboxes,
            long_bodies: chance.one_in(25),
        };
        let limits =
            MachineLimits { mailbox_messages, mailbox_bytes: 1 << 26, ..MachineLimits::default() };
        let limits = limits.unshared();
        stage.only(shards);
        let mut world = Self::new(stage, nodes(shards, limits, fault), plan);
        let count = world.stage.chance.index(3) + 2;
        world.settle_down(&users_in(shards, count), 2);
        world
    }

    /// Two people with one device each, and one shard.
    pub(crate) fn of_two() -> Self {
        let shards = [ShardId(1)];
        let stage = Stage::new(1, shards.to_vec(), false);
        let limits = MachineLimits {
            mailbox_messages: 1_000,
            mailbox_bytes: 1 << 26,
            ..MachineLimits::default()
        };
        let limits = limits.unshared();
        let plan = Plan {
            rough_until: 0,
            fault_every: 1,
            short_lived: 0,
            small_mailboxes: false,
            long_bodies: false,
        };
        let mut world = Self::new(stage, nodes(&shards, limits, None), plan);
        world.settle_down(&users_in(&shards, 2), 1);
        world
    }

    /// Who is there, each with so many devices at most.
    fn settle_down(&mut self, users: &[UserId], devices_max: u32) {
        let chance = &mut self.stage.chance;
        for user in users {
            let devices = if chance.one_in(2) { 1 } else { devices_max };
            for device in 1..=devices {
                let number = self.devices.len();
                let mut made = Device::new(number, *user, DeviceId(device));
                made.peers = users.iter().filter(|other| *other != user).copied().collect();
                if devices > 1 && chance.one_in(4) {
                    made.peers.push(*user);
                }
                self.judge.device(made.who());
                self.devices.push(made);
            }
        }
        for node in 0..NODES {
            let late = self.stage.chance.below(1_000);
            self.stage.local(node, late, NodeEvent::Tick);
        }
        self.stage.weather =
            Weather { delay_ms: 3, flush_ms: 2, apply_ms: 1, table_ms: 5, ..Weather::default() };
        self.stage.after(1, Event::CheckLeaders);
    }

    /// Makes the accounts while all is calm.
    pub(crate) fn register(&mut self) -> Result<(), String> {
        self.run(1_500)?;
        while !self.stage.shards().iter().all(|shard| self.leads_for_certain_somewhere(*shard)) {
            self.run(self.stage.now + 100)?;
        }
        // Notices that nobody sends: a shard owes itself none.
        let mut opened = BTreeMap::new();
        for device in 0..self.devices.len() {
            let Device { user, id, .. } = self.devices[device];
            let key = vec![u8::try_from(id.0).unwrap(); 32].into();
            let name = "device".to_owned();
            let command = if id.0 == 1 {
                let number = opened.entry(user.shard()).and_modify(|n| *n += 1).or_insert(1);
                let open = stored::OpenAccount { alias: None, key, name };
                let what = Some(stored::notice::What::OpenAccount(open));
                let notices = vec![stored::Notice { number: *number, user: user.0, what }];
                let from_shard = user.shard().0.into();
                Command::TakeNotices(stored::TakeNotices { from_shard, notices })
            } else {
                Command::AdmitDevice(stored::AdmitDevice { user: user.0, by_device: 1, key, name })
            };
            let propose = NodeEvent::Propose(user.shard(), command, Box::new(|_| ()));
            self.stage.local(0, 0, propose);
            self.run(self.stage.now + 100)?;
        }
        self.run(self.stage.now + 1_000)
    }

    /// Lets the weather, the faults and the people begin.
    pub(crate) fn begin(&mut self) {
        self.change_weather();
        self.plan.rough_until += self.stage.now;
        self.stage.after(100, Event::Fault);
        self.stage.after(200, Event::Noise);
        let chance = &mut self.stage.chance;
        let talkative = !self.plan.small_mailboxes && chance.one_in(40);
        let each = if talkative { 300 } else { chance.between(1, 25) };
        let pause = chance.pick(&[20, 300, 900]);
        for device in 0..self.devices.len() {
            self.stage.after(1, Event::Device { device, what: DeviceEvent::Connect });
            let mut at = 0;
            for _ in 0..each {
                let burst = self.stage.chance.one_in(3);
                at += if burst { 0 } else { self.stage.chance.below(pause) };
                let at = at % (self.plan.rough_until - self.stage.now);
                self.stage.after(at, Event::Device { device, what: DeviceEvent::Write });
            }
        }
    }

    /// Everything works again.
    pub(crate) fn heal(&mut self) {
        self.stage.note(|| "everything works again".to_owned());
        self.stage.calm();
        for node in 0..NODES {
            self.nodes[node].seats.values_mut().for_each(|seat| seat.full = false);
            self.stage.after(0, Event::Start(node));
        }
    }

    // ---- Faults ------------------------------------------------------------------------------

    fn change_weather(&mut self) {
        let chance = &mut self.stage.chance;
        self.stage.weather = Weather {
            loss_percent: chance.pick(&[0, 0, 1, 10]),
            double_percent: chance.pick(&[0, 0, 5]),
            delay_ms: chance.pick(&[1, 10, 60]),
            flush_ms: chance.pick(&[1, 5, 40]),
            apply_ms: chance.pick(&[0, 5, 60]),
            table_ms: chance.pick(&[1, 20, 600]),
            too_fast_percent: chance.pick(&[0, 0, 3]),
        };
    }

    /// Something breaks.
    pub(crate) fn fault(&mut self) {
        if self.stage.now >= self.plan.rough_until {
            return;
        }
        let late = self.stage.chance.below(self.plan.fault_every) + 1;
        self.stage.after(late, Event::Fault);
        let length = self.stage.chance.pick(&[50, 700, 2_500, 7_000]);
        let node = self.stage.chance.index(NODES);
        match self.stage.chance.below(16) {
            0..3 => self.crash(node, length),
            3 if self.stage.chance.one_in(3) => {
                (0..NODES).for_each(|node| self.crash(node, length));
            }
            3 => self.stage.ahead_ms[node] = self.stage.chance.pick(&[0, 5_000, 60_000]),
            4 => self.change_weather(),
            5 | 6 => {
                let other = (node + 1 + self.stage.chance.index(NODES - 1)) % NODES;
                let both = self.stage.chance.one_in(2);
                self.cut(node, other, length);
                if both {
                    self.cut(other, node, length);
                }
            }
            7 => {
                for other in (0..NODES).filter(|other| *other != node) {
                    self.cut(node, other, length);
                    self.cut(other, node, length);
                }
            }
            8 | 9 => {
                let shard = {
                    let shards = self.stage.shards();
                    self.stage.chance.pick(&shards)
                };
                self.elect(shard);
            }
            10 => {
                let full = self.stage.chance.one_in(2);
                self.nodes[node].seats.values_mut().for_each(|seat| seat.full = full);
            }
            11 | 12 => {
                let device = self.stage.chance.index(self.devices.len());
                let user = self.devices[device].user;
                self.stage.local(node, 0, NodeEvent::UserCrash(user));
            }
            13 => {
                let shards = self.stage.shards();
                let shard = self.stage.chance.pick(&shards);
                let actions = self.stage.chance.below(40);
                if let Some(seat) = self.nodes[node].seats.get_mut(&shard) {
                    seat.dies_after(actions);
                }
            }
            _ => {
                let device = self.stage.chance.index(self.devices.len());
                self.stage.after(0, Event::Device { device, what: DeviceEvent::Lose });
            }
        }
    }

    fn cut(&mut self, from: usize, to: usize, length: u64) {
        self.stage.note(|| format!("cut: {from} -> {to} for {length} ms"));
        self.stage.set_cut(from, to, true);
        self.stage.after(length, Event::Mend(from, to));
    }

    fn crash(&mut self, node: usize, length: u64) {
        if self.stage.lives[node] == 0 {
            return;
        }
        self.stage.note(|| format!("node {node}  dies"));
        self.stage.lives[node] = 0;
        for seat in self.nodes[node].seats.values_mut() {
            seat.crash(&mut self.stage);
        }
        self.stage.forget_rounds(node);
        let Node { users, starts, fault, .. } = &mut self.nodes[node];
        let known = std::mem::take(&mut users.known);
        *users = Users::new(node, *starts + 1, known, *fault);
        self.drop_connections(node);
        for other in (0..NODES).filter(|other| *other != node) {
            self.stage.link_down(node, other);
        }
        self.stage.after(length, Event::Start(node));
    }

    fn drop_connections(&mut self, node: usize) {
        let gone = self.connections.extract_if(.., |_, (_, socket)| socket.node == node);
        let gone: Vec<_> = gone.collect();
        for (id, (device, _)) in gone {
            let device = &mut self.devices[device];
            if device.socket.is_some_and(|socket| socket.id == id) {
                device.lose(&mut self.stage);
            }
        }
    }

    /// A node starts.
    pub(crate) fn start(&mut self, node: usize) {
        if self.stage.lives[node] != 0 {
            return;
        }
        self.stage.note(|| format!("node {node}  starts"));
        self.nodes[node].starts += 1;
        self.stage.lives[node] = self.nodes[node].starts;
        let life = self.nodes[node].starts;
        self.nodes[node].seats.values_mut().for_each(|seat| seat.start(life));
        self.stage.local(node, 10, NodeEvent::Tick);
    }

    /// A link is up again.
    pub(crate) fn peers_meet(&mut self, a: usize, b: usize) {
        self.stage.local(a, 0, NodeEvent::PeerUp(b));
        self.stage.local(b, 0, NodeEvent::PeerUp(a));
    }

    // ---- Elections ---------------------------------------------------------------------------

    fn is_up(&self, node: usize) -> bool {
        self.stage.lives[node] != 0
    }

    fn top_term(&self, shard: ShardId) -> u64 {
        self.nodes.iter().map(|node| node.seats[&shard].raft.term).max().unwrap_or_default()
    }

    /// Whether a node leads and a majority knows it, so that nobody else has led since.
    pub(crate) fn leads_for_certain(&self, node: usize, shard: ShardId) -> bool {
        let raft = &self.nodes[node].seats[&shard].raft;
        let heard = |other: &usize| {
            *other == node || self.is_up(*other) && self.stage.are_joined(node, *other)
        };
        let reached = (0..NODES).filter(heard).count();
        raft.leads && raft.term == self.top_term(shard) && reached > NODES / 2
    }

    fn leads_for_certain_somewhere(&self, shard: ShardId) -> bool {
        (0..NODES).any(|node| self.is_up(node) && self.leads_for_certain(node, shard))
    }

    /// Now and then: a shard that has no leader gets one.
    pub(crate) fn check_leaders(&mut self) {
        self.stage.after(200, Event::CheckLeaders);
        for shard in self.stage.shards() {
            if !self.leads_for_certain_somewhere(shard) && self.stage.chance.one_in(3) {
                self.elect(shard);
            }
        }
    }

    /// Someone whose log a majority finds good enough leads from now on.
    pub(crate) fn elect(&mut self, shard: ShardId) {
        let candidate = self.stage.chance.index(NODES);
        self.try_to_elect(shard, candidate);
    }

    /// A node is to lead all shards.
    pub(crate) fn elect_node(&mut self, candidate: usize) {
        for shard in self.stage.shards() {
            self.try_to_elect(shard, candidate);
        }
    }

    fn try_to_elect(&mut self, shard: ShardId, candidate: usize) {
        if !self.is_up(candidate) {
            return;
        }
        let log = self.nodes[candidate].seats[&shard].raft.last();
        let grants = |other: &usize| {
            let theirs = self.nodes[*other].seats[&shard].raft.last();
            let reached = self.is_up(*other) && self.stage.are_joined(candidate, *other);
            *other != candidate && reached && log >= theirs
        };
        let voters: BTreeSet<usize> = (0..NODES).filter(grants).collect();
        if voters.len() < NODES / 2 {
            return;
        }
        let term = self.top_term(shard) + 1;
        self.stage.note(|| format!("node {candidate}  is elected for shard {shard} in {term}"));
        for node in 0..NODES {
            let raft = &mut self.nodes[node].seats.get_mut(&shard).unwrap().raft;
            if node == candidate {
                raft.lead(term, &mut self.stage);
            } else if voters.contains(&node) {
                raft.follow_term(term, &mut self.stage);
            }
        }
    }
}
