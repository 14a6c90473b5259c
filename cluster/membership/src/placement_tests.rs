//! What placement promises, from any state that is alive.

use super::placement::{MemberView, Nodes, Picture, groups, plan};
use crate::balance::steps::{MOVES_MAX, Step, YIELDS_MAX, steps};
use consensus::GroupStatus;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proto::ids::SHARDS;
use proto::stored::member::State;
use proto::{NodeId, ShardId};
use std::collections::BTreeMap;

/// Rounds after which a world must be at rest: 17 groups with up to five replicas, each a few steps.
const ROUNDS_MAX: usize = 600;

fn nodes(ids: &[u64]) -> Nodes {
    ids.iter().copied().map(NodeId).collect()
}

fn active() -> MemberView {
    MemberView { state: State::Active, zone: String::new(), up: true }
}

/// A cluster that carries out steps.
#[derive(Clone, Debug)]
struct World {
    picture: Picture,
    /// Whether who stops voting goes on listening.
    retains: bool,
    /// Rounds until a step is carried out.
    delay: usize,
    under_way: BTreeMap<ShardId, (Step, usize)>,
    moves: usize,
}

impl World {
    fn founded(members: &[u64]) -> Self {
        let members = members.iter().map(|node| (NodeId(*node), active())).collect();
        let first = nodes(&[1]);
        let group = GroupStatus {
            leader: Some(NodeId(1)),
            voters: first.clone(),
            caught_up: first,
            ..GroupStatus::default()
        };
        let groups = groups().map(|shard| (shard, group.clone())).collect();
        let picture = Picture { members, groups, ..Picture::default() };
        Self::of(picture, false, 0)
    }

    fn of(picture: Picture, retains: bool, delay: usize) -> Self {
        Self { picture, retains, delay, under_way: BTreeMap::new(), moves: 0 }
    }

    fn set(&mut self, node: u64, change: impl FnOnce(&mut MemberView)) {
        change(self.picture.members.get_mut(&NodeId(node)).unwrap());
    }

