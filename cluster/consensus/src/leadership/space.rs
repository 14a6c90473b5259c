//! A node without space, or whose clock is astray, leads nothing that another node can lead.
//!
//! ```text
//! leader, full                       the others, who has most of the log first
//!   | TimeoutNow                         |  full as well, or silent? the next one is asked
//!   |----------------------------------->|
//!   |                              leads |  stands for election
//!   |<-----------------------------------|
//! ```
//!
//! One task for each group, [`run`].
//!
//! # Invariants
//! 1. A node that is unfit, that is full or astray, takes no leadership over, and stands for election
//!    only when those had their time who are not.
//! 2. If nobody else takes it, it goes on to lead: acknowledgments are what makes room.
//! 3. A node whose openraft waits for the disk leads nothing once it has heard from a later leader,
//!    however long it waits.
//! 4. Who leads is for an election to say: what is sent here is a hint, and safe if it is wrong.

use crate::error::RaftError;
use crate::leadership::members;
use crate::types::Ballot;
use crate::{Group, Inner};
use openraft::ServerState;
use parking_lot::{Mutex, MutexGuard};
use proto::NodeId;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// How long the answer of somebody who did not take leadership over holds.
const REFUSAL: Duration = Duration::from_secs(5);

/// A member's report of its free space counts for so long.
const SPACE_KNOWN: Duration = Duration::from_secs(10);

/// Free space in hundredths of what should be free, below which a disk is full.
const FULL_PERCENT: u64 = 100;

/// How often a group without other voters looks.
const IDLE: Duration = Duration::from_secs(1);

/// What a group knows of the way out of its leadership.
#[derive(Default)]
pub(crate) struct WayOut(Mutex<State>);

#[derive(Default)]
struct State {
    /// Who did not take over lately.
    refused: BTreeMap<NodeId, Instant>,
    /// Nobody took over.
    in_vain: Option<Instant>,
    /// The term in which another was told to lead, though openraft has not heard of it: it waits
    /// for the disk; and when.
    left_in: Option<(u64, Instant)>,
    /// Who led last of those that openraft has not heard of, for it waits for the disk.
    successor: Option<Ballot>,
    #[cfg(test)]
    pretends: bool,
}

impl WayOut {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// A node did not take leadership over.
    pub(crate) fn refused_by(&self, node: NodeId) {
        self.state().refused.insert(node, Instant::now());
    }

    /// Whether a node did not take leadership over lately.
    pub(crate) fn is_refused_by(&self, node: NodeId) -> bool {
        self.state().refused.get(&node).is_some_and(|at| at.elapsed() < REFUSAL)
    }

    /// Whether this node has left the leadership of this term to another, who should lead by now.
    pub(crate) fn has_left(&self, term: u64) -> bool {
        self.state().left_in.is_some_and(|(left, at)| left == term && at.elapsed() < REFUSAL)
    }

    /// A leader spoke while openraft waits for the disk and hears nobody.
    pub(crate) fn hear(&self, leader: Ballot) {
        let mut state = self.state();
        if state.successor.is_none_or(|known| leader > known) {
            state.successor = Some(leader);
        }
    }

    /// Who leads after this term, as far as this node has heard.
    pub(crate) fn successor(&self, term: u64) -> Option<NodeId> {
        let leader = *self.state().successor?.leader_id();
        (leader.term > term).then_some(NodeId(leader.node_id))
    }

    fn is_in_vain(&self) -> bool {
        self.state().in_vain.is_some_and(|at| at.elapsed() < REFUSAL)
    }

    pub(crate) fn forget(&self) {
        let mut state = self.state();
        (state.in_vain, state.left_in) = (None, None);
    }

    /// Forgets who refused.
    #[cfg(test)]
    pub(crate) fn forgive(&self) {
        self.state().refused.clear();
    }

    /// Makes the node look full, or no longer.
    #[cfg(test)]
    pub(crate) fn pretend_full(&self, full: bool) {
        self.state().pretends = full;
    }

    #[cfg(test)]
    fn pretends(&self) -> bool {
        self.state().pretends
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests pretend")]
    fn pretends(&self) -> bool {
        false
    }
}

/// This node's clock, as far as consensus cares: a node whose clock is wrong should not lead.
pub trait OwnClock: Send + Sync {
    /// Whether a majority of the members says that this node's clock is wrong.
    fn is_astray(&self) -> bool;
}

impl Group {
    /// Free space on the scarcest disk among the members, as far as this leader knows, in hundredths of
    /// what should be free. A full disk counts only if a majority needs its node.
    pub fn free_percent(&self) -> u64 {
        self.inner().free_percent()
    }
}

impl Inner {
    /// Whether this node should not lead for lack of space.
    pub(crate) fn is_full(&self) -> bool {
        self.journal.is_stuck() || self.storage.nearly_full() || self.way_out.pretends()
    }

