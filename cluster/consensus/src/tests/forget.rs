//! Nodes that leave a group and forget it.

use super::*;

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// Nodes 1 to 4, of which 1, 2 and 3 vote and the first one leads.
async fn of_four() -> Cluster {
    let mut cluster = Cluster::of_three(unhurried()).await;
    cluster.start(4).await;
    assert_eq!(cluster.wait_for_leader().await, 1);
    cluster
}

/// Lets a node forget its group, if node 1, the leader, agrees.
async fn forget(cluster: &Cluster, node: u64) -> bool {
    let leader = cluster.nodes[&1].group();
    let may = async { leader.has_left(NodeId(node)).await.unwrap() };
    cluster.nodes[&node].group().forget(may).await.unwrap()
}

fn is_empty(node: &Node) -> bool {
    let status = node.group().status();
    let known = !status.voters.is_empty() || status.last > 0;
    let applied = node.storage.applied(GROUP).unwrap();
    !known
        && applied.is_none()
        && node.items().is_empty()
        && load(GROUP, &node.storage).items == [""; 0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_held_is_forgotten_when_it_has_left_and_comes_back_from_the_others() {
    let mut cluster = of_four().await;
    let items = named("item", 0..30);
    for item in &items[..20] {
        cluster.add(item).await;
    }
    until("node 3 has them", || cluster.nodes[&3].items().len() == 20).await;
    cluster.nodes[&3].checkpoint();
    cluster.add(&items[20]).await;
    let leader = cluster.nodes[&1].group().clone();
    leader.change_voters(ids(&[1, 2, 4])).await.unwrap();
    assert!(forget(&cluster, 3).await);
    assert!(is_empty(&cluster.nodes[&3]));
    let term = leader.status().term;
    let vote = cluster.nodes[&3].storage.vote(GROUP).unwrap().unwrap();
    assert_eq!(vote.term, term, "what it promised it remembers");

    // Nothing comes back with a restart.
    cluster.kill(3).await;
    cluster.start(3).await;
    assert!(is_empty(&cluster.nodes[&3]));
    for item in &items[21..] {
        cluster.add(item).await;
    }
    leader.change_voters(ids(&[1, 3, 4])).await.unwrap();
    assert!(forget(&cluster, 2).await);
    cluster.kill(2).await;
    assert_eq!(cluster.agreed().await, items);
    // It is a voter like any other: with it there is a majority, and it may lead.
    cluster.kill(4).await;
    cluster.add("with node 3").await;
    cluster.hand_over(1, 3).await;
    until("node 3 leads", || cluster.leader() == Some(3)).await;
    cluster.add("by node 3").await;
    assert_eq!(cluster.agreed().await.len(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_forgets_what_its_leader_counts_on() {
    let cluster = of_four().await;
    cluster.add("before").await;
    cluster.agreed_by(&[1, 2, 3]).await;
    assert!(!forget(&cluster, 3).await, "it votes");
    cluster.nodes[&1].group().add_learner(NodeId(4)).await.unwrap();
    assert!(!forget(&cluster, 4).await, "it listens");
    // The leader is not asked, or its answer does not come: the node goes on as before.
    let silent = cluster.nodes[&3].group().forget(std::future::pending());
    assert!(tokio::time::timeout(Duration::from_millis(50), silent).await.is_err());
    let follower = cluster.nodes[&2].group().has_left(NodeId(3)).await;
    assert!(matches!(follower, Err(RaftError::NotLeader(_))), "{follower:?}");
    cluster.add("after").await;
    assert_eq!(cluster.agreed().await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_no_majority_has_is_no_reason_to_forget() {
    let cluster = of_four().await;
    cluster.add("before").await;
    let leader = cluster.nodes[&1].group().clone();
    leader.add_learner(NodeId(4)).await.unwrap();
    for other in [2, 3] {
        cluster.network.cut(NodeId(1), NodeId(other));
    }
    let change = leader.change_voters(ids(&[1, 4]));
    assert!(tokio::time::timeout(Duration::from_secs(1), change).await.is_err());
    assert!(!matches!(leader.has_left(NodeId(3)).await, Ok(true)));
    cluster.network.heal_all();
    cluster.add("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_forgotten_does_not_help_to_elect_one_that_has_not_heard_of_the_change() {
    let cluster = of_four().await;
    cluster.add("before").await;
    cluster.agreed_by(&[1, 2, 3]).await;
    cluster.cut_off(2);
    let leader = cluster.nodes[&1].group().clone();
    leader.change_voters(ids(&[1, 2, 4])).await.unwrap();
    assert!(forget(&cluster, 3).await);
    // Nodes 2 and 3 were a majority, and node 2 does not know better.
    for (a, b) in [(1, 3), (3, 4)] {
        cluster.network.cut(NodeId(a), NodeId(b));
    }
    cluster.network.heal(NodeId(2), NodeId(3));
    let term = cluster.nodes[&2].group().status().term;
    sleep(unhurried().election.1 * 4).await;
    let status = cluster.nodes[&2].group().status();
    assert!(!status.me_leads && status.term == term, "{status:?}");
    assert_eq!(status.voters, ids(&[1, 2, 3]), "this proves nothing");
    cluster.add("after").await;
    cluster.network.heal_all();
    cluster.agreed_by(&[1, 2, 4]).await;
}
