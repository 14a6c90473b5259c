//! Which nodes should hold which shard. A pure core: members and what is so far in, a plan out.
//!
//! # Invariants
//! 1. The plan is sticky: what is good stays where it is, and planning a plan changes nothing.
//! 2. With three holders or more a shard has three replicas, in different zones as far as there are
//!    zones; with fewer it has one voter, and everyone else learns.
//! 3. Nothing new is put on a node that is not up, nor on one that is not active while others are.
//! 4. Every group has an active member among its voters, for somebody has to lead it.

use consensus::GroupStatus;
use proto::ids::SHARDS;
use proto::stored::member::State;
use proto::{NodeId, ShardId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A set of nodes.
pub type Nodes = BTreeSet<NodeId>;

/// Which nodes should be the voters of each group.
pub(super) type Plan = BTreeMap<ShardId, Nodes>;

/// Voters of a group when there are enough nodes.
const VOTERS: usize = 3;

/// Voters of the group `meta` when there are many nodes.
const META_VOTERS: usize = 5;

/// Holders from which on there are that many.
const META_HOLDERS: usize = 7;

/// A member as the plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberView {
    /// Its state.
    pub(super) state: State,
    /// Its zone; empty: one of its own.
    pub(super) zone: String,
    /// Whether it is connected and alive.
    pub(super) up: bool,
}

/// All that a plan is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// The members.
    pub(super) members: BTreeMap<NodeId, MemberView>,
    /// The groups that are known.
    pub(super) groups: BTreeMap<ShardId, GroupStatus>,
    /// The plan so far.
    pub(super) placements: Plan,
}

/// All groups: the shards, then `meta`.
pub(super) fn groups() -> impl Iterator<Item = ShardId> {
    (0..=SHARDS).map(ShardId)
}

impl Picture {
    /// Whether a node keeps what it holds.
    pub(super) fn is_holder(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| match member.state {
            State::Active | State::Draining => true,
            State::Leaving | State::Lost => false,
        })
    }

    /// Whether a node may lead and be given something.
    pub(super) fn is_ready(&self, node: NodeId) -> bool {
        self.is_active(node) && self.is_up(node)
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.state == State::Active)
    }

    /// Whether a node is connected and alive.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.up)
    }

    /// The nodes that keep what they hold.
    pub(super) fn holders(&self) -> Nodes {
        self.members.keys().copied().filter(|node| self.is_holder(*node)).collect()
    }

    /// How many voters a group should have.
    pub(super) fn wanted_voters(&self, group: ShardId) -> usize {
        match self.holders().len() {
            0..VOTERS => 1,
            META_HOLDERS.. if group == ShardId::META => META_VOTERS,
            _ => VOTERS,
        }
    }

    /// Whether everyone who does not vote in a group should listen to it.
    pub(super) fn everyone_learns(&self, group: ShardId) -> bool {
        group == ShardId::META || self.wanted_voters(group) == 1
    }

    /// How many zones some nodes are in.
    fn zones(&self, nodes: &Nodes) -> usize {
        let named = |node: &NodeId| {
            let zone = self.members.get(node).map(|member| member.zone.as_str());
            zone.filter(|zone| !zone.is_empty()).ok_or(*node)
        };
        nodes.iter().map(named).collect::<BTreeSet<_>>().len()
    }

    fn zones_after(&self, nodes: &Nodes, without: Option<NodeId>, with: Option<NodeId>) -> usize {
        let kept = nodes.iter().copied().filter(|node| Some(*node) != without);
        self.zones(&kept.chain(with).collect())
    }

    fn view(&self, group: ShardId) -> Option<&GroupStatus> {
        self.groups.get(&group)
    }

    fn leads(&self, group: ShardId, node: NodeId) -> bool {
        self.view(group).is_some_and(|view| view.leader == Some(node))
    }

    /// How far a node is from being a voter: 0 is one, 1 listens, 2 has nothing.
    fn distance(&self, group: ShardId, node: NodeId) -> u8 {
        match self.view(group) {
            Some(view) if view.voters.contains(&node) => 0,
            Some(view) if view.learners.contains(&node) => 1,
            Some(_) | None => 2,
        }
    }
}

/// Plans all groups that are known. What is planned for the others stays: a group without a leader
/// cannot be changed, and nobody knows who holds it.
pub(super) fn plan(picture: &Picture) -> Plan {
    let mut plan = picture.placements.clone();
    let known = || groups().filter(|group| picture.groups.contains_key(group));
    plan.extend(known().map(|group| (group, kept(picture, group))));
    let mut planner = Planner { picture, plan };
    for group in known() {
        if picture.wanted_voters(group) == 1 {
            planner.choose_one(group);
        } else {
            planner.shrink(group);
            planner.fill(group);
            planner.give_a_leader(group);
            planner.spread_over_zones(group);
        }
    }
    if picture.wanted_voters(ShardId(0)) > 1 {
        planner.balance();
    }
    planner.plan
}

/// What of a group stays: planned or there already, on nodes that keep what they hold, and not on
/// its way to a node that has gone.
fn kept(picture: &Picture, group: ShardId) -> Nodes {
    let voters = picture.view(group).map(|view| &view.voters);
    let planned = picture.placements.get(&group).filter(|planned| !planned.is_empty());
    let is_there = |node: &NodeId| voters.is_some_and(|voters| voters.contains(node));
    let stays =
        |node: &NodeId| picture.is_holder(*node) && (is_there(node) || picture.is_up(*node));
    planned.or(voters).into_iter().flatten().copied().filter(stays).collect()
}

struct Planner<'a> {
    picture: &'a Picture,
    plan: Plan,
}

