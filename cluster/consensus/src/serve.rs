//! Answers what members on other nodes ask.
//!
//! # Invariants
//! 1. What openraft has not handled is bounded: while it does not come along, entries are refused.
//!    So is what the replica has not applied.
//! 2. Nothing is answered that is not on disk.

use super::Inner;
use super::convert;
use super::types::Ballot;
use crate::leadership::election;
use crate::network::snapshot;
use openraft::raft::AppendEntriesResponse;
use proto::cluster::{self, request, response};
use std::sync::atomic::{AtomicU64, Ordering};

/// Appends that openraft may have in hand.
const APPENDS_MAX: u64 = 4;

/// Committed entries that the replica may still have to apply when more are taken, in bytes: more than
/// a hundred requests, so that it never waits for work, and with 17 groups that are all behind a GiB.
const BACKLOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Appends handed to openraft, and how many of them it has handled. It handles them in order, so
/// that the end of one is the end of all before, whoever waited for these.
#[derive(Debug, Default)]
pub(super) struct InHand {
    given: AtomicU64,
    handled: AtomicU64,
    /// Up to this index the entries that were taken are committed, and so will be applied whatever
    /// the leader says next.
    committed: AtomicU64,
}

impl InHand {
    /// The number of the next append; `None` if it has entries, and too many are in hand or too much
    /// is to be applied. Heartbeats always pass: they cost nothing, and tell how far openraft is.
    fn give(&self, has_entries: bool, backlog: impl FnOnce(u64) -> u64) -> Option<u64> {
        let in_hand = self.given.load(Ordering::Relaxed) - self.handled.load(Ordering::Relaxed);
        let is_full = || {
            let committed = self.committed.load(Ordering::Relaxed);
            in_hand >= APPENDS_MAX || backlog(committed) > BACKLOG_BYTES_MAX
        };
        if has_entries && is_full() {
            return None;
        }
        Some(self.given.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn handled(&self, number: u64) {
        self.handled.fetch_max(number, Ordering::Relaxed);
    }

    /// The entries up to `committed` are here.
    fn commits(&self, committed: u64) {
        self.committed.fetch_max(committed, Ordering::Relaxed);
    }
}

pub(super) async fn serve(inner: &Inner, request: request::Kind) -> Option<response::Kind> {
    if inner.resting.load(Ordering::Acquire) {
        return None;
    }
    match request {
        request::Kind::Append(asked) => append(inner, asked).await.map(response::Kind::Append),
        request::Kind::Vote(wanted) => {
            election::vote(inner, wanted).await.map(response::Kind::Vote)
        }
        request::Kind::Snapshot(piece) => {
            snapshot::receive(inner, piece).await.map(response::Kind::Snapshot)
        }
        request::Kind::TimeoutNow(asked) => {
            election::lead_now(inner, &asked).await.map(response::Kind::Leads)
        }
        request::Kind::Propose(_)
        | request::Kind::Ask(_)
        | request::Kind::Sessions(_)
        | request::Kind::Fetch(_)
        | request::Kind::Join(_)
        | request::Kind::Order(_)
        | request::Kind::Meta(_)
        | request::Kind::Clock(_)
        | request::Kind::Vitals(_) => None,
    }
}

async fn append(inner: &Inner, asked: cluster::Append) -> Option<cluster::AppendAnswer> {
    if inner.journal.is_stuck() {
        hear(inner, &asked);
        return None;
    }
    // A snapshot is being installed.
    let _append = inner.appends.try_read().ok()?;
    let weak = asked.weak;
    let request = convert::append_request(asked)?;
    let backlog = |committed| {
        let applied = inner.raft.data_metrics().borrow().last_applied.map(|id| id.index);
        inner.journal.backlog(applied, committed)
    };
    let number = inner.in_hand.give(!request.entries.is_empty(), backlog)?;
    let vote = request.vote;
    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
    let committed = last.min(request.leader_commit);
    let response = inner.raft.append_entries(request).await.ok()?;
    inner.in_hand.handled(number);
    if let (AppendEntriesResponse::Success, Some(committed)) = (&response, committed) {
        inner.in_hand.commits(committed.index);
    }
    let answer = convert::append_answer(&response, inner.storage.free_percent_of_min());
    if !weak && !matches!(response, AppendEntriesResponse::HigherVote(_)) {
        inner.contact.heard(&vote);
    }
    Some(answer)
}

/// openraft waits for the disk: who leads now is heard for it.
fn hear(inner: &Inner, asked: &cluster::Append) {
    let leader = asked.vote.as_ref().map(convert::vote).filter(Ballot::is_committed);
    let mine = inner.raft.server_metrics().borrow().vote;
    if let Some(leader) = leader.filter(|leader| *leader > mine && !asked.weak) {
        inner.contact.heard(&leader);
        inner.way_out.hear(leader);
        inner.refresh();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_refused_while_too_much_is_to_be_applied_and_heartbeats_are_not() {
        let in_hand = InHand::default();
        in_hand.commits(7);
        let behind = |bytes: u64| move |committed| if committed == 7 { bytes } else { 0 };
        assert_eq!(in_hand.give(true, behind(BACKLOG_BYTES_MAX)), Some(1));
        assert_eq!(in_hand.give(true, behind(BACKLOG_BYTES_MAX + 1)), None);
        assert_eq!(in_hand.give(false, behind(BACKLOG_BYTES_MAX + 1)), Some(2));
        in_hand.commits(5);
        assert_eq!(in_hand.give(true, behind(u64::MAX)), None, "what is committed stays so");
    }
}
