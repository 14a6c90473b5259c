//! What the nodes say of the cluster (`natter admin cluster status`), and what the story wants to
//! know of it. Asked by the painter, read by the story.

use node::admin::{ReplicaStatus, Status};
use proto::ShardId;

/// Shards of users and the group of members and settings.
const GROUPS: usize = proto::ids::SHARDS as usize + 1;

/// Whether a node has applied everything that another one had.
pub(super) fn has_all(ours: &Status, theirs: &Status) -> bool {
    theirs.groups.iter().all(|theirs| {
        let ours = ours.group(theirs.group);
        ours.is_some_and(|ours| ours.status.applied >= theirs.status.applied)
    })
}

/// Whether a node hears all of `nodes` nodes, and each group has its leader and its replicas.
fn is_whole(said: &Status, nodes: usize) -> bool {
    let is_whole =
        |group: &ReplicaStatus| group.status.leader.is_some() && group.status.voters.len() == nodes;
    said.members.len() == nodes
        && said.members.iter().all(|member| member.up)
        && said.groups.len() == GROUPS
        && said.groups.iter().all(is_whole)
}

/// What each node said when all were asked at once; `None`: nothing.
pub(super) type Answers = [Option<Status>];

/// Whether all of them are one cluster with three replicas of everything.
pub(super) fn are_whole(answers: &Answers) -> bool {
    answers.iter().all(|said| said.as_ref().is_some_and(|said| is_whole(said, answers.len())))
}

/// Who leads a shard: the node that says so itself, in the latest term. (A node that was just started
/// again may still believe in its last one.)
pub(super) fn leader(answers: &Answers, shard: ShardId) -> Option<usize> {
    let claims = answers.iter().enumerate().filter_map(|(node, said)| {
        let said = said.as_ref()?;
        let group = &said.group(shard)?.status;
        (group.leader == Some(said.node)).then_some((group.term, node))
    });
    claims.max().map(|(_, node)| node)
}

/// How many shards of users a node leads.
pub(super) fn shards_led(answers: &Answers, node: usize) -> usize {
    let shards = (0..proto::ids::SHARDS).map(ShardId);
    shards.filter(|shard| leader(answers, *shard) == Some(node)).count()
}

/// Whether every group is led by a node other than `without`.
pub(super) fn are_led(answers: &Answers, without: usize) -> bool {
    (0..=proto::ids::SHARDS).all(|group| {
        let leader = leader(answers, ShardId(group));
        leader.is_some_and(|leader| leader != without)
    })
}

/// Whether all replicas of every group, and all sessions tables, have the same content.
pub(super) fn are_equal(answers: &Answers) -> bool {
    let mut contents = answers.iter().map(|said| {
        let said = said.as_ref()?;
        let contents =
            said.groups.iter().map(|it| (it.group, it.status.applied, it.digest.as_str()));
        let mut groups: Vec<(ShardId, u64, &str)> = contents.collect();
        groups.sort_unstable();
        // An empty digest says nothing.
        let is_told = groups.len() == GROUPS && groups.iter().all(|group| !group.2.is_empty());
        is_told.then_some((groups, said.sessions.rows, &said.sessions.digest))
    });
    let first = contents.next().flatten();
    first.is_some() && contents.all(|content| content == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::NodeId;

    /// Three nodes of which each says the same, but for who they are.
    fn healthy() -> Vec<Option<Status>> {
        let names = [0xa, 0xb, 0xc].map(NodeId);
        let member = |name: NodeId| {
            serde_json::json!({"node": name, "name": name.to_string(), "address": "", "client_address": "",
                "zone": "", "state": "active", "up": true, "incarnation": 1, "version": "0"})
        };
        let status = |name: NodeId| {
            let groups: Vec<serde_json::Value> = (0..GROUPS)
                .map(|group| {
                    let shard = ShardId(u16::try_from(group).unwrap());
                    serde_json::json!({"group": shard, "leader": names[group % 3], "term": 3,
                        "voters": names, "learners": [], "caught_up": [], "last": 7, "applied": 7,
                        "digest": "ab"})
                })
                .collect();
            let status = serde_json::json!({"cluster": "5", "node": name, "groups": groups,
                "place": "member", "clock": "right", "members": names.map(member),
                "sessions": {"rows": 2, "digest": "cd", "online": 1}, "settings": {}});
            Some(serde_json::from_value(status).unwrap())
        };
        names.map(status).into()
    }

    fn changed(change: impl FnOnce(&mut Status)) -> Vec<Option<Status>> {
        let mut answers = healthy();
        change(answers[1].as_mut().unwrap());
        answers
    }

    #[test]
    fn a_cluster_is_whole_only_with_all_members_leaders_and_replicas() {
        assert!(are_whole(&healthy()));
        assert!(!are_whole(&changed(|status| status.members[2].up = false)));
        assert!(!are_whole(&changed(|status| status.groups[16].status.leader = None)));
        assert!(!are_whole(&changed(|status| status.groups[3].status.voters.clear())));
        let mut silent = healthy();
        silent[0] = None;
        assert!(!are_whole(&silent) && !are_equal(&silent));
    }

    #[test]
    fn replicas_are_equal_only_with_the_same_content_everywhere() {
        assert!(are_equal(&healthy()));
        assert!(!are_equal(&changed(|status| status.groups[4].digest = "00".into())));
        assert!(!are_equal(&changed(|status| status.groups[4].digest = String::new())));
        assert!(!are_equal(&changed(|status| status.groups[4].status.applied = 8)));
        assert!(!are_equal(&changed(|status| status.sessions.digest = "00".into())));
        assert!(!are_equal(&changed(|status| drop(status.groups.pop()))));
    }

    #[test]
    fn a_leader_counts_when_it_says_so_itself() {
        let answers = healthy();
        assert_eq!(leader(&answers, ShardId(4)), Some(1));
        assert_eq!(shards_led(&answers, 0), 6);
        let returned = changed(|status| status.groups[3].status.leader = Some(NodeId(0xb)));
        assert_eq!(shards_led(&returned, 0) + shards_led(&returned, 1), 11, "one leads each");
        let earlier = changed(|status| {
            (status.groups[3].status.leader, status.groups[3].status.term) = (Some(NodeId(0xb)), 2);
        });
        assert_eq!(leader(&earlier, ShardId(3)), Some(0), "the latest term counts");
        assert!(!are_led(&answers, 1));
        let mut killed = healthy();
        killed[1] = None;
        assert!(!are_led(&killed, 1), "the others only believe that it leads");
        let said = changed(|status| status.groups[4].status.applied = 6);
        assert!(!has_all(said[1].as_ref().unwrap(), said[0].as_ref().unwrap()));
        assert!(has_all(said[0].as_ref().unwrap(), said[1].as_ref().unwrap()));
    }
}
