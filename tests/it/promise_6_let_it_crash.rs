//! Promise 6: a fault in one user's actor touches that user alone; neither the socket nor an
//! accepted message notices. A test-only hook makes the actor panic.

use crate::clusters::{cluster, people, three, turn};
use crate::people::{Person, ada_and_bob, message, node, nothing_wrong};
use proto::ids::SHARDS;
use std::time::Duration;
use tests::cluster::Cables;
use tests::node::{Node, until};
use tests::workload::{Plan, Workload};

/// A send with a body that begins so makes the sender's actor panic, once for each send id.
const PANIC: &str = "natter-under-test:panic";

#[tokio::test]
async fn promise_6_a_panic_keeps_the_socket_and_answers_the_send_that_caused_it() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for round in 0..5 {
        let body = format!("{PANIC} {round}");
        ada.say(bob.user(), &body).await;
        assert_eq!(bob.hear_text().await, body);
        bob.ack().await;
        ada.still_served().await;
    }
    assert!(node.errors().contains("panic"), "the hook did not fire, so this proved nothing");
}

#[tokio::test]
async fn promise_6_a_panic_of_one_is_not_noticed_by_another() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut eve = Person::join(&node, "eve").await;
    for round in 0..20 {
        let text = format!("calm {round}");
        let crash = eve.fresh_id();
        let body = format!("{PANIC} {round}");
        eve.wire.send(crash, message(ada.user(), &body)).await.unwrap();
        ada.say(bob.user(), &text).await;
        assert_eq!(bob.hear_text().await, text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_6_panics_in_mid_traffic_lose_double_and_disorder_nothing() {
    let node = node("").await;
    let plan = Plan { seed: 6, users: 6, tablets: 1, window: 16, sends: 400, drops_per_1000: 0 };
    let load = Workload::start_with(&node, plan, |id| if id % 40 == 0 { PANIC } else { "" });
    let load = load.await.unwrap();
    load.progress(400 * 7, Duration::from_mins(3)).await.unwrap();
    let (accepted, wrong) = load.settle(Duration::from_mins(2)).await.unwrap();
    assert_eq!(accepted, 400 * 7);
    nothing_wrong(accepted, &wrong);
    assert!(node.errors().contains("panic"), "the hook did not fire, so this proved nothing");
}

/// The line with which a node tells of an actor that a test has killed.
const KILLED: &str = "killed by a test";

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(2);

/// Kills the actor that serves this queue, and waits until its supervisor knows.
async fn kill(node: &Node, kind: &str, id: u64) {
    let before = node.errors().matches(KILLED).count();
    node.kill_actor(kind, id).unwrap();
    let known = || Ok((node.errors().matches(KILLED).count() > before).then_some(()));
    until("the actor to be killed", PATIENCE, known).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_6_a_shard_replica_that_dies_restarts_inside_its_node_and_no_connection_notices() {
    let _turn = turn().await;
    let mut node = node("[storage]\ncheckpoint_every = \"1s\"\n").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let plan =
        Plan { seed: 61, users: 8, tablets: 1, window: 8, sends: u64::MAX, drops_per_1000: 0 };
    let load = Workload::across(std::slice::from_ref(&node), plan, Duration::from_millis(20));
    let mut load = load.await.unwrap();
    for shard in 0..u64::from(SHARDS) {
        kill(&node, "shard", shard).await;
        load.progress(20, PATIENCE).await.unwrap();
        let text = format!("after the death of shard {shard}");
        ada.say(bob.user(), &text).await;
        assert_eq!(bob.hear_text().await, text);
        bob.ack().await;
    }
    let (accepted, wrong) = load.quiet(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
    ada.still_served().await;
    bob.still_served().await;
    assert!(node.runs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_6_replicas_of_a_cluster_that_die_lose_double_and_disorder_nothing() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    let mut load = people(&cluster, 62).await;
    for node in 0..2 {
        for shard in 0..u64::from(SHARDS) {
            kill(&cluster.nodes()[node], "shard", shard).await;
        }
        load.progress(100, PATIENCE).await.unwrap();
    }
    for kind in ["meta", "balancer", "presence", "sessions"] {
        kill(&cluster.nodes()[2], kind, 0).await;
        load.progress(20, PATIENCE).await.unwrap();
    }
    let (accepted, wrong) = load.quiet(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
    cluster.converge(PATIENCE).await.unwrap();
    for node in 0..3 {
        assert_eq!(cluster.nodes()[node].errors().matches("node starts").count(), 1);
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test]
async fn promise_6_a_replica_that_dies_again_and_again_ends_its_node_by_name() {
    let mut node = node("").await;
    for _ in 0..100 {
        if !node.runs() {
            break;
        }
        node.kill_actor("shard", 3).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!node.ended().await.unwrap().success());
    let said = node.errors();
    assert!(said.contains("too many restarts") && said.contains("shard"), "{said}");
}
