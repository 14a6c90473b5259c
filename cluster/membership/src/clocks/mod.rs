//! The time that the members of the cluster agree on.
//!
//! ```text
//! this node                        another member
//!   |------- Clock ------------------->|        once a second to each
//!   |<------ what its clock says ------|        half of the round trip later it says that here
//! ```
//!
//! One task, [`Clocks::child`], asks; [`core`] decides. [`Clocks::clock`] is what actors read.
//!
//! # Invariants
//! 1. No clock of one node ends anything, nor moves the time of the cluster.
//! 2. A node whose clock is far from those of a majority leads nothing that another node can lead, and
//!    says so.

mod core;
#[cfg(test)]
mod tests;

use self::core::{Reading, Verdict, time_ms};
use crate::Cluster;
use bytes::Bytes;
use consensus::OwnClock;
use links::{Lane, Peers};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::NodeId;
use proto::cluster::{self, request, response};
use proto::stored::member::State;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use supervision::{ChildSpec, Clock};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Interval between two questions to each member.
const EVERY: Duration = Duration::from_secs(1);

/// The same while a member has not answered yet.
const SOON: Duration = Duration::from_millis(100);

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of this node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It goes right, as far as that is known.
    Right,
    /// A majority of the members says that it is wrong. This node leads nothing.
    Astray,
    /// It differs from the time that was agreed, and no majority says which is right. Nothing expires.
    Differs,
    /// It jumped on a node alone. Nothing expires until it is believed.
    Jumped,
}

/// The clocks as an operator sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The state of this node's clock.
    pub standing: Standing,
    /// Lead over the agreed time, in ms; negative: behind.
    pub offset_ms: i64,
    /// The same of other members, as far as they were heard lately.
    pub others: BTreeMap<NodeId, i64>,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Clocks(Arc<Shared>);

struct Shared {
    wall: Clock,
    began: Instant,
    limit_ms: u64,
    core: Mutex<core::Clocks>,
    /// Of the last verdict.
    trusted: AtomicI64,
    alone: AtomicBool,
}

impl fmt::Debug for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clocks").field("now_ms", &self.now_ms()).finish_non_exhaustive()
    }
}

impl Clocks {
    /// `wall`: this node's clock. `difference_max`: how far clocks may differ. `recorded_ms`: Unix time
    /// when something was stored last, 0 if nothing was.
    pub fn new(wall: Clock, difference_max: Duration, recorded_ms: u64) -> Self {
        let limit_ms = u64::try_from(difference_max.as_millis()).unwrap_or(u64::MAX);
        let began = Instant::now();
        let now = Reading { wall_ms: wall.now_ms(), mono_ms: 0 };
        let mut core = core::Clocks::new(limit_ms, recorded_ms, now);
        let Verdict { trusted, alone, .. } = core.judge(now);
        Self(Arc::new(Shared {
            wall,
            began,
            limit_ms,
            core: Mutex::new(core),
            trusted: AtomicI64::new(trusted),
            alone: AtomicBool::new(alone),
        }))
    }

    /// Those of a node whose clock nobody doubts, for tests.
    pub fn undoubted() -> Self {
        let began = Instant::now();
        let ms = move || 1 + u64::try_from(began.elapsed().as_millis()).unwrap_or_default();
        Self::new(Clock::new(ms), Duration::from_secs(5), 0)
    }

    /// The clock that actors read.
    pub fn clock(&self) -> Clock {
        let clocks = self.clone();
        Clock::new(move || clocks.now_ms())
    }

    /// This node's own clock, Unix time in ms: for members that compare clocks.
    pub fn own_ms(&self) -> u64 {
        self.0.wall.now_ms()
    }

    /// Time since this node was started, in ms.
    pub fn up_ms(&self) -> u64 {
        self.0.reading().mono_ms
    }

    /// The time, Unix time in ms.
    pub fn now_ms(&self) -> u64 {
        let (trusted, alone) =
            (self.0.trusted.load(Ordering::Relaxed), self.0.alone.load(Ordering::Relaxed));
        time_ms(self.0.reading(), trusted, alone, self.0.limit_ms)
    }

    /// Whether enough clocks agree for something to end by them.
    pub fn may_expire(&self) -> bool {
        self.0.judge().may_expire
    }

    /// Whether a majority of the members says that this node's clock is wrong.
    pub fn is_astray(&self) -> bool {
        self.0.judge().astray
    }

    /// The clocks as an operator sees them.
    pub fn report(&self) -> Report {
        let verdict = self.0.judge();
        let differs = verdict.offset_ms.unsigned_abs() > self.0.limit_ms;
        let standing = match (differs, verdict.alone) {
            _ if verdict.astray => Standing::Astray,
            (true, true) => Standing::Jumped,
            (true, false) => Standing::Differs,
            (false, _) => Standing::Right,
        };
        let others = self.0.core().offsets(self.0.reading().mono_ms);
        Report { standing, offset_ms: verdict.offset_ms, others }
    }

    /// Asks the other members what their clocks say.
    pub fn child(&self, cluster: Cluster, peers: Peers) -> ChildSpec {
        let clocks = self.clone();
        ChildSpec::task("clocks", move |stopping| {
            let (clocks, cluster, peers) = (clocks.clone(), cluster.clone(), peers.clone());
            async move {
                let work = async {
                    loop {
                        let lacks_some = clocks.ask(&cluster, &peers).await;
                        sleep(if lacks_some { SOON } else { EVERY }).await;
                    }
                };
                tokio::select! {
                    () = stopping.wait() => Ok(()),
                    () = work => Ok(()),
                }
            }
        })
    }

    /// One round. Whether somebody who is there has not answered yet.
    async fn ask(&self, cluster: &Cluster, peers: &Peers) -> bool {
        let shared = &self.0;
        let meta = cluster.meta();
        let others = meta.members.iter().filter(|member| member.state() != State::Lost);
        let others = others.map(|member| NodeId(member.node)).filter(|node| *node != cluster.me());
        let others: BTreeSet<NodeId> = others.collect();
        shared.core().set_members(&others);
        let up: Vec<NodeId> = others.iter().copied().filter(|node| peers.is_up(*node)).collect();
        let mut asked = JoinSet::new();
        for node in &up {
            asked.spawn(self.clone().ask_one(*node, peers.clone()));
        }
        asked.join_all().await;
        shared.judge();
        up.len() == others.len() && shared.core().lacks_some(shared.reading().mono_ms)
    }

    async fn ask_one(self, node: NodeId, peers: Peers) {
        let asked = self.0.reading().mono_ms;
        let kind = Some(request::Kind::Clock(true));
        let parcel = Bytes::from(cluster::Request { kind }.encode_to_vec());
        let Ok(answer) = peers.call(node, Lane::Urgent, parcel, PATIENCE).await else { return };
        let answered = self.0.reading().mono_ms;
        let told = cluster::Response::decode(answer).ok().and_then(|response| response.kind);
        if let Some(response::Kind::ClockMs(theirs_ms)) = told {
            self.0.core().heard(node, theirs_ms, (asked, answered));
        }
    }
}

impl OwnClock for Clocks {
    fn is_astray(&self) -> bool {
        self.is_astray()
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, core::Clocks> {
        self.core.lock()
    }

    fn reading(&self) -> Reading {
        let mono_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Reading { wall_ms: self.wall.now_ms(), mono_ms }
    }

    fn judge(&self) -> Verdict {
        let verdict = self.core().judge(self.reading());
        self.trusted.store(verdict.trusted, Ordering::Relaxed);
        self.alone.store(verdict.alone, Ordering::Relaxed);
        verdict
    }
}
