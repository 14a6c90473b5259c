//! The state machine of the group `meta`: who belongs to the cluster, what is set for all, which
//! nodes should hold which shard. A pure core.
//!
//! # Invariants
//! 1. The same commands in the same order give the same state on every node, whatever its version:
//!    [`apply`] looks at shapes alone, and [`check`], which knows what a value means, runs before a
//!    command is proposed.
//! 2. A refused command changes nothing. Every change makes `version` grow by one.
//! 3. There is always an active member once there was one.

use super::settings::{self, SettingError};
use proto::NodeId;
use proto::ids::SHARDS;
use proto::names::is_printable;
use proto::stored::{self, member::State, meta_command::Kind};

/// Members that a cluster may have. Every node keeps a link to every other one.
pub(super) const MEMBERS_MAX: usize = 128;

/// Settings that may be kept, with those of other versions of the program.
const SETTINGS_MAX: usize = 256;

/// Longest name, address, zone, key or value, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MetaRefusal {
    /// The cluster has its number.
    #[error("the cluster was founded before")]
    AlreadyFounded,
    /// The cluster has no number yet.
    #[error("the cluster was not founded yet")]
    NotFounded,
    /// There is no such member.
    #[error("node {0} is no member of the cluster")]
    UnknownNode(NodeId),
    /// It must stay.
    #[error("node {0} is the only active member")]
    LastActive(NodeId),
    /// It may still hold what nobody else holds.
    #[error("node {0} is a member in good standing; it has to leave, or be lost, first")]
    StillMember(NodeId),
    /// It is on its way out and cannot be brought back.
    #[error("node {0} is leaving the cluster")]
    OnItsWayOut(NodeId),
    /// A text is too long or missing, or a number makes no sense.
    #[error("{0}")]
    Nonsense(&'static str),
    /// There are too many.
    #[error("a cluster has at most {MEMBERS_MAX} members")]
    TooManyMembers,
    /// The setting is none, or its value is not good.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A command of a later version of the program.
    #[error("the command is not known to this version of natter")]
    UnknownCommand,
}

/// Applies a command; says whether anything changed.
///
/// # Errors
/// [`MetaRefusal`]; then nothing changed.
pub(super) fn apply(
    meta: &mut stored::Meta,
    command: stored::MetaCommand,
) -> Result<bool, MetaRefusal> {
    let changed = match command.kind.ok_or(MetaRefusal::UnknownCommand)? {
        Kind::Found(number) => found(meta, number),
        Kind::SetMember(member) => set_member(meta, member),
        Kind::SetState(wanted) => set_state(meta, NodeId(wanted.node), wanted.state),
        Kind::RemoveMember(node) => remove_member(meta, NodeId(node)),
        Kind::SetSetting(setting) => set_setting(meta, setting),
        Kind::SetPlacements(wanted) => set_placements(meta, wanted.placements),
    }?;
    meta.version += u64::from(changed);
    Ok(changed)
}

/// Whether a command makes sense to this version of the program: what a leader asks before it
/// proposes.
///
/// # Errors
/// What [`apply`] would refuse, and settings that are none or have no good value.
pub(super) fn check(meta: &stored::Meta, command: &stored::MetaCommand) -> Result<(), MetaRefusal> {
    if let Some(Kind::SetSetting(setting)) = &command.kind
        && !(setting.value.is_empty() && settings::keys().any(|key| key == setting.key))
    {
        settings::normalized(&setting.key, &setting.value)?;
    }
    apply(&mut meta.clone(), command.clone()).map(|_changed| ())
}

/// A member.
pub(super) fn member(meta: &stored::Meta, node: NodeId) -> Option<&stored::Member> {
    meta.members.iter().find(|member| member.node == node.0)
}

fn found(meta: &mut stored::Meta, number: u64) -> Result<bool, MetaRefusal> {
    if number == 0 {
        return Err(MetaRefusal::Nonsense("the number of a cluster is never 0"));
    }
    if meta.cluster != 0 && meta.cluster != number {
        return Err(MetaRefusal::AlreadyFounded);
    }
    Ok(replace(&mut meta.cluster, number))
}

