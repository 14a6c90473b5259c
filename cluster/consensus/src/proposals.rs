//! Proposals under way, in the order in which they were made.
//!
//! openraft takes a proposal without waiting and says later what became of it. One task for each
//! group, [`run`], waits for that; all of it is off the way of those that succeed.
//!
//! # Invariants
//! 1. Proposals enter openraft's queue in the order of the calls, also those that waited while
//!    leadership was handed over.
//! 2. Each that fails is told once, and never under the lock.
//! 3. A leader that has lost its majority, or its office, keeps nobody waiting.

use super::error::ProposeError;
use super::types::{Logged, Proposal, Types};
use super::{Failed, Inner, now};
use bytes::Bytes;
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::{Mutex, MutexGuard};
use proto::NodeId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// The time from a proposal to a group until a majority has it.
const COMMIT_SECONDS: &str = "natter_commit_seconds";

/// Tells the metrics recorder what this crate counts. Call after it was installed.
pub fn describe_metrics() {
    metrics::describe_histogram!(
        COMMIT_SECONDS,
        metrics::Unit::Seconds,
        "Time from a proposal to a Raft group that this node leads until a majority has it."
    );
}

/// Proposals of one group under way, and as many that wait.
const UNDER_WAY_MAX: usize = 1_024;

/// The proposals of a group.
pub(super) struct Proposals {
    gate: Mutex<Gate>,
    waiting: mpsc::Sender<Pending>,
    under_way: AtomicUsize,
    /// How often everything under way was given up.
    given_up: watch::Sender<u64>,
}

/// The other end of what is under way.
pub(super) type Waiting = mpsc::Receiver<Pending>;

#[derive(Default)]
struct Gate {
    /// While leadership is handed over, proposals wait here.
    held: Option<VecDeque<(Bytes, Failed)>>,
    closed: bool,
}

/// One proposal that openraft has.
pub(super) struct Pending {
    outcome: oneshot::Receiver<ClientWriteResult<Types>>,
    logged: Logged,
    failed: Failed,
    given_up: u64,
    begun: Instant,
}

type Refused = (ProposeError, Failed);

impl Proposals {
    pub(super) fn new() -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(UNDER_WAY_MAX);
        let proposals = Self {
            gate: Mutex::default(),
            waiting: sender,
            under_way: AtomicUsize::new(0),
            given_up: watch::Sender::new(0),
        };
        (proposals, receiver)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock()
    }

    /// Proposals wait from here on.
    pub(super) fn hold(&self) {
        self.gate().held.get_or_insert_default();
    }

    /// Whether openraft has none that is undecided.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    /// What is under way fails: nobody knows what will become of it.
    pub(super) fn give_up(&self) {
        if !self.is_idle() {
            self.given_up.send_modify(|times| *times += 1);
        }
    }

    /// Nothing more is proposed.
    pub(super) fn close(&self) {
        let mut gate = self.gate();
        gate.closed = true;
        let held = gate.held.take();
        drop(gate);
        self.given_up.send_modify(|times| *times += 1);
        for (_, failed) in held.into_iter().flatten() {
            failed(ProposeError::Failed);
        }
    }
}

/// Proposes, or says why not.
pub(super) fn propose(inner: &Inner, content: Bytes, failed: Failed) {
    let mut gate = inner.proposals.gate();
    let closed = gate.closed;
    let refused = match &mut gate.held {
        Some(held) if held.len() < UNDER_WAY_MAX => {
            held.push_back((content, failed));
            Ok(())
        }
        Some(_) => Err((ProposeError::Busy, failed)),
        None if closed => Err((ProposeError::Failed, failed)),
        None => submit(inner, content, failed),
    };
    drop(gate);
    if let Err((error, failed)) = refused {
        failed(error);
    }
}

/// Lets those go on that waited.
pub(super) fn release(inner: &Inner) {
    let mut gate = inner.proposals.gate();
    let held = gate.held.take().unwrap_or_default();
    let refused = held.into_iter().map(|(content, failed)| submit(inner, content, failed));
    let refused: Vec<Refused> = refused.filter_map(Result::err).collect();
    drop(gate);
    for (error, failed) in refused {
        failed(error);
    }
}

/// Hands openraft a proposal. Under the gate's lock, which keeps the order.
fn submit(inner: &Inner, content: Bytes, failed: Failed) -> Result<(), Refused> {
    if let Err(error) = inner.may_propose() {
        return Err((error, failed));
    }
    let proposals = &inner.proposals;
    let Ok(place) = proposals.waiting.try_reserve() else {
        return Err((ProposeError::Busy, failed));
    };
    let logged = Logged::new();
    let proposal = Proposal { content, logged: logged.clone() };
    let Some(Ok(outcome)) = now(inner.raft.client_write_ff(proposal)) else {
        return Err((ProposeError::Failed, failed));
    };
    proposals.under_way.fetch_add(1, Ordering::AcqRel);
    let given_up = *proposals.given_up.borrow();
    place.send(Pending { outcome, logged, failed, given_up, begun: Instant::now() });
    Ok(())
}

/// Waits for what becomes of each proposal, until the group ends.
pub(super) async fn run(inner: Arc<Inner>, mut waiting: Waiting) {
    let stopping = inner.tasks.stopping();
    let took = metrics::histogram!(COMMIT_SECONDS);
    let mut given_up = inner.proposals.given_up.subscribe();
    loop {
        let mut pending = tokio::select! {
            biased;
            pending = waiting.recv() => match pending {
                Some(pending) => pending,
                None => return,
            },
            () = stopping.wait() => return,
        };
        let since = pending.given_up;
        let failure = tokio::select! {
            biased;
            outcome = &mut pending.outcome => failure(outcome.ok(), &pending.logged),
            _ = given_up.wait_for(|times| *times > since) => Some(ProposeError::Unknown),
        };
        inner.proposals.under_way.fetch_sub(1, Ordering::AcqRel);
        match failure {
            None => took.record(pending.begun.elapsed()),
            Some(error) => (pending.failed)(error),
        }
    }
}

/// What openraft said, or that it has ended.
fn failure(outcome: Option<ClientWriteResult<Types>>, logged: &Logged) -> Option<ProposeError> {
    let error = match outcome {
        Some(Ok(_)) => return None,
        // It was in the log here and was overwritten; others may have it.
        _ if logged.is_set() => ProposeError::Unknown,
        Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
            ProposeError::NotLeader(forward.leader_id.map(NodeId))
        }
        Some(Err(ClientWriteError::ChangeMembershipError(_))) | None => ProposeError::Failed,
    };
    Some(error)
}
