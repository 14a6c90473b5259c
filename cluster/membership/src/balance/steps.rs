//! What to do next so that the groups become as planned. A pure core.
//!
//! # Invariants
//! 1. One change of a group at a time, and a bounded number of replicas on their way at once.
//! 2. A voter goes only when its replacement has caught up, and when most of the new voters are up
//!    and have caught up.
//! 3. Where everything is as planned there is nothing to do.

use crate::placement::{Nodes, Picture, Plan, groups};
use consensus::GroupStatus;
use proto::stored::member::State;
use proto::{NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Replicas on their way at once.
pub(crate) const MOVES_MAX: usize = 4;

/// Leaderships handed over at once.
pub(crate) const YIELDS_MAX: usize = 3;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Let a node listen, and wait until it has caught up.
    AddLearner {
        /// Whose log.
        group: ShardId,
        /// Who.
        node: NodeId,
    },
    /// Let these vote and nobody else.
    ChangeVoters {
        /// In which group.
        group: ShardId,
        /// Who.
        voters: Nodes,
    },
    /// Let a node listen no longer.
    RemoveLearner {
        /// To which group.
        group: ShardId,
        /// Who.
        node: NodeId,
    },
    /// Let another voter lead.
    Yield {
        /// Which group.
        group: ShardId,
        /// Who.
        to: NodeId,
    },
    /// Strike a member that holds nothing any longer.
    RemoveMember {
        /// Who.
        node: NodeId,
    },
}

impl Step {
    /// The group that it changes; `None`: it strikes a member.
    pub(crate) fn group(&self) -> Option<ShardId> {
        match self {
            Self::AddLearner { group, .. }
            | Self::ChangeVoters { group, .. }
            | Self::RemoveLearner { group, .. }
            | Self::Yield { group, .. } => Some(*group),
            Self::RemoveMember { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLearner { group, node } => write!(f, "group {group}: {node} listens"),
            Self::ChangeVoters { group, voters } => {
                let voters: Vec<_> = voters.iter().map(ToString::to_string).collect();
                write!(f, "group {group}: {} vote", voters.join(", "))
            }
            Self::RemoveLearner { group, node } => {
                write!(f, "group {group}: {node} listens no longer")
            }
            Self::Yield { group, to } => write!(f, "group {group}: {to} leads"),
            Self::RemoveMember { node } => write!(f, "{node} is no member"),
        }
    }
}

/// The steps to take now, beside those `under_way`.
pub(crate) fn steps(
    picture: &Picture,
    plan: &Plan,
    under_way: &BTreeMap<ShardId, Step>,
) -> Vec<Step> {
    let mut round = Round::new(picture, plan, under_way);
    for group in groups().filter(|group| !under_way.contains_key(group)) {
        if let Some(view) = picture.groups.get(&group)
            && view.leader.is_some_and(|leader| picture.is_up(leader))
        {
            round.look_at(group, view);
        }
    }
    round.spread_leaders();
    round.strike_members();
    round.steps
}

struct Round<'a> {
    picture: &'a Picture,
    plan: &'a Plan,
    under_way: &'a BTreeMap<ShardId, Step>,
    steps: Vec<Step>,
    moves_left: usize,
    yields_left: usize,
    /// Groups that are as planned and led by a node that may lead.
    settled: BTreeSet<ShardId>,
    /// Groups led by each node that may lead.
    leads: BTreeMap<NodeId, usize>,
}

impl<'a> Round<'a> {
    fn new(picture: &'a Picture, plan: &'a Plan, under_way: &'a BTreeMap<ShardId, Step>) -> Self {
        let moves = under_way.values().filter(|step| matches!(step, Step::AddLearner { .. }));
        let yields = under_way.values().filter(|step| matches!(step, Step::Yield { .. }));
        let ready = picture.members.keys().filter(|node| picture.is_ready(**node));
        let mut leads: BTreeMap<_, _> = ready.map(|node| (*node, 0)).collect();
        for (group, view) in &picture.groups {
            let leader = match under_way.get(group) {
                Some(Step::Yield { to, .. }) => Some(*to),
                Some(_) | None => view.leader,
            };
            leader.map(|leader| leads.entry(leader).and_modify(|count| *count += 1));
        }
        Self {
            picture,
            plan,
            under_way,
            steps: Vec::new(),
            moves_left: MOVES_MAX.saturating_sub(moves.count()),
            yields_left: YIELDS_MAX.saturating_sub(yields.count()),
            settled: BTreeSet::new(),
            leads,
        }
    }

    fn look_at(&mut self, group: ShardId, view: &GroupStatus) {
        let target = self.target(group, view);
        if self.leader_must_go(view, &target)
            && let Some(to) = self.successor(view, &target)
        {
            if self.yields_left > 0 {
                self.hand_over(group, view, to);
            }
            return;
        }
        if view.voters != target {
            self.move_voters(group, view, target);
        } else if !self.tend_learners(group, view) {
            self.settled.insert(group);
        }
    }

    /// Who should vote now. Where the plan lacks a node that is up, who should go stays for a while.
    fn target(&self, group: ShardId, view: &GroupStatus) -> Nodes {
        let wanted = self.picture.wanted_voters(group);
        let mut target = self.plan.get(&group).cloned().unwrap_or_default();
        let stand_ins = view.voters.iter().filter(|node| !target.contains(node));
        let stand_ins: Vec<_> = stand_ins.copied().collect();
        let short = wanted.saturating_sub(target.len());
        target.extend(stand_ins.into_iter().take(short));
        if target.len() < wanted { view.voters.clone() } else { target }
    }

