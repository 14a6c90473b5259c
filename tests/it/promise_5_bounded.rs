//! Promise 5: no queue grows without limit. Whoever fills one is slowed or refused; what is never
//! stored is shed first; a slow phone costs disk, not memory.

use crate::people::{Person, ada_and_bob, code, message, node};
use proto::wire::{Ping, Signal, client_frame::Kind as Ask, server_frame::Kind as Say};
use proto::{Code, limits::UNANSWERED_MAX};
use std::time::Duration;
use tests::node::{Node, until};
use tokio::time::timeout;

/// One sender may fill a mailbox.
const UNSHARED: &str = "contact_share = 100\nstranger_share = 100\nstrangers_share = 100";

/// What a bounded queue may cost, in KiB: well below what the floods here send.
const SLACK_KIB: u64 = 48 * 1024;

fn grown(node: &Node, before_kib: u64) -> u64 {
    node.memory_kib().unwrap().saturating_sub(before_kib)
}

#[tokio::test]
async fn promise_5_a_slow_reader_costs_disk_and_not_memory() {
    let limits = "write_timeout = \"10m\"\nheartbeat = \"10m\"\nmailbox_bytes = \"1GiB\"\n\
                  stored_bytes_per_second = \"0B\"\n\
                  stored_bytes_per_second_per_address = \"0B\"";
    let storage = "checkpoint_every = \"500ms\"";
    let node = node(&format!("[limits]\n{limits}\n{UNSHARED}\n[storage]\n{storage}")).await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let before = node.memory_kib().unwrap();
    let body = "b".repeat(50_000);
    let mut half_kib = 0;
    for number in 0..6000 {
        ada.say(bob.user(), &body).await; // 300 MB, and Bob's phone reads nothing
        if number == 3000 {
            half_kib = grown(&node, before); // write buffers and caches are full by now
        }
    }
    let more_kib = grown(&node, before).saturating_sub(half_kib);
    assert!(more_kib < SLACK_KIB, "after {half_kib} KiB, 150 MB more took {more_kib} KiB");
    assert!(half_kib < 256 * 1024, "150 MB for a phone that does not read took {half_kib} KiB");
    for number in 0..6000 {
        bob.hear().await;
        if number % 8 == 0 {
            bob.ack().await; // ten such bodies are on their way at most
        }
    }
}

#[tokio::test]
async fn promise_5_a_full_mailbox_is_refused_and_has_room_again_after_it_is_read() {
    let node = node(&format!("[limits]\nmailbox_messages = 50\n{UNSHARED}")).await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    for _ in 0..50 {
        ada.say(bob.user, "fits").await;
    }
    let id = ada.fresh_id();
    let answer = ada.wire.ask_as(id, message(bob.user, "too much")).await.unwrap();
    assert_eq!(code(&answer), Code::MailboxFull);
    let mut phone = bob;
    let wire = phone.login(&node.target()).await.unwrap();
    let mut bob = Person::new(phone, wire);
    assert_eq!(bob.drain().await, vec!["fits"; 50]);
    bob.ack().await;
    let mut accepted = false;
    for _ in 0..500 {
        // The same id: later ones are held back until the refused one has come again.
        let answer = ada.wire.ask_as(id, message(bob.user(), "fits again")).await.unwrap();
        accepted = matches!(answer, Say::Accepted(_));
        if accepted {
            break;
        }
        assert_eq!(code(&answer), Code::MailboxFull);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(accepted, "no room after the mailbox was read");
}

#[tokio::test]
async fn promise_5_a_flood_of_sends_is_slowed_or_refused_and_answered_each() {
    let limits = format!("[limits]\nstored_bytes_per_second = \"0B\"\n{UNSHARED}");
    let node = node(&limits).await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    let before = node.memory_kib().unwrap();
    let (rounds, burst, body) = (10, 8 * UNANSWERED_MAX, "f".repeat(4000));
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..rounds {
        for _ in 0..burst {
            let id = ada.fresh_id();
            ada.wire.send(id, message(bob.user, &body)).await.unwrap();
        }
        for _ in 0..burst {
            let answer = ada.wire.expect(|frame| match frame.id {
                0 => None,
                _ => frame.kind.clone(),
            });
            match answer.await.unwrap() {
                Say::Accepted(_) => accepted += 1,
                other => {
                    assert_eq!(code(&other), Code::TooFast);
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(accepted + refused, rounds * burst);
    assert!(accepted >= rounds * UNANSWERED_MAX, "{accepted} accepted, {refused} refused");
    let grown = grown(&node, before);
    assert!(grown < SLACK_KIB, "a flood took {grown} KiB");
}

#[tokio::test]
async fn promise_5_a_client_that_never_reads_its_answers_is_not_buffered_for() {
    let node = node("[limits]\nwrite_timeout = \"2s\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let before = node.memory_kib().unwrap();
    let flood = async {
        loop {
            let id = ada.fresh_id();
            if ada.wire.send(id, message(bob.user(), "no answer, please")).await.is_err() {
                return;
            }
        }
    };
    // Either her socket is no longer read, so that she stalls, or she is thrown out.
    drop(timeout(Duration::from_secs(10), flood).await);
    let grown = grown(&node, before);
    assert!(grown < SLACK_KIB, "answers that nobody reads took {grown} KiB");
    bob.still_served().await;
}

#[tokio::test]
async fn promise_5_typing_is_shed_for_a_reader_who_does_not_read() {
    let node = node("[limits]\nwrite_timeout = \"10m\"\nheartbeat = \"10m\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let before = node.memory_kib().unwrap();
    let typing = Signal { to: bob.user(), kind: 1, body: vec![b't'; 1000].into() };
    for _ in 0..100_000 {
        ada.wire.send(0, Ask::Signal(typing.clone())).await.unwrap(); // 100 MB
    }
    ada.wire.send(0, Ask::Ping(Ping {})).await.unwrap();
    let pong = ada.wire.expect(|frame| matches!(frame.kind, Some(Say::Pong(_))).then_some(()));
    pong.await.unwrap();
    let bounded = until("memory to be bounded", Duration::from_secs(10), || {
        Ok((grown(&node, before) < SLACK_KIB).then_some(()))
    });
    bounded.await.unwrap();
    ada.say(bob.user(), "what is stored comes all the same").await;
    assert_eq!(bob.hear_text().await, "what is stored comes all the same");
}
