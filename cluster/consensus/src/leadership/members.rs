//! Who takes part, and who leads: what the leader is asked to change.
//!
//! # Invariants
//! 1. One membership follows on another only when that is committed; openraft refuses otherwise.
//! 2. Nobody votes who has not caught up first.

use crate::error::{ProposeError, RaftError};
use crate::leadership::{confirm, election};
use crate::{Inner, convert};
use links::Lane;
use openraft::error::{ChangeMembershipError, ClientWriteError};
use openraft::{ChangeMembers, EmptyNode};
use proto::NodeId;
use proto::cluster::{self, request, response};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(20);

/// Longest time in which another takes over.
const HANDOVER: Duration = Duration::from_secs(1);

type ChangeFailed = openraft::error::RaftError<u64, ClientWriteError<u64, EmptyNode>>;

pub(crate) async fn found(inner: &Inner) -> Result<(), RaftError> {
    match inner.raft.initialize(BTreeSet::from([inner.me])).await {
        // An error of openraft's rules: there are members, or it has voted.
        Ok(()) | Err(openraft::error::RaftError::APIError(_)) => Ok(()),
        Err(openraft::error::RaftError::Fatal(_)) => Err(RaftError::Stopped),
    }
}

/// Only the leader changes members.
fn leads(inner: &Inner) -> Result<(), RaftError> {
    let status = inner.status_now();
    if status.ended {
        return Err(RaftError::Stopped);
    }
    if status.me_leads { Ok(()) } else { Err(RaftError::NotLeader(status.leader)) }
}

async fn change(
    inner: &Inner,
    members: ChangeMembers<u64, EmptyNode>,
    retain: bool,
) -> Result<(), RaftError> {
    let patience = inner.timing.election.1;
    let until = Instant::now() + patience;
    loop {
        let changing = inner.raft.change_membership(members.clone(), retain);
        match timeout(patience * 2, changing).await {
            Err(_) => return Err(RaftError::NoMajority),
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => {
                let error = failed(&error);
                if !matches!(error, RaftError::Busy) || Instant::now() >= until {
                    return Err(error);
                }
                sleep(LOOK).await;
            }
        }
    }
}

fn failed(error: &ChangeFailed) -> RaftError {
    match error {
        ChangeFailed::Fatal(_) => RaftError::Stopped,
        ChangeFailed::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            RaftError::NotLeader(forward.leader_id.map(NodeId))
        }
        ChangeFailed::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => RaftError::Busy,
            ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_) => RaftError::Refused,
        },
    }
}

