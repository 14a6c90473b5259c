//! Who leads, and how soon.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_voter_leads_as_soon_as_it_is_open() {
    // Nobody waits for an election within this test.
    let slow = Timing { election: (PATIENCE * 2, PATIENCE * 3), ..quick() };
    let mut cluster = Cluster::new(slow);
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    cluster.add("first").await;
    cluster.kill(1).await;
    cluster.start(1).await;
    let opened = Instant::now();
    let group = cluster.nodes[&1].group();
    until("it leads", || group.status().me_leads).await;
    println!("a sole voter leads {:?} after it is open", opened.elapsed());
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
    assert_eq!(cluster.nodes[&1].group().status().term, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_at_once_when_its_links_are_gone() {
    let mut cluster = Cluster::of_three(calm()).await;
    for round in 0..5 {
        cluster.add(&format!("item{round}")).await;
        let leader = cluster.wait_for_leader().await;
        cluster.network.remove(NodeId(leader));
        let died = Instant::now();
        let rest: Vec<u64> = cluster.nodes.keys().copied().filter(|n| *n != leader).collect();
        until("another leads", || {
            rest.iter().any(|node| cluster.nodes[node].group().status().me_leads)
        })
        .await;
        let took = died.elapsed();
        println!("another leads {took:?} after the leader died");
        assert!(took < calm().election.0, "as late as if it were silent: {took:?}");
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
    let cluster = Cluster::of_three(unhurried()).await;
    let leader = cluster.wait_for_leader().await;
    let term = cluster.nodes[&leader].group().status().term;
    let other = if leader == 3 { 2 } else { 3 };
    cluster.cut_off(other);
    // Several election times.
    sleep(unhurried().election.1 * 3).await;
    assert_eq!(cluster.nodes[&other].group().status().term, term, "it began no term alone");
    cluster.network.heal_all();
    cluster.add("after").await;
    cluster.agreed().await;
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.nodes[&leader].group().status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_win_and_has_promised_a_later_term_stands_in_nobodys_way() {
    let mut cluster = Cluster::of_three(quick()).await;
    cluster.add("all have this").await;
    cluster.agreed().await;
    cluster.kill(3).await;
    cluster.add("node 3 lacks this").await;
    cluster.agreed().await;
    cluster.kill(2).await;
    cluster.kill(1).await;
    // It stood for election and was stopped before it heard that nobody voted for it.
    let options = StorageOptions { free_bytes_min: 0, ..StorageOptions::default() };
    let (storage, _) = open(cluster.dirs[&3].path(), options).await;
    let vote = stored::Vote { term: 40, node: 3, committed: false };
    storage.save_vote(GROUP, &vote).unwrap();
    drop(storage);
    cluster.start(3).await;
    cluster.start(2).await;
    assert_eq!(cluster.wait_for_leader().await, 2);
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["all have this", "node 3 lacks this", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_within_a_moment() {
    let cluster = Cluster::of_three(calm()).await;
    let mut slowest = Duration::ZERO;
    for round in 0..9 {
        let leader = cluster.wait_for_leader().await;
        let heir = leader % 3 + 1;
        // One under way, and one that waits for the new leader.
        let begun = Instant::now();
        cluster.hand_over(leader, heir).await;
        until("the heir leads", || cluster.nodes[&heir].group().status().me_leads).await;
        slowest = slowest.max(begun.elapsed());
        cluster.add(&format!("item{round}")).await;
    }
    println!("leadership was handed over in {slowest:?} at most");
    assert!(slowest < calm().election.0, "as late as if the leader were silent: {slowest:?}");
    assert_eq!(cluster.agreed().await, named("item", 0..9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_heir_is_gone_goes_on() {
    let mut cluster = Cluster::of_three(calm()).await;
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
    let cluster = Cluster::of_three(calm()).await;
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
    let rounds = group.inner().confirmations.rounds();
    assert!(rounds < 50, "{rounds} rounds for 100 who wait");
    let follower = leader % 3 + 1;
    let refused = cluster.nodes[&follower].group().confirm_leadership().await;
    assert_eq!(refused, Err(ProposeError::NotLeader(Some(NodeId(leader)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_gives_way() {
    let cluster = Cluster::of_three(quick()).await;
    cluster.network.set_silence(Duration::from_mins(1));
    let old = cluster.wait_for_leader().await;
    for other in (1..=3).filter(|other| *other != old) {
        cluster.network.cut_one_way(NodeId(other), NodeId(old));
    }
    // Its heartbeats arrive all the time.
    until("another leads", || cluster.leader().is_some_and(|leader| leader != old)).await;
    cluster.add("during").await;
    assert!(!cluster.nodes[&old].group().status().quorum_seen);
    assert_eq!(cluster.propose(old, "refused").await, Err(ProposeError::NoMajority));
    cluster.network.heal_all();
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["during", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_leaves_no_proposal_in_doubt() {
    let cluster = Cluster::of_three(calm()).await;
    let refused = Arc::new(Mutex::new(BTreeSet::new()));
    let items = named("item", 0..120);
    let mut handovers = tokio::task::JoinSet::<Result<(), RaftError>>::new();
    // One that takes longer than a leader waits is none: the machine may be busy.
    let mut taken = 0;
    for (number, item) in items.iter().enumerate() {
        if number % 20 == 10 {
            if let Some(yielded) = handovers.join_next().await {
                taken += usize::from(yielded.unwrap().is_ok());
            }
            let leader = cluster.wait_for_leader().await;
            let (group, heir) = (cluster.nodes[&leader].group().clone(), NodeId(leader % 3 + 1));
            handovers.spawn(async move { group.yield_to(heir).await });
        }
        let leader = cluster.wait_for_leader().await;
        let (told, name) = (Arc::clone(&refused), item.clone());
        let failed = Box::new(move |error| {
            assert!(!matches!(error, ProposeError::Unknown), "{name} is in doubt");
            told.lock().insert(name);
        });
        cluster.nodes[&leader].group().propose(Bytes::from(item.clone()), failed);
        sleep(Duration::from_millis(1)).await;
    }
    taken += handovers.join_all().await.iter().filter(|yielded| yielded.is_ok()).count();
    assert!(taken > 0, "nobody took over, so this proves nothing");
    let accepted = || cluster.nodes[&1].items().len();
    until("each is accepted or refused", || accepted() + refused.lock().len() == 120).await;
    let refused = refused.lock().clone();
    let expected: Vec<String> = items.into_iter().filter(|item| !refused.contains(item)).collect();
    let agreed = cluster.agreed().await;
    assert_eq!(agreed, expected, "in order, none twice, none that was refused");
    println!("{} of 120 were refused over {taken} handovers", refused.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_started_again_leads_nothing_until_it_is_elected_again() {
    let mut cluster = Cluster::of_three(quick()).await;
    cluster.add("before").await;
    cluster.agreed().await;
    let old = cluster.wait_for_leader().await;
    let term = cluster.nodes[&old].group().status().term;
    for node in 1..=3 {
        cluster.kill(node).await;
    }
    cluster.start(old).await;
    let group = cluster.nodes[&old].group().clone();
    let mut told = group.watch();
    let leads = told.wait_for(|status| status.me_leads);
    assert!(
        tokio::time::timeout(quick().election.1 * 2, leads).await.is_err(),
        "nobody elected it"
    );
    assert!(!group.is_followed());
    assert!(matches!(group.confirm_leadership().await, Err(ProposeError::NotLeader(_))));
    assert_eq!(group.status().term, term, "nor did it begin a term");
    // Nor does it say so when it is asked by nobody but learns of the next leader.
    cluster.start(old % 3 + 1).await;
    let leader = cluster.wait_for_leader().await;
    assert!(cluster.nodes[&leader].group().status().term > term);
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_comes_back_when_another_leads_never_says_that_it_does() {
    let mut cluster = Cluster::of_three(quick()).await;
    for round in 0..3 {
        let old = cluster.wait_for_leader().await;
        cluster.kill(old).await;
        cluster.add(&format!("item{round}")).await;
        cluster.start(old).await;
        let group = cluster.nodes[&old].group().clone();
        assert!(!group.status().me_leads);
        let mut told = group.watch();
        let any = told.wait_for(|status| status.me_leads || status.leader.is_some()).await;
        assert!(!any.unwrap().me_leads, "it follows first");
        until("it has all", || cluster.nodes[&old].items().len() == round + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_followed_as_long_as_a_majority_answers_it() {
    let cluster = Cluster::of_three(unhurried()).await;
    cluster.add("item").await;
    let leader = cluster.wait_for_leader().await;
    let group = cluster.nodes[&leader].group();
    let followers: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    until("it is followed", || group.is_followed()).await;
    for follower in &followers {
        assert!(!cluster.nodes[follower].group().is_followed());
    }
    cluster.network.cut(NodeId(leader), NodeId(followers[0]));
    sleep(unhurried().election.0 * 2).await;
    assert!(group.is_followed(), "one of two is enough");
    cluster.network.cut(NodeId(leader), NodeId(followers[1]));
    until("another leads", || {
        followers.iter().any(|node| cluster.nodes[node].group().status().me_leads)
    })
    .await;
    assert!(!group.is_followed(), "it must not answer when another leads");
}
