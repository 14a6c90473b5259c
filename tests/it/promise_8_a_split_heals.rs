//! Promise 8: a minority refuses durable writes with a code that says "retry", the majority goes on,
//! and when the split heals no operator touches anything.

use crate::clusters::{cluster, people, three, turn};
use crate::people::{Person, message, message_by_alias, nothing_wrong};
use anyhow::ensure;
use proto::codes::Retry;
use proto::wire::server_frame::Kind as Say;
use proto::{Code, wire::Refused};
use std::time::Duration;
use tests::cluster::{Cables, Cluster};
use tests::faults::Fault;
use tests::netns::Spaces;
use tests::node::eventually;
use tests::round::round;
use tokio::time::{Instant, sleep};

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(2);

/// Sends `body` under one id until it is accepted, as every client does; the refusals on the way.
async fn until_accepted(from: &mut Person, to: u64, body: &str) -> Vec<Refused> {
    let (id, begun) = (from.fresh_id(), Instant::now());
    let mut refusals = Vec::new();
    while begun.elapsed() < PATIENCE {
        match from.wire.ask_as(id, message(to, body)).await.unwrap() {
            Say::Accepted(_) => return refusals,
            Say::Refused(refused) => {
                assert_ne!(Code::from_number(refused.code).retry(), Retry::Never, "{refused:?}");
                sleep(Duration::from_millis(refused.retry_after_ms.clamp(50, 500).into())).await;
                refusals.push(refused);
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("not accepted after {} refusals", refusals.len())
}

async fn joined(cluster: &Cluster, node: usize, alias: &str) -> Person {
    Person::join(&cluster.nodes()[node], alias).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_8_a_minority_refuses_with_retry_and_a_majority_goes_on() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Relays)).await;
    let (mut ada, mut bob) = (joined(&cluster, 0, "ada").await, joined(&cluster, 1, "bob").await);
    let mut eve = joined(&cluster, 2, "eve").await;
    until_accepted(&mut eve, bob.user(), "before the split").await;
    assert_eq!(bob.hear_text().await, "before the split");

    let split = Fault::Split([2].into());
    split.inject(&mut cluster).await.unwrap();
    until_accepted(&mut ada, bob.user(), "in the majority").await;
    assert_eq!(bob.hear_text().await, "in the majority");
    until_accepted(&mut bob, ada.user(), "and back").await;
    assert_eq!(ada.hear_text().await, "and back");
    // Whose alias it is cannot be found out either.
    let by_alias = message_by_alias("bob", "from the minority, by alias");
    let by_id = message(bob.user(), "from the minority, by id");
    for (id, send) in [(4711, &by_alias), (4712, &by_id)] {
        let refused = eve.wire.ask_as(id, send.clone()).await.unwrap();
        let Say::Refused(refused) = refused else { panic!("no majority: {refused:?}") };
        assert_eq!(Code::from_number(refused.code).retry(), Retry::After, "{refused:?}");
    }
    let said = eventually(PATIENCE, async || {
        let groups = cluster.status(2).await?.groups;
        ensure!(
            groups.iter().all(|group| group.status.leader.is_none()),
            "leaders, it says: {groups:?}"
        );
        Ok(())
    });
    said.await.unwrap();

    split.heal(&mut cluster).await.unwrap();
    for (id, send) in [(4711, &by_alias), (4712, &by_id)] {
        let accepted = eventually(PATIENCE, async || {
            let answer = eve.wire.ask_as(id, send.clone()).await?;
            ensure!(matches!(answer, Say::Accepted(_)), "the split has healed: {answer:?}");
            Ok(())
        });
        accepted.await.unwrap();
    }
    assert_eq!(bob.hear_text().await, "from the minority, by alias");
    assert_eq!(bob.hear_text().await, "from the minority, by id");
    cluster.converge(PATIENCE).await.unwrap();
}

async fn survives(mut cluster: Cluster, seed: u64, faults: &[Fault]) {
    let mut load = people(&cluster, seed).await;
    for fault in faults {
        let round = round(&mut cluster, &mut load, fault, Duration::from_secs(4)).await;
        round.unwrap_or_else(|error| panic!("{fault}: {error:#}"));
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_8_half_open_one_way_and_slow_links_lose_nothing_and_heal() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Relays)).await;
    let faults = [
        Fault::Freeze(1),
        Fault::Mute(0),
        Fault::Deaf(2),
        Fault::Sever(1),
        Fault::Slow(Duration::from_millis(50)),
    ];
    survives(cluster, 18, &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_8_namespaces_that_are_parted_and_lossy_lose_nothing_and_heal() {
    let _turn = turn().await;
    if let Err(error) = Spaces::new(1) {
        return skip::skipped(error);
    }
    let cluster = cluster(three(Cables::Namespaces)).await;
    let faults = [Fault::Split([0].into()), Fault::OneWay(1, 2), Fault::Loss(50)];
    survives(cluster, 19, &faults).await;
}
