//! The state of a group as this node sees it, and the purge of its log.
//!
//! One task for each group, [`run`], follows openraft's metrics: leader, term and members. The election
//! task checks with each heartbeat that a majority answers.

use crate::error::ProposeError;
use crate::proposals;
use crate::{Inner, convert, now};
use openraft::{RaftMetrics, ServerState};
use parking_lot::Mutex;
use proto::{NodeId, stored};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of entries that stay in memory after a checkpoint, for members that are behind.
const KEPT_BYTES: usize = 1024 * 1024;

/// Time for which they stay.
const KEPT_FOR: Duration = Duration::from_mins(1);

/// Entries that a caught-up member may lack: they are on their way to it.
const LAG: u64 = 8;

/// The state of a group: as this node sees it, or as its leader told. Its JSON is part of the admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The leader; `None` if there is none, or it is unknown.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// The voters; during a joint membership the old and the new ones.
    pub voters: BTreeSet<NodeId>,
    /// The learners: members with a copy and no vote.
    pub learners: BTreeSet<NodeId>,
    /// Members that have the log but for its last entries. Only the leader knows them.
    pub caught_up: BTreeSet<NodeId>,
    /// Index of the last entry in the log.
    pub last: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// This node is the leader.
    #[serde(skip)]
    pub me_leads: bool,
    /// On the leader: a majority has answered within the shortest election timeout. On others: this node
    /// heard the leader within the longest one.
    #[serde(skip)]
    pub quorum_seen: bool,
    /// The group has ended on this node: it was stopped, or its storage failed.
    #[serde(skip)]
    pub ended: bool,
}

impl GroupStatus {
    /// True if there is a leader and this node heard it lately, or leads itself with a majority.
    pub fn is_led(&self) -> bool {
        self.leader.is_some() && self.quorum_seen
    }

    /// True if this node leads, and a majority has answered lately.
    pub fn leads_a_majority(&self) -> bool {
        self.me_leads && self.quorum_seen
    }

    /// True if a node is a voter or a learner.
    pub fn has_member(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }

    fn without_indexes(&self) -> Self {
        Self { last: 0, applied: 0, ..self.clone() }
    }
}

/// The last checkpoints of the tables, as log indexes.
#[derive(Default)]
pub(crate) struct Checkpoints(Mutex<Places>);

#[derive(Default)]
struct Places {
    previous: Option<u64>,
    last: Option<(u64, Instant)>,
    /// Index of the last purged entry.
    purged: Option<u64>,
    /// The last index when this node became leader: when it is applied, so are all entries of earlier
    /// terms.
    leads_from: Option<(u64, Instant)>,
}

impl Checkpoints {
    fn lock(&self) -> parking_lot::MutexGuard<'_, Places> {
        self.0.lock()
    }
}

/// Follows openraft until the group ends.
pub(crate) async fn run(inner: Arc<Inner>) {
    let stopping = inner.tasks.stopping();
    let mut server = inner.raft.server_metrics();
    loop {
        tokio::select! {
            () = stopping.wait() => return,
            changed = server.changed() => if changed.is_err() {
                inner.refresh();
                inner.proposals.give_up();
                return;
            },
        }
        inner.refresh();
        inner.nudge.notify_one();
    }
}

fn nodes(ids: impl Iterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.map(NodeId).collect()
}

impl Inner {
    /// Reads the state of the group again and wakes the watchers if it changed.
    pub(crate) fn refresh(&self) {
        if self.resting.load(Ordering::Acquire) {
            return;
        }
        let next = self.status_now();
        let lost = next.me_leads && !next.quorum_seen;
        self.wire.weak.store(lost, Ordering::Relaxed);
        let led = self.status.borrow().me_leads;
        if lost || (led && !next.me_leads) {
            self.proposals.give_up();
        }
        self.status.send_if_modified(|status| {
            let changed = status.without_indexes() != next.without_indexes();
            *status = next;
            changed
        });
        self.purge();
    }

    /// The reason why the group has ended, unless [`Inner::stop`] ended it.
    pub(crate) fn failure(&self) -> Option<String> {
        if self.stopped.load(Ordering::Acquire) {
            return self.failure.get().cloned();
        }
        let receiver = self.raft.metrics();
        let state = receiver.borrow().running_state.clone();
        let gone = receiver.has_changed().is_err();
        let unsaid = gone.then(|| "openraft ended".to_owned());
        state.err().map(|error| error.to_string()).or(unsaid)
    }

    pub(crate) fn status_now(&self) -> GroupStatus {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let ended = metrics.running_state.is_err() || receiver.has_changed().is_err();
        let successor = self.way_out.successor(metrics.current_term);
        let left = successor.is_some() || self.way_out.has_left(metrics.current_term);
        let me_leads = metrics.state == ServerState::Leader && !ended && !left;
        let known = if left { successor } else { metrics.current_leader.map(NodeId) };
        let members = metrics.membership_config.membership();
        GroupStatus {
            leader: known.filter(|_| !ended),
            me_leads,
            term: metrics.current_term,
            voters: nodes(members.voter_ids()),
            learners: nodes(members.learner_ids()),
            last: metrics.last_log_index.unwrap_or_default(),
            applied: metrics.last_applied.map(|id| id.index).unwrap_or_default(),
            caught_up: BTreeSet::new(),
            quorum_seen: !ended && self.quorum_seen(&metrics, me_leads),
            ended,
        }
    }

