//! Who takes part.

use super::*;

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_gets_all_and_becomes_a_voter() {
    let mut cluster = Cluster::new(calm());
    for node in 1..=2 {
        cluster.start(node).await;
    }
    cluster.nodes[&1].group().found().await.unwrap();
    for item in named("a", 0..10) {
        cluster.add(&item).await;
    }
    let group = cluster.nodes[&1].group();
    group.add_learner(NodeId(2)).await.unwrap();
    let status = group.status();
    assert_eq!((status.voters, status.learners), (ids(&[1]), ids(&[2])));
    assert_eq!(group.caught_up(), ids(&[1, 2]));
    assert_eq!(cluster.agreed().await, named("a", 0..10));

    group.change_voters(ids(&[1, 2])).await.unwrap();
    let status = group.status();
    assert_eq!((status.voters, status.learners), (ids(&[1, 2]), ids(&[])));
    cluster.add("both").await;
    cluster.agreed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_needs_a_snapshot_gets_one() {
    let mut cluster = Cluster::new(quick());
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    let items: Vec<String> = (0..10).map(|n| format!("{n}-{}", "y".repeat(100_000))).collect();
    for item in &items {
        cluster.add(item).await;
    }
    cluster.nodes[&1].checkpoint();
    let raft = cluster.nodes[&1].group().inner().raft.clone();
    until("a sole voter keeps nothing", || {
        raft.metrics().borrow().purged.is_some_and(|id| id.index >= 10)
    })
    .await;
    cluster.start(2).await;
    cluster.nodes[&1].group().add_learner(NodeId(2)).await.unwrap();
    assert_eq!(cluster.agreed().await, items);
    assert_eq!(cluster.nodes[&2].replica().list().reloads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_never_answers_is_given_up() {
    let mut cluster = Cluster::new(quick());
    cluster.start(1).await;
    cluster.nodes[&1].group().found().await.unwrap();
    cluster.add("item").await;
    let added = cluster.nodes[&1].group().add_learner(NodeId(2)).await;
    assert!(matches!(added, Err(RaftError::NoProgress(NodeId(2)))), "{added:?}");
    cluster.nodes[&1].group().remove_learner(NodeId(2)).await.unwrap();
    assert_eq!(cluster.nodes[&1].group().status().learners, ids(&[]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_is_replaced_and_the_one_that_left_keeps_quiet() {
    let mut cluster = Cluster::of_three(unhurried()).await;
    cluster.add("before").await;
    cluster.start(4).await;
    let leader = cluster.wait_for_leader().await;
    assert_eq!(leader, 1);
    cluster.nodes[&1].group().change_voters(ids(&[1, 2, 4])).await.unwrap();
    let status = cluster.nodes[&1].group().status();
    assert_eq!((status.voters, status.learners), (ids(&[1, 2, 4]), ids(&[])));
    sleep(unhurried().election.1 * 3).await;
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.nodes[&1].group().status().term, status.term);
    cluster.kill(2).await;
    cluster.add("after").await;
    until("the new voter has it", || cluster.nodes[&4].items() == ["before", "after"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leaves_hands_over_first() {
    let mut cluster = Cluster::of_three(calm()).await;
    cluster.add("before").await;
    cluster.start(4).await;
    let changed = cluster.nodes[&1].group().change_voters(ids(&[2, 3, 4])).await;
    let Err(RaftError::NotLeader(Some(heir))) = changed else { panic!("{changed:?}") };
    let group = cluster.nodes[&heir.0].group();
    until("the heir leads", || group.status().me_leads).await;
    group.change_voters(ids(&[2, 3, 4])).await.unwrap();
    let status = group.status();
    assert_eq!((status.voters, status.learners), (ids(&[2, 3, 4]), ids(&[])));
    cluster.kill(1).await;
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_leader_changes_members() {
    let cluster = Cluster::of_three(calm()).await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.nodes[&(leader % 3 + 1)].group();
    let refused = follower.change_voters(ids(&[1])).await;
    assert!(matches!(refused, Err(RaftError::NotLeader(Some(_)))), "{refused:?}");
    let none = cluster.nodes[&leader].group().change_voters(ids(&[])).await;
    assert!(matches!(none, Err(RaftError::Refused)), "{none:?}");
    let voter = cluster.nodes[&leader].group().remove_learner(NodeId(leader % 3 + 1)).await;
    assert!(matches!(voter, Err(RaftError::Refused)), "{voter:?}");
}
