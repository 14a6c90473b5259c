//! Stories of whoever runs a cluster: nodes join, are drained and leave, by `natter admin`.

use crate::clusters::{cluster, three, turn};
use crate::connections::websocket;
use crate::people::{PROGRAM, Person, settings};
use anyhow::{Result, ensure};
use futures_util::StreamExt;
use proto::wire::{ServerFrame, server_frame::Kind as Say};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cables, Cluster, admin};
use tests::node::{Node, eventually};
use tests::status::{GROUPS, GroupStatus, ReplicaStatus, Status};
use tokio_tungstenite::tungstenite::Message;

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(1);

/// A node of its own with the cookie in `cookie`.
async fn founder(name: &str, cookie: &Path) -> Node {
    let more = format!("cookie_file = \"{}\"\nname = \"{name}\"\n", cookie.display());
    // The section `cluster` of every node ends the settings that come before these.
    let node = Node::start(PROGRAM, &format!("{more}{}", settings(""))).await.unwrap();
    until(&node, "it is a cluster of one", |now| whole(now, 1)).await;
    node
}

async fn ask(node: &Node, words: &[&str]) -> Result<String> {
    admin(Path::new(PROGRAM), node.target().data_dir(), words).await
}

/// Waits until what a node says of the cluster is as it should be.
async fn until(node: &Node, what: &str, is: impl Fn(&Status) -> bool) -> Status {
    let asked = eventually(PATIENCE, async || {
        let now: Status = serde_json::from_str(&ask(node, &["cluster", "status"]).await?)?;
        ensure!(is(&now), "waited in vain: {what}\n{now:#?}");
        Ok(now)
    });
    asked.await.unwrap()
}

