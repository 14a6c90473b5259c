//! Heartbeats and elections. openraft's own timers are off: its followers wait for a lease of the
//! longest election time and an election time more, and campaign without asking first.
//!
//! ```text
//! candidate                          voters
//!   | Vote{term + 1, probe}            |   leader silent, or not connected here? log no longer?
//!   |--------------------------------->|   nothing is changed by the answer
//!   |                       granted    |
//!   |<---------------------------------|   a majority, or it is tried again later
//!   | Vote{term + 1}                   |   the same questions; openraft's lease is put aside
//!   |--------------------------------->|
//! ```
//!
//! One task for each group, [`run`]; the answers are given by whoever serves the request.
//!
//! # Invariants
//! 1. No term begins unless a majority said that it would vote so: a node that was cut off does not
//!    disturb the others when it comes back.
//! 2. A voter that hears its leader, over a link that is up, votes for no other, unless the leader
//!    itself asked for it.
//! 3. A leader that has not heard from a majority for the election time says so with its heartbeats,
//!    which then hold nobody back.
//! 4. Whether a vote counts is for openraft alone to say.
//! 5. Who has forgotten a log votes as if it still had it, see [`crate::forget`].
//! 6. A node without space or with a wrong clock stands for election after the others, see
//!    [`crate::leadership::space`].

use crate::Inner;
use crate::convert;
use crate::types::{Ballot, Id, SnapshotData};
use links::Lane;
use openraft::{ServerState, Snapshot, SnapshotMeta, Vote};
use parking_lot::Mutex;
use proto::cluster::{self, request, response};
use proto::{NodeId, stored};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

/// How long a group that needs no heartbeat, and elects nobody, sleeps.
const IDLE: Duration = Duration::from_secs(1);

/// Between the voters who find the leader gone at once, so that one of them is first.
const RANK_DELAY: Duration = Duration::from_millis(40);

/// When this node last heard from the leader it follows.
#[derive(Debug)]
pub(crate) struct Contact(Mutex<Heard>);

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    /// It was the leader; otherwise the start, or a candidate that got the vote.
    leader: bool,
}

impl Contact {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Heard { at: Instant::now(), leader: false }))
    }

    /// Who has this vote spoke.
    pub(crate) fn heard(&self, vote: &Ballot) {
        let heard = Heard { at: Instant::now(), leader: vote.is_committed() };
        *self.0.lock() = heard;
    }

    fn last(&self) -> Heard {
        *self.0.lock()
    }

    /// Whether the leader was heard in the last `within`.
    pub(crate) fn is_fresh(&self, within: Duration) -> bool {
        let heard = self.last();
        heard.leader && heard.at.elapsed() < within
    }
}

/// What the task remembers from step to step.
struct Pulse {
    /// State of the chance that spreads elections.
    chance: u64,
    timeout: Duration,
    tried: Instant,
    /// Since when the leader has no link.
    gone: Option<Instant>,
}

impl Pulse {
    /// A time between two others.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        // xorshift64: only has to differ from node to node.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
        least + Duration::from_micros(self.chance % span.max(1))
    }
}

/// Sends heartbeats while this node leads, and stands for election when nobody does.
pub(crate) async fn run(inner: Arc<Inner>) {
    let stopping = inner.tasks.stopping();
    let seed = inner.me.rotate_left(u32::from(inner.group.0)) ^ inner.peers.me().incarnation;
    let (least, most) = inner.timing.election;
    let mut pulse = Pulse { chance: seed | 1, timeout: least, tried: Instant::now(), gone: None };
    pulse.timeout = pulse.between(least, most);
    loop {
        let pause = step(&inner, &mut pulse).await;
        tokio::select! {
            () = stopping.wait() => return,
            () = tokio::time::sleep(pause) => {}
            () = inner.nudge.notified() => {}
        }
    }
}

