//! One device of a workload and the person who holds it. Run by `Workload`, as a task.
//!
//! It keeps what PROTOCOL.md tells it to keep: its ticket, the highest seq, the sends that wait for
//! an answer; what is refused for now it sends again, in order. **Invariant:** while something is
//! refused or unanswered from an earlier connection, nothing new overtakes it.

mod tickets;
mod watching;

use crate::checker::{Name, Who};
use crate::node::Target;
use crate::wire::{NotLetIn, Phone, Wire};
use crate::workload::{Phase, Plan, Shared};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use proto::Code;
use proto::codes::Retry;
use proto::wire::{
    Ack, Deliver, Message, Ping, Receipt, Refused, Send, client_frame::Kind as Ask,
    deliver::Content, receipt, send::To, server_frame::Kind as Say,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use watching::Watching;

/// Longest wait for a login, or for a frame to leave, where there is another node to go to.
const STEP: Duration = Duration::from_secs(6);

/// After this silence a person asks whether the node is there; after twice that it goes elsewhere.
const SILENCE: Duration = Duration::from_secs(3);

/// How often chores are looked after when nothing comes.
const CHORES: Duration = Duration::from_millis(50);

/// A device at work.
pub(crate) struct Person {
    targets: Vec<Target>,
    registered_at: usize,
    at: usize,
    spread: u64,
    rng: StdRng,
    others: Vec<u64>,
    who: Who,
    phone: Phone,
    plan: Plan,
    pace: Duration,
    next_send: Instant,
    mark: fn(u64) -> &'static str,
    next_id: u64,
    unanswered: BTreeMap<u64, Send>,
    refused: BTreeSet<u64>,
    again_at: Instant,
    /// Gives a send up as soon as it is told that nothing was stored, and writes another.
    impatient: bool,
    /// Sends that have left once: a refusal of them is the whole truth.
    sent_once: BTreeSet<u64>,
    unacknowledged: u32,
    /// A ticket that has opened a session.
    spent: Bytes,
    watching: Watching,
    shared: Arc<Shared>,
}

impl Person {
    pub(crate) fn new(phone: Phone, plan: Plan, number: u64, others: Vec<u64>) -> Self {
        Self {
            targets: Vec::new(),
            registered_at: 0,
            at: 0,
            spread: 0,
            rng: StdRng::seed_from_u64(plan.seed.wrapping_add(number)),
            others,
            who: Who { user: phone.user, device: phone.device },
            phone,
            plan,
            pace: Duration::ZERO,
            next_send: Instant::now(),
            mark: |_| "",
            next_id: 1,
            unanswered: BTreeMap::new(),
            refused: BTreeSet::new(),
            again_at: Instant::now(),
            impatient: number.is_multiple_of(3),
            sent_once: BTreeSet::new(),
            unacknowledged: 0,
            spent: Bytes::new(),
            watching: Watching::new(),
            shared: Arc::default(),
        }
    }

    /// The nodes it may use, and its own.
    pub(crate) fn at(mut self, targets: Vec<Target>, home: usize) -> Self {
        (self.targets, self.registered_at, self.at) = (targets, home, home);
        self
    }

    pub(crate) fn with(
        mut self,
        pace: Duration,
        mark: fn(u64) -> &'static str,
        shared: Arc<Shared>,
    ) -> Self {
        (self.pace, self.mark, self.shared) = (pace, mark, shared);
        self
    }

    fn roams(&self) -> bool {
        self.targets.len() > 1
    }

    pub(crate) async fn live(mut self) {
        let mut lost = Instant::now();
        while self.shared.phase() != Phase::Ended {
            if self.is_away() {
                tokio::time::sleep(CHORES).await;
                lost = Instant::now();
                continue;
            }
            self.keep();
            match self.connect().await {
                Ok(_) if self.is_away() => {}
                Ok(wire) => {
                    self.shared.facts().meter.moved(self.who, self.at, lost.elapsed());
                    // A connection that breaks is the ordinary case here: the next one goes on.
                    drop(self.talk(wire).await);
                    self.watch_no_more();
                    lost = Instant::now();
                }
                Err(error) => {
                    if let Some(NotLetIn(refused)) = error.downcast_ref() {
                        self.judge(refused);
                    }
                    self.go_elsewhere();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Whether this person stays away: a connection that is lost is the last one for now.
    fn is_away(&self) -> bool {
        self.shared.facts().checker.is_away(self.who.user)
    }

    async fn connect(&mut self) -> Result<Wire> {
        if self.roams() {
            return self.connect_by_ticket().await;
        }
        let target = self.targets.get(self.at).context("no node to go to")?;
        Ok(self.phone.resume(target).await?.0)
    }

    fn go_elsewhere(&mut self) {
        if self.roams() {
            self.at = (self.at + self.rng.random_range(1..self.targets.len())) % self.targets.len();
        }
    }

    /// Tells the checker that everything seen so far counts as acknowledged from now on.
    fn keep(&mut self) {
        self.unacknowledged = 0;
        self.shared.facts().checker.acknowledged(self.who);
    }

    async fn talk(&mut self, mut wire: Wire) -> Result<()> {
        self.refused.clear();
        if self.roams() {
            self.watch_anew();
        }
        self.sent_once.clear();
        for (id, send) in &self.unanswered {
            say(&mut wire, *id, Ask::Send(send.clone())).await?;
        }
        let mut heard = Instant::now();
        let mut asked = false;
        while self.shared.phase() != Phase::Ended {
            if self.called_home() {
                return Ok(());
            }
            self.repeat(&mut wire).await?;
            if self.roams() {
                let may_change = self.shared.phase() == Phase::Sending;
                self.watch(&mut wire, may_change).await?;
            }
            while self.may_send() {
                let (id, send) = self.compose();
                say(&mut wire, id, Ask::Send(send)).await?;
            }
            match timeout(self.wait(), wire.next()).await {
                Ok(frame) => {
                    (heard, asked) = (Instant::now(), false);
                    self.take(frame?)?;
                }
                Err(_) => self.unacknowledged += u32::from(self.unacknowledged > 0) * 16,
            }
            if self.roams() && heard.elapsed() > SILENCE && !asked {
                asked = true;
                say(&mut wire, 0, Ask::Ping(Ping {})).await?;
            }
            if self.roams() && heard.elapsed() > SILENCE * 2 {
                self.go_elsewhere();
                bail!("the node is silent");
            }
            if self.unacknowledged >= self.rng.random_range(1..32) {
                self.keep();
                say(&mut wire, 0, Ask::Ack(Ack { seq: self.phone.last })).await?;
            }
            // In quiet a new connection would hide what the node failed to tell on this one.
            let quiet = self.shared.phase() != Phase::Sending;
            if !quiet && self.rng.random_range(0..1000) < self.plan.drops_per_1000 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether everyone was called home since the last time, and this device is elsewhere.
    fn called_home(&mut self) -> bool {
        let called = self.shared.spread();
        let away = self.at != self.registered_at;
        let go = self.spread != called && away;
        self.spread = called;
        if go {
            self.at = self.registered_at;
        }
        go
    }

    /// How long to listen until something else may be due.
    fn wait(&self) -> Duration {
        if self.pace.is_zero() { CHORES } else { CHORES.min(self.pace) }
    }

    /// Sends again what was refused, in order, once everything else is answered.
    async fn repeat(&mut self, wire: &mut Wire) -> Result<()> {
        let rest = self.unanswered.keys().any(|id| !self.refused.contains(id));
        if self.refused.is_empty() || rest || Instant::now() < self.again_at {
            return Ok(());
        }
        for id in std::mem::take(&mut self.refused) {
            self.sent_once.remove(&id);
            let send = self.unanswered.get(&id).context("refused, but not unanswered")?;
            say(wire, id, Ask::Send(send.clone())).await?;
        }
        Ok(())
    }

    fn may_send(&self) -> bool {
        self.shared.phase() == Phase::Sending
            && self.refused.is_empty()
            && self.unanswered.len() < self.plan.window
            && self.next_id <= self.plan.sends
            && (self.pace.is_zero() || self.next_send <= Instant::now())
    }

    fn compose(&mut self) -> (u64, Send) {
        let id = self.next_id;
        self.next_id += 1;
        self.next_send = Instant::now() + self.pace;
        let to = self.others[self.rng.random_range(0..self.others.len())];
        let padding = "x".repeat(self.rng.random_range(0..200));
        let body = format!("{}{id} of {} to {to} {padding}", (self.mark)(id), self.who);
        let name = Name { from: self.who, id };
        let mut facts = self.shared.facts();
        facts.checker.sent(name, to, body.as_bytes());
        facts.meter.sent(name, to, Instant::now());
        let send = Send { to: Some(To::User(to)), body: body.into(), ..Send::default() };
        self.unanswered.insert(id, send.clone());
        self.sent_once.insert(id);
        (id, send)
    }

    fn take(&mut self, (id, frame): (u64, Say)) -> Result<()> {
        match frame {
            Say::Accepted(_) => self.answered(id, true),
            Say::Done(_) => drop(self.watch_done(id)),
            Say::Presence(presence) => self.saw(presence),
            Say::Refused(refused) if self.watch_refused(id, &refused) => {}
            Say::Refused(refused) => return self.refused(id, &refused),
            Say::Deliver(deliver) => return self.delivered(deliver),
            Say::GoAway(away) => {
                self.go_elsewhere();
                bail!("told to go: {away:?}")
            }
            _ => {}
        }
        Ok(())
    }

    fn refused(&mut self, id: u64, refused: &Refused) -> Result<()> {
        let code = Code::from_number(refused.code);
        ensure!(id != 0, "the node ends the connection: {refused:?}");
        if !self.roams() {
            // In either case the next connection sends it again, in order.
            ensure!(!matches!(code, Code::Unavailable | Code::TooFast), "again: {code:?}");
            self.answered(id, false);
            return Ok(());
        }
        self.judge(refused);
        let nothing_stored = code != Code::Unavailable && self.sent_once.contains(&id);
        match code.retry() {
            Retry::Never => self.answered(id, false),
            Retry::After if self.impatient && nothing_stored => self.answered(id, false),
            Retry::Reconnect => bail!("on another connection: {code:?}"),
            Retry::SameConnection | Retry::After => {
                let after = u64::from(refused.retry_after_ms).clamp(50, 1000);
                self.again_at = Instant::now() + Duration::from_millis(after);
                self.refused.insert(id);
            }
        }
        Ok(())
    }

    /// Everything that is done here is allowed: a refusal for good is wrong.
    fn judge(&self, refused: &Refused) {
        let code = Code::from_number(refused.code);
        if self.roams() && code.retry() == Retry::Never {
            self.shared.facts().checker.refused_for_good(self.who, refused.code);
        }
    }

    fn answered(&mut self, id: u64, accepted: bool) {
        let to = self.unanswered.remove(&id).and_then(|send| send.to);
        self.refused.remove(&id);
        self.sent_once.remove(&id);
        let name = Name { from: self.who, id };
        let mut facts = self.shared.facts();
        facts.checker.answered(name, accepted);
        if accepted {
            if let Some(To::User(to)) = to {
                facts.heard.insert((self.who, to));
            }
            facts.meter.accepted(name, Instant::now());
        } else {
            facts.meter.given_up(name);
        }
    }

    fn delivered(&mut self, deliver: Deliver) -> Result<()> {
        let mut facts = self.shared.facts();
        if let Some(Content::Message(message)) = &deliver.content {
            facts.checker.came(self.who, deliver.seq, name_of(message));
        }
        if deliver.seq <= self.phone.last {
            return Ok(());
        }
        if deliver.after.unwrap_or(deliver.seq - 1) > self.phone.last {
            facts.checker.hole(self.who, deliver.seq);
            bail!("a hole");
        }
        self.phone.last = deliver.seq;
        self.unacknowledged += 1;
        match deliver.content {
            Some(Content::Message(message)) => {
                let name = name_of(&message);
                facts.checker.seen(self.who, name, &message.body);
                facts.meter.seen(name, Instant::now());
            }
            Some(Content::Receipt(Receipt { kind, device, send_ids, .. }))
                if kind == i32::from(receipt::Kind::Delivered) && device == self.who.device =>
            {
                for id in send_ids {
                    facts.checker.ticked(Name { from: self.who, id });
                }
            }
            Some(Content::Receipt(Receipt { kind, device, send_ids, .. }))
                if kind == i32::from(receipt::Kind::Undeliverable) && device == self.who.device =>
            {
                for id in send_ids {
                    facts.checker.returned(Name { from: self.who, id });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Sends a frame, unless the node takes nothing any longer.
async fn say(wire: &mut Wire, id: u64, ask: Ask) -> Result<()> {
    timeout(STEP, wire.send(id, ask)).await.context("the node reads nothing")?
}

fn name_of(message: &Message) -> Name {
    let from = Who { user: message.from, device: message.from_device };
    Name { from, id: message.send_id }
}
