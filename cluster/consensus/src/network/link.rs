//! What a group asks of its members on other nodes.
//!
//! Runs inside openraft's replication tasks, one for each member, and in its votes.
//!
//! # Invariants
//! 1. A peer that is not connected is an error with a pause after it: it costs next to nothing. No
//!    snapshot is begun for it.
//! 2. What carries entries never delays heartbeats and votes: these go first.
//! 3. What only tells how far the log is committed waits for the next entries or heartbeat, see
//!    [`Told`]: a member is never further behind than that.

use crate::convert;
use crate::network::snapshot;
use crate::types::{Ballot, Id, Types};
use links::{CallError, Lane, Peers};
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, Snapshot};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::cluster::{self, request, response};
use proto::{NodeId, ShardId, stored};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Pauses of a member that cannot be reached, the last one for ever.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(250), Duration::from_millis(500)];

/// How often a member that needs a snapshot is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the group and its links share.
pub(crate) struct Wire {
    pub(crate) group: ShardId,
    pub(crate) peers: Peers,
    /// How long a member need not hear that an entry is committed.
    pub(crate) news_wait: Duration,
    /// This node leads and has not heard from a majority for long.
    pub(crate) weak: AtomicBool,
    /// Pieces of snapshots that were taken by others: a sign of progress.
    pub(crate) pieces: AtomicU64,
    /// The leader that asked this node to be elected.
    yielded: Mutex<Option<stored::Vote>>,
    /// What each member last answered this leader.
    answered: Mutex<BTreeMap<NodeId, Answered>>,
}

/// That a member followed a leader.
#[derive(Clone, Copy)]
struct Answered {
    term: u64,
    /// When it was asked.
    at: Instant,
    /// When it was last asked by a leader that was sure of itself: only then it waits for that leader
    /// before it votes for another.
    firmly_at: Option<Instant>,
    /// Its free space, in hundredths of what should be free.
    free_percent: u64,
}

/// Why a member did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the answer is not one to this question")]
    Unexpected,
    #[error("the snapshot was not taken")]
    NotTaken,
}

impl Wire {
    pub(crate) fn new(group: ShardId, peers: Peers, news_wait: Duration) -> Self {
        Self {
            group,
            peers,
            news_wait,
            weak: AtomicBool::new(false),
            pieces: AtomicU64::new(0),
            yielded: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    fn yielded(&self) -> MutexGuard<'_, Option<stored::Vote>> {
        self.yielded.lock()
    }

    /// The next election is held because this leader asked for it.
    pub(crate) fn elected_for(&self, leader: stored::Vote) {
        *self.yielded() = Some(leader);
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Answered>> {
        self.answered.lock()
    }

    /// A member followed the leader of this term when it was asked `at` this time, or later.
    fn note_answer(&self, node: NodeId, fresh: Answered) {
        let mut answers = self.answers();
        let Answered { term, at, firmly_at, free_percent } = fresh;
        let known = answers.entry(node).or_insert(fresh);
        if known.term < term {
            *known = fresh;
        } else if known.term == term {
            known.at = known.at.max(at);
            known.firmly_at = known.firmly_at.max(firmly_at);
            known.free_percent = free_percent;
        }
    }

    /// When the question was asked to which a member last answered as one who follows the leader of
    /// this term.
    pub(crate) fn answered_in(&self, term: u64, node: NodeId) -> Option<Instant> {
        self.answers().get(&node).filter(|answer| answer.term == term).map(|answer| answer.at)
    }

    /// The same, of a leader that was sure of itself.
    pub(crate) fn answered_firmly_in(&self, term: u64, node: NodeId) -> Option<Instant> {
        self.answers().get(&node).filter(|answer| answer.term == term)?.firmly_at
    }

    /// Free space of a member, as it last answered the leader of this term, if that was within `age`;
    /// in hundredths of what should be free.
    pub(crate) fn free_percent_of(&self, term: u64, node: NodeId, age: Duration) -> Option<u64> {
        let answers = self.answers();
        let answer = answers.get(&node)?;
        (answer.term == term && answer.at.elapsed() < age).then_some(answer.free_percent)
    }

    /// Asks a node and waits up to `within`.
    pub(crate) async fn ask(
        &self,
        (node, lane): (NodeId, Lane),
        question: request::Kind,
        within: Duration,
    ) -> Result<response::Kind, LinkError> {
        let parcel = cluster::Request { kind: Some(question) }.encode_to_vec();
        let answer = self.peers.call_vital(node, lane, parcel.into(), within).await?;
        let answer = cluster::Response::decode(answer).map_err(|_| LinkError::Unexpected)?;
        answer.kind.ok_or(LinkError::Unexpected)
    }
}

/// Makes links.
pub(crate) struct Links(pub(crate) Arc<Wire>);

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Link {
        Link { target: NodeId(target), wire: Arc::clone(&self.0), told: None }
    }
}

/// The way to one member.
pub(crate) struct Link {
    target: NodeId,
    wire: Arc<Wire>,
    told: Option<Told>,
}

/// The last append that the member took.
///
/// openraft tells each member at once when an entry is committed, and cannot be told not to: one more
/// request for each batch and member, as dear as the one that carried the batch. Nobody waits for it,
/// so as long as the last request is fresh it is answered here, with what the member said then.
struct Told {
    at: Instant,
    vote: Ballot,
    matched: Option<Id>,
    committed: Option<Id>,
}

impl Told {
    fn by(rpc: &AppendEntriesRequest<Types>, at: Instant) -> Self {
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let matched = last.or(rpc.prev_log_id);
        Self { at, vote: rpc.vote, matched, committed: rpc.leader_commit }
    }

