//! Many people who write to each other over connections that break, seeded, on the bare protocol,
//! with a judge who listens.
//!
//! Each device keeps what PROTOCOL.md tells it to keep: its ticket, the highest seq, the sends that
//! wait for an answer. **Invariant:** the checker hears of a send before the node does, and of an
//! acknowledgement before it leaves.

use crate::checker::{Checker, Name, Who, Wrong};
use crate::node::{Node, Target};
use crate::wire::{Phone, Wire};
use anyhow::{Result, bail};
use proto::Code;
use proto::wire::{
    Ack, Deliver, LinkDevice, Receipt, Send, client_frame::Kind as Ask, deliver::Content, receipt,
    send::To, server_frame::Kind as Say,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// What is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that is random.
    pub seed: u64,
    /// People.
    pub users: usize,
    /// How many of them have a second device.
    pub tablets: usize,
    /// Unanswered sends of each device.
    pub window: usize,
    /// Sends of each device; then it only reads.
    pub sends: u64,
    /// After each frame the connection is dropped with this chance, in thousandths.
    pub drops_per_1000: u32,
}

const SENDING: u8 = 0;
const READING: u8 = 1;
const ENDED: u8 = 2;

/// People who are at it.
#[derive(Debug)]
pub struct Workload {
    checker: Arc<Mutex<Checker>>,
    phase: Arc<AtomicU8>,
    tasks: JoinSet<Result<()>>,
    devices: usize,
}

impl Workload {
    /// Registers everyone and lets them begin.
    ///
    /// # Errors
    /// If the node refuses a registration.
    pub async fn start(node: &Node, plan: Plan) -> Result<Self> {
        Self::start_with(node, plan, |_| "").await
    }

    /// The same; each body begins with what `mark` gives for its send id.
    ///
    /// # Errors
    /// If the node refuses a registration.
    pub async fn start_with(
        node: &Node,
        plan: Plan,
        mark: fn(u64) -> &'static str,
    ) -> Result<Self> {
        let mut phones = Vec::new();
        for number in 0..plan.users {
            let (phone, mut wire) = Phone::register(node, &format!("user-{number}")).await?;
            if number < plan.tablets {
                phones.push(link(&mut wire, &phone).await?);
            }
            phones.push(phone);
        }
        let mut users: Vec<u64> = phones.iter().map(|phone| phone.user).collect();
        users.dedup();
        let mut checker = Checker::default();
        for phone in &phones {
            checker.device(who(phone));
        }
        let checker = Arc::new(Mutex::new(checker));
        let phase = Arc::new(AtomicU8::new(SENDING));
        let mut tasks = JoinSet::new();
        let devices = phones.len();
        for (number, phone) in phones.into_iter().enumerate() {
            let person = Person {
                target: node.target(),
                rng: StdRng::seed_from_u64(plan.seed.wrapping_add(number as u64)),
                others: users.iter().copied().filter(|user| *user != phone.user).collect(),
                who: who(&phone),
                phone,
                plan,
                mark,
                next_id: 1,
                unanswered: BTreeMap::new(),
                unacknowledged: 0,
                checker: Arc::clone(&checker),
                phase: Arc::clone(&phase),
            };
            tasks.spawn(person.live());
        }
        Ok(Self { checker, phase, tasks, devices })
    }

    /// How many sends were accepted so far.
    pub fn accepted(&self) -> usize {
        lock(&self.checker).accepted()
    }