pub(crate) async fn add_learner(inner: &Inner, node: NodeId) -> Result<(), RaftError> {
    leads(inner)?;
    let status = inner.status_now();
    if !status.voters.contains(&node) && !status.learners.contains(&node) {
        let nodes = [(node.0, EmptyNode::new())].into();
        change(inner, ChangeMembers::AddNodes(nodes), true).await?;
    }
    let mut seen = None;
    let mut progress = Instant::now();
    while node.0 != inner.me && !inner.has_nearly_all(node) {
        leads(inner)?;
        let pieces = inner.wire.pieces.load(Ordering::Relaxed);
        let at = Some((inner.matched(node).and_then(|(matched, _)| matched), pieces));
        if at != seen {
            (seen, progress) = (at, Instant::now());
        } else if progress.elapsed() >= inner.timing.learner {
            return Err(RaftError::NoProgress(node));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

pub(crate) async fn remove_learner(inner: &Inner, node: NodeId) -> Result<(), RaftError> {
    leads(inner)?;
    let status = inner.status_now();
    if status.voters.contains(&node) {
        return Err(RaftError::Refused);
    }
    if !status.learners.contains(&node) {
        return Ok(());
    }
    change(inner, ChangeMembers::RemoveNodes(BTreeSet::from([node.0])), true).await
}

pub(crate) async fn has_left(inner: &Inner, node: NodeId) -> Result<bool, RaftError> {
    confirm::confirm(inner).await.map_err(|error| match error {
        ProposeError::NotLeader(leader) => RaftError::NotLeader(leader),
        ProposeError::NoMajority
        | ProposeError::Full
        | ProposeError::Busy
        | ProposeError::Unknown => RaftError::NoMajority,
        ProposeError::Failed => RaftError::Stopped,
    })?;
    let seen = inner.raft.with_raft_state(move |state| {
        let members = state.membership_state.effective();
        let agreed = state.committed >= *members.log_id();
        agreed && members.membership().get_node(&node.0).is_none()
    });
    let seen = timeout(inner.timing.election.1, seen).await;
    seen.map_err(|_| RaftError::NoMajority)?.map_err(|_| RaftError::Stopped)
}

pub(crate) async fn change_voters(
    inner: &Inner,
    voters: BTreeSet<NodeId>,
) -> Result<(), RaftError> {
    leads(inner)?;
    if voters.is_empty() {
        return Err(RaftError::Refused);
    }
    let me = NodeId(inner.me);
    for node in voters.iter().filter(|node| **node != me) {
        if !inner.status_now().voters.contains(node) {
            add_learner(inner, *node).await?;
        }
    }
    let mut next: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
    next.insert(inner.me);
    change(inner, ChangeMembers::ReplaceAllVoters(next), false).await?;
    if voters.contains(&me) {
        return Ok(());
    }
    // A leader that is no voter would leave the others to wait for the election time.
    let mut failed = RaftError::NoMajority;
    for heir in voters.into_iter().filter(|node| inner.peers.is_up(*node)) {
        match yield_to(inner, heir).await {
            Ok(()) => return Err(RaftError::NotLeader(Some(heir))),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

pub(crate) async fn yield_to(inner: &Inner, node: NodeId) -> Result<(), RaftError> {
    let _handover = inner.handover.lock().await;
    leads(inner)?;
    if node.0 == inner.me {
        return Ok(());
    }
    if !inner.status_now().voters.contains(&node) {
        return Err(RaftError::Refused);
    }
    // Nobody should have to wait for one who does not answer, or has just refused.
    if !inner.answers(node) || inner.way_out.is_refused_by(node) {
        return Err(RaftError::NotTaken(node));
    }
    let _held = Held::of(inner);
    hand_over(inner, node).await
}

/// Proposals wait as long as this lives.
struct Held<'a>(&'a Inner);

impl<'a> Held<'a> {
    fn of(inner: &'a Inner) -> Self {
        inner.proposals.hold();
        Self(inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// With nothing under way any longer, waits until the other has all of the log, and asks it to lead.
async fn hand_over(inner: &Inner, node: NodeId) -> Result<(), RaftError> {
    let until = Instant::now() + HANDOVER;
    let (vote, last) = loop {
        leads(inner)?;
        if inner.journal.is_stuck() {
            return Err(RaftError::NotTaken(node));
        }
        if inner.proposals.is_idle()
            && let Some((vote, last)) = election::position(inner).await
            && inner.matched(node).is_some_and(|(at, _)| at == last.map(|id| id.index))
        {
            break (vote, last);
        }
        if Instant::now() >= until {
            return Err(RaftError::NotTaken(node));
        }
        sleep(Duration::from_millis(2)).await;
    };
    let asked = cluster::TimeoutNow {
        group: u32::from(inner.group.0),
        vote: Some(convert::stored_vote(&vote)),
        last: last.as_ref().map(convert::stored_id),
    };
    ask_to_lead(inner, node, asked, until).await?;
    let mut server = inner.raft.server_metrics();
    let taken = server.wait_for(|server| server.current_leader == Some(node.0));
    match timeout(until.saturating_duration_since(Instant::now()), taken).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(RaftError::Stopped),
        Err(_) => Err(RaftError::NotTaken(node)),
    }
}

/// What [`yield_to`] does if openraft waits for the disk and can neither be asked nor told anything.
/// What is under way is in doubt then; the others elect by what they have.
pub(crate) async fn leave_to(inner: &Inner, node: NodeId) -> Result<(), RaftError> {
    let _handover = inner.handover.lock().await;
    let vote = inner.raft.server_metrics().borrow().vote;
    let asked = cluster::TimeoutNow {
        group: u32::from(inner.group.0),
        vote: Some(convert::stored_vote(&vote)),
        last: None,
    };
    ask_to_lead(inner, node, asked, Instant::now() + HANDOVER).await
}

async fn ask_to_lead(
    inner: &Inner,
    node: NodeId,
    asked: cluster::TimeoutNow,
    until: Instant,
) -> Result<(), RaftError> {
    let question = request::Kind::TimeoutNow(asked);
    let left = until.saturating_duration_since(Instant::now());
    match inner.wire.ask((node, Lane::Urgent), question, left).await {
        Ok(response::Kind::Leads(true)) => Ok(()),
        Ok(response::Kind::Leads(false)) => {
            inner.way_out.refused_by(node);
            Err(RaftError::NotTaken(node))
        }
        Ok(_) | Err(_) => Err(RaftError::NotTaken(node)),
    }
}
