//! What goes to a leader on another node, and comes back.

use super::actor::ShardActor;
use super::proposals::Failure;
use super::translate::{answer_from_wire, outcome_from_wire, question_to_wire};
use super::{Answer, NotForwarded, Outcome, Query, ShardItem};
use bytes::Bytes;
use links::{CallError, Lane};
use prost::Message;
use proto::NodeId;
use proto::cluster::{self, request, response};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a leader elsewhere may take. After it nobody knows what became of the batch.
pub(super) const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);

impl ShardActor {
    /// Passes the next batch on.
    pub(super) fn forward_next(&mut self, leader: NodeId, lazily: bool) {
        let shard = u32::from(self.shard.0);
        let Some(batch) = self.proposals.next_beside(lazily, self.moment()) else { return };
        let number = batch.number;
        let commands = std::mem::take(&mut batch.commands);
        let propose = cluster::Propose { shard, commands };
        let kind = request::Kind::Propose(propose);
        let request = cluster::Request { kind: Some(kind) };
        let parcel = Bytes::from(request.encode_to_vec());
        if let Some(request::Kind::Propose(propose)) = request.kind {
            batch.commands = propose.commands;
        }
        let call = self.context.peers.call(leader, Lane::Normal, parcel, FORWARD_TIMEOUT);
        let inbox = self.inbox.clone();
        let spawned = self.context.tasks.spawn("forward", async move {
            let outcomes = match call.await {
                Ok(parcel) => outcomes_of(parcel),
                Err(CallError::NotUp | CallError::Full) => Err(NotForwarded::NotProposed),
                Err(CallError::Broken | CallError::TimedOut) => Err(NotForwarded::Unknown),
            };
            inbox.force(ShardItem::Forwarded(number, outcomes));
        });
        if !spawned {
            self.proposals.failed(number, Failure::NotProposed);
        }
    }

    pub(super) fn forwarded(&mut self, number: u64, outcomes: Result<Vec<Outcome>, NotForwarded>) {
        match outcomes {
            Ok(outcomes) => {
                if outcomes.contains(&Outcome::Elsewhere) {
                    self.try_soon();
                } else {
                    self.not_stuck();
                }
                self.proposals.answered(number, outcomes);
            }
            Err(why) => {
                let failure = match why {
                    NotForwarded::NotProposed => Failure::NotProposed,
                    NotForwarded::Unknown => Failure::Unknown,
                };
                self.proposals.failed(number, failure);
                self.try_soon();
            }
        }
    }

    /// Puts a question to a leader elsewhere.
    pub(super) fn forward_question(&self, leader: NodeId, query: Query, since: u64) {
        let ask = question_to_wire(u32::from(self.shard.0), &query);
        let request = cluster::Request { kind: Some(request::Kind::Ask(ask)) };
        let parcel = Bytes::from(request.encode_to_vec());
        let call = self.context.peers.call(leader, Lane::Normal, parcel, FORWARD_TIMEOUT);
        let inbox = self.inbox.clone();
        self.context.tasks.spawn("ask", async move {
            let answer = call.await.ok().and_then(|parcel| cluster::Response::decode(parcel).ok());
            let left = match answer.and_then(|response| response.kind) {
                Some(response::Kind::Answer(answer)) => answer_from_wire(query, answer),
                _ => Err(query),
            };
            if let Err(query) = left {
                let again = ShardItem::AskAgain(query, since);
                supervision::timer::push_after(&inbox, super::actor::SOON, again);
            }
        });
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "an answer to something else is no answer")]
fn outcomes_of(parcel: Bytes) -> Result<Vec<Outcome>, NotForwarded> {
    match cluster::Response::decode(parcel).ok().and_then(|response| response.kind) {
        Some(response::Kind::Outcomes(outcomes)) => {
            Ok(outcomes.outcomes.iter().map(outcome_from_wire).collect())
        }
        Some(response::Kind::NotLeader(_)) => Err(NotForwarded::NotProposed),
        _ => Err(NotForwarded::Unknown),
    }
}

/// Gathers the outcomes of a batch and tells them together.
pub(super) fn collect(count: usize, answer: Answer<Vec<Outcome>>) -> Collect {
    let outcomes = vec![None; count];
    Collect(Arc::new(Mutex::new(Some((outcomes, count, answer)))))
}

/// Outcomes so far, how many are missing, whom to tell.
type Gathered = (Vec<Option<Outcome>>, usize, Answer<Vec<Outcome>>);

#[derive(Clone)]
pub(super) struct Collect(Arc<Mutex<Option<Gathered>>>);

impl Collect {
    pub(super) fn put(&self, place: usize, outcome: Outcome) {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((outcomes, missing, _)) = gathered.as_mut() else { return };
        if outcomes[place].replace(outcome).is_none() {
            *missing -= 1;
        }
        if *missing == 0
            && let Some((outcomes, _, answer)) = gathered.take()
        {
            answer(outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Elsewhere)).collect());
        }
    }
}
