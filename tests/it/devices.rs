//! Stories of several devices: copies of what the others sent and read.

use crate::people::{Person, ada_and_bob, node};
use proto::Code;
use proto::limits::DEVICES_MAX;
use proto::wire::{
    LinkDevice, MarkRead, ReadCopy, SentCopy, client_frame::Kind as Ask, deliver::Content,
    receipt::Kind,
};
use tests::node::Node;
use tests::workload::link;

async fn tablet_of(node: &Node, owner: &mut Person) -> Person {
    let mut phone = link(&mut owner.wire, &owner.phone).await.unwrap();
    let wire = phone.login(&node.target()).await.unwrap();
    Person::new(phone, wire)
}

#[tokio::test]
async fn another_device_sees_what_was_sent_and_read() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut tablet = tablet_of(&node, &mut ada).await;
    let id = ada.say(bob.user(), "from the phone").await;
    let copy = tablet.entry().await.unwrap().content.unwrap();
    let (to, from_device, body) = (bob.user(), ada.phone.device, "from the phone".into());
    assert_eq!(copy, Content::SentCopy(SentCopy { to, from_device, send_id: id, body }));

    let reply = bob.say(ada.user(), "to both").await;
    assert_eq!(ada.hear_text().await, "to both");
    assert_eq!(tablet.hear_text().await, "to both");
    let (from, from_device) = (bob.user(), bob.phone.device);
    let send_ids = vec![reply];
    ada.done(Ask::MarkRead(MarkRead { from, from_device, send_ids: send_ids.clone() })).await;
    loop {
        if let Content::ReadCopy(copy) = tablet.entry().await.unwrap().content.unwrap() {
            assert_eq!(copy, ReadCopy { from, from_device, send_ids });
            break;
        }
    }
    bob.told(Kind::Read, reply).await;
}

#[tokio::test]
async fn two_ticks_come_to_every_device_of_the_sender() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut tablet = tablet_of(&node, &mut ada).await;
    let id = ada.say(bob.user(), "hello").await;
    bob.hear().await;
    bob.ack().await;
    ada.told(Kind::Delivered, id).await;
    tablet.told(Kind::Delivered, id).await;
}

#[tokio::test]
async fn promise_4_a_device_that_is_set_aside_while_it_is_connected_is_told_to_log_in_again() {
    let node = node("[limits]\ndevice_idle_max = \"1s\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut tablet = tablet_of(&node, &mut bob).await;
    ada.say(bob.user(), "the tablet does not acknowledge it").await;
    assert_eq!(tablet.hear_text().await, "the tablet does not acknowledge it");
    bob.hear().await;
    bob.ack().await;
    assert_eq!(tablet.wire.ended().await.unwrap(), Some(Code::SetAside));
    tablet.again(&node.target()).await;
    ada.say(bob.user(), "it is waited for again").await;
    assert_eq!(tablet.hear_text().await, "it is waited for again");
}

#[tokio::test]
async fn a_new_device_gets_what_comes_from_now_on() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "before").await;
    let mut tablet = tablet_of(&node, &mut bob).await;
    ada.say(bob.user(), "after").await;
    assert_eq!(tablet.hear_text().await, "after");
    assert_eq!(bob.hear_text().await, "before");
    assert_eq!(bob.hear_text().await, "after");
}

#[tokio::test]
async fn there_is_a_limit_to_devices() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    for _ in 1..DEVICES_MAX {
        link(&mut ada.wire, &ada.phone).await.unwrap();
    }
    let device_key = vec![9; 32].into();
    let one_more = Ask::LinkDevice(LinkDevice { device_key, device_name: "ninth".into() });
    assert_eq!(ada.wire.refused(one_more).await.unwrap(), Code::TooMany);
    let broken = LinkDevice { device_key: vec![1; 5].into(), device_name: String::new() };
    assert_eq!(ada.wire.refused(Ask::LinkDevice(broken)).await.unwrap(), Code::BadRequest);
}
