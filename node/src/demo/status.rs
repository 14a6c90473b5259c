//! What the nodes say of the cluster (`natter admin cluster status`), and what the story wants to
//! know of it. Asked by the painter, read by the story.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tokio::process::Command;

/// Shards of users and the group of members and settings.
const GROUPS: usize = proto::ids::SHARDS as usize + 1;

/// One node's answer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    node: String,
    members: Vec<Member>,
    groups: Vec<Group>,
    sessions: Sessions,
}

#[derive(Clone, Debug, Deserialize)]
struct Member {
    up: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Group {
    group: u16,
    leader: Option<String>,
    voters: BTreeSet<String>,
    applied: u64,
    digest: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Sessions {
    rows: u64,
    digest: String,
}

impl Status {
    /// Asks the node with this data directory.
    pub(super) async fn ask(data_dir: &Path) -> anyhow::Result<Self> {
        let asked = Command::new(std::env::current_exe()?)
            .args(["admin", "--data-dir"])
            .arg(data_dir)
            .args(["cluster", "status", "--json"])
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        serde_json::from_slice(&asked.stdout).context("its status cannot be read")
    }

    /// How many shards it leads, as it sees it itself.
    pub(super) fn shards_led(&self) -> usize {
        let users = self.groups.iter().filter(|group| group.group < proto::ids::SHARDS);
        users.filter(|group| group.leader.as_ref() == Some(&self.node)).count()
    }

    /// Whether it has applied everything that `other` had.
    pub(super) fn has_all_of(&self, other: &Self) -> bool {
        other.groups.iter().all(|theirs| {
            let ours = self.groups.iter().find(|ours| ours.group == theirs.group);
            ours.is_some_and(|ours| ours.applied >= theirs.applied)
        })
    }

    /// Whether it hears all of `nodes` nodes, and each group has its leader and its replicas.
    fn is_whole(&self, nodes: usize) -> bool {
        self.members.len() == nodes
            && self.members.iter().all(|member| member.up)
            && self.groups.len() == GROUPS
            && self
                .groups
                .iter()
                .all(|group| group.leader.is_some() && group.voters.len() == nodes)
    }
}

/// What each node said when all were asked at once; `None`: nothing.
pub(super) type Answers = [Option<Status>];

/// Whether all of them are one cluster with three replicas of everything.
pub(super) fn are_whole(answers: &Answers) -> bool {
    answers.iter().all(|said| said.as_ref().is_some_and(|said| said.is_whole(answers.len())))
}

/// Who leads a shard: the node that says so itself.
pub(super) fn leader(answers: &Answers, shard: proto::ShardId) -> Option<usize> {
    answers.iter().position(|said| {
        let Some(said) = said else { return false };
        let group = said.groups.iter().find(|group| group.group == shard.0);
        group.is_some_and(|group| group.leader.as_ref() == Some(&said.node))
    })
}

/// Whether every group is led by a node other than `without`.
pub(super) fn are_led(answers: &Answers, without: usize) -> bool {
    (0..=proto::ids::SHARDS).all(|group| {
        let leader = leader(answers, proto::ShardId(group));
        leader.is_some_and(|leader| leader != without)
    })
}

/// Whether all replicas of every group, and all sessions tables, have the same content.
pub(super) fn are_equal(answers: &Answers) -> bool {
    let mut contents = answers.iter().map(|said| {
        let said = said.as_ref()?;
        let mut groups: Vec<(u16, u64, &str)> =
            said.groups.iter().map(|it| (it.group, it.applied, it.digest.as_str())).collect();
        groups.sort_unstable();
        (groups.len() == GROUPS).then_some((groups, said.sessions.rows, &said.sessions.digest))
    });
    let first = contents.next().flatten();
    first.is_some() && contents.all(|content| content == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three nodes of which each says the same, but for who they are.
    fn healthy() -> Vec<Option<Status>> {
        let names = ["a", "b", "c"];
        let status = |name| {
            let groups: Vec<serde_json::Value> = (0..GROUPS)
                .map(|group| {
                    serde_json::json!({"group": group, "leader": names[group % 3], "term": 3,
                        "voters": names, "learners": [], "applied": 7, "digest": "ab"})
                })
                .collect();
            let status = serde_json::json!({"cluster": 5, "node": name, "groups": groups,
                "members": [{"node": "a", "up": true}, {"node": "b", "up": true}, {"node": "c", "up": true}],
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
        assert!(!are_whole(&changed(|status| status.groups[16].leader = None)));
        assert!(!are_whole(&changed(|status| drop(status.groups[3].voters.pop_first()))));
        let mut silent = healthy();
        silent[0] = None;
        assert!(!are_whole(&silent) && !are_equal(&silent));
    }

    #[test]
    fn replicas_are_equal_only_with_the_same_content_everywhere() {
        assert!(are_equal(&healthy()));
        assert!(!are_equal(&changed(|status| status.groups[4].digest = "00".into())));
        assert!(!are_equal(&changed(|status| status.groups[4].applied = 8)));
        assert!(!are_equal(&changed(|status| status.sessions.digest = "00".into())));
        assert!(!are_equal(&changed(|status| drop(status.groups.pop()))));
    }

    #[test]
    fn a_leader_counts_when_it_says_so_itself() {
        let answers = healthy();
        assert_eq!(leader(&answers, proto::ShardId(4)), Some(1));
        assert_eq!(answers[0].as_ref().unwrap().shards_led(), 6);
        assert!(!are_led(&answers, 1));
        let mut killed = healthy();
        killed[1] = None;
        assert!(!are_led(&killed, 1), "the others only believe that it leads");
        let said = changed(|status| status.groups[4].applied = 6);
        assert!(!said[1].as_ref().unwrap().has_all_of(said[0].as_ref().unwrap()));
        assert!(said[0].as_ref().unwrap().has_all_of(said[1].as_ref().unwrap()));
    }
}
