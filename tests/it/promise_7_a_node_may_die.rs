//! Promise 7: any one node can be killed, stopped or lose its disk: nothing accepted is lost, other
//! users go on, its own users are served elsewhere, and it catches up when it returns.

use crate::clusters::{cluster, people, three, turn};
use crate::people::{PROGRAM, Person, ada_and_bob, nothing_wrong, settings};
use anyhow::ensure;
use proto::NodeId;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::time::Duration;
use tests::cluster::{Cables, Cluster};
use tests::disk::SmallDisk;
use tests::faults::Fault;
use tests::node::{Node, eventually, until};
use tests::round::round;
use tests::status::Status;

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(2);

/// What people on other nodes may have to wait at most, here, where two busy cores run everything
/// unoptimized. What they wait in earnest is measured by `benches`.
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_each_node_in_turn_is_killed_and_its_users_are_served_elsewhere() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut load = people(&cluster, 7).await;
    for node in 0..3 {
        load.progress(100, PATIENCE).await.unwrap();
        assert!(load.at(node) > 0, "nobody is on node {node}, so this proves nothing");
        load.measure(&[node].into());
        cluster.kill(node).unwrap();
        let moved = until("its users to be served elsewhere", PATIENCE, || {
            Ok((load.at(node) == 0).then_some(()))
        });
        moved.await.unwrap();
        load.progress(100, PATIENCE).await.unwrap();
        let pause = load.measured();
        assert!(pause.messages > 0 && pause.delivered < PAUSE_MAX, "node {node}: {pause}");
        cluster.restart(node).await.unwrap();
        let (accepted, wrong) = load.quiet(PATIENCE).await.unwrap();
        nothing_wrong(accepted, &wrong);
        cluster.converge(PATIENCE).await.unwrap();
        load.go_home();
        load.go_on();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_a_node_that_lost_its_disk_comes_back_as_a_new_one_with_everything() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut load = people(&cluster, 8).await;
    for node in [1, 0] {
        let lost = Fault::Wipe(node);
        round(&mut cluster, &mut load, &lost, Duration::from_secs(1)).await.unwrap();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_all_killed_at_once_and_clocks_that_jump_lose_nothing() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut load = people(&cluster, 9).await;
    let day_ms = 24 * 3_600_000;
    for (fault, seconds) in [
        (Fault::KillAll, 0),
        (Fault::Clock(0, 2 * day_ms), 2),
        (Fault::Clock(1, -2 * day_ms), 2),
        (Fault::KillAll, 1),
    ] {
        round(&mut cluster, &mut load, &fault, Duration::from_secs(seconds)).await.unwrap();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_who_stays_away_after_a_kill_is_shown_as_gone_and_finds_everything_later() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut load = people(&cluster, 11).await;
    load.progress(50, PATIENCE).await.unwrap();
    assert!(load.stay_away_after(1, 2) > 0, "nobody is on node 1 alone, so this proves nothing");
    for fault in [Fault::Kill(1), Fault::KillAll] {
        round(&mut cluster, &mut load, &fault, Duration::from_secs(1)).await.unwrap();
    }
    load.come_back();
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

/// How many groups a node leads, as another sees it; `None` if a group has no leader.
fn groups_led(node: NodeId, seen: &Status) -> Option<usize> {
    let leaders: Option<Vec<_>> = seen.groups.iter().map(|group| group.status.leader).collect();
    Some(leaders?.into_iter().filter(|leader| *leader == node).count())
}

/// Waits until all groups are led by others than `node`, and all nodes say so.
async fn others_lead(cluster: &Cluster, node: usize) {
    let id = cluster.status(node).await.unwrap().node;
    let asked = eventually(PATIENCE, async || {
        let seen = cluster.statuses().await.unwrap();
        let led = seen.iter().all(|seen| groups_led(id, seen) == Some(0));
        ensure!(led, "node {node} still leads: {seen:?}");
        Ok(())
    });
    asked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_7_a_full_disk_of_one_node_stops_nobody_else() {
    let _turn = turn().await;
    let probe = tempfile::tempdir().unwrap();
    if let Err(error) = SmallDisk::mount(&probe.path().join("disk"), 1 << 20) {
        return skip::skipped(error);
    }
    let mut options = three(Cables::Loopback);
    options.disk = Some(96 << 20);
    let mut cluster = cluster(options).await;
    let mut load = people(&cluster, 10).await;
    for node in [2, 0] {
        let full = Fault::FullDisk(node);
        load.progress(50, PATIENCE).await.unwrap();
        load.measure(&[node].into());
        full.inject(&mut cluster).await.unwrap();
        others_lead(&cluster, node).await;
        load.progress(100, PATIENCE).await.unwrap();
        let pause = load.measured();
        println!("while the disk of node {node} is full: {pause}");
        assert!(pause.messages > 0, "nobody on other nodes wrote to each other");
        let id = cluster.status(node).await.unwrap().node;
        for status in cluster.statuses().await.unwrap() {
            // While the others hand over among themselves a group may have no leader.
            let led = status.groups.iter().filter(|group| group.status.leader == Some(id));
            assert_eq!(led.count(), 0, "{} says that the full node leads", status.node);
        }
        full.heal(&mut cluster).await.unwrap();
        let (accepted, wrong) = load.quiet(PATIENCE).await.unwrap();
        nothing_wrong(accepted, &wrong);
        cluster.converge(PATIENCE).await.unwrap();
        load.go_home();
        load.go_on();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test]
async fn promise_7_a_node_whose_log_fails_says_so_ends_and_has_all_when_it_is_started_again() {
    // A write beyond the limit is an error to a process that ignores the signal.
    let shell = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"].map(str::to_owned);
    let mut node =
        Node::prepare(PROGRAM, &settings("[storage]\ncheckpoint_every = \"10m\"")).unwrap();
    node.launched_by(shell.into());
    node.restart().await.unwrap();
    let (mut ada, bob) = ada_and_bob(&node).await;
    let mut bob = bob.hang_up();
    let long = "x".repeat(16_000);
    for _ in 0..40 {
        ada.say(bob.user, &long).await;
    }
    // The log is longer than that, what the node says is not.
    let limit = Rlimit { current: Some(400_000), maximum: Some(400_000) };
    let pid = Pid::from_raw(i32::try_from(node.pid().unwrap()).unwrap());
    prlimit(pid, Resource::Fsize, limit).unwrap();
    let id = ada.fresh_id();
    assert!(ada.say_as(id, bob.user, "into a log that fails").await.is_err());
    assert_eq!(node.ended().await.unwrap().code(), Some(1));
    let said = node.errors();
    for part in ["log shut: a flush failed", "a group of this node has ended", "the log is shut"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    node.restart().await.unwrap();
    let (wire, _) = bob.resume(&node.target()).await.unwrap();
    let mut bob = Person::new(bob, wire);
    for _ in 0..40 {
        assert_eq!(bob.hear_text().await, long);
        bob.ack().await;
    }
}