    /// Whether this node should lead nothing that another can lead.
    pub(crate) fn is_unfit(&self) -> bool {
        self.is_full() || self.clock.is_astray()
    }

    /// Whether what is proposed should wait: the node is full, and another is asked to lead.
    pub(crate) fn gives_way(&self) -> bool {
        self.is_full() && !self.way_out.is_in_vain() && !self.heirs().is_empty()
    }

    fn free_percent(&self) -> u64 {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let term = metrics.vote.leader_id().term;
        let free = |node: u64| {
            let node = NodeId(node);
            if node.0 == self.me {
                return Some(self.storage.free_percent_of_min());
            }
            self.wire.free_percent_of(term, node, SPACE_KNOWN)
        };
        let members = &metrics.membership_config;
        let voters: Vec<u64> = members.voter_ids().filter_map(free).collect();
        let learners = members.membership().learner_ids().filter_map(free);
        scarcest(voters, members.voter_ids().count() / 2 + 1, learners)
    }

    /// Who can lead in place of this node, who has most of the log first.
    fn heirs(&self) -> Vec<NodeId> {
        let members = self.raft.server_metrics().borrow().membership_config.clone();
        let others = members.voter_ids().filter(|voter| *voter != self.me).map(NodeId);
        let mut heirs: Vec<_> = others.filter(|node| self.peers.is_up(*node)).collect();
        heirs.sort_by_key(|node| {
            let matched = self.matched(*node).and_then(|(matched, _)| matched);
            (self.way_out.is_refused_by(*node), Reverse(matched))
        });
        heirs
    }
}

/// The least of what voters and learners have free. A disk that is full counts like a node that is gone,
/// for what its node does not store need not be kept away from it: unless a majority needs it.
fn scarcest(mut voters: Vec<u64>, majority: usize, learners: impl Iterator<Item = u64>) -> u64 {
    voters.sort_unstable_by_key(|free| Reverse(*free));
    let needed = voters.iter().take(majority).copied().min().unwrap_or(u64::MAX);
    let others = voters.into_iter().skip(majority).chain(learners);
    others.filter(|free| *free >= FULL_PERCENT).fold(needed, u64::min)
}

/// Hands leadership over while this node is unfit, until the group ends.
pub(crate) async fn run(inner: Arc<Inner>) {
    let stopping = inner.tasks.stopping();
    loop {
        let alone = inner.heirs().is_empty();
        let pause = if alone { IDLE } else { inner.timing.heartbeat };
        let work = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = inner.journal.found_no_space() => {}
            }
            if inner.is_unfit() {
                give_way(&inner).await;
            } else {
                inner.way_out.forget();
            }
        };
        tokio::select! {
            () = stopping.wait() => return,
            () = work => {}
        }
    }
}

async fn give_way(inner: &Inner) {
    let (term, state) = {
        let server = inner.raft.server_metrics();
        let server = server.borrow();
        (server.vote.leader_id().term, server.state)
    };
    let way_out = &inner.way_out;
    if state != ServerState::Leader || way_out.is_in_vain() || way_out.has_left(term) {
        return;
    }
    let heirs = inner.heirs();
    for heir in &heirs {
        let waits = inner.journal.is_stuck();
        let taken = if waits {
            members::leave_to(inner, *heir).await
        } else {
            members::yield_to(inner, *heir).await
        };
        match taken {
            Ok(()) => {
                let reason =
                    if inner.is_full() { "no space here" } else { "this node's clock is astray" };
                info!(shard = %inner.group, to = %heir, reason, "another leads");
                if waits {
                    // Should it not lead soon, another is asked.
                    way_out.refused_by(*heir);
                    way_out.state().left_in = Some((term, Instant::now()));
                }
                inner.refresh();
                return;
            }
            Err(RaftError::NotLeader(_) | RaftError::Stopped) => return,
            Err(_) => way_out.refused_by(*heir),
        }
    }
    if !heirs.is_empty() {
        way_out.state().in_vain = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::scarcest;

    #[test]
    fn the_scarcest_disk_counts_and_a_full_one_only_if_a_majority_needs_it() {
        let of = |voters: &[u64], learners: &[u64]| {
            scarcest(voters.to_vec(), 2, learners.iter().copied())
        };
        assert_eq!(of(&[900, 150, 800], &[]), 150);
        assert_eq!(of(&[900, 99, 800], &[]), 800, "it is as good as gone");
        assert_eq!(of(&[900, 99, 98], &[]), 99, "without it nothing is stored");
        assert_eq!(of(&[900, 800], &[]), 800, "a silent one does not count");
        assert_eq!(of(&[900, 800, 700], &[120, 50]), 120);
        assert_eq!(scarcest(vec![70], 1, std::iter::empty()), 70);
    }
}