    /// Waits until `count` more sends than now are accepted.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn progress(&self, count: usize, patience: Duration) -> Result<()> {
        let goal = self.accepted() + count;
        for _ in 0..patience.as_millis() / 50 {
            if self.accepted() >= goal {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("after {patience:?} {} sends are accepted, not {goal}", self.accepted())
    }

    /// No new sends; waits until everything is answered, seen and ticked or `patience` ends; ends
    /// everyone. How many were accepted, and what is wrong.
    ///
    /// # Errors
    /// If a device ended in error.
    pub async fn settle(mut self, patience: Duration) -> Result<(usize, Vec<Wrong>)> {
        self.phase.store(READING, Ordering::Relaxed);
        for _ in 0..patience.as_millis() / 100 {
            if lock(&self.checker).settled() || self.tasks.len() < self.devices {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.phase.store(ENDED, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        let checker = lock(&self.checker);
        Ok((checker.accepted(), checker.verdict()))
    }
}

fn lock(checker: &Mutex<Checker>) -> std::sync::MutexGuard<'_, Checker> {
    checker.lock().unwrap_or_else(PoisonError::into_inner)
}

fn who(phone: &Phone) -> Who {
    Who { user: phone.user, device: phone.device }
}

/// Links a second device of the person who is logged in on `wire`.
///
/// # Errors
/// If the node refuses.
pub async fn link(wire: &mut Wire, owner: &Phone) -> Result<Phone> {
    let mut tablet = Phone::new();
    let device_key = tablet.public_key()?;
    let device_name = "test tablet".into();
    match wire.ask(Ask::LinkDevice(LinkDevice { device_key, device_name })).await? {
        Say::Linked(linked) if linked.user == owner.user => {
            (tablet.user, tablet.device) = (linked.user, linked.device);
            Ok(tablet)
        }
        other => bail!("not linked: {other:?}"),
    }
}

/// One device and the person who holds it.
struct Person {
    target: Target,
    rng: StdRng,
    others: Vec<u64>,
    who: Who,
    phone: Phone,
    plan: Plan,
    mark: fn(u64) -> &'static str,
    next_id: u64,
    unanswered: BTreeMap<u64, Send>,
    unacknowledged: u32,
    checker: Arc<Mutex<Checker>>,
    phase: Arc<AtomicU8>,
}

impl Person {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    async fn live(mut self) -> Result<()> {
        while self.phase() != ENDED {
            self.keep();
            match self.phone.resume(&self.target).await {
                // A connection that breaks is the ordinary case here: the next one goes on.
                Ok((wire, _)) => drop(self.talk(wire).await),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(())
    }

    /// Tells the checker that everything seen so far counts as acknowledged from now on.
    fn keep(&mut self) {
        self.unacknowledged = 0;
        lock(&self.checker).acknowledged(self.who);
    }

    async fn talk(&mut self, mut wire: Wire) -> Result<()> {
        for (id, send) in &self.unanswered {
            wire.send(*id, Ask::Send(send.clone())).await?;
        }
        while self.phase() != ENDED {
            while self.may_send() {
                let (id, send) = self.compose();
                wire.send(id, Ask::Send(send)).await?;
            }
            match tokio::time::timeout(Duration::from_millis(50), wire.next()).await {
                Ok(frame) => self.take(frame?)?,
                Err(_) => self.unacknowledged += u32::from(self.unacknowledged > 0) * 16,
            }
            if self.unacknowledged >= self.rng.random_range(1..32) {
                self.keep();
                wire.send(0, Ask::Ack(Ack { seq: self.phone.last })).await?;
            }
            if self.rng.random_range(0..1000) < self.plan.drops_per_1000 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn may_send(&self) -> bool {
        self.phase() == SENDING
            && self.unanswered.len() < self.plan.window
            && self.next_id <= self.plan.sends
    }

    fn compose(&mut self) -> (u64, Send) {
        let id = self.next_id;
        self.next_id += 1;
        let to = self.others[self.rng.random_range(0..self.others.len())];
        let padding = "x".repeat(self.rng.random_range(0..200));
        let body = format!("{}{id} of {} to {to} {padding}", (self.mark)(id), self.who);
        lock(&self.checker).sent(Name { from: self.who, id }, to, body.as_bytes());
        let send = Send { to: Some(To::User(to)), body: body.into(), ..Send::default() };
        self.unanswered.insert(id, send.clone());
        (id, send)
    }

    fn take(&mut self, (id, frame): (u64, Say)) -> Result<()> {
        match frame {
            Say::Accepted(_) => self.answered(id, true),
            Say::Refused(refused) => match Code::from_number(refused.code) {
                // In either case the next connection sends it again, in order.
                code @ (Code::Unavailable | Code::TooFast) => bail!("again: {code:?}"),
                _ if id == 0 => bail!("the node ends the connection: {refused:?}"),
                _ => self.answered(id, false),
            },
            Say::Deliver(deliver) => return self.delivered(deliver),
            Say::GoAway(away) => bail!("told to go: {away:?}"),
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: u64, accepted: bool) {
        self.unanswered.remove(&id);
        lock(&self.checker).answered(Name { from: self.who, id }, accepted);
    }

    fn delivered(&mut self, deliver: Deliver) -> Result<()> {
        let mut checker = lock(&self.checker);
        if let Some(Content::Message(message)) = &deliver.content {
            checker.came(self.who, deliver.seq, name_of(message));
        }
        if deliver.seq <= self.phone.last {
            return Ok(());
        }
        if deliver.after.unwrap_or(deliver.seq - 1) > self.phone.last {
            checker.hole(self.who, deliver.seq);
            bail!("a hole");
        }
        self.phone.last = deliver.seq;
        self.unacknowledged += 1;
        match deliver.content {
            Some(Content::Message(message)) => {
                checker.seen(self.who, name_of(&message), &message.body);
            }
            Some(Content::Receipt(Receipt { kind, device, send_ids, .. }))
                if kind == i32::from(receipt::Kind::Delivered) && device == self.who.device =>
            {
                for id in send_ids {
                    checker.ticked(Name { from: self.who, id });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn name_of(message: &proto::wire::Message) -> Name {
    let from = Who { user: message.from, device: message.from_device };
    Name { from, id: message.send_id }
}
