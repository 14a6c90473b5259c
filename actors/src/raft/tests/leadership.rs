//! Who leads, and how soon.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_voter_leads_as_soon_as_it_is_open() {
    let mut cluster = Cluster::new(Timing::default());
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    cluster.add("first").await;
    cluster.kill(1).await;
    cluster.start(1).await;
    let opened = Instant::now();
    let group = cluster.nodes[&1].group();
    until("it leads", || group.standing().me_leads).await;
    let took = opened.elapsed();
    println!("a sole voter leads {took:?} after it is open");
    assert!(took < Duration::from_millis(200), "{took:?}");
    until("it has applied its log", || cluster.nodes[&1].items() == ["first"]).await;
    group.confirm_leadership().await.unwrap();
    cluster.add("second").await;
    assert_eq!(cluster.nodes[&1].items(), ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founding_again_changes_nothing() {
    let mut cluster = Cluster::new(quick());
    cluster.start(1).await;
    for _ in 0..3 {
        cluster.nodes[&1].group().found().await.unwrap();
    }
    cluster.add("only").await;
    assert_eq!(cluster.nodes[&1].items(), ["only"]);
    assert_eq!(cluster.nodes[&1].group().standing().term, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_at_once_when_its_links_are_gone() {
    let mut cluster = Cluster::of_three(Timing::default()).await;
    for round in 0..5 {
        cluster.add(&format!("item{round}")).await;
        let leader = cluster.wait_for_leader().await;
        cluster.network.remove(NodeId(leader));
        let died = Instant::now();
        let rest: Vec<u64> = cluster.nodes.keys().copied().filter(|n| *n != leader).collect();
        until("another leads", || {
            rest.iter().any(|node| cluster.nodes[node].group().standing().me_leads)
        })
        .await;
        let took = died.elapsed();
        println!("another leads {took:?} after the leader died");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
        cluster.kill(leader).await;
        cluster.start(leader).await;
        until("all are there", || cluster.nodes[&leader].items().len() == round + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_silent_is_replaced_after_the_election_time() {
    let cluster = Cluster::of_three(quick()).await;
    // Its links stay up for long.
    cluster.network.set_silence(Duration::from_mins(1));
    let old = cluster.wait_for_leader().await;
    cluster.cut_off(old);
    let cut = Instant::now();
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    println!("another leads {:?} after the leader fell silent", cut.elapsed());
    cluster.add("during").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_does_not_disturb_the_others_when_it_is_back() {
    let cluster = Cluster::of_three(quick()).await;
    let leader = cluster.wait_for_leader().await;
    let term = cluster.nodes[&leader].group().standing().term;
    let other = if leader == 3 { 2 } else { 3 };
    cluster.cut_off(other);
    // Several election times.
    sleep(quick().election.1 * 3).await;
    assert_eq!(cluster.nodes[&other].group().standing().term, term, "it began no term alone");
    cluster.network.heal_all();
    cluster.add("after").await;
    cluster.agreed().await;
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.nodes[&leader].group().standing().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_within_a_moment() {
    let cluster = Cluster::of_three(Timing::default()).await;
    let mut slowest = Duration::ZERO;
    for round in 0..9 {
        let leader = cluster.wait_for_leader().await;
        let heir = leader % 3 + 1;
        // One under way, and one that waits for the new leader.
        let begun = Instant::now();
        cluster.nodes[&leader].group().yield_to(NodeId(heir)).await.unwrap();
        until("the heir leads", || cluster.nodes[&heir].group().standing().me_leads).await;
        slowest = slowest.max(begun.elapsed());
        cluster.add(&format!("item{round}")).await;
    }
    println!("leadership was handed over in {slowest:?} at most");
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
    assert_eq!(cluster.agreed().await, named("item", 0..9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_heir_is_gone_goes_on() {
    let mut cluster = Cluster::of_three(quick()).await;
    let leader = cluster.wait_for_leader().await;
    let heir = leader % 3 + 1;
    cluster.kill(heir).await;
    let group = cluster.nodes[&leader].group();
    let yielded = group.yield_to(NodeId(heir)).await;
    assert!(matches!(yielded, Err(RaftError::NotTaken(node)) if node.0 == heir), "{yielded:?}");
    cluster.propose(leader, "still").await.unwrap();
    let stranger = group.yield_to(NodeId(9)).await;
    assert!(matches!(stranger, Err(RaftError::Refused)), "{stranger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_confirmed_by_the_others_and_a_follower_never() {
    let cluster = Cluster::of_three(quick()).await;
    cluster.add("known").await;
    let leader = cluster.wait_for_leader().await;
    let group = cluster.nodes[&leader].group();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let group = group.clone();
        waiting.spawn(async move { group.confirm_leadership().await });
    }
    for outcome in waiting.join_all().await {
        outcome.unwrap();
    }
    let rounds = group.0.confirmations.rounds();
    assert!(rounds < 50, "{rounds} rounds for 100 who wait");
    let follower = leader % 3 + 1;
    let refused = cluster.nodes[&follower].group().confirm_leadership().await;
    assert_eq!(refused, Err(ProposeError::NotLeader(Some(NodeId(leader)))));
}