    /// One round; says whether anything was to do.
    fn round(&mut self) -> bool {
        let plan = plan(&self.picture);
        let changed = plan != self.picture.placements;
        self.picture.placements = plan.clone();
        let busy = self.under_way.iter().map(|(group, (step, _))| (*group, step.clone()));
        let steps = steps(&self.picture, &plan, &busy.collect());
        let any = !steps.is_empty() || !self.under_way.is_empty() || changed;
        for step in steps {
            match step.group() {
                Some(group) => {
                    let before = self.under_way.insert(group, (step, self.delay));
                    assert_eq!(before, None, "one change at a time");
                }
                None => self.carry_out(step),
            }
        }
        let count =
            |of: fn(&Step) -> bool| self.under_way.values().filter(|(step, _)| of(step)).count();
        assert!(count(|step| matches!(step, Step::AddLearner { .. })) <= MOVES_MAX);
        assert!(count(|step| matches!(step, Step::Yield { .. })) <= YIELDS_MAX);
        let due: Vec<_> = self.under_way.extract_if(.., |_, (_, rounds)| *rounds == 0).collect();
        self.under_way.values_mut().for_each(|(_, rounds)| *rounds -= 1);
        for (_, (step, _)) in due {
            self.carry_out(step);
        }
        for view in self.picture.groups.values_mut() {
            let up = view.voters.iter().filter(|node| self.picture.members[node].up);
            view.caught_up.extend(up.copied());
        }
        any
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::AddLearner { group, node } => {
                assert!(self.picture.members[&node].up);
                let view = self.picture.groups.get_mut(&group).unwrap();
                assert!(!view.voters.contains(&node));
                // The first time it takes too long.
                if !view.learners.insert(node) {
                    view.caught_up.insert(node);
                    self.moves += usize::from(group != ShardId::META);
                }
            }
            Step::ChangeVoters { group, voters } => self.change_voters(group, voters),
            Step::RemoveLearner { group, node } => {
                let view = self.picture.groups.get_mut(&group).unwrap();
                assert!(view.learners.remove(&node));
                view.caught_up.remove(&node);
            }
            Step::Yield { group, to } => {
                let view = self.picture.groups.get_mut(&group).unwrap();
                assert!(view.voters.contains(&to) && view.caught_up.contains(&to));
                let member = &self.picture.members[&to];
                assert!(member.up && member.state == State::Active);
                assert_ne!(view.leader.replace(to), Some(to));
            }
            Step::RemoveMember { node } => {
                for view in self.picture.groups.values() {
                    assert!(!view.voters.contains(&node) && !view.learners.contains(&node));
                }
                self.picture.members.remove(&node);
            }
        }
    }

    fn change_voters(&mut self, group: ShardId, voters: Nodes) {
        let members = &self.picture.members;
        let view = self.picture.groups.get_mut(&group).unwrap();
        for new in voters.difference(&view.voters) {
            assert!(view.learners.contains(new) && view.caught_up.contains(new), "not caught up");
        }
        let gone: Nodes = view.voters.difference(&voters).copied().collect();
        view.learners.retain(|node| !voters.contains(node));
        if self.retains {
            view.learners.extend(gone);
        } else {
            view.caught_up.retain(|node| !gone.contains(node));
        }
        view.voters = voters;
        let good = |node: &&NodeId| members[node].up && view.caught_up.contains(node);
        assert!(
            view.voters.iter().filter(good).count() * 2 > view.voters.len(),
            "most voters are up and caught up"
        );
        if view.leader.is_none_or(|leader| !view.voters.contains(&leader)) {
            view.leader = view.voters.iter().find(good).copied();
        }
    }

    fn settle(&mut self) {
        let rested = (0..ROUNDS_MAX).any(|_| !self.round());
        assert!(rested, "never at rest: {:#?}", self.picture);
    }

    fn spread(&self, count: impl Fn(NodeId) -> usize) -> usize {
        let counts: Vec<_> = self.picture.members.keys().map(|node| count(*node)).collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    }

    fn replicas(&self, node: NodeId) -> usize {
        let shards = self.picture.groups.iter().filter(|(group, _)| **group != ShardId::META);
        shards.filter(|(_, view)| view.voters.contains(&node)).count()
    }

    fn leads(&self, node: NodeId) -> usize {
        self.picture.groups.values().filter(|view| view.leader == Some(node)).count()
    }

    fn group(&self, group: ShardId) -> &GroupStatus {
        &self.picture.groups[&group]
    }

    /// What must hold at rest when everyone in good standing is up.
    fn check_goals(&self) {
        let picture = &self.picture;
        let gone = |member: &MemberView| matches!(member.state, State::Leaving | State::Lost);
        assert!(!picture.members.values().any(gone), "who leaves is struck off");
        for (group, view) in &picture.groups {
            assert_eq!(view.voters.len(), picture.wanted_voters(*group), "{group}: {view:?}");
            let leader = view.leader.unwrap();
            assert!(picture.is_ready(leader), "{group} is led by {leader}");
            let others = picture.members.keys().filter(|node| !view.voters.contains(node));
            let learners: Nodes = others.copied().collect();
            let wanted = if picture.everyone_learns(*group) { learners } else { Nodes::new() };
            assert_eq!(view.learners, wanted);
        }
    }
}

#[test]
fn one_node_alone_has_nothing_to_do() {
    let mut world = World::founded(&[1]);
    world.round();
    assert!(!world.round());
    world.check_goals();
}

#[test]
fn a_second_node_listens_and_a_third_makes_three_voters_with_leaders_spread() {
    let mut world = World::founded(&[1, 2]);
    world.settle();
    world.check_goals();
    assert!(world.picture.groups.values().all(|view| view.voters == nodes(&[1])));
    world.picture.members.insert(NodeId(3), active());
    world.settle();
    world.check_goals();
    assert_eq!(world.group(ShardId(0)).voters, nodes(&[1, 2, 3]));
    assert!(world.spread(|node| world.leads(node)) <= 1);
}