fn set_member(meta: &mut stored::Meta, mut wanted: stored::Member) -> Result<bool, MetaRefusal> {
    if meta.cluster == 0 {
        return Err(MetaRefusal::NotFounded);
    }
    if wanted.node == 0 {
        return Err(MetaRefusal::Nonsense("the id of a node is never 0"));
    }
    let others = meta.members.iter().any(|member| member.node != wanted.node);
    if wanted.address.is_empty() && others {
        return Err(MetaRefusal::Nonsense(
            "a member that is not alone needs an address: set cluster.listen",
        ));
    }
    let texts = [&wanted.name, &wanted.address, &wanted.zone, &wanted.client_address];
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(MetaRefusal::Nonsense("a name, an address or a zone is too long"));
    }
    if !texts.iter().all(|text| is_printable(text)) {
        return Err(MetaRefusal::Nonsense(
            "a name, an address or a zone has letters, digits and ASCII signs only",
        ));
    }
    match meta.members.binary_search_by_key(&wanted.node, |member| member.node) {
        Ok(place) => {
            wanted.state = meta.members[place].state;
            Ok(replace(&mut meta.members[place], wanted))
        }
        Err(_) if meta.members.len() >= MEMBERS_MAX => Err(MetaRefusal::TooManyMembers),
        Err(place) => {
            wanted.state = State::Active.into();
            meta.members.insert(place, wanted);
            Ok(true)
        }
    }
}

fn set_state(meta: &mut stored::Meta, node: NodeId, state: i32) -> Result<bool, MetaRefusal> {
    let wanted =
        State::try_from(state).map_err(|_| MetaRefusal::Nonsense("a member has no such state"))?;
    let now = member(meta, node).ok_or(MetaRefusal::UnknownNode(node))?.state();
    match (now, wanted) {
        (State::Leaving | State::Lost, State::Active | State::Draining)
        | (State::Lost, State::Leaving) => return Err(MetaRefusal::OnItsWayOut(node)),
        (State::Active, State::Draining | State::Leaving | State::Lost)
            if is_last_active(meta, node) =>
        {
            return Err(MetaRefusal::LastActive(node));
        }
        (State::Active | State::Draining | State::Leaving | State::Lost, _) => {}
    }
    let member = meta.members.iter_mut().find(|member| member.node == node.0);
    Ok(member.is_some_and(|member| replace(&mut member.state, wanted.into())))
}

fn is_last_active(meta: &stored::Meta, node: NodeId) -> bool {
    let active = |member: &&stored::Member| member.state() == State::Active;
    meta.members.iter().filter(active).all(|member| member.node == node.0)
}

fn remove_member(meta: &mut stored::Meta, node: NodeId) -> Result<bool, MetaRefusal> {
    match member(meta, node).ok_or(MetaRefusal::UnknownNode(node))?.state() {
        State::Active | State::Draining => return Err(MetaRefusal::StillMember(node)),
        State::Leaving | State::Lost => {}
    }
    meta.members.retain(|member| member.node != node.0);
    for placement in &mut meta.placements {
        placement.voters.retain(|voter| *voter != node.0);
    }
    Ok(true)
}

fn set_setting(meta: &mut stored::Meta, wanted: stored::Setting) -> Result<bool, MetaRefusal> {
    if wanted.key.is_empty() || wanted.key.len().max(wanted.value.len()) > TEXT_BYTES_MAX {
        return Err(MetaRefusal::Nonsense("a setting has a key and a short value"));
    }
    let settings = &mut meta.settings;
    match settings.binary_search_by(|setting| setting.key.cmp(&wanted.key)) {
        Ok(place) if wanted.value.is_empty() => {
            settings.remove(place);
            Ok(true)
        }
        Ok(place) => Ok(replace(&mut settings[place], wanted)),
        Err(_) if wanted.value.is_empty() => Ok(false),
        Err(_) if settings.len() >= SETTINGS_MAX => {
            Err(MetaRefusal::Nonsense("there are too many settings"))
        }
        Err(place) => {
            settings.insert(place, wanted);
            Ok(true)
        }
    }
}

