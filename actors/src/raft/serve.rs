//! Answers what members on other nodes ask.
//!
//! # Invariants
//! 1. What openraft has not handled is bounded: while it does not come along, entries are refused.
//! 2. Nothing is answered that is not on disk.

use super::Inner;
use super::convert;
use super::election;
use super::snapshot;
use proto::cluster::{self, request, response};
use std::sync::atomic::{AtomicU64, Ordering};

/// Appends that openraft may have in hand.
const APPENDS_MAX: u64 = 4;

/// Appends handed to openraft, and how many of them it has handled. It handles them in order, so
/// that the end of one is the end of all before, whoever waited for these.
#[derive(Debug, Default)]
pub(super) struct InHand {
    given: AtomicU64,
    handled: AtomicU64,
}

impl InHand {
    /// The number of the next append; `None` if it has entries and too many are in hand. Heartbeats
    /// always pass: they cost nothing, and tell how far openraft is.
    fn give(&self, has_entries: bool) -> Option<u64> {
        let in_hand = self.given.load(Ordering::Relaxed) - self.handled.load(Ordering::Relaxed);
        if has_entries && in_hand >= APPENDS_MAX {
            return None;
        }
        Some(self.given.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn handled(&self, number: u64) {
        self.handled.fetch_max(number, Ordering::Relaxed);
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
        | request::Kind::Meta(_) => None,
    }
}

async fn append(inner: &Inner, asked: cluster::Append) -> Option<cluster::AppendAnswer> {
    if inner.journal.is_stuck() {
        return None;
    }
    // A snapshot is being installed.
    let _append = inner.appends.try_read().ok()?;
    let weak = asked.weak;
    let request = convert::append_request(asked)?;
    let number = inner.in_hand.give(!request.entries.is_empty())?;
    let vote = request.vote;
    let response = inner.raft.append_entries(request).await.ok()?;
    inner.in_hand.handled(number);
    let answer = convert::append_answer(&response);
    if !weak && !matches!(response, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
        inner.contact.heard(&vote);
    }
    Some(answer)
}