#[test]
fn a_node_that_joins_gets_its_share_and_nothing_else_moves() {
    for before in 3..9u64 {
        let mut world = World::founded(&(1..=before).collect::<Vec<_>>());
        world.settle();
        world.moves = 0;
        world.picture.members.insert(NodeId(before + 1), active());
        world.settle();
        world.check_goals();
        let share = usize::from(SHARDS) * 3 / usize::try_from(before + 1).unwrap();
        assert!(world.moves <= share + 1, "{} moves for a share of {share}", world.moves);
        assert_eq!(world.moves, world.replicas(NodeId(before + 1)));
        assert!(world.spread(|node| world.replicas(node)) <= 1);
        assert!(world.spread(|node| world.leads(node)) <= 1, "{world:?}");
    }
}

#[test]
fn seven_nodes_give_meta_five_voters_and_everyone_hears_it() {
    let mut world = World::founded(&[1, 2, 3, 4, 5, 6, 7, 8]);
    world.settle();
    let meta = world.group(ShardId::META);
    assert_eq!((meta.voters.len(), meta.learners.len()), (5, 3));
    assert!(world.group(ShardId(0)).learners.is_empty());
}

#[test]
fn a_node_that_drains_leads_nothing_and_keeps_its_replicas() {
    let mut world = World::founded(&[1, 2, 3]);
    world.settle();
    world.moves = 0;
    world.set(1, |member| member.state = State::Draining);
    world.settle();
    world.check_goals();
    assert_eq!((world.leads(NodeId(1)), world.replicas(NodeId(1)), world.moves), (0, 16, 0));
    world.set(1, |member| member.state = State::Active);
    world.settle();
    assert!(world.spread(|node| world.leads(node)) <= 1, "it takes its share again");
}

#[test]
fn a_lost_node_is_replaced_and_struck_off() {
    let mut world = World::founded(&[1, 2, 3, 4]);
    world.settle();
    world.set(2, |member| {
        member.up = false;
        member.state = State::Lost;
    });
    for view in world.picture.groups.values_mut() {
        view.leader = view.voters.iter().copied().find(|node| *node != NodeId(2));
        view.caught_up.remove(&NodeId(2));
    }
    world.settle();
    world.check_goals();
    assert_eq!(world.picture.members.len(), 3);
    assert_eq!(world.group(ShardId(3)).voters, nodes(&[1, 3, 4]));
}

#[test]
fn a_node_that_is_down_for_a_while_moves_nothing() {
    let mut world = World::founded(&[1, 2, 3, 4]);
    world.settle();
    let before = world.picture.groups.clone();
    world.set(4, |member| member.up = false);
    for view in world.picture.groups.values_mut() {
        view.caught_up.remove(&NodeId(4));
        if view.leader == Some(NodeId(4)) {
            view.leader = view.voters.first().copied();
        }
    }
    world.moves = 0;
    world.settle();
    assert_eq!(world.moves, 0);
    for (group, view) in &world.picture.groups {
        assert_eq!(view.voters, before[group].voters);
    }
}

#[test]
fn replicas_are_in_different_zones_if_there_are_zones() {
    let mut world = World::founded(&[1, 2, 3, 4, 5, 6]);
    for (node, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")] {
        world.set(node, |member| member.zone = zone.to_owned());
    }
    world.settle();
    world.check_goals();
    for view in world.picture.groups.values() {
        let zones = view.voters.iter().map(|node| &world.picture.members[node].zone);
        assert_eq!(zones.collect::<std::collections::BTreeSet<_>>().len(), 3);
    }
    assert_eq!(world.replicas(NodeId(6)), 16, "it is alone in its zone");
    assert!(world.replicas(NodeId(4)) == 8 && world.replicas(NodeId(5)) == 8);
}

#[test]
fn a_group_that_nobody_leads_is_left_as_it_was_planned() {
    let mut world = World::founded(&[1, 2, 3, 4]);
    world.settle();
    let planned = world.picture.placements[&ShardId(5)].clone();
    world.picture.groups.remove(&ShardId(5));
    for node in &planned {
        world.set(node.0, |member| member.up = false);
    }
    assert_eq!(plan(&world.picture)[&ShardId(5)], planned);
}

