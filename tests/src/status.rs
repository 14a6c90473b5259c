//! What a node says of its cluster (`natter admin cluster status --json`), and whether what several
//! nodes say fits together. Pure.
//!
//! **Invariant:** [`differences`] is empty only if every node names the same members, settings and
//! leaders, and every replica of every group and every sessions table has the same content.

use proto::{NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

pub use node::admin::{GroupStatus, ReplicaStatus, Status};

/// Groups of a cluster: 16 shards and `meta`.
pub const GROUPS: usize = 17;

/// All of them.
pub fn groups() -> impl Iterator<Item = ShardId> {
    (0..=ShardId::META.0).map(ShardId)
}

/// Replicas that vote for a group in a cluster of `nodes`.
pub fn voters_wanted(nodes: usize) -> usize {
    if nodes >= 3 { 3 } else { 1 }
}

/// How a replica that has applied the same as another and is not the same is reported.
pub const DIVERGED: &str = "DIVERGED";

/// What keeps the nodes behind `statuses`, all nodes of the cluster, from being one cluster with one
/// content. A line that begins with [`DIVERGED`] will not heal with time.
pub fn differences(statuses: &[Status]) -> Vec<String> {
    let mut found = Vec::new();
    let nodes: BTreeSet<NodeId> = statuses.iter().map(|status| status.node).collect();
    if nodes.len() != statuses.len() {
        found.push("two nodes have one id".to_owned());
    }
    for status in statuses {
        let members: BTreeSet<NodeId> = status.members.iter().map(|member| member.node).collect();
        if members != nodes {
            found.push(format!("{} knows {members:?}, not {nodes:?}", status.node));
        }
        let down = status.members.iter().filter(|member| !member.up);
        found.extend(down.map(|member| format!("{} does not hear {}", status.node, member.node)));
    }
    same(statuses, "the cluster's number", &mut found, |s| s.cluster.clone());
    same(statuses, "settings", &mut found, |s| format!("{:?}", s.settings));
    same(statuses, "sessions", &mut found, |s| format!("{:?}", s.sessions));
    for shard in groups() {
        compare(statuses, shard, &mut found);
    }
    found
}

fn same(statuses: &[Status], what: &str, found: &mut Vec<String>, of: impl Fn(&Status) -> String) {
    let values: BTreeMap<NodeId, String> = statuses.iter().map(|s| (s.node, of(s))).collect();
    if values.values().collect::<BTreeSet<_>>().len() > 1 {
        found.push(format!("{what}: {values:?}"));
    }
}

fn compare(statuses: &[Status], group: ShardId, found: &mut Vec<String>) {
    let views: BTreeMap<NodeId, &ReplicaStatus> =
        statuses.iter().filter_map(|s| Some((s.node, s.group(group)?))).collect();
    let leader = views.iter().find(|(node, view)| view.status.leader == Some(**node));
    let Some((leader, view)) = leader else {
        found.push(format!("group {group} has no leader"));
        return;
    };
    let GroupStatus { voters, learners, applied, .. } = &view.status;
    if voters.len() != voters_wanted(statuses.len()) {
        found.push(format!("group {group} has voters {voters:?}"));
    }
    for node in voters.union(learners) {
        let Some(replica) = views.get(node) else {
            found.push(format!("group {group}: nothing is heard of replica {node}"));
            continue;
        };
        let there = &replica.status;
        if there.leader != Some(*leader) {
            let seen = &there.leader;
            found.push(format!("group {group}: {node} sees leader {seen:?}, not {leader}"));
        }
        if there.applied != *applied {
            let there = there.applied;
            found.push(format!("group {group}: {node} has applied {there}, {leader} {applied}"));
        } else if replica.digest.is_empty() || view.digest.is_empty() {
            found.push(format!("group {group}: {node} or {leader} does not tell its digest"));
        } else if replica.digest != view.digest {
            let (there, here) = (&replica.digest, &view.digest);
            found.push(format!(
                "{DIVERGED}: group {group} at {applied}: {node} has {there}, {leader} {here}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::admin::{MemberStatus, SessionsStatus};

    const D: NodeId = NodeId(0xd);

    /// The answers of the nodes of a healthy cluster of three.
    fn healthy() -> Vec<Status> {
        let nodes = [0xa, 0xb, 0xc].map(NodeId);
        let replica = |group: ShardId| ReplicaStatus {
            group,
            status: GroupStatus {
                leader: Some(nodes[usize::from(group.0 % 3)]),
                term: 3,
                voters: nodes.into(),
                applied: 7,
                ..GroupStatus::default()
            },
            digest: "ab".to_owned(),
        };
        let status = |node| Status {
            cluster: "5".to_owned(),
            node,
            place: "member".to_owned(),
            members: nodes.map(member).into(),
            groups: groups().map(replica).collect(),
            clock: "right".to_owned(),
            sessions: SessionsStatus { rows: 2, digest: "cd".to_owned(), online: 1 },
            settings: BTreeMap::new(),
        };
        nodes.map(status).into()
    }

    fn member(node: NodeId) -> MemberStatus {
        MemberStatus {
            node,
            name: "x".to_owned(),
            address: String::new(),
            client_address: String::new(),
            zone: String::new(),
            state: "active".to_owned(),
            up: true,
            incarnation: 1,
            version: String::new(),
            up_s: None,
            free_bytes: None,
            connections: None,
            clock_ms: None,
        }
    }

    fn one(statuses: &[Status], part: &str) {
        let found = differences(statuses);
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn a_healthy_cluster_differs_in_nothing() {
        assert_eq!(differences(&healthy()), Vec::<String>::new());
        assert_eq!(healthy()[0].leads(), 6);
    }

    #[test]
    fn a_replica_behind_or_different_is_found() {
        let mut behind = healthy();
        behind[0].groups[4].status.applied = 6;
        one(&behind, "group 4: 000000000000000a has applied 6");
        let mut different = healthy();
        different[2].groups[4].digest = "ff".into();
        one(&different, DIVERGED);
        let mut silent = healthy();
        silent[2].groups[4].digest.clear();
        one(&silent, "does not tell");
    }

    #[test]
    fn a_node_without_a_replica_may_show_anything() {
        let mut statuses = healthy();
        for status in &mut statuses {
            status.groups[0].status.learners.insert(D);
        }
        let mut fourth = statuses[0].clone();
        fourth.node = D;
        fourth.groups[0].status.applied = 3;
        fourth.groups[1].status.applied = 2;
        statuses.push(fourth);
        for status in &mut statuses {
            status.members.push(member(D));
        }
        one(&statuses, "group 0: 000000000000000d has applied 3");
    }

    #[test]
    fn a_group_without_leader_or_with_too_few_voters_is_found() {
        let mut leaderless = healthy();
        for status in &mut leaderless {
            status.groups[9].status.leader = None;
        }
        one(&leaderless, "group 9 has no leader");
        let mut few = healthy();
        for status in &mut few {
            status.groups[9].status.voters.pop_last();
        }
        one(&few, "group 9 has voters");
    }

    #[test]
    fn members_that_are_missing_or_silent_and_sessions_that_differ_are_found() {
        let mut missing = healthy();
        missing[0].members.pop();
        one(&missing, "000000000000000a knows");
        let mut silent = healthy();
        silent[0].members[1].up = false;
        one(&silent, "000000000000000a does not hear 000000000000000b");
        let mut sessions = healthy();
        sessions[0].sessions.digest = "00".into();
        one(&sessions, "sessions");
    }
}
