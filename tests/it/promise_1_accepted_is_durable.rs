//! Promise 1: a sender sees one tick only after the message is on disk. The process is killed the
//! moment the tick arrives.

use crate::people::{Person, ada_and_bob, node};
use proto::wire::receipt::Kind;

#[tokio::test]
async fn promise_1_a_message_survives_a_kill_right_after_its_tick() {
    let mut node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    let mut expected = Vec::new();
    for round in 0..5 {
        let body = format!("before kill {round}");
        ada.say(bob.user, &body).await;
        node.kill().unwrap();
        expected.push(body);
        node.restart().await.unwrap();
        ada.again(&node.target()).await;
    }
    let mut phone = bob;
    let wire = phone.login(&node.target()).await.unwrap();
    let heard = Person::new(phone, wire).drain().await;
    assert_eq!(heard, expected);
}

#[tokio::test]
async fn promise_1_an_account_survives_a_kill_right_after_its_registration() {
    let mut node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    node.kill().unwrap();
    node.restart().await.unwrap();
    ada.wire = ada.phone.login(&node.target()).await.unwrap();
    ada.still_served().await;
}

#[tokio::test]
async fn promise_1_two_ticks_survive_a_kill() {
    let mut node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "hello").await;
    bob.hear().await;
    bob.ack().await;
    ada.told(Kind::Delivered, id).await; // not acknowledged by Ada: it must come again
    node.kill().unwrap();
    node.restart().await.unwrap();
    let mut again = Person::new(ada.phone, ada.wire);
    again.phone.last = 0;
    again.wire = again.phone.login(&node.target()).await.unwrap();
    again.told(Kind::Delivered, id).await;
    bob.wire = bob.phone.login(&node.target()).await.unwrap();
    assert_eq!(bob.drain().await, Vec::<String>::new(), "acknowledged messages stay away");
}
