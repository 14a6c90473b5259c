//! What a node says of its cluster (`natter admin cluster status --json`), and whether what several
//! nodes say fits together. Pure.
//!
//! **Invariant:** [`differences`] is empty only if every node names the same members, settings and
//! leaders, and every replica of every group and every sessions table has the same content.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Groups of a cluster: 16 shards and `meta`.
pub const GROUPS: usize = 17;

/// One node's answer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The cluster's number, as the node prints it.
    #[serde(default)]
    pub cluster: serde_json::Value,
    /// Who answers.
    pub node: String,
    /// What it is: `member`, or why not.
    #[serde(default)]
    pub place: String,
    /// Everyone it knows.
    pub members: Vec<Member>,
    /// Every group, as seen from there.
    pub groups: Vec<Group>,
    /// Its sessions table.
    pub sessions: Sessions,
    /// Settings of the cluster.
    #[serde(default)]
    pub settings: serde_json::Value,
}

/// A member.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Member {
    /// Its id, 16 hex digits.
    pub node: String,
    /// Where others reach it.
    #[serde(default)]
    pub address: String,
    /// Active, draining, leaving or lost.
    #[serde(default)]
    pub state: String,
    /// Whether the answering node hears it.
    #[serde(default)]
    pub up: bool,
}

/// A group.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Group {
    /// Its number; 16 is `meta`.
    pub group: usize,
    /// Who leads, if the answering node knows.
    pub leader: Option<String>,
    /// The term.
    #[serde(default)]
    pub term: u64,
    /// Who votes.
    #[serde(default)]
    pub voters: BTreeSet<String>,
    /// Who only follows.
    #[serde(default)]
    pub learners: BTreeSet<String>,
    /// Up to where the answering node's replica has applied.
    #[serde(default)]
    pub applied: u64,
    /// Of the replica's content.
    #[serde(default)]
    pub digest: String,
}

/// A sessions table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Sessions {
    /// Rows.
    pub rows: u64,
    /// Of their content.
    pub digest: String,
    /// Rows of people who are there.
    #[serde(default)]
    pub online: u64,
}

impl Status {
    /// A group as this node sees it.
    pub fn group(&self, number: usize) -> Option<&Group> {
        self.groups.iter().find(|group| group.group == number)
    }

    /// Groups that this node leads, as it says itself.
    pub fn leads(&self) -> usize {
        self.groups.iter().filter(|group| group.leader.as_ref() == Some(&self.node)).count()
    }
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
    let nodes: BTreeSet<&str> = statuses.iter().map(|status| status.node.as_str()).collect();
    if nodes.len() != statuses.len() {
        found.push("two nodes have one id".to_owned());
    }
    for status in statuses {
        let members: BTreeSet<&str> = status.members.iter().map(|m| m.node.as_str()).collect();
        if members != nodes {
            found.push(format!("{} knows {members:?}, not {nodes:?}", status.node));
        }
        let down = status.members.iter().filter(|member| !member.up);
        found.extend(down.map(|member| format!("{} does not hear {}", status.node, member.node)));
    }
    same(statuses, "the cluster's number", &mut found, |s| s.cluster.to_string());
    same(statuses, "settings", &mut found, |s| s.settings.to_string());
    same(statuses, "sessions", &mut found, |s| format!("{:?}", s.sessions));
    for number in 0..GROUPS {
        group(statuses, number, &mut found);
    }
    found
}

fn same(statuses: &[Status], what: &str, found: &mut Vec<String>, of: impl Fn(&Status) -> String) {
    let values: BTreeMap<&str, String> =
        statuses.iter().map(|s| (s.node.as_str(), of(s))).collect();
    if values.values().collect::<BTreeSet<_>>().len() > 1 {
        found.push(format!("{what}: {values:?}"));
    }
}

fn group(statuses: &[Status], number: usize, found: &mut Vec<String>) {
    let views: BTreeMap<&str, &Group> =
        statuses.iter().filter_map(|s| Some((s.node.as_str(), s.group(number)?))).collect();
    let leader = statuses.iter().find(|status| {
        status.group(number).is_some_and(|view| view.leader.as_ref() == Some(&status.node))
    });
    let Some((leader, view)) = leader.and_then(|s| Some((&s.node, s.group(number)?))) else {
        found.push(format!("group {number} has no leader"));
        return;
    };
    if view.voters.len() != voters_wanted(statuses.len()) {
        found.push(format!("group {number} has voters {:?}", view.voters));
    }
    for node in view.voters.union(&view.learners) {
        let Some(replica) = views.get(node.as_str()) else {
            found.push(format!("group {number}: nothing is heard of replica {node}"));
            continue;
        };
        if replica.leader.as_ref() != Some(leader) {
            let seen = &replica.leader;
            found.push(format!("group {number}: {node} sees leader {seen:?}, not {leader}"));
        }
        if replica.applied != view.applied {
            let (there, here) = (replica.applied, view.applied);
            found.push(format!("group {number}: {node} has applied {there}, {leader} {here}"));
        } else if replica.digest.is_empty() || view.digest.is_empty() {
            found.push(format!("group {number}: {node} or {leader} does not tell its digest"));
        } else if replica.digest != view.digest {
            let (there, here, at) = (&replica.digest, &view.digest, view.applied);
            found.push(format!(
                "{DIVERGED}: group {number} at {at}: {node} has {there}, {leader} {here}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a node prints in a healthy cluster of three.
    fn healthy() -> Vec<Status> {
        let names = ["a", "b", "c"];
        let members = names.map(|name| format!(r#"{{"node":"{name}","name":"x","up":true}}"#));
        let groups = (0..GROUPS).map(|group| {
            let leader = names[group % 3];
            format!(
                r#"{{"group":{group},"leader":"{leader}","term":3,"voters":["a","b","c"],
                "learners":[],"applied":7,"digest":"ab"}}"#
            )
        });
        let groups: Vec<String> = groups.collect();
        let parse = |name| {
            let json = format!(
                r#"{{"cluster":5,"node":"{name}","members":[{}],"groups":[{}],
                "sessions":{{"rows":2,"digest":"cd","online":1}},"settings":{{}}}}"#,
                members.join(","),
                groups.join(",")
            );
            serde_json::from_str(&json).unwrap()
        };
        names.map(parse).into()
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
        behind[0].groups[4].applied = 6;
        one(&behind, "group 4: a has applied 6");
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
            status.groups[0].learners.insert("d".into());
        }
        let mut fourth = statuses[0].clone();
        fourth.node = "d".into();
        fourth.groups[0].applied = 3;
        fourth.groups[1].applied = 2;
        statuses.push(fourth);
        for status in &mut statuses {
            let new = Member { node: "d".into(), up: true, ..Member::default() };
            status.members.push(new);
        }
        one(&statuses, "group 0: d has applied 3");
    }

    #[test]
    fn a_group_without_leader_or_with_too_few_voters_is_found() {
        let mut leaderless = healthy();
        for status in &mut leaderless {
            status.groups[9].leader = None;
        }
        one(&leaderless, "group 9 has no leader");
        let mut few = healthy();
        for status in &mut few {
            status.groups[9].voters.pop_last();
        }
        one(&few, "group 9 has voters");
    }

    #[test]
    fn members_that_are_missing_or_silent_and_sessions_that_differ_are_found() {
        let mut missing = healthy();
        missing[0].members.pop();
        one(&missing, "a knows");
        let mut silent = healthy();
        silent[0].members[1].up = false;
        one(&silent, "a does not hear b");
        let mut sessions = healthy();
        sessions[0].sessions.digest = "00".into();
        one(&sessions, "sessions");
    }
}