fn set_placements(
    meta: &mut stored::Meta,
    wanted: Vec<stored::Placement>,
) -> Result<bool, MetaRefusal> {
    let known = |voter: &u64| member(meta, NodeId(*voter)).is_some();
    for placement in &wanted {
        if placement.group > u32::from(SHARDS) {
            return Err(MetaRefusal::Nonsense("there is no such shard"));
        }
        let ascending = placement.voters.windows(2).all(|pair| pair[0] < pair[1]);
        if placement.voters.is_empty() || !ascending || !placement.voters.iter().all(known) {
            return Err(MetaRefusal::Nonsense("a shard is placed on members, each once"));
        }
    }
    let mut changed = false;
    for placement in wanted {
        match meta.placements.binary_search_by_key(&placement.group, |known| known.group) {
            Ok(place) => changed |= replace(&mut meta.placements[place], placement),
            Err(place) => {
                meta.placements.insert(place, placement);
                changed = true;
            }
        }
    }
    Ok(changed)
}

/// Puts `new` in the place of `old`; says whether they differ.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joins(node: u64) -> Kind {
        let address = format!("10.0.0.{node}:7403");
        Kind::SetMember(stored::Member { node, address, ..Default::default() })
    }

    fn state(node: u64, state: State) -> Kind {
        Kind::SetState(stored::SetState { node, state: state.into() })
    }

    fn sets(key: &str, value: &str) -> Kind {
        Kind::SetSetting(stored::Setting { key: key.into(), value: value.into() })
    }

    fn places(group: u32, voters: &[u64]) -> Kind {
        let placements = vec![stored::Placement { group, voters: voters.to_vec() }];
        Kind::SetPlacements(stored::SetPlacements { placements })
    }

    fn command(kind: Kind) -> stored::MetaCommand {
        stored::MetaCommand { kind: Some(kind) }
    }

    fn after(kinds: Vec<Kind>) -> stored::Meta {
        let mut meta = stored::Meta::default();
        for kind in kinds {
            check(&meta, &command(kind.clone())).unwrap();
            apply(&mut meta, command(kind)).unwrap();
        }
        meta
    }

    fn refused(meta: &stored::Meta, kind: Kind) -> MetaRefusal {
        let refusal = check(meta, &command(kind.clone())).unwrap_err();
        let mut changed = meta.clone();
        assert_eq!(apply(&mut changed, command(kind)).unwrap_err(), refusal);
        assert_eq!(&changed, meta, "a refused command changes nothing");
        refusal
    }

    #[test]
    fn a_cluster_gets_its_number_once() {
        let meta = after(vec![Kind::Found(7), Kind::Found(7)]);
        assert_eq!((meta.cluster, meta.version), (7, 1));
        assert_eq!(refused(&meta, Kind::Found(8)), MetaRefusal::AlreadyFounded);
        assert_eq!(refused(&stored::Meta::default(), joins(1)), MetaRefusal::NotFounded);
    }

    #[test]
    fn a_member_without_address_stays_alone() {
        let silent = |node| {
            Kind::SetMember(stored::Member { node, name: "ada".into(), ..Default::default() })
        };
        let meta = after(vec![Kind::Found(7), silent(1), silent(1)]);
        assert_eq!(meta.members.len(), 1);
        assert!(matches!(refused(&meta, silent(2)), MetaRefusal::Nonsense(_)));
        let meta = after(vec![Kind::Found(7), silent(1), joins(2)]);
        assert!(matches!(refused(&meta, silent(1)), MetaRefusal::Nonsense(_)));
    }

    #[test]
    fn a_name_that_a_terminal_would_obey_is_refused() {
        let meta = after(vec![Kind::Found(7), joins(1)]);
        let Kind::SetMember(member) = joins(2) else { unreachable!() };
        for text in ["a\u{1b}[2J", "\u{7}", "\u{202e}a"] {
            let named = stored::Member { name: text.into(), ..member.clone() };
            assert!(matches!(refused(&meta, Kind::SetMember(named)), MetaRefusal::Nonsense(_)));
        }
    }

    #[test]
    fn a_new_address_leaves_the_state_as_it_is() {
        let meta = after(vec![
            Kind::Found(7),
            joins(2),
            joins(1),
            state(1, State::Draining),
            Kind::SetMember(stored::Member {
                node: 1,
                address: "elsewhere:1".into(),
                name: "ada".into(),
                ..Default::default()
            }),
        ]);
        let first = member(&meta, NodeId(1)).unwrap();
        assert_eq!((first.address.as_str(), first.state()), ("elsewhere:1", State::Draining));
        assert_eq!(meta.members.iter().map(|member| member.node).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn there_is_always_an_active_member() {
        let meta = after(vec![Kind::Found(7), joins(1), joins(2), state(2, State::Leaving)]);
        for wanted in [State::Draining, State::Leaving, State::Lost] {
            assert_eq!(refused(&meta, state(1, wanted)), MetaRefusal::LastActive(NodeId(1)));
        }
        assert_eq!(
            refused(&meta, Kind::RemoveMember(1)),
            MetaRefusal::StillMember(NodeId(1)),
            "who is in good standing is not removed"
        );
    }

    #[test]
    fn who_is_on_the_way_out_does_not_come_back() {
        let mut meta = after(vec![Kind::Found(7), joins(1), joins(2), state(2, State::Lost)]);
        for wanted in [State::Active, State::Draining, State::Leaving] {
            assert_eq!(refused(&meta, state(2, wanted)), MetaRefusal::OnItsWayOut(NodeId(2)));
        }
        apply(&mut meta, command(places(0, &[1, 2]))).unwrap();
        assert_eq!(apply(&mut meta, command(Kind::RemoveMember(2))), Ok(true));
        assert_eq!(meta.placements[0].voters, [1], "nothing is placed on who is gone");
        assert_eq!(refused(&meta, Kind::RemoveMember(2)), MetaRefusal::UnknownNode(NodeId(2)));
    }

    #[test]
    fn settings_are_checked_before_they_are_proposed() {
        let key = "registration.pin_digits";
        let mut meta = after(vec![Kind::Found(7), sets(key, "7"), sets(key, "8")]);
        assert_eq!(meta.settings.len(), 1);
        let wrong = command(sets(key, "9"));
        assert!(matches!(check(&meta, &wrong), Err(MetaRefusal::Setting(_))));
        let strange = command(sets("limits.moons", "3"));
        assert!(matches!(check(&meta, &strange), Err(MetaRefusal::Setting(_))));
        assert_eq!(
            apply(&mut meta, strange),
            Ok(true),
            "a later version proposed it: every replica keeps it"
        );
        apply(&mut meta, command(sets(key, ""))).unwrap();
        assert_eq!(meta.settings.len(), 1, "an empty value takes it back");
    }

    #[test]
    fn shards_are_placed_on_members_alone() {
        let meta = after(vec![Kind::Found(7), joins(1), joins(2), places(16, &[1, 2])]);
        for kind in [places(17, &[1]), places(0, &[]), places(0, &[1, 3]), places(0, &[2, 1])] {
            assert!(matches!(refused(&meta, kind), MetaRefusal::Nonsense(_)));
        }
        let none = stored::MetaCommand { kind: None };
        assert_eq!(check(&meta, &none), Err(MetaRefusal::UnknownCommand));
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        let state_of = 0..4i32;
        prop_oneof![
            (0..3u64).prop_map(Kind::Found),
            (0..5u64).prop_map(joins),
            (0..5u64, state_of)
                .prop_map(|(node, state)| Kind::SetState(stored::SetState { node, state })),
            (0..5u64).prop_map(Kind::RemoveMember),
            (0..20u32, proptest::collection::vec(0..5u64, 0..4))
                .prop_map(|(group, voters)| places(group, &voters)),
            (0..9u32).prop_map(|digits| sets("registration.pin_digits", &digits.to_string())),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_proposed_an_active_member_stays(
            kinds in proptest::collection::vec(any_kind(), 0..60),
        ) {
            let mut meta = stored::Meta::default();
            for kind in kinds {
                let before = meta.clone();
                let changed = apply(&mut meta, command(kind));
                prop_assert_eq!(meta != before, changed == Ok(true));
                prop_assert_eq!(meta.version - before.version, u64::from(changed == Ok(true)));
                let active = meta.members.iter().any(|member| member.state() == State::Active);
                prop_assert!(meta.members.is_empty() || active);
                for voter in meta.placements.iter().flat_map(|placement| &placement.voters) {
                    prop_assert!(member(&meta, NodeId(*voter)).is_some());
                }
            }
        }
    }
}
