//! Promise 7: replicas that were lost are rebuilt elsewhere and move when a node comes; what a node no
//! longer holds leaves its disk, and is whole again when it comes back.

use crate::clusters::{cluster, three, turn};
use crate::people::Person;
use anyhow::ensure;
use proto::UserId;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use tests::cluster::{Cables, Cluster, Options};
use tests::node::eventually;
use tests::status::{Status, groups};
use tests::wire::Phone;

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(2);

/// People who are away, with what waits for each.
type Waiting = Vec<(Phone, String)>;

/// The node that comes and goes.
const GUEST: usize = 3;

/// Kills the guest, empties its disk, and has it removed.
async fn guest_goes(cluster: &mut Cluster) {
    let id = cluster.status(GUEST).await.unwrap().node.to_string();
    cluster.kill(GUEST).unwrap();
    cluster.admin(0, &["cluster", "remove", &id, "--no-wait"]).await.unwrap();
    for entry in fs::read_dir(cluster.target(GUEST).data_dir()).unwrap() {
        let path = entry.unwrap().path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap();
    }
}

/// What each of the first nodes says, in their order.
async fn statuses(cluster: &Cluster, nodes: usize) -> Vec<Status> {
    let mut statuses = Vec::new();
    for node in 0..nodes {
        statuses.push(cluster.status(node).await.unwrap());
    }
    statuses
}

/// What keeps each of the first nodes from having what it should, and nothing else.
async fn misplaced(cluster: &Cluster, nodes: usize, waiting: &Waiting) -> Vec<String> {
    let mut found = Vec::new();
    let statuses = statuses(cluster, nodes).await;
    for group in groups() {
        let views: Vec<_> = statuses.iter().map(|status| status.group(group).unwrap()).collect();
        let voters: BTreeSet<_> = views.iter().map(|view| &view.status.voters).collect();
        let [voters] = voters.iter().copied().collect::<Vec<_>>()[..] else {
            found.push(format!("group {group}: nodes differ about its voters: {voters:?}"));
            continue;
        };
        let here = |status: &&Status| voters.contains(&status.node);
        if voters.len() != 3 || statuses.iter().filter(here).count() != 3 {
            found.push(format!("group {group} has voters {voters:?}"));
        }
        let holders = statuses.iter().zip(&views).filter(|(status, _)| here(status));
        let contents: BTreeSet<_> =
            holders.map(|(_, view)| (view.status.applied, &view.digest)).collect();
        if contents.len() != 1 {
            found.push(format!("group {group} has contents {contents:?}"));
        }
    }
    for (phone, marker) in waiting {
        let shard = UserId(phone.user).shard();
        for (node, status) in statuses.iter().enumerate() {
            let held = !cluster.nodes()[node].files_with(marker.as_bytes()).unwrap().is_empty();
            let votes =
                status.group(shard).is_some_and(|it| it.status.voters.contains(&status.node));
            if held != votes {
                found
                    .push(format!("{marker} of group {shard} at node {node}: {held}, not {votes}"));
            }
        }
    }
    found
}

async fn well_placed(cluster: &Cluster, nodes: usize, waiting: &Waiting) {
    let asked = eventually(PATIENCE, async || {
        let found = misplaced(cluster, nodes, waiting).await;
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    });
    asked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_a_shard_that_moved_leaves_nothing_behind_and_comes_back_whole() {
    let _turn = turn().await;
    let mut cluster = cluster(Options { nodes: 4, ..three(Cables::Loopback) }).await;
    let mut ada = Person::join(&cluster.nodes()[0], "ada").await;
    let mut away = Waiting::new();
    for number in 0..12 {
        let person = Person::join(&cluster.nodes()[1], &format!("away{number}")).await;
        let marker = format!("MARKER-{number}-{:032x}", rand::random::<u128>());
        let phone = person.hang_up();
        ada.say(phone.user, &marker).await;
        away.push((phone, marker));
    }
    well_placed(&cluster, 4, &away).await;

    guest_goes(&mut cluster).await;
    well_placed(&cluster, GUEST, &away).await;
    // Now the three hold everything, and a share moves away from each.
    cluster.restart(GUEST).await.unwrap();
    well_placed(&cluster, 4, &away).await;
    guest_goes(&mut cluster).await;
    well_placed(&cluster, GUEST, &away).await;

    for (mut phone, marker) in away {
        let (wire, _) = phone.resume(&cluster.target(2)).await.unwrap();
        assert_eq!(Person::new(phone, wire).hear_text().await, marker);
    }
}
