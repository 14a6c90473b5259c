//! What a group costs: printed, and bounded loosely enough for a busy machine.

use super::*;
use std::fs;
use tokio::sync::oneshot;

const ROUNDS: usize = 500;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Median time of a record in the log, flushed.
async fn record(node: &Node) -> Duration {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let (sender, flushed) = oneshot::channel();
        let index = u64::try_from(round).unwrap();
        let done = Box::new(move |outcome| sender.send(outcome).unwrap());
        node.storage.log().append(ShardId(9), index, vec![7; 300], done);
        flushed.await.unwrap().unwrap();
        times.push(begun.elapsed());
    }
    median(times)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_of_a_sole_voter_costs_little_more_than_its_record() {
    let mut cluster = Cluster::new(Timing::default());
    cluster.start(1).await;
    let node = &cluster.nodes[&1];
    node.group().found().await.unwrap();
    cluster.add("first").await;
    let (mut proposed, bare) = (Vec::new(), record(node).await);
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let (sender, applied) = oneshot::channel();
        *node.replica().when_applied.lock() = Some(sender);
        let item = format!("{round}-{}", "z".repeat(300));
        node.group().propose(item.into(), Box::new(|error| panic!("{error}")));
        applied.await.unwrap();
        proposed.push(begun.elapsed());
    }
    let proposed = median(proposed);
    println!("a record: {bare:?}; a proposal, flushed and applied: {proposed:?}");
    assert!(proposed < bare * 5 + Duration::from_millis(20), "{proposed:?} and {bare:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_of_three_costs_two_records_and_a_round_trip() {
    let cluster = Cluster::of_three(Timing::default()).await;
    cluster.add("first").await;
    let node = &cluster.nodes[&cluster.wait_for_leader().await];
    let mut proposed = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let (sender, applied) = oneshot::channel();
        *node.replica().when_applied.lock() = Some(sender);
        let item = format!("{round}-{}", "z".repeat(300));
        node.group().propose(item.into(), Box::new(|error| panic!("{error}")));
        applied.await.unwrap();
        proposed.push(begun.elapsed());
    }
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        node.group().confirm_leadership().await.unwrap();
    }
    let confirmed = begun.elapsed() / u32::try_from(ROUNDS).unwrap();
    let proposed = median(proposed);
    let bare = record(node).await;
    println!(
        "a record: {bare:?}; a proposal of three: {proposed:?}; leadership confirmed: {confirmed:?}"
    );
    assert!(proposed < bare * 20 + Duration::from_millis(100), "{proposed:?} and {bare:?}");
}

/// CPU time that the threads of this name have used so far.
fn cpu_time(name: &str) -> Duration {
    let mut ticks = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            let stat = read("stat");
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            ticks += fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        }
    }
    Duration::from_millis(10) * ticks
}

/// The share of one core that idle nodes take, in percent.
fn idle(name: &'static str, nodes: u64) -> f64 {
    const WATCHED: Duration = Duration::from_secs(5);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name(name).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::with_groups(Timing::default(), 0..17);
        if nodes == 1 {
            cluster.start(1).await;
            for group in cluster.nodes[&1].groups.values() {
                group.found().await.unwrap();
            }
        } else {
            cluster.start_three().await;
        }
        sleep(Duration::from_secs(1)).await;
        let before = cpu_time(name);
        sleep(WATCHED).await;
        100.0 * cpu_time(name).saturating_sub(before).as_secs_f64() / WATCHED.as_secs_f64()
    })
}

#[test]
fn a_node_alone_with_all_groups_sleeps() {
    let percent = idle("idle-one", 1);
    println!("17 groups on one node: {percent:.1}% of a core");
    assert!(percent < 10.0, "{percent}");
}

#[test]
fn three_nodes_with_all_groups_do_little() {
    let percent = idle("idle-three", 3);
    println!("17 groups on three nodes: {percent:.1}% of a core");
    assert!(percent < 60.0, "{percent}");
}

#[test]
fn a_dead_member_costs_little() {
    const NAME: &str = "idle-dead";
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name(NAME).enable_all().build().unwrap();
    let percent = runtime.block_on(async {
        let mut cluster = Cluster::with_groups(Timing::default(), 0..17);
        cluster.start_three().await;
        cluster.kill(3).await;
        sleep(Duration::from_secs(2)).await;
        let before = cpu_time(NAME);
        sleep(Duration::from_secs(5)).await;
        20.0 * cpu_time(NAME).saturating_sub(before).as_secs_f64()
    });
    println!("17 groups on two of three nodes: {percent:.1}% of a core");
    assert!(percent < 60.0, "{percent}");
}