#[test]
fn what_is_under_way_is_left_alone() {
    let world = World::founded(&[1, 2, 3]);
    let target = plan(&world.picture);
    let first = steps(&world.picture, &target, &BTreeMap::new());
    assert_eq!(first.len(), MOVES_MAX);
    let under_way = first.into_iter().filter_map(|step| Some((step.group()?, step))).collect();
    assert_eq!(steps(&world.picture, &target, &under_way), []);
}

fn any_member(zones: bool) -> impl Strategy<Value = MemberView> {
    let state = prop_oneof![
        6 => Just(State::Active),
        1 => Just(State::Draining),
        1 => Just(State::Leaving),
        1 => Just(State::Lost),
    ];
    let zone = prop_oneof![Just(""), Just("a"), Just("b"), Just("c")];
    (state, zone, prop::bool::weighted(0.8)).prop_map(move |(state, zone, up)| {
        let zone = if zones { zone.to_owned() } else { String::new() };
        MemberView { state, zone, up: up && state != State::Lost }
    })
}

/// A group with a living majority among its voters, of which one may be late.
fn any_group(members: BTreeMap<NodeId, MemberView>) -> impl Strategy<Value = GroupStatus> {
    let ids: Vec<_> = members.keys().copied().collect();
    let many = ids.len().min(5);
    let voters = subsequence(ids.clone(), 1..=many);
    (voters, subsequence(ids, 0..=many), any::<prop::sample::Index>()).prop_map(
        move |(mut voters, mut learners, late)| {
            let living = members.iter().filter(|(_, member)| member.up).map(|(node, _)| *node);
            let living: Vec<_> = living.collect();
            while voters.iter().filter(|node| members[node].up).count() * 2 <= voters.len() {
                voters.retain(|node| members[node].up);
                if voters.is_empty() {
                    voters.push(living[0]);
                }
            }
            let leader = voters.iter().copied().find(|node| members[node].up);
            learners.retain(|node| !voters.contains(node));
            let mut caught_up: Nodes =
                voters.iter().copied().filter(|node| members[node].up).collect();
            let late = *late.get(&voters);
            let enough = (caught_up.len() - 1) * 2 > voters.len();
            if Some(late) != leader && caught_up.contains(&late) && enough {
                caught_up.remove(&late);
            }
            GroupStatus {
                leader,
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                caught_up,
                ..GroupStatus::default()
            }
        },
    )
}

fn any_world() -> impl Strategy<Value = World> {
    let members = any::<bool>()
        .prop_flat_map(|zones| proptest::collection::vec(any_member(zones), 1..9))
        .prop_map(|mut members| {
            members[0].state = State::Active;
            members[0].up = true;
            (1..).map(NodeId).zip(members).collect::<BTreeMap<_, _>>()
        });
    let world = members.prop_flat_map(|members| {
        let all = proptest::collection::vec(any_group(members.clone()), usize::from(SHARDS) + 1);
        (Just(members), all, any::<bool>(), 0..3usize)
    });
    world.prop_map(|(members, all, retains, delay)| {
        let picture =
            Picture { members, groups: groups().zip(all).collect(), ..Picture::default() };
        World::of(picture, retains, delay)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn from_any_living_state_it_comes_to_rest_as_it_should_be(mut world in any_world()) {
        world.settle();
        for member in world.picture.members.values_mut() {
            member.up |= member.state != State::Lost;
        }
        world.settle();
        world.check_goals();
        let everyone = world.picture.members.values();
        let plain = everyone.clone().all(|member| {
            member.zone.is_empty() && member.state == State::Active
        });
        if plain && world.picture.wanted_voters(ShardId(0)) > 1 {
            prop_assert!(world.spread(|node| world.replicas(node)) <= 1);
            prop_assert!(world.spread(|node| world.leads(node)) <= 1, "{:?}", world.picture);
        }
    }

    #[test]
    fn planning_a_plan_changes_nothing(world in any_world()) {
        let first = plan(&world.picture);
        let picture = Picture { placements: first.clone(), ..world.picture };
        prop_assert_eq!(plan(&picture), first);
    }
}
