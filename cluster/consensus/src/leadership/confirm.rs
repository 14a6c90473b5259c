//! Reads that see everything answered before: the leader makes sure that it still leads.
//!
//! # Invariants
//! 1. Whoever waits is answered by a round that began after the call.
//! 2. One round runs at a time, for all who wait.

use crate::Inner;
use crate::error::ProposeError;
use openraft::error::{CheckIsLeaderError, RaftError};
use proto::NodeId;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// The rounds so far.
#[derive(Default)]
pub(crate) struct Confirmations {
    begun: AtomicU64,
    last: Mutex<Option<(u64, Result<(), ProposeError>)>>,
}

#[cfg(test)]
impl Confirmations {
    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }
}

pub(crate) async fn confirm(inner: &Inner) -> Result<(), ProposeError> {
    if inner.leads_alone() {
        return Ok(());
    }
    let begun_before = inner.confirmations.begun.load(Ordering::Acquire);
    let mut last = inner.confirmations.last.lock().await;
    if let Some((round, outcome)) = *last
        && round > begun_before
    {
        return outcome;
    }
    let round = inner.confirmations.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let outcome = ask(inner).await;
    *last = Some((round, outcome));
    outcome
}

async fn ask(inner: &Inner) -> Result<(), ProposeError> {
    // The read index is waited for as well: all of it is applied here when this returns.
    let asked = inner.raft.ensure_linearizable();
    match tokio::time::timeout(inner.timing.election.0, asked).await {
        Err(_) | Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => {
            Err(ProposeError::NoMajority)
        }
        Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
            Err(ProposeError::NotLeader(forward.leader_id.map(NodeId)))
        }
        Ok(Err(RaftError::Fatal(_))) => Err(ProposeError::Failed),
        Ok(Ok(_)) => Ok(()),
    }
}