    fn leader_must_go(&self, view: &GroupStatus, target: &Nodes) -> bool {
        view.leader.is_some_and(|leader| {
            let state = self.picture.members.get(&leader).map(|member| member.state);
            state != Some(State::Active) || !target.contains(&leader)
        })
    }

    /// Who may lead in place of the leader: one of those who stay, or anyone if the leader must
    /// not lead at all.
    fn successor(&self, view: &GroupStatus, target: &Nodes) -> Option<NodeId> {
        let may_lead = view.leader.is_some_and(|leader| self.picture.is_ready(leader));
        let able = self
            .able(view)
            .filter(|node| Some(*node) != view.leader && (target.contains(node) || !may_lead));
        able.min_by_key(|node| (!target.contains(node), self.leads.get(node), *node))
    }

    fn able(&self, view: &'a GroupStatus) -> impl Iterator<Item = NodeId> {
        let picture = self.picture;
        let able = move |node: &NodeId| picture.is_ready(*node) && view.caught_up.contains(node);
        view.voters.iter().copied().filter(able)
    }

    fn hand_over(&mut self, group: ShardId, view: &GroupStatus, to: NodeId) {
        self.yields_left -= 1;
        if let Some(leader) = view.leader {
            self.leads.entry(leader).and_modify(|count| *count = count.saturating_sub(1));
        }
        self.leads.entry(to).and_modify(|count| *count += 1);
        self.steps.push(Step::Yield { group, to });
    }

    fn move_voters(&mut self, group: ShardId, view: &GroupStatus, target: Nodes) {
        let ready = |node: &NodeId| view.learners.contains(node) && view.caught_up.contains(node);
        let late = target.difference(&view.voters).copied().find(|node| !ready(node));
        if let Some(node) = late {
            self.add_learner(group, node);
            return;
        }
        let good = |node: &&NodeId| self.picture.is_up(**node) && view.caught_up.contains(node);
        if target.iter().filter(good).count() * 2 > target.len() {
            self.steps.push(Step::ChangeVoters { group, voters: target });
        }
    }

    fn add_learner(&mut self, group: ShardId, node: NodeId) {
        if self.picture.is_up(node) && self.moves_left > 0 {
            self.moves_left -= 1;
            self.steps.push(Step::AddLearner { group, node });
        }
    }

    /// Says whether there is something to do about the learners.
    fn tend_learners(&mut self, group: ShardId, view: &GroupStatus) -> bool {
        let mut wanted = Nodes::new();
        if self.picture.everyone_learns(group) {
            wanted = self.picture.holders();
            wanted.retain(|node| !view.voters.contains(node));
        }
        if let Some(node) = view.learners.difference(&wanted).next() {
            self.steps.push(Step::RemoveLearner { group, node: *node });
            return true;
        }
        let up = |node: &&NodeId| self.picture.is_up(**node);
        let new = wanted.difference(&view.learners).find(up);
        if let Some(node) = new {
            self.add_learner(group, *node);
        }
        new.is_some()
    }

    /// Evens out who leads how many groups. A way from who leads most to who leads at least two
    /// fewer may go over others; it is walked from its end, so that no step makes things worse.
    fn spread_leaders(&mut self) {
        while self.yields_left > 0 {
            let mut busiest: Vec<_> = self.leads.iter().map(|(node, n)| (*n, *node)).collect();
            busiest.sort_unstable_by_key(|(count, node)| (std::cmp::Reverse(*count), *node));
            let way = busiest.into_iter().find_map(|(count, node)| self.way_down(node, count));
            let Some((group, to)) = way else { return };
            self.settled.remove(&group);
            if let Some(view) = self.picture.groups.get(&group) {
                self.hand_over(group, view, to);
            }
        }
    }

    /// The last handover of the shortest way from `from` to a node that leads at least two fewer.
    fn way_down(&self, from: NodeId, count: usize) -> Option<(ShardId, NodeId)> {
        let mut seen = Nodes::from([from]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for group in &self.settled {
                let Some(view) = self.picture.groups.get(group) else { continue };
                if view.leader != Some(at) {
                    continue;
                }
                for to in self.able(view).filter(|to| !seen.contains(to)).collect::<Vec<_>>() {
                    if self.leads.get(&to).is_some_and(|other| other + 2 <= count) {
                        return Some((*group, to));
                    }
                    seen.insert(to);
                    queue.push_back(to);
                }
            }
        }
        None
    }

    fn strike_members(&mut self) {
        if groups().any(|group| !self.picture.groups.contains_key(&group)) {
            return;
        }
        for (node, member) in &self.picture.members {
            let goes = matches!(member.state, State::Leaving | State::Lost);
            let holds = |view: &GroupStatus| view.has_member(*node);
            let comes =
                |step: &Step| matches!(step, Step::AddLearner { node: to, .. } if to == node);
            let held = self.picture.groups.values().any(holds);
            if goes && !held && !self.under_way.values().any(comes) {
                self.steps.push(Step::RemoveMember { node: *node });
            }
        }
    }
}
