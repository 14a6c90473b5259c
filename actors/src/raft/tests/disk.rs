//! A disk that is full for a while.

use super::*;
use std::sync::atomic::Ordering;

fn refuse(node: &Node, records: usize) {
    node.group().0.journal.refuse(records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_is_full_lags_and_catches_up() {
    let cluster = Cluster::of_three(quick()).await;
    let leader = cluster.wait_for_leader().await;
    let lagging = leader % 3 + 1;
    cluster.add("before").await;
    cluster.agreed().await;
    refuse(&cluster.nodes[&lagging], usize::MAX);
    for item in named("during", 0..5) {
        cluster.add(&item).await;
    }
    until("it waits for space", || cluster.nodes[&lagging].group().0.journal.is_stuck()).await;
    assert_eq!(cluster.nodes[&lagging].items(), ["before"]);
    refuse(&cluster.nodes[&lagging], 0);
    let all = [vec!["before".to_owned()], named("during", 0..5)].concat();
    assert_eq!(cluster.agreed().await, all);
    assert!(!cluster.nodes[&lagging].group().standing().ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_is_replaced_and_goes_on_as_a_follower() {
    let cluster = Cluster::of_three(quick()).await;
    let old = cluster.wait_for_leader().await;
    refuse(&cluster.nodes[&old], usize::MAX);
    assert_eq!(cluster.propose(old, "lost").await, Err(ProposeError::Unknown));
    let refused = cluster.propose(old, "refused").await.unwrap_err();
    assert_eq!(refused, ProposeError::Full);
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    cluster.add("during").await;
    refuse(&cluster.nodes[&old], 0);
    until("it follows", || cluster.nodes[&old].items() == ["during"]).await;
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["during", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_voter_whose_disk_was_full_accepts_again() {
    let mut cluster = Cluster::new(quick());
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    cluster.add("before").await;
    refuse(&cluster.nodes[&1], usize::MAX);
    assert_eq!(cluster.propose(1, "waits").await, Err(ProposeError::Unknown));
    assert_eq!(cluster.propose(1, "refused").await, Err(ProposeError::Full));
    refuse(&cluster.nodes[&1], 0);
    // What was under way is kept after all: its outcome was not known.
    until("it is applied", || cluster.nodes[&1].items() == ["before", "waits"]).await;
    cluster.add("after").await;
    cluster.kill(1).await;
    cluster.start(1).await;
    until("all is there", || cluster.nodes[&1].items() == ["before", "waits", "after"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_waits_for_space_can_be_stopped() {
    let mut cluster = Cluster::new(quick());
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    cluster.add("before").await;
    refuse(&cluster.nodes[&1], usize::MAX);
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let failed = Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    cluster.nodes[&1].group().propose(Bytes::from_static(b"waits"), failed);
    until("it waits for space", || cluster.nodes[&1].group().0.journal.is_stuck()).await;
    tokio::time::timeout(PATIENCE, cluster.nodes[&1].group().stop()).await.unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 1, "who waited was told, once");
    assert!(cluster.nodes[&1].group().standing().ended);
    cluster.kill(1).await;
    cluster.start(1).await;
    cluster.add("after").await;
}
