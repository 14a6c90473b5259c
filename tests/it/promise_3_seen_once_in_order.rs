//! Promise 3: a retried send is stored once; what one device sends to one conversation arrives in
//! the order it was sent.

use crate::people::{Person, ada_and_bob, message, node, nothing_wrong};
use proto::limits::UNANSWERED_MAX;
use proto::wire::server_frame::Kind as Say;
use std::collections::BTreeSet;
use std::time::Duration;
use tests::workload::{Plan, Workload};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_3_connections_that_break_all_the_time_double_and_disorder_nothing() {
    let node = node("").await;
    let plan = Plan { seed: 1, users: 8, tablets: 3, window: 32, sends: 300, drops_per_1000: 60 };
    let load = Workload::start(&node, plan).await.unwrap();
    load.progress(300 * 11, Duration::from_mins(3)).await.unwrap();
    let (accepted, wrong) = load.settle(Duration::from_mins(2)).await.unwrap();
    assert_eq!(accepted, 300 * 11);
    nothing_wrong(accepted, &wrong);
}

#[tokio::test]
async fn promise_3_a_retry_is_accepted_and_stored_once_even_after_a_restart() {
    let mut node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let (bob, id) = (bob.hang_up(), ada.fresh_id());
    ada.wire.send(id, message(bob.user, "once")).await.unwrap(); // the answer is never read
    ada.again(&node.target()).await;
    ada.say_as(id, bob.user, "once").await.unwrap();
    ada.say_as(id, bob.user, "once").await.unwrap();
    node.kill().unwrap();
    node.restart().await.unwrap();
    ada.again(&node.target()).await;
    ada.say_as(id, bob.user, "once").await.unwrap();
    ada.say(bob.user, "next").await;
    let mut phone = bob;
    let wire = phone.login(&node.target()).await.unwrap();
    assert_eq!(Person::new(phone, wire).drain().await, ["once", "next"]);
}

#[tokio::test]
async fn promise_3_a_retry_after_delivery_is_not_delivered_again() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "once").await;
    assert_eq!(bob.hear_text().await, "once");
    bob.ack().await;
    ada.told(proto::wire::receipt::Kind::Delivered, id).await;
    ada.say_as(id, bob.user(), "once").await.unwrap();
    ada.say(bob.user(), "next").await;
    assert_eq!(bob.hear_text().await, "next");
}

#[tokio::test]
async fn promise_3_a_full_window_arrives_in_order_and_each_send_gets_one_answer() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut waiting = BTreeSet::new();
    for number in 0..UNANSWERED_MAX {
        let id = ada.fresh_id();
        waiting.insert(id);
        ada.wire.send(id, message(bob.user(), &number.to_string())).await.unwrap();
    }
    for number in 0..UNANSWERED_MAX {
        assert_eq!(bob.hear_text().await, number.to_string());
    }
    while !waiting.is_empty() {
        let (id, answer) = ada.wire.next().await.unwrap();
        if let Say::Accepted(_) = answer {
            assert!(waiting.remove(&id), "a second answer to {id}");
        }
    }
}

#[tokio::test]
async fn promise_3_what_was_not_acknowledged_comes_again_at_the_same_place() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for body in ["one", "two", "three"] {
        ada.say(bob.user(), body).await;
    }
    let first = bob.entry().await.unwrap();
    bob.ack().await;
    let second = bob.entry().await.unwrap();
    bob.phone.last = first.seq; // the second was lost on the phone
    bob.again(&node.target()).await;
    assert_eq!(bob.entry().await.unwrap().seq, second.seq);
    assert_eq!(bob.hear_text().await, "three");
}