/// Does what is due and answers when to look again.
async fn step(inner: &Inner, pulse: &mut Pulse) -> Duration {
    inner.refresh();
    let server = inner.raft.server_metrics().borrow().clone();
    let members = server.membership_config.membership();
    let voters: BTreeSet<u64> = members.voter_ids().collect();
    if server.state == ServerState::Leader {
        pulse.gone = None;
        pulse.tried = Instant::now();
        if members.nodes().all(|(node, _)| *node == inner.me) {
            return IDLE;
        }
        if !inner.journal.is_stuck() {
            crate::now(inner.raft.trigger().heartbeat());
        }
        return inner.timing.heartbeat;
    }
    if !voters.contains(&inner.me) || inner.journal.is_stuck() || !may_stand(inner) {
        return IDLE;
    }
    if voters.len() == 1 {
        crate::now(inner.raft.trigger().elect());
        return IDLE;
    }
    // A snapshot is being installed: what the leader says meanwhile is not heard.
    if inner.appends.try_read().is_err() {
        return inner.timing.heartbeat;
    }
    let mut due = due(inner, pulse, server.current_leader, &voters);
    if inner.is_unfit() {
        due += 2 * inner.timing.election.1;
    }
    let now = Instant::now();
    if now < due {
        return due.duration_since(now).min(IDLE);
    }
    let (least, most) = inner.timing.election;
    pulse.tried = now;
    pulse.timeout = pulse.between(least, most);
    if campaign(inner, None).await {
        debug!(shard = %inner.group, "standing for election");
    }
    // If the links are to blame, the next try is soon: others may hear of it later than we.
    pulse.between(inner.timing.heartbeat / 4, inner.timing.heartbeat / 2)
}

/// Whether this node is not being forgotten, and has the log that it once had.
fn may_stand(inner: &Inner) -> bool {
    !inner.resting.load(Ordering::Acquire) && inner.journal.last() >= inner.floor
}

/// When this voter stands for election.
fn due(inner: &Inner, pulse: &mut Pulse, leader: Option<u64>, voters: &BTreeSet<u64>) -> Instant {
    let heard = inner.contact.last();
    match leader {
        Some(leader) if heard.leader && !inner.peers.is_up(NodeId(leader)) => {
            let gone = *pulse.gone.get_or_insert_with(Instant::now);
            let others = voters.iter().filter(|voter| **voter != leader);
            let place = others.take_while(|voter| **voter < inner.me).count();
            let rank = (place + usize::from(inner.group.0)) % (voters.len() - 1).max(1);
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            (gone + RANK_DELAY.saturating_mul(rank)).max(pulse.tried + inner.timing.heartbeat / 4)
        }
        Some(_) => {
            pulse.gone = None;
            heard.at.max(pulse.tried) + pulse.timeout
        }
        None => {
            // An election is under way, or failed: disks take their time.
            pulse.gone = None;
            let least = inner.timing.election.0;
            heard.at.max(pulse.tried) + pulse.between(least / 2, least)
        }
    }
}

/// Asks the voters, and begins an election if a majority would vote for this node. `yielded`: the
/// leader that asked for it.
async fn campaign(inner: &Inner, yielded: Option<stored::Vote>) -> bool {
    let Some((vote, last)) = position(inner).await else { return false };
    let members = inner.raft.server_metrics().borrow().membership_config.clone();
    let probe = cluster::Vote {
        group: u32::from(inner.group.0),
        vote: Some(convert::stored_vote(&Vote::new(vote.leader_id().term + 1, inner.me))),
        last: last.as_ref().map(convert::stored_id),
        probe: true,
        yielded,
    };
    let mut granted = BTreeSet::from([inner.me]);
    let mut asked = JoinSet::new();
    for voter in members.voter_ids().filter(|voter| *voter != inner.me) {
        if inner.peers.is_up(NodeId(voter)) {
            let wire = Arc::clone(&inner.wire);
            let within = inner.timing.heartbeat;
            asked.spawn(async move {
                let to = (NodeId(voter), Lane::Urgent);
                match wire.ask(to, request::Kind::Vote(probe), within).await {
                    Ok(response::Kind::Vote(answer)) => Some((voter, answer)),
                    Ok(_) | Err(_) => None,
                }
            });
        }
    }
    let is_quorum = |granted: &BTreeSet<u64>| {
        let mut configs = members.membership().get_joint_config().iter();
        configs.all(|config| 2 * config.intersection(granted).count() > config.len())
    };
    let mut promised = vote;
    while !is_quorum(&granted) {
        let Some(answer) = asked.join_next().await else {
            adopt(inner, &vote, promised).await;
            return false;
        };
        if let Some((voter, answer)) = answer.ok().flatten() {
            granted.extend(answer.granted.then_some(voter));
            let theirs = answer.vote.as_ref().map(convert::vote);
            promised = theirs.filter(|theirs| *theirs > promised).unwrap_or(promised);
        }
    }
    if let Some(leader) = yielded {
        inner.wire.elected_for(leader);
    }
    elect(inner, &vote);
    true
}

