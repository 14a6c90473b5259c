//! Stories of several devices: copies of what the others sent and read.

use crate::clusters::{cluster, three, turn};
use crate::people::{PROGRAM, Person, ada_and_bob, node};
use anyhow::ensure;
use proto::Code;
use proto::limits::DEVICES_MAX;
use proto::wire::{
    LinkDevice, MarkRead, ReadCopy, SentCopy, UnlinkDevice, client_frame::Kind as Ask,
    deliver::Content, receipt::Kind,
};
use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cables, admin};
use tests::node::{Node, eventually};
use tests::status::Status;
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

/// Waits until a node's sessions table has so many rows.
async fn has_session_rows(node: &Node, rows: u64) {
    let asked = eventually(Duration::from_mins(1), async || {
        let said =
            admin(Path::new(PROGRAM), node.target().data_dir(), &["cluster", "status"]).await?;
        let status: Status = serde_json::from_str(&said)?;
        ensure!(status.sessions.rows == rows, "{:?}", status.sessions);
        Ok(())
    });
    asked.await.unwrap();
}

#[tokio::test]
async fn the_session_row_of_an_unlinked_device_goes_though_the_node_dies_before_its_checkpoint() {
    let mut node = node("[storage]\ncheckpoint_every = \"10m\"").await;
    let mut ada = Person::join(&node, "ada").await;
    let tablet = tablet_of(&node, &mut ada).await.hang_up();
    assert!(node.stop().await.unwrap().success());
    node.restart().await.unwrap();
    ada.again(&node.target()).await;
    has_session_rows(&node, 2).await;
    ada.done(Ask::UnlinkDevice(UnlinkDevice { device: tablet.device })).await;
    node.kill().unwrap();
    node.restart().await.unwrap();
    has_session_rows(&node, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_just_linked_gets_copies_of_what_is_sent_next_in_a_cluster() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    let (here, there) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let bob = Person::join(here, "bob").await.user();
    for number in 0..24 {
        let mut ada = Person::join(here, &format!("ada-{number}")).await;
        let mut tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
        let id = ada.say(bob, "at once").await;
        let wire = tablet.login(&there.target()).await.unwrap();
        let mut tablet = Person::new(tablet, wire);
        loop {
            if let Some(Content::SentCopy(copy)) = tablet.entry().await.unwrap().content {
                assert_eq!(copy.send_id, id);
                break;
            }
        }
    }
}
