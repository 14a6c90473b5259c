//! Attacks by what is kept: mailboxes and disks that are filled, marks of what never was, ids that
//! jump, sends that are refused.

use super::{BOUNDS, siege};
use crate::people::{Person, applied, message, node};
use anyhow::{Result, ensure};
use proto::Code;
use proto::wire::{
    Block, MarkRead, SetContact, client_frame::Kind as Ask, receipt::Kind,
    server_frame::Kind as Say,
};
use tests::hostile::budget::{Bounds, Meter};
use tests::hostile::floods::flood;
use tests::hostile::sockets::{account, source};

/// Codes that tell a sender to stop.
const STOP: &[Code] = &[Code::TooFast, Code::TooMany, Code::MailboxFull, Code::StorageFull];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_fill_the_mailbox_of_a_sleeper_for_friends() {
    let node = node("[limits]\nmailbox_messages = 100").await;
    let mut friend = Person::join(&node, "friend").await;
    let mut sleeper = Person::join(&node, "sleeper").await;
    sleeper.done(Ask::SetContact(SetContact { user: friend.user(), remove: false })).await;
    sleeper.say(friend.user(), "we know each other").await;
    friend.hear().await;
    friend.say(sleeper.user(), "yes").await;
    sleeper.hear().await;
    sleeper.ack().await;
    let mut phone = sleeper.hang_up();
    let (_, mut eve) = account(&node, source(1), "eve").await.unwrap();
    let tally = flood(&mut eve, 1, 400, |_| message(phone.user, "spam")).await.unwrap();
    assert!(tally.stopped_by(STOP), "{tally:?}");
    assert!(tally.granted < 100, "a stranger takes the whole mailbox: {tally:?}");
    for number in 0..10 {
        friend.say(phone.user, &format!("are you there? {number}")).await;
    }
    let wire = phone.login(&node.target()).await.unwrap();
    let heard = Person::new(phone, wire).drain().await;
    assert_eq!(heard.iter().filter(|body| body.starts_with("are you there?")).count(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sender_cannot_fill_the_disk() {
    let mut siege = siege("").await;
    let (mut sleepers, body) = (Vec::new(), "f".repeat(200_000));
    let (phone, mut eve) = account(&siege.node, source(9), "eve").await.unwrap();
    // They trust her, so she may fill half of each mailbox.
    let trust = Ask::SetContact(SetContact { user: phone.user, remove: false });
    for number in 0..6 {
        let alias = format!("sleeper-{number}");
        let (sleeper, mut wire) = account(&siege.node, source(number), &alias).await.unwrap();
        assert!(matches!(wire.ask(trust.clone()).await.unwrap(), Say::Done(_)));
        sleepers.push(sleeper.user);
    }
    let attack = async {
        // 300 MB, were it all taken; 200 MB if only mailboxes were bounded.
        let make = |number| message(sleepers[usize::try_from(number).unwrap_or(0) % 6], &body);
        let tally = flood(&mut eve, 1, 1500, make).await?;
        ensure!(tally.stopped_by(STOP), "{tally:?}");
        Ok(tally)
    };
    siege.under(attack).await.unwrap();
    // What was accepted is in memory until the next checkpoint.
    let bounds = Bounds { memory_kib: 160 << 10, disk_bytes: 160 << 20, ..BOUNDS };
    siege.lift(bounds).await.unwrap();
}

#[tokio::test]
async fn marks_of_messages_that_never_were_displace_no_true_receipt() {
    let node = node("[limits]\nmailbox_messages = 50").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut bob = Person::join(&node, "bob").await;
    let (_, mut eve) = account(&node, source(1), "eve").await.unwrap();
    let id = ada.say(bob.user(), "hello").await;
    let (from, from_device) = (ada.user(), ada.phone.device);
    let mark = move |number: u64| {
        let send_ids = (1..=200).map(|id| number * 200 + id).collect();
        Ask::MarkRead(MarkRead { from, from_device, send_ids })
    };
    let mut ada = {
        let target = node.target();
        let mut phone = ada.hang_up();
        drop(flood(&mut eve, 1, 300, mark).await.unwrap());
        bob.hear().await;
        bob.ack().await;
        bob.done(Ask::MarkRead(MarkRead { from, from_device, send_ids: vec![id] })).await;
        let wire = phone.login(&target).await.unwrap();
        Person::new(phone, wire)
    };
    let (mut delivered, mut read) = (false, false);
    while !(delivered && read) {
        let receipt = ada.receipt().await;
        assert_eq!(receipt.user, bob.user(), "a receipt of a stranger: {receipt:?}");
        delivered |= receipt.kind == i32::from(Kind::Delivered) && receipt.send_ids == [id];
        read |= receipt.kind == i32::from(Kind::Read) && receipt.send_ids == [id];
    }
}

/// Sends of somebody who is blocked.
const REFUSED: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_that_are_refused_write_nothing_to_disk() {
    let node =
        node("[storage]\ncheckpoint_every = \"10m\"\n[limits]\nstored_bytes_per_second = \"0B\"")
            .await;
    let mut bob = Person::join(&node, "bob").await;
    let (phone, mut eve) = account(&node, source(1), "eve").await.unwrap();
    bob.done(Ask::Block(Block { user: phone.user, unblock: false })).await;
    let before = applied(&node, bob.user()).await;
    // One at a time: each would be a record of its own.
    for _ in 0..REFUSED {
        let refused = eve.refused(message(bob.user(), "from somebody whom you blocked")).await;
        assert_eq!(refused.unwrap(), Code::Blocked);
    }
    let written = applied(&node, bob.user()).await - before;
    assert!(written < REFUSED / 2, "{REFUSED} refused sends made {written} records");
}

/// Nothing of the budget is spent twice: a check of the measure itself.
#[tokio::test]
async fn the_measure_sees_memory_disk_and_descriptors() -> Result<()> {
    let limits = "[limits]\nmailbox_bytes = \"1GiB\"\nstored_bytes_per_second = \"0B\"";
    let node = node(limits).await;
    let mut bob = Person::join(&node, "bob").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut meter = Meter::begin(&node)?;
    let before = meter.look()?;
    let body = "m".repeat(200_000);
    for _ in 0..200 {
        ada.say(bob.user(), &body).await; // 40 MB: more than is reserved ahead
    }
    let after = meter.look()?;
    ensure!(after.disk_bytes >= before.disk_bytes + (16 << 20), "{before} and {after}");
    ensure!(after.descriptors > 10, "{after}");
    let tight = Bounds { memory_kib: 0, disk_bytes: 0, descriptors: 0 };
    ensure!(tight.hold(&after).is_err(), "nothing is over budget");
    bob.hear().await;
    Ok(())
}
