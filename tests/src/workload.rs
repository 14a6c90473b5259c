//! Many people who write to each other over connections that break, seeded, on the bare protocol,
//! with a judge who listens. On one node, or spread over the nodes of a cluster, among which they
//! move when theirs does not serve them.
//!
//! **Invariant:** the checker hears of a send before the node does, and of an acknowledgement before
//! it leaves.

use crate::checker::{Checker, Who, Wrong};
use crate::node::{Node, eventually};
use crate::pause::{Meter, Pause};
use crate::person::Person;
use crate::wire::{FRAME_PATIENCE, Phone, Wire};
use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::{Mutex, MutexGuard};
use proto::wire::{LinkDevice, SetContact, client_frame::Kind as Ask, server_frame::Kind as Say};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

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
    /// While it sends, the connection is dropped after each frame with this chance, in thousandths.
    pub drops_per_1000: u32,
}

/// What people do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Sending,
    Reading,
    Ended,
}

/// What all people of a workload share with the judge.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    facts: Mutex<Facts>,
    phase: AtomicU8,
    spread: AtomicU64,
}

/// What is known of what happened.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) checker: Checker,
    pub(crate) meter: Meter,
    /// Devices that had a send accepted to a user since somebody began to wait for it.
    pub(crate) heard: BTreeSet<(Who, u64)>,
    /// Devices and the users they write to.
    pairs: BTreeSet<(Who, u64)>,
}

impl Shared {
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock()
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Sending,
            1 => Phase::Reading,
            _ => Phase::Ended,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Grows each time everyone is to go home.
    pub(crate) fn spread(&self) -> u64 {
        self.spread.load(Ordering::Relaxed)
    }
}

