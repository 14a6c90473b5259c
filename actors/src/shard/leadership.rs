//! Who leads a shard, and what this replica does when that changes.

use super::core::{Hint, ReplicaCore};
use super::fault::Fault;
use super::mailbox::Mailbox;
use super::surroundings::Leadership;
use proto::{NodeId, UserId};
use tracing::debug;

impl ReplicaCore {
    pub(super) fn stands(&mut self, standing: Leadership) {
        let before = std::mem::replace(&mut self.standing, standing);
        let (led, leads) = (before.me_leads, self.standing.me_leads);
        if led && (!leads || before.term != self.standing.term) {
            self.ready_in = None;
            self.apply_too_early();
            self.proposals.not_leading();
            self.chores.not_leading();
        }
        if leads != led || before.term != self.standing.term {
            self.ready_from = self.standing.last_index;
            debug!(shard = %self.shard, term = self.standing.term, leads, "leadership");
        }
        self.lead_if_caught_up();
    }

    /// Builds [`Fault::EarlierTermBatch`] in.
    fn apply_too_early(&mut self) {
        if self.fault == Some(Fault::EarlierTermBatch)
            && let Some(proposed) = self.proposed.take()
        {
            let now_ms = proposed.head.now_ms;
            let machine = &mut self.machine;
            self.proposals.apply(proposed.head.number, |command| machine.apply(now_ms, command));
            self.follow_effects();
        }
    }

    /// Who leads elsewhere, as far as this node knows.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let by_group = self.standing.leader.map(|leader| (self.standing.term, leader));
        by_group.max(self.hint).map(|(_, leader)| leader).filter(|node| *node != self.node)
    }

    pub(super) fn leads_elsewhere(&mut self, node: NodeId, term: u64) {
        if self.hint.is_none_or(|(known, _)| known <= term) {
            self.hint = Some((term, node));
        }
    }

    pub(super) fn peer_changed(&mut self, node: NodeId, up: bool) {
        if up && self.is_ready() {
            self.hint(Hint::TellLeader(node, self.standing.term));
        }
        if !up && self.hint.is_some_and(|(_, hint)| hint == node) {
            self.hint = None;
        }
    }

    pub(super) fn session_opened(&mut self, user: UserId, node: NodeId) {
        let mailbox = self.machine.mailbox(user).filter(|_| self.is_ready());
        if let Some(last) = mailbox.map(Mailbox::last) {
            self.hint(Hint::GrownTo(node, user, last));
        }
    }

    /// A leader that has applied what was in its log when it was elected knows everything that was
    /// committed before.
    pub(super) fn lead_if_caught_up(&mut self) {
        let term = self.standing.term;
        let applied = self.applied.id.as_ref().map_or(0, |id| id.index);
        if self.standing.me_leads && !self.is_ready() && applied >= self.ready_from {
            self.ready_in = Some(term);
            self.machine.take_effects();
            self.machine.resume();
            self.hint(Hint::LeaderAppeared(term));
            self.follow_effects();
            self.offer_notices();
            self.confirm();
        }
    }
}
