//! What is accepted is everywhere, and stays.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_is_applied_on_all_in_one_order() {
    let cluster = Cluster::of_three(quick()).await;
    for item in named("a", 0..20) {
        cluster.add(&item).await;
    }
    assert_eq!(cluster.agreed().await, named("a", 0..20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_keep_the_order_of_the_calls() {
    let cluster = Cluster::of_three(calm()).await;
    let leader = cluster.wait_for_leader().await;
    let items = named("item", 0..200);
    for item in &items {
        let failed = Box::new(|error| panic!("{error}"));
        cluster.nodes[&leader].group().propose(Bytes::from(item.clone()), failed);
    }
    until("all are applied", || cluster.nodes[&leader].items().len() == 200).await;
    assert_eq!(cluster.agreed().await, items);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_dies_and_nothing_is_lost() {
    let mut cluster = Cluster::of_three(quick()).await;
    for item in named("before", 0..5) {
        cluster.add(&item).await;
    }
    cluster.kill(1).await;
    for item in named("after", 0..5) {
        cluster.add(&item).await;
    }
    let all = [named("before", 0..5), named("after", 0..5)].concat();
    assert_eq!(cluster.agreed().await, all);

    cluster.start(1).await;
    until("the one that died has the rest", || cluster.nodes[&1].items().len() == 10).await;
    assert_eq!(cluster.agreed().await, all);
    assert_eq!(cluster.nodes[&1].replica().list().reloads, 0, "the log was enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_what_was_let_go_gets_a_snapshot() {
    let mut cluster = Cluster::of_three(quick()).await;
    cluster.add("first").await;
    cluster.agreed().await;
    cluster.kill(3).await;
    // More than is kept for those who are behind.
    let items: Vec<String> =
        (0..24).map(|number| format!("{number}-{}", "x".repeat(100_000))).collect();
    for item in &items {
        cluster.add(item).await;
    }
    for node in [1, 2] {
        cluster.nodes[&node].checkpoint();
        let purged = || cluster.nodes[&node].group().inner().raft.metrics().borrow().purged;
        until("old entries are let go", || purged().is_some_and(|id| id.index > 5)).await;
    }
    cluster.add("last").await;
    cluster.start(3).await;
    let all = [vec!["first".to_owned()], items, vec!["last".to_owned()]].concat();
    until("all of it is there", || cluster.nodes[&3].items().len() == all.len()).await;
    assert_eq!(cluster.nodes[&3].items(), all);
    assert_eq!(cluster.nodes[&3].replica().list().reloads, 1, "it came by a snapshot");

    // What came by a snapshot is as durable as the rest.
    cluster.add("one more").await;
    cluster.agreed().await;
    cluster.kill(3).await;
    cluster.start(3).await;
    until("it is there again", || cluster.nodes[&3].items().len() == all.len() + 1).await;
    assert_eq!(cluster.nodes[&3].replica().list().reloads, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_come_back_after_all_were_gone() {
    let mut cluster = Cluster::of_three(quick()).await;
    for item in named("a", 0..10) {
        cluster.add(&item).await;
    }
    cluster.agreed().await;
    cluster.nodes[&2].checkpoint();
    for node in 1..=3 {
        cluster.kill(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    cluster.add("again").await;
    let all = [named("a", 0..10), vec!["again".to_owned()]].concat();
    assert_eq!(cluster.agreed().await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_accepts_nothing_and_joins_again_by_itself() {
    let cluster = Cluster::of_three(quick()).await;
    cluster.add("before").await;
    let old = cluster.wait_for_leader().await;
    cluster.cut_off(old);
    // It is logged there, and nowhere else.
    assert_eq!(cluster.propose(old, "lost").await, Err(ProposeError::Unknown));
    until("the others have a leader", || {
        let others = cluster.nodes.iter().filter(|(node, _)| **node != old);
        others.into_iter().any(|(_, node)| node.group().status().me_leads)
    })
    .await;
    let refused = cluster.propose(old, "refused").await.unwrap_err();
    assert!(matches!(refused, ProposeError::NoMajority | ProposeError::NotLeader(_)), "{refused}");
    assert!(cluster.nodes[&old].group().confirm_leadership().await.is_err());
    let accepted = *cluster.nodes.keys().find(|node| cluster.leader() == Some(**node)).unwrap();
    assert_ne!(accepted, old);
    cluster.propose(accepted, "during").await.unwrap();

    cluster.network.heal_all();
    // What the old leader had alone is taken back there.
    assert_eq!(cluster.agreed().await, ["before", "during"]);
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["before", "during", "after"]);
    assert_eq!(cluster.nodes[&old].items().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_back_stays_away_after_a_restart() {
    let mut cluster = Cluster::of_three(quick()).await;
    let old = cluster.wait_for_leader().await;
    cluster.cut_off(old);
    for item in ["lost", "lost too"] {
        let failed = Box::new(|_| {});
        cluster.nodes[&old].group().propose(Bytes::from(item), failed);
    }
    until("they are in its log", || cluster.nodes[&old].group().status().last >= 5).await;
    until("others lead", || cluster.leader().is_some_and(|leader| leader != old)).await;
    cluster.network.heal_all();
    cluster.add("kept").await;
    assert_eq!(cluster.agreed().await, ["kept"]);
    cluster.kill(old).await;
    cluster.start(old).await;
    until("it is there", || cluster.nodes[&old].items() == ["kept"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_and_late_parcels_lose_nothing() {
    let cluster = Cluster::of_three(quick()).await;
    cluster.network.set_loss(0.1);
    cluster.network.set_delay(Duration::ZERO..=Duration::from_millis(20));
    let mut accepted = Vec::new();
    for item in named("a", 0..60) {
        cluster.add(&item).await;
        accepted.push(item);
    }
    cluster.network.set_loss(0.0);
    let agreed = cluster.agreed().await;
    // One whose fate was not known may be there twice.
    let mut first_seen = Vec::new();
    for item in agreed {
        if !first_seen.contains(&item) {
            first_seen.push(item);
        }
    }
    assert_eq!(first_seen, accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_applies_slowly_takes_a_bounded_amount_and_catches_up() {
    const ITEMS: usize = 90;
    let cluster = Cluster::of_three(calm()).await;
    let leader = cluster.wait_for_leader().await;
    let slow = &cluster.nodes[&(leader % 3 + 1)];
    let replica = Arc::clone(slow.replica());
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let busy = std::thread::spawn(move || {
        let _list = replica.list();
        waits.recv().ok();
    });
    for item in 0..ITEMS {
        cluster.add(&format!("{item:02}").repeat(512 * 1024)).await;
    }
    let taken = || slow.group().status().last;
    let offered = cluster.nodes[&leader].group().status().last;
    until("it takes some", || taken() > 60).await;
    sleep(3 * quick().request).await;
    assert!(taken() < offered - 10, "{} of {offered}", taken());
    assert!(slow.group().status().leader.is_some(), "it hears heartbeats");
    drop(go_on);
    busy.join().unwrap();
    until("it has all", || slow.replica().list().items.len() == ITEMS).await;
}