/// People who are at it.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Registers everyone on one node and lets them begin.
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
        Self::spread_over(std::slice::from_ref(node), plan, Duration::ZERO, mark).await
    }

    /// Registers people in turn on each of `nodes`, second devices on the next one, and lets them
    /// begin. Each device sends at most once in `pace`.
    ///
    /// # Errors
    /// If a node refuses a registration again and again.
    pub async fn across(nodes: &[Node], plan: Plan, pace: Duration) -> Result<Self> {
        Self::spread_over(nodes, plan, pace, |_| "").await
    }

    async fn spread_over(
        nodes: &[Node],
        plan: Plan,
        pace: Duration,
        mark: fn(u64) -> &'static str,
    ) -> Result<Self> {
        let (mut phones, mut wires) = (Vec::new(), Vec::new());
        for number in 0..plan.users {
            let home = number % nodes.len();
            let (phone, mut wire) = register(&nodes[home], &format!("user-{number}")).await?;
            if number < plan.tablets {
                phones.push((link(&mut wire, &phone).await?, (home + 1) % nodes.len()));
            }
            wires.push((phone.user, wire));
            phones.push((phone, home));
        }
        let users: Vec<u64> = wires.iter().map(|(user, _)| *user).collect();
        if nodes.len() > 1 {
            know_each_other(&mut wires, &users).await?;
        }
        drop(wires);
        let shared = Arc::new(Shared::default());
        for (phone, _) in &phones {
            let who = Who { user: phone.user, device: phone.device };
            let mut facts = shared.facts();
            facts.checker.device(who);
            let others = users.iter().filter(|user| **user != who.user);
            facts.pairs.extend(others.map(|user| (who, *user)));
        }
        let mut tasks = JoinSet::new();
        for (number, (phone, home)) in phones.into_iter().enumerate() {
            let others = users.iter().copied().filter(|user| *user != phone.user).collect();
            let person = Person::new(phone, plan, number as u64, others)
                .at(nodes.iter().map(Node::target).collect(), home)
                .with(pace, mark, Arc::clone(&shared));
            tasks.spawn(person.live());
        }
        Ok(Self { shared, tasks })
    }

    /// How many sends were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.facts().checker.accepted()
    }

    /// How many sends were refused so far and not tried again.
    pub fn refused(&self) -> usize {
        self.shared.facts().checker.refused()
    }

    /// Waits until `count` more sends than now are accepted.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn progress(&self, count: usize, patience: Duration) -> Result<()> {
        let goal = self.accepted() + count;
        let reached = eventually(patience, async || {
            let accepted = self.accepted();
            ensure!(accepted >= goal, "{accepted} sends are accepted, not {goal}");
            Ok(())
        });
        reached.await.with_context(|| format!("after {patience:?}"))
    }

    /// Waits until each device has had a send accepted to everyone: no refusal outlives its reason,
    /// also for those who give refused sends up and write new ones.
    ///
    /// # Errors
    /// Names those who are still held back after `patience`.
    pub async fn everyone_is_heard(&self, patience: Duration) -> Result<()> {
        self.shared.facts().heard.clear();
        let heard = eventually(patience, async || {
            let facts = self.shared.facts();
            let missing: Vec<String> = facts
                .pairs
                .difference(&facts.heard)
                .filter(|(who, _)| !facts.checker.is_away(who.user))
                .map(|(who, to)| Wrong::HeldBack(*who, *to).to_string())
                .collect();
            ensure!(missing.is_empty(), "{}", missing.join("\n"));
            Ok(())
        });
        heard.await
    }

    /// How many devices were last served by node `node`.
    pub fn at(&self, node: usize) -> usize {
        self.shared.facts().meter.at(node)
    }

    /// Up to `count` people who are on node `node` alone stay away once they lose their connection,
    /// until [`Workload::come_back`]. How many there are.
    pub fn stay_away_after(&self, node: usize, count: usize) -> usize {
        let mut facts = self.shared.facts();
        let leaving: Vec<u64> = facts.meter.only_at(node).into_iter().take(count).collect();
        for user in &leaving {
            facts.checker.stays_away(*user);
            facts.meter.stays_away(*user);
        }
        leaving.len()
    }

    /// Those who stay away come back.
    pub fn come_back(&self) {
        self.shared.facts().checker.come_back();
    }

    /// Begins to measure how long people wait who are on none of the `touched` nodes.
    pub fn measure(&self, touched: &BTreeSet<usize>) {
        self.shared.facts().meter.begin(touched);
    }

    /// Ends the measurement.
    pub fn measured(&self) -> Pause {
        self.shared.facts().meter.end(Instant::now())
    }

    /// Everyone connects to the node where they registered.
    pub fn go_home(&self) {
        self.shared.spread.fetch_add(1, Ordering::Relaxed);
    }

    /// No new sends; waits until everything is answered, seen and ticked or `patience` ends. How
    /// many were accepted since the last [`Workload::go_on`], and what is wrong.
    ///
    /// # Errors
    /// If a device ended in a panic.
    pub async fn quiet(&mut self, patience: Duration) -> Result<(usize, Vec<Wrong>)> {
        self.shared.enter(Phase::Reading);
        for _ in 0..patience.as_millis() / 100 {
            if self.shared.facts().checker.settled() {
                break;
            }
            if let Some(ended) = self.tasks.try_join_next() {
                ended.context("a device ended")?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let facts = self.shared.facts();
        Ok((facts.checker.accepted(), facts.checker.verdict()))
    }

    /// Everyone sends again after [`Workload::quiet`] found nothing wrong; what was is forgotten.
    pub fn go_on(&self) {
        self.shared.facts().checker.forget();
        self.shared.enter(Phase::Sending);
    }

    /// As [`Workload::quiet`], and then everyone ends.
    ///
    /// # Errors
    /// If a device ended in a panic.
    pub async fn settle(mut self, patience: Duration) -> Result<(usize, Vec<Wrong>)> {
        self.quiet(patience).await?;
        self.shared.enter(Phase::Ended);
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        let facts = self.shared.facts();
        Ok((facts.checker.accepted(), facts.checker.verdict()))
    }
}

/// Registers, again if the node says that it cannot just now.
async fn register(node: &Node, alias: &str) -> Result<(Phone, Wire)> {
    let mut tries = 0;
    loop {
        match Phone::register(node, alias).await {
            Err(error) if tries >= 20 => return Err(error.context(format!("register {alias}"))),
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
            registered => return registered,
        }
        tries += 1;
    }
}

/// Everyone has everyone as a contact, and so sees whether they are there.
async fn know_each_other(wires: &mut [(u64, Wire)], users: &[u64]) -> Result<()> {
    for (me, wire) in wires {
        for user in users.iter().copied().filter(|user| user != me) {
            let remove = false;
            eventually(FRAME_PATIENCE, async || {
                let answer = wire.ask(Ask::SetContact(SetContact { user, remove })).await?;
                ensure!(matches!(answer, Say::Done(_)), "no contact: {answer:?}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
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
