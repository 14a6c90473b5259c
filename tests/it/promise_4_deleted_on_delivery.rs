//! Promise 4: when the last device acknowledges, the body leaves memory and disk, and the sender is
//! told. The data directory's files are searched for its bytes.

use crate::people::{Person, ada_and_bob, node};
use proto::wire::{
    Audience, MarkRead, Privacy, SetPrivacy, client_frame::Kind as Ask, receipt::Kind,
};
use std::time::Duration;
use tests::node::{Node, until};
use tests::workload::link;

const QUICK: &str = "[storage]\nsegment_bytes = \"64KiB\"\ncheckpoint_every = \"200ms\"";

async fn gone(node: &Node, marker: &str) {
    let gone = until("the body to leave the disk", Duration::from_mins(1), || {
        Ok(node.files_with(marker.as_bytes())?.is_empty().then_some(()))
    });
    let gone = gone.await.is_ok();
    assert!(gone, "{marker} is still in {:?}", node.files_with(marker.as_bytes()).unwrap());
}

/// Also while a checkpoint moves it from one file to another.
async fn there(node: &Node, marker: &str) {
    let there = until("the body to be seen on the disk", Duration::from_secs(20), || {
        Ok((!node.files_with(marker.as_bytes())?.is_empty()).then_some(()))
    });
    assert!(there.await.is_ok(), "an accepted body is on disk, in the clear for this search");
}

#[tokio::test]
async fn promise_4_a_delivered_body_is_in_no_file_and_the_sender_has_two_ticks() {
    let mut node = node(QUICK).await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    let marker = "MARKER-7d1f0c9a-delivered-and-gone";
    let id = ada.say(bob.user, marker).await;
    there(&node, marker).await;

    let mut phone = bob;
    let wire = phone.login(&node.target()).await.unwrap();
    let mut bob = Person::new(phone, wire);
    assert_eq!(bob.hear_text().await, marker);
    bob.ack().await;
    ada.told(Kind::Delivered, id).await;
    gone(&node, marker).await;

    node.kill().unwrap();
    node.restart().await.unwrap();
    bob.wire = bob.phone.login(&node.target()).await.unwrap();
    assert_eq!(bob.drain().await, Vec::<String>::new());
}

#[tokio::test]
async fn promise_4_a_body_that_moved_to_the_tables_leaves_them_too() {
    let node = node(QUICK).await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    let marker = "MARKER-29c3aa04-kept-for-long";
    ada.say(bob.user, marker).await;
    let filler = "f".repeat(20_000); // moves the log on by some segments
    for _ in 0..20 {
        ada.say(bob.user, &filler).await;
    }
    let moved =
        until("a checkpoint to move the body to the tables", Duration::from_mins(1), || {
            let files = node.files_with(marker.as_bytes())?;
            let there =
                files.iter().any(|file| file.components().any(|c| c.as_os_str() == "tables"));
            Ok(there.then_some(()))
        });
    moved.await.unwrap();
    let mut phone = bob;
    let wire = phone.login(&node.target()).await.unwrap();
    let mut bob = Person::new(phone, wire);
    let heard = bob.drain().await;
    assert_eq!((heard.len(), heard[0].as_str()), (21, marker));
    bob.ack().await;
    gone(&node, marker).await;
}

#[tokio::test]
async fn promise_4_the_body_stays_until_the_last_device_has_it() {
    let node = node(QUICK).await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let tablet = link(&mut bob.wire, &bob.phone).await.unwrap();
    let marker = "MARKER-11bb7e52-for-two-devices";
    let id = ada.say(bob.user(), marker).await;
    assert_eq!(bob.hear_text().await, marker);
    bob.ack().await;
    bob.still_served().await;
    there(&node, marker).await; // The tablet has yet to get it.

    let mut phone = tablet;
    let wire = phone.login(&node.target()).await.unwrap();
    let mut tablet = Person::new(phone, wire);
    assert_eq!(tablet.hear_text().await, marker);
    tablet.ack().await;
    ada.told(Kind::Delivered, id).await;
    gone(&node, marker).await;
}

#[tokio::test]
async fn promise_4_read_is_the_third_tick_if_the_reader_allows_it() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let read = |ada: &Person, id| {
        let (from, from_device) = (ada.user(), ada.phone.device);
        Ask::MarkRead(MarkRead { from, from_device, send_ids: vec![id] })
    };
    let id = ada.say(bob.user(), "read me").await;
    bob.hear().await;
    bob.ack().await;
    let mark = read(&ada, id);
    bob.done(mark).await;
    ada.told(Kind::Read, id).await;

    let nobody = Audience::Nobody.into();
    let privacy = Some(Privacy { read_receipts: nobody, ..Privacy::default() });
    bob.done(Ask::SetPrivacy(SetPrivacy { privacy })).await;
    let unread = ada.say(bob.user(), "read me in secret").await;
    bob.hear().await;
    bob.ack().await;
    let mark = read(&ada, unread);
    bob.done(mark).await;
    let last = ada.say(bob.user(), "the end").await;
    bob.hear().await;
    bob.ack().await;
    loop {
        let receipt = ada.receipt().await;
        let about = |id| receipt.send_ids.contains(&id);
        assert!(receipt.kind != i32::from(Kind::Read) || !about(unread), "{receipt:?}");
        if about(last) {
            break;
        }
    }
}