    fn quorum_seen(&self, metrics: &RaftMetrics<u64, openraft::EmptyNode>, leads: bool) -> bool {
        let patience = self.timing.election.0;
        let mut places = self.checkpoints.lock();
        if !leads {
            places.leads_from = None;
            drop(places);
            return metrics.current_leader.is_some()
                && self.contact.is_fresh(self.timing.election.1);
        }
        let last = metrics.last_log_index.unwrap_or_default();
        let (_, since) = *places.leads_from.get_or_insert_with(|| (last, Instant::now()));
        drop(places);
        if self.journal.is_stuck() {
            return false;
        }
        // A new leader has sent its first requests and has no answers yet.
        let term = metrics.current_term;
        since.elapsed() < patience
            || self.is_answered(metrics, |node| self.wire.answered_in(term, node))
    }

    /// True if a majority has answered this leader within the shortest election timeout. `last` gives the
    /// time of the last request that a member answered. openraft's own metric does not serve: it is an
    /// age as of openraft's last report, so it would look fresh after a pause of the process.
    fn is_answered(
        &self,
        metrics: &RaftMetrics<u64, openraft::EmptyNode>,
        last: impl Fn(NodeId) -> Option<Instant>,
    ) -> bool {
        let answers = |node: &&u64| {
            let fresh = |at: Instant| at.elapsed() < self.timing.election.0;
            **node == self.me || last(NodeId(**node)).is_some_and(fresh)
        };
        let mut configs = metrics.membership_config.membership().get_joint_config().iter();
        configs.all(|config| 2 * config.iter().filter(answers).count() > config.len())
    }

    /// See [`crate::Group::is_followed`].
    pub(crate) fn is_followed(&self) -> bool {
        // During a leadership transfer another node may lead at any moment.
        if self.handover.try_lock().is_err() || self.journal.is_stuck() {
            return false;
        }
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        metrics.state == ServerState::Leader
            && metrics.running_state.is_ok()
            && self.is_answered(&metrics, |node| {
                let answered = self.wire.answered_firmly_in(metrics.current_term, node);
                answered.filter(|_| self.peers.is_up(node))
            })
    }

    /// True if this node is the only voter, leads, and has applied all entries of earlier terms.
    pub(crate) fn leads_alone(&self) -> bool {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let configs = metrics.membership_config.membership().get_joint_config();
        let alone = configs.len() == 1 && configs[0].iter().eq([&self.me]);
        let leads = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
        let from = self.checkpoints.lock().leads_from;
        let applied = metrics.last_applied.map(|id| id.index);
        alone && leads && from.is_some_and(|(from, _)| applied.is_some_and(|at| at >= from))
    }

    /// Checks, as far as this node knows, that the log would accept a proposal.
    pub(crate) fn may_propose(&self) -> Result<(), ProposeError> {
        let status = self.status.borrow();
        if status.ended {
            Err(ProposeError::Failed)
        } else if !status.me_leads {
            Err(ProposeError::NotLeader(status.leader))
        } else if self.journal.is_stuck() {
            Err(ProposeError::Full)
        } else if !status.quorum_seen {
            Err(ProposeError::NoMajority)
        } else {
            Ok(())
        }
    }

    /// The index up to which a member has the log, and the last index; `None` if this node does not lead.
    pub(crate) fn matched(&self, node: NodeId) -> Option<(Option<u64>, u64)> {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let matched = metrics.replication.as_ref()?.get(&node.0)?;
        Some((matched.map(|id| id.index), metrics.last_log_index.unwrap_or_default()))
    }

    pub(crate) fn has_nearly_all(&self, node: NodeId) -> bool {
        let matched = self.matched(node);
        matched.is_some_and(|(matched, last)| matched.is_some_and(|at| at + LAG >= last))
    }

    pub(crate) fn caught_up(&self) -> BTreeSet<NodeId> {
        let status = self.status_now();
        let members = status.voters.into_iter().chain(status.learners);
        let ready = |node: &NodeId| {
            let refuses = self.way_out.is_refused_by(*node);
            self.answers(*node) && !refuses && self.has_nearly_all(*node)
        };
        members.filter(|node| node.0 == self.me || ready(node)).collect()
    }

    /// True if a member has answered this leader lately. A member that waits for its disk does not answer.
    pub(crate) fn answers(&self, node: NodeId) -> bool {
        let term = self.raft.server_metrics().borrow().vote.leader_id().term;
        // A new leader has sent its first requests, and some answers are still on their way.
        let since = self.checkpoints.lock().leads_from.map(|(_, since)| since);
        let answered = self.wire.answered_in(term, node).max(since);
        answered.is_some_and(|at| at.elapsed() < self.timing.election.0)
    }

    pub(crate) fn checkpointed(&self, applied: stored::LogId) {
        let applied = convert::id(&applied);
        let mut places = self.checkpoints.lock();
        places.previous = places.last.map(|(index, _)| index);
        places.last = Some((applied.index, Instant::now()));
        drop(places);
        now(self.raft.trigger().snapshot());
        self.nudge.notify_one();
    }

    /// Purges entries that are in the tables: all of them if there is no other member, or if the checkpoint
    /// is old; otherwise it keeps some for members that are behind.
    fn purge(&self) {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let snapshot = metrics.snapshot.map(|id| id.index);
        let alone = metrics.membership_config.nodes().all(|(node, _)| *node == self.me);
        drop(metrics);
        let mut places = self.checkpoints.lock();
        let Some((last, at)) = places.last else { return };
        let goal = if alone || at.elapsed() >= KEPT_FOR {
            last
        } else {
            self.journal.before_tail(last, KEPT_BYTES).max(places.previous.unwrap_or(0))
        };
        let goal = goal.min(snapshot.unwrap_or(0));
        if snapshot.is_some() && places.purged.is_none_or(|purged| purged < goal) {
            places.purged = Some(goal);
            drop(places);
            now(self.raft.trigger().purge_log(goal));
        }
    }

    /// Ends [`crate::proposals::Proposals::hold`].
    pub(crate) fn release(&self) {
        self.refresh();
        proposals::release(self);
    }
}
