//! A disk that is full for a while.

use super::*;
use std::sync::atomic::Ordering;

fn refuse(node: &Node, records: usize) {
    node.group().inner().journal.refuse(records);
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
    until("it waits for space", || cluster.nodes[&lagging].group().inner().journal.is_stuck())
        .await;
    assert_eq!(cluster.nodes[&lagging].items(), ["before"]);
    refuse(&cluster.nodes[&lagging], 0);
    let all = [vec!["before".to_owned()], named("during", 0..5)].concat();
    assert_eq!(cluster.agreed().await, all);
    assert!(!cluster.nodes[&lagging].group().status().ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_is_replaced_and_goes_on_as_a_follower() {
    let cluster = Cluster::of_three(quick()).await;
    let old = cluster.wait_for_leader().await;
    refuse(&cluster.nodes[&old], usize::MAX);
    assert_eq!(cluster.propose(old, "lost").await, Err(ProposeError::Unknown));
    let refused = cluster.propose(old, "refused").await.unwrap_err();
    assert!(matches!(refused, ProposeError::Full | ProposeError::NotLeader(_)), "{refused:?}");
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    cluster.add("during").await;
    refuse(&cluster.nodes[&old], 0);
    until("it follows", || cluster.nodes[&old].items() == ["during"]).await;
    assert!(cluster.nodes[&old].group().status().leader.is_some());
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
    until("it waits for space", || cluster.nodes[&1].group().inner().journal.is_stuck()).await;
    tokio::time::timeout(PATIENCE, cluster.nodes[&1].group().stop()).await.unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 1, "who waited was told, once");
    assert!(cluster.nodes[&1].group().status().ended);
    cluster.kill(1).await;
    cluster.start(1).await;
    cluster.add("after").await;
}

fn pretend_full(cluster: &Cluster, node: u64, full: bool) {
    cluster.nodes[&node].group().inner().way_out.pretend_full(full);
}

fn term(cluster: &Cluster, node: u64) -> u64 {
    cluster.nodes[&node].group().status().term
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_leader_is_replaced_before_anybody_misses_it() {
    let slow = Timing { election: (Duration::from_secs(15), Duration::from_secs(18)), ..quick() };
    let cluster = Cluster::of_three(slow).await;
    let old = cluster.wait_for_leader().await;
    cluster.add("before").await;
    refuse(&cluster.nodes[&old], usize::MAX);
    assert_eq!(cluster.propose(old, "in doubt").await, Err(ProposeError::Unknown));
    let full = Instant::now();
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    assert!(full.elapsed() < slow.election.0, "its silence was noticed, not what it said");
    let new = cluster.wait_for_leader().await;
    // It remembers for some seconds whom it asked; who leads it hears for as long as it is full.
    cluster.nodes[&old].group().inner().way_out.forget();
    let follows = || {
        let status = cluster.nodes[&old].group().status();
        !status.me_leads && status.leader == Some(NodeId(new)) && status.is_led()
    };
    until("it knows who leads in its place", follows).await;
    cluster.add("during").await;
    refuse(&cluster.nodes[&old], 0);
    let agreed = cluster.agreed().await;
    assert!(agreed.starts_with(&["before".to_owned()]) && agreed.ends_with(&["during".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_runs_out_of_space_hands_over_and_leaves_nothing_in_doubt() {
    let cluster = Cluster::of_three(calm()).await;
    let old = cluster.wait_for_leader().await;
    let before = term(&cluster, old);
    let items = named("item", 0..50);
    let in_doubt = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for item in &items {
        let count = Arc::clone(&in_doubt);
        let failed = Box::new(move |error| {
            if matches!(error, ProposeError::Unknown) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        cluster.nodes[&old].group().propose(Bytes::from(item.clone()), failed);
    }
    pretend_full(&cluster, old, true);
    assert!(cluster.nodes[&old].group().gives_way());
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    let new = cluster.wait_for_leader().await;
    assert_eq!(in_doubt.load(Ordering::SeqCst), 0);
    assert_eq!(term(&cluster, new), before + 1, "nobody waited for an election to fail");
    cluster.add("during").await;
    // It takes nothing over, and nobody waits for it.
    let yielded = cluster.nodes[&new].group().yield_to(NodeId(old)).await;
    assert!(matches!(yielded, Err(RaftError::NotTaken(node)) if node.0 == old), "{yielded:?}");
    assert!(!cluster.nodes[&new].group().caught_up().contains(&NodeId(old)));
    cluster.propose(new, "still").await.unwrap();
    pretend_full(&cluster, old, false);
    cluster.nodes[&new].group().inner().way_out.forgive();
    cluster.hand_over(new, old).await;
    until("it leads again", || cluster.leader() == Some(old)).await;
    let agreed = cluster.agreed().await;
    assert_eq!(agreed[..50], items);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_dies_the_one_with_space_leads() {
    let mut cluster = Cluster::of_three(quick()).await;
    for round in 0..3 {
        let leader = cluster.wait_for_leader().await;
        let (full, heir) = (leader % 3 + 1, (leader + 1) % 3 + 1);
        pretend_full(&cluster, full, true);
        cluster.add(&format!("before {round}")).await;
        cluster.kill(leader).await;
        until("the one with space leads", || cluster.leader() == Some(heir)).await;
        assert!(!cluster.nodes[&full].group().status().me_leads);
        pretend_full(&cluster, full, false);
        cluster.start(leader).await;
        cluster.add(&format!("after {round}")).await;
    }
    assert_eq!(cluster.agreed().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_all_are_nearly_full_one_leads_all_the_same() {
    let mut cluster = Cluster::of_three(quick()).await;
    let leader = cluster.wait_for_leader().await;
    for node in [leader % 3 + 1, (leader + 1) % 3 + 1, leader] {
        pretend_full(&cluster, node, true);
    }
    let group = cluster.nodes[&leader].group();
    until("it finds that nobody else can", || !group.gives_way()).await;
    cluster.add("acknowledgments").await;
    cluster.kill(cluster.wait_for_leader().await).await;
    cluster.add("more of them").await;
    assert_eq!(cluster.agreed().await, ["acknowledgments", "more of them"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_log_is_shut_says_why_it_ended_and_the_others_go_on() {
    let mut cluster = Cluster::of_three(quick()).await;
    cluster.add("before").await;
    cluster.agreed().await;
    let leader = cluster.wait_for_leader().await;
    for (shut, item) in [(leader % 3 + 1, "without a follower"), (leader, "without its leader")] {
        let group = cluster.nodes[&shut].group().clone();
        let mut failed = Box::pin(group.failed());
        let early = tokio::time::timeout(quick().heartbeat * 3, &mut failed).await;
        assert!(early.is_err(), "it has not failed yet: {early:?}");
        cluster.nodes[&shut].storage.clone().close();
        if shut == leader {
            assert!(cluster.propose(leader, "in doubt").await.is_err());
        } else {
            cluster.add(item).await;
        }
        let reason = tokio::time::timeout(PATIENCE, failed).await.unwrap();
        assert!(reason.contains("the log is shut"), "{reason}");
        // It holds the directory.
        drop(group);
        cluster.kill(shut).await;
        cluster.start(shut).await;
        cluster.add(item).await;
        cluster.agreed().await;
    }
    let group = cluster.nodes[&leader].group().clone();
    group.stop().await;
    assert!(group.status().ended);
    let failed = tokio::time::timeout(quick().election.1, group.failed()).await;
    assert!(failed.is_err(), "it was told to end: {failed:?}");
}