fn whole(status: &Status, members: usize) -> bool {
    let led = status.groups.iter().filter(|group| group.status.leader.is_some()).count();
    let up = status.members.iter().filter(|member| member.up).count();
    status.place == "member" && status.members.len() == members && up == members && led == GROUPS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_is_told_to_join_is_drained_and_leaves_and_nobody_misses_anything() {
    let folder = tempfile::tempdir().unwrap();
    let cookie = folder.path().join("cookie");
    fs::write(&cookie, "a cookie for two nodes, long enough\n").unwrap();
    let old = founder("old", &cookie).await;
    let mut ada = Person::join(&old, "ada").await;
    let mut bob = Person::join(&old, "bob").await.hang_up();
    ada.say(bob.user, "before it joined").await;
    let seed = old.target().addresses().unwrap().cluster;

    let mut new = founder("new", &cookie).await;
    ask(&new, &["cluster", "join", &seed]).await.unwrap();
    new.stop().await.unwrap();
    new.restart().await.unwrap();
    assert!(new.errors().contains("store.given-up"), "it says what became of its store");
    let joined = until(&new, "the new node sees two members", |now| whole(now, 2)).await;
    let has_a_copy = |group: &ReplicaStatus| {
        let GroupStatus { voters, learners, .. } = &group.status;
        learners.union(voters).count() == 2
    };
    until(&old, "the new node has a copy of all", |now| now.groups.iter().all(has_a_copy)).await;
    let (wire, _) = bob.resume(&new.target()).await.unwrap();
    let mut bob = Person::new(bob, wire);
    assert_eq!(bob.hear_text().await, "before it joined");

    ask(&old, &["cluster", "drain", "old"]).await.unwrap();
    let led = |group: &ReplicaStatus| group.status.leader == Some(joined.node);
    until(&old, "the drained node leads nothing", |now| now.groups.iter().all(led)).await;
    ada.say(bob.user(), "while it is drained").await;
    assert_eq!(bob.hear_text().await, "while it is drained");
    ask(&old, &["cluster", "drain", "old", "--undo"]).await.unwrap();

    ask(&new, &["cluster", "leave"]).await.unwrap();
    until(&old, "one member is left", |now| whole(now, 1)).await;
    drop(new);
    ada.say(bob.user(), "after it left").await;
    bob.again(&old.target()).await;
    assert_eq!(bob.hear_text().await, "after it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_holds_people_joins_no_other_cluster_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let cookie = folder.path().join("cookie");
    fs::write(&cookie, "a cookie for two nodes, long enough\n").unwrap();
    let (one, other) = (founder("one", &cookie).await, founder("other", &cookie).await);
    Person::join(&other, "ada").await;
    let seed = one.target().addresses().unwrap().cluster;
    let refused = ask(&other, &["cluster", "join", &seed]).await.unwrap_err().to_string();
    assert!(refused.contains("not empty") || refused.contains("holds"), "{refused}");
    assert!(!other.target().data_dir().join("join").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_which_people_registered_after_it_was_told_to_join_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let cookie = folder.path().join("cookie");
    fs::write(&cookie, "a cookie for two nodes, long enough\n").unwrap();
    let (one, mut other) = (founder("one", &cookie).await, founder("other", &cookie).await);
    let seed = one.target().addresses().unwrap().cluster;
    ask(&other, &["cluster", "join", &seed]).await.unwrap();
    let mut ada = Person::join(&other, "ada").await;
    other.kill().unwrap();
    other.spawn().unwrap();
    assert!(!other.ended().await.unwrap().success());
    let (said, join) = (other.errors(), other.target().data_dir().join("join"));
    for part in [join.to_str().unwrap(), "holds 1 account", "delete"] {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
    fs::remove_file(join).unwrap();
    other.restart().await.unwrap();
    ada.again(&other.target()).await;
    ada.still_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_for_leaders_ends_with_status_0_when_it_is_told_to() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    for node in 0..3 {
        cluster.kill(node).unwrap();
    }
    let mut node = cluster.nodes()[0].command().unwrap().spawn().unwrap();
    let asked = eventually(PATIENCE, async || cluster.admin(0, &["cluster", "status"]).await).await;
    let waits = cluster.target(0).addresses().is_none();
    kill_process(Pid::from_child(&node), Signal::TERM).unwrap();
    let ended = tests::node::until("the node to end", PATIENCE, || Ok(node.try_wait()?)).await;
    node.kill().ok(); // If it has not ended.
    assert!(asked.is_ok() && waits, "it runs and is not ready: {asked:?}");
    assert!(ended.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_tells_its_clients_where_the_others_are() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    let mut ada = Person::join(&cluster.nodes()[0], "ada").await;
    let client = |node: &Node| node.target().addresses().unwrap().client;
    let others: BTreeSet<_> = cluster.nodes()[1..].iter().map(client).collect();
    let web = |node: &Node| node.target().addresses().unwrap().websocket;
    let other_webs: BTreeSet<_> = cluster.nodes()[1..].iter().map(web).collect();
    let mut browser = websocket(&cluster.nodes()[0]).await;
    cluster.nodes()[0].signal(Signal::TERM).unwrap();
    let told = ada.wire.expect(|frame| match &frame.kind {
        Some(Say::GoAway(away)) => Some(away.addresses.iter().cloned().collect::<BTreeSet<_>>()),
        _ => None,
    });
    assert_eq!(told.await.unwrap(), others);
    loop {
        let message = browser.next().await.expect("a goodbye").unwrap();
        let Message::Binary(bytes) = message else { continue };
        let frame = <ServerFrame as prost::Message>::decode(bytes).unwrap();
        if let Some(Say::GoAway(away)) = frame.kind {
            let told: BTreeSet<_> = away.addresses.into_iter().collect();
            assert_eq!(told, other_webs, "where WebSocket is spoken");
            break;
        }
    }
}

const KEY: &str = "limits.mailbox_messages";

async fn setting(cluster: &Cluster, node: usize) -> String {
    cluster.admin(node, &["settings", "get", KEY]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_holds_where_it_was_set_then_everywhere_and_is_caught_up_by_who_was_down() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    for node in 0..3 {
        let value = (5_000 + node).to_string();
        cluster.admin(node, &["settings", "set", KEY, &value]).await.unwrap();
        assert!(setting(&cluster, node).await.contains(&value), "it holds at once");
        for other in 0..3 {
            eventually(PATIENCE, async || {
                let held = setting(&cluster, other).await;
                ensure!(held.contains(&value), "node {other} holds {held}");
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    cluster.kill(2).unwrap();
    cluster.admin(0, &["settings", "set", KEY, "6000"]).await.unwrap();
    cluster.restart(2).await.unwrap();
    eventually(PATIENCE, async || {
        let held = setting(&cluster, 2).await;
        ensure!(held.contains("6000"), "it was down, and holds {held}");
        Ok(())
    })
    .await
    .unwrap();
}