impl Planner<'_> {
    fn of(&self, group: ShardId) -> &Nodes {
        static NONE: Nodes = Nodes::new();
        self.plan.get(&group).unwrap_or(&NONE)
    }

    fn put(&mut self, group: ShardId, without: Option<NodeId>, with: Option<NodeId>) {
        let nodes = self.plan.entry(group).or_default();
        nodes.retain(|node| Some(*node) != without);
        nodes.extend(with);
    }

    /// Replicas of shards that a node is to hold.
    fn load(&self, node: NodeId) -> usize {
        let shards = self.plan.iter().filter(|(group, _)| **group != ShardId::META);
        shards.filter(|(_, nodes)| nodes.contains(&node)).count()
    }

    fn ready(&self) -> impl Iterator<Item = NodeId> {
        self.picture.members.keys().copied().filter(|node| self.picture.is_ready(*node))
    }

    /// With few nodes: the one voter, where it is now if it may stay there.
    fn choose_one(&mut self, group: ShardId) {
        let picture = self.picture;
        let stays = self.of(group).iter().copied().filter(|node| picture.is_active(*node));
        // A voter that is down can be replaced only once it is back, if it is the only one.
        let best = stays.min_by_key(|node| {
            (!picture.is_up(*node), !picture.leads(group, *node), picture.distance(group, *node))
        });
        let new = || self.ready().min_by_key(|node| (picture.distance(group, *node), *node));
        if let Some(node) = best.or_else(new) {
            self.plan.insert(group, Nodes::from([node]));
        }
    }

    fn shrink(&mut self, group: ShardId) {
        let picture = self.picture;
        while self.of(group).len() > picture.wanted_voters(group) {
            let nodes = self.of(group);
            let worst = nodes.iter().copied().max_by_key(|node| {
                let zones = picture.zones_after(nodes, Some(*node), None);
                let leads = picture.leads(group, *node);
                (zones, !picture.is_active(*node), !picture.is_up(*node), !leads, self.load(*node))
            });
            self.put(group, worst, None);
        }
    }

    fn fill(&mut self, group: ShardId) {
        let picture = self.picture;
        while self.of(group).len() < picture.wanted_voters(group) {
            let nodes = self.of(group);
            let holders = picture.holders().into_iter();
            let free = holders.filter(|node| picture.is_up(*node) && !nodes.contains(node));
            let best = free.min_by_key(|node| {
                let zones = Reverse(picture.zones_after(nodes, None, Some(*node)));
                let distance = picture.distance(group, *node);
                (!picture.is_active(*node), zones, distance, self.load(*node), *node)
            });
            if best.is_none() {
                return;
            }
            self.put(group, None, best);
        }
    }

    fn give_a_leader(&mut self, group: ShardId) {
        let picture = self.picture;
        let nodes = self.of(group);
        if nodes.iter().any(|node| picture.is_active(*node)) {
            return;
        }
        let ready = self.ready().min_by_key(|node| {
            let zones = Reverse(picture.zones_after(nodes, None, Some(*node)));
            (picture.distance(group, *node), zones, self.load(*node), *node)
        });
        if ready.is_some() {
            let from = nodes.iter().copied().max_by_key(|node| {
                (picture.zones_after(nodes, Some(*node), ready), self.load(*node))
            });
            self.put(group, from, ready);
        }
    }

    fn spread_over_zones(&mut self, group: ShardId) {
        let picture = self.picture;
        loop {
            let nodes = self.of(group);
            let before = picture.zones(nodes);
            let swaps = self.ready().filter(|to| !nodes.contains(to)).flat_map(|to| {
                nodes.iter().map(move |from| (*from, to)).filter(|(from, to)| {
                    picture.zones_after(nodes, Some(*from), Some(*to)) > before
                })
            });
            let best = swaps.min_by_key(|(from, to)| {
                let loads = (Reverse(self.load(*from)), self.load(*to));
                (picture.leads(group, *from), picture.distance(group, *to), loads)
            });
            let Some((from, to)) = best else { return };
            self.put(group, Some(from), Some(to));
        }
    }

    /// Moves replicas from who has many to who has few, without making zones worse. Each move makes
    /// the loads more equal, so this ends.
    fn balance(&mut self) {
        while let Some((group, from, to)) = self.best_move() {
            self.put(group, Some(from), Some(to));
        }
    }

    fn best_move(&self) -> Option<(ShardId, NodeId, NodeId)> {
        let holders = self.picture.holders();
        let loads: BTreeMap<_, _> = holders.iter().map(|node| (*node, self.load(*node))).collect();
        let mut pairs: Vec<_> = self
            .ready()
            .flat_map(|to| holders.iter().map(move |from| (*from, to)))
            .filter_map(|(from, to)| {
                let more = loads.get(&from)?.checked_sub(*loads.get(&to)?)?;
                (more >= 2).then_some((Reverse(more), from, to))
            })
            .collect();
        pairs.sort_unstable();
        pairs.into_iter().find_map(|(_, from, to)| {
            let group = self.movable(from, to)?;
            Some((group, from, to))
        })
    }

    fn movable(&self, from: NodeId, to: NodeId) -> Option<ShardId> {
        let picture = self.picture;
        let shards = self.plan.iter().filter(|(group, nodes)| {
            let shard = **group != ShardId::META && picture.groups.contains_key(group);
            let moves = shard && nodes.contains(&from) && !nodes.contains(&to);
            moves && picture.zones_after(nodes, Some(from), Some(to)) >= picture.zones(nodes)
        });
        let best = shards.min_by_key(|(group, _)| {
            let begun = picture.distance(**group, to);
            (begun, Reverse(picture.distance(**group, from)), picture.leads(**group, from))
        });
        best.map(|(group, _)| *group)
    }
}