/// Someone has promised more than this node knew of, and nobody leads: the next election must be in a
/// later term than that. Otherwise one who cannot win could stand in the way of one who could.
async fn adopt(inner: &Inner, vote: &Ballot, promised: Ballot) {
    if promised.leader_id().term > vote.leader_id().term {
        let id = promised.leader_id();
        take_vote(inner, Vote::new(id.term, id.node_id)).await;
    }
}

/// Begins an election in the term after that of `vote`.
fn elect(inner: &Inner, vote: &Ballot) {
    inner.contact.heard(&Vote::new(vote.leader_id().term + 1, inner.me));
    crate::now(inner.raft.trigger().elect());
}

/// What openraft has promised, and where its log ends; `None` if it does not say.
pub(crate) async fn position(inner: &Inner) -> Option<(Ballot, Option<Id>)> {
    if inner.journal.is_stuck() {
        return None;
    }
    let journal = inner.journal.clone();
    let position = inner.raft.with_raft_state(move |state| (*state.vote_ref(), journal.last()));
    tokio::time::timeout(inner.timing.election.0, position).await.ok()?.ok()
}

/// A candidate asks for this node's vote, or whether it would get it.
pub(crate) async fn vote(inner: &Inner, wanted: cluster::Vote) -> Option<cluster::VoteAnswer> {
    let request = convert::vote_request(&wanted)?;
    let (mine, last) = position(inner).await?;
    let last = last.max(inner.floor);
    let for_leader = wanted.yielded.as_ref().map(convert::vote);
    let stands_anew = mine.is_committed() && wanted_by(&request.vote) == wanted_by(&mine);
    let may = request.vote > mine
        && request.last_log_id >= last
        && (for_leader == Some(mine) || stands_anew || leader_is_gone(inner, &mine));
    // openraft knows nothing of a log that was forgotten.
    let lacks = request.last_log_id < inner.floor;
    if wanted.probe || lacks {
        debug!(shard = %inner.group, vote = %request.vote, granted = may, "asked for a vote");
        let last = last.as_ref().map(convert::stored_id);
        let vote = Some(convert::stored_vote(&mine));
        return Some(cluster::VoteAnswer { vote, granted: may, last });
    }
    if may {
        inner.contact.heard(&request.vote);
    }
    if may && mine.is_committed() {
        take_vote(inner, request.vote).await?;
    }
    let response = inner.raft.vote(request).await.ok()?;
    Some(convert::vote_answer(&response))
}

/// Who leads, or wants to. A leader that stands for election has ceased to lead: it was started again.
fn wanted_by(vote: &Ballot) -> u64 {
    vote.leader_id().node_id
}

/// Whether the leader that this node has promised to follow need not be waited for.
fn leader_is_gone(inner: &Inner, mine: &Ballot) -> bool {
    let heard = inner.contact.last();
    if !mine.is_committed() {
        // Whoever got the vote has a while to become the leader.
        return heard.leader || heard.at.elapsed() >= inner.timing.election.0 / 2;
    }
    let leader = mine.leader_id().node_id;
    if leader == inner.me {
        return inner.wire.weak.load(Ordering::Relaxed);
    }
    heard.at.elapsed() >= inner.timing.election.0
        || (heard.leader && !inner.peers.is_up(NodeId(leader)))
}

/// Makes openraft promise a candidate what it promised a leader. Its lease, which would have the
/// vote refused, is only for votes that were won. It takes the vote with an empty snapshot, which is
/// no later than any log and so not installed.
async fn take_vote(inner: &Inner, vote: Ballot) -> Option<()> {
    let snapshot =
        Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(SnapshotData::Elsewhere) };
    inner.raft.install_full_snapshot(vote, snapshot).await.ok()?;
    Some(())
}

/// The leader asks this node to be elected in its place.
pub(crate) async fn lead_now(inner: &Inner, asked: &cluster::TimeoutNow) -> Option<bool> {
    let leader: stored::Vote = asked.vote?;
    if inner.is_unfit() {
        return Some(false);
    }
    let (mine, last) = position(inner).await?;
    let whole = last >= asked.last.as_ref().map(convert::id);
    let elects = whole && may_stand(inner) && mine == convert::vote(&leader) && mine.is_committed();
    if elects && asked.last.is_none() {
        // The leader could not say how long its log is: others may have more of it.
        return Some(campaign(inner, Some(leader)).await);
    }
    if elects {
        inner.wire.elected_for(leader);
        elect(inner, &mine);
    }
    Some(elects)
}
