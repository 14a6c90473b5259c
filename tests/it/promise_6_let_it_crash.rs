//! Promise 6: a fault in one user's actor touches that user alone; neither the socket nor an
//! accepted message notices. A test-only hook makes the actor panic.

use crate::people::{Person, ada_and_bob, message, node, nothing_wrong};
use std::time::Duration;
use tests::workload::{Plan, Workload};

/// A send with a body that begins so makes the sender's actor panic, once for each send id.
const PANIC: &str = "natter-under-test:panic";

#[tokio::test]
async fn promise_6_a_panic_keeps_the_socket_and_answers_the_send_that_caused_it() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for round in 0..5 {
        let body = format!("{PANIC} {round}");
        ada.say(bob.user(), &body).await;
        assert_eq!(bob.hear_text().await, body);
        bob.ack().await;
        ada.still_served().await;
    }
    assert!(node.errors().contains("panic"), "the hook did not fire, so this proved nothing");
}

#[tokio::test]
async fn promise_6_a_panic_of_one_is_not_noticed_by_another() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut eve = Person::join(&node, "eve").await;
    for round in 0..20 {
        let text = format!("calm {round}");
        let crash = eve.fresh_id();
        let body = format!("{PANIC} {round}");
        eve.wire.send(crash, message(ada.user(), &body)).await.unwrap();
        ada.say(bob.user(), &text).await;
        assert_eq!(bob.hear_text().await, text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_6_panics_in_mid_traffic_lose_double_and_disorder_nothing() {
    let node = node("").await;
    let plan = Plan { seed: 6, users: 6, tablets: 1, window: 16, sends: 400, drops_per_1000: 0 };
    let load = Workload::start_with(&node, plan, |id| if id % 40 == 0 { PANIC } else { "" });
    let load = load.await.unwrap();
    load.progress(400 * 7, Duration::from_mins(3)).await.unwrap();
    let (accepted, wrong) = load.settle(Duration::from_mins(2)).await.unwrap();
    assert_eq!(accepted, 400 * 7);
    nothing_wrong(accepted, &wrong);
    assert!(node.errors().contains("panic"), "the hook did not fire, so this proved nothing");
}