    /// Whether a request says nothing new but how far the log is committed.
    fn covers(&self, rpc: &AppendEntriesRequest<Types>, fresh: Duration) -> bool {
        rpc.entries.is_empty()
            && rpc.vote == self.vote
            && rpc.prev_log_id == self.matched
            && rpc.leader_commit > self.committed
            && self.at.elapsed() < fresh
    }
}

type CallFailed = RPCError<u64, EmptyNode, RaftError<u64>>;

impl Link {
    async fn ask(
        &self,
        lane: Lane,
        question: request::Kind,
        option: &RPCOption,
    ) -> Result<response::Kind, CallFailed> {
        let asked = self.wire.ask((self.target, lane), question, option.hard_ttl()).await;
        asked.map_err(|error| match error {
            // The time is over: there was a pause already.
            LinkError::Call(CallError::TimedOut) => RPCError::Network(NetworkError::new(&error)),
            LinkError::Call(_) | LinkError::Unexpected | LinkError::NotTaken => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
        })
    }

    /// Returns when the member is connected.
    async fn seen(&self) {
        while !self.wire.peers.is_up(self.target) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn unexpected() -> CallFailed {
    RPCError::Unreachable(Unreachable::new(&LinkError::Unexpected))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallFailed> {
        if self.told.as_ref().is_some_and(|told| told.covers(&rpc, self.wire.news_wait)) {
            return Ok(AppendEntriesResponse::Success);
        }
        let lane = if rpc.entries.is_empty() { Lane::Urgent } else { Lane::Normal };
        let weak = self.wire.weak.load(Ordering::Relaxed);
        let append = convert::append(self.wire.group, &rpc, weak);
        let asked_at = Instant::now();
        self.told = None;
        let answer = self.ask(lane, request::Kind::Append(append), &option).await?;
        let response::Kind::Append(answer) = answer else { return Err(unexpected()) };
        let free_percent = answer.free_percent.into();
        let answer = convert::append_response(&answer).ok_or_else(unexpected)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            let (term, firmly_at) = (rpc.vote.leader_id().term, (!weak).then_some(asked_at));
            let answered = Answered { term, at: asked_at, firmly_at, free_percent };
            self.wire.note_answer(self.target, answered);
        }
        if matches!(answer, AppendEntriesResponse::Success) {
            self.told = Some(Told::by(&rpc, asked_at));
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallFailed> {
        let term = rpc.vote.leader_id().term;
        let yielded = self.wire.yielded().filter(|leader| leader.term + 1 == term);
        let wanted = cluster::Vote {
            group: u32::from(self.wire.group.0),
            vote: Some(convert::stored_vote(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(convert::stored_id),
            probe: false,
            yielded,
        };
        let answer = self.ask(Lane::Urgent, request::Kind::Vote(wanted), &option).await?;
        let response::Kind::Vote(answer) = answer else { return Err(unexpected()) };
        convert::vote_response(&answer).ok_or_else(unexpected)
    }

    async fn full_snapshot(
        &mut self,
        vote: Ballot,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let sending = async {
            if self.wire.peers.is_up(self.target) {
                let within = option.hard_ttl();
                return snapshot::send(&self.wire, self.target, (vote, snapshot), within).await;
            }
            // openraft would open the tables again at each try.
            drop(snapshot);
            self.seen().await;
            Err(LinkError::Call(CallError::NotUp).into())
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        let last = PAUSES[PAUSES.len() - 1];
        Backoff::new(PAUSES.into_iter().chain(std::iter::repeat(last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{CommittedLeaderId, LogId, Vote};

    const MEMBER: NodeId = NodeId(2);

    #[tokio::test(start_paused = true)]
    async fn no_snapshot_is_held_for_a_member_that_is_not_connected() {
        let network = links::memory::Network::new(7);
        let (me, attach) = network.node(NodeId(1), 1);
        attach.attach(Arc::new(Silent));
        let wire = Wire::new(ShardId(3), Arc::clone(&me), FRESH);
        let mut link = Link { target: MEMBER, wire: Arc::new(wire), told: None };
        let snapshot = Box::new(crate::types::SnapshotData::Elsewhere);
        let snapshot = Snapshot { meta: openraft::SnapshotMeta::default(), snapshot };
        let option = RPCOption::new(Duration::from_secs(1));
        let vote = Vote::new_committed(3, 1);
        let mut sent = std::pin::pin!(link.full_snapshot(
            vote,
            snapshot,
            std::future::pending::<ReplicationClosed>(),
            option
        ));
        let waited = tokio::time::timeout(Duration::from_mins(1), &mut sent).await;
        assert!(waited.is_err(), "it would only be asked for again");

        let (_member, attach) = network.node(MEMBER, 2);
        attach.attach(Arc::new(Silent));
        let sent = tokio::time::timeout(Duration::from_secs(10), sent).await.unwrap();
        assert!(matches!(sent, Err(StreamingError::Unreachable(_))), "openraft begins anew");
        assert!(me.is_up(MEMBER));
    }

    struct Silent;

    impl links::Service for Silent {
        fn up(&self, _peer: links::PeerInfo) {}
        fn down(&self, _peer: links::PeerId) {}
        fn cast(&self, _from: links::PeerId, _parcel: bytes::Bytes) {}
        fn call(&self, _: links::PeerId, _: bytes::Bytes, _: Duration, _: links::Respond) {}
    }

    const FRESH: Duration = Duration::from_millis(125);

    fn asked(prev: u64, committed: u64) -> AppendEntriesRequest<Types> {
        let id = |index| Some(LogId::new(CommittedLeaderId::new(3, 1), index));
        let (prev_log_id, leader_commit) = (id(prev), id(committed));
        let vote = Vote::new_committed(3, 1);
        AppendEntriesRequest { vote, prev_log_id, entries: Vec::new(), leader_commit }
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_of_commits_is_kept_back_and_only_for_a_while() {
        let told = Told::by(&asked(8, 7), Instant::now());
        assert!(told.covers(&asked(8, 8), FRESH), "it has entry 8, and hears later that it counts");
        assert!(!told.covers(&asked(8, 7), FRESH), "a heartbeat goes out");
        assert!(!told.covers(&asked(6, 8), FRESH), "not what the member said it has");
        let later = AppendEntriesRequest { vote: Vote::new_committed(4, 1), ..asked(8, 8) };
        assert!(!told.covers(&later, FRESH), "another term");
        tokio::time::advance(FRESH).await;
        assert!(!told.covers(&asked(8, 8), FRESH), "what the member said is old");
    }
}
