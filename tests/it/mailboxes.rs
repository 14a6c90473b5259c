//! Stories of mailboxes: where they stand, who may fill them, what receipts say.

use crate::people::{Person, ada_and_bob, code, message, message_by_alias, node};
use proto::wire::{
    Block, DeleteAccount, MarkRead, RegisterStart, SetRegistrationLock, UnlinkDevice,
    client_frame::Kind as Ask, deliver::Content, device_notice::Kind as What, receipt::Kind,
    server_frame::Kind as Say,
};
use proto::{Alias, Code};
use tests::hostile::sockets::{account, source};
use tests::wire::{Phone, Wire};
use tests::workload::link;
use tokio::time::Instant;

#[tokio::test]
async fn a_send_by_alias_reaches_the_new_owner_and_is_not_refused_because_of_the_old_one() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut cyx = Person::join(&node, "cyx").await;
    let said = ada.wire.ask(message_by_alias("cyx", "to the first")).await.unwrap();
    assert!(matches!(said, Say::Accepted(_)), "{said:?}");
    cyx.done(Ask::DeleteAccount(DeleteAccount {})).await;
    let mut cyx = Person::join(&node, "cyx").await;
    let said = ada.wire.ask(message_by_alias("cyx", "to the second")).await.unwrap();
    assert!(matches!(said, Say::Accepted(accepted) if accepted.user == cyx.user()));
    assert_eq!(cyx.hear_text().await, "to the second");
}

#[tokio::test]
async fn who_registers_an_alias_again_is_told_where_the_mailbox_stands() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for _ in 0..3 {
        ada.say(bob.user(), "read").await;
        bob.hear().await;
    }
    bob.ack().await;
    bob.still_served().await;
    let mut bob = Person::join(&node, "bob").await;
    ada.say(bob.user(), "next").await;
    // `Person::entry` fails on a hole.
    assert_eq!(bob.hear_text().await, "next");
}

#[tokio::test]
async fn promise_5_what_a_blocked_sender_writes_is_in_no_file() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "before").await;
    bob.done(Ask::Block(Block { user: ada.user(), unblock: false })).await;
    for _ in 0..20 {
        let refused = ada.wire.refused(message(bob.user(), "never-on-a-disk")).await.unwrap();
        assert_eq!(refused, Code::Blocked);
    }
    assert_eq!(node.files_with(b"never-on-a-disk").unwrap(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn promise_5_a_stranger_who_fills_a_mailbox_leaves_room_for_friends() {
    let node = node("[limits]\nmailbox_messages = 100").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut eve = Person::join(&node, "eve").await;
    bob.knows(&ada).await;
    let bob = bob.hang_up();
    let mut accepted = 0;
    for _ in 0..50 {
        match eve.wire.ask(message(bob.user, "spam")).await.unwrap() {
            Say::Accepted(_) => accepted += 1,
            other => assert_eq!(code(&other), Code::MailboxFull),
        }
    }
    assert_eq!(accepted, 10);
    for _ in 0..50 {
        ada.say(bob.user, "from a friend").await;
    }
}

/// Sends 4,000 bytes to each of them in turn, so often; how many were accepted.
async fn flood(sender: &mut Wire, to: &[u64], count: usize) -> u64 {
    let (body, mut accepted) = ("b".repeat(4_000), 0);
    for to in to.iter().cycle().take(count) {
        match sender.ask(message(*to, &body)).await.unwrap() {
            Say::Accepted(_) => accepted += 1,
            other => assert_eq!(code(&other), Code::TooFast),
        }
    }
    accepted
}

#[tokio::test]
async fn promise_5_a_sender_who_stores_too_many_bytes_is_slowed_whoever_they_are_for() {
    let node = node("[limits]\nstored_bytes_per_second = \"1KiB\"\nstranger_share = 100").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut others = vec![bob.user()];
    for number in 0..8 {
        others.push(Person::join(&node, &format!("person-{number}")).await.user());
    }
    let begun = Instant::now();
    let accepted = flood(&mut ada.wire, &others, 60).await;
    let allowed = (32 + begun.elapsed().as_secs() + 1) * 1024 / 4_000;
    assert!(accepted >= 8, "{accepted} accepted, 32 KiB are allowed at once");
    assert!(accepted <= allowed, "{accepted} of {allowed} accepted over all shards");
    bob.say(ada.user(), "others are not slowed").await;
}

#[tokio::test]
async fn promise_5_all_accounts_of_one_address_share_what_it_may_store() {
    let limit = "[limits]\nstored_bytes_per_second_per_address = \"1KiB\"\nstranger_share = 100";
    let node = node(limit).await;
    let bob = Person::join(&node, "bob").await.user();
    let begun = Instant::now();
    let mut accepted = 0;
    for number in 0..6 {
        let (_, mut wire) = account(&node, source(1), &format!("eve-{number}")).await.unwrap();
        accepted += flood(&mut wire, &[bob], 10).await;
    }
    let allowed = (32 + begun.elapsed().as_secs() + 1) * 1024 / 4_000;
    assert!(accepted >= 8, "{accepted} accepted, 32 KiB are allowed at once");
    assert!(accepted <= allowed, "{accepted} of {allowed} accepted from one address");
    let (_, mut ada) = account(&node, source(2), "ada").await.unwrap();
    assert_eq!(flood(&mut ada, &[bob], 5).await, 5, "another address is not slowed");
}

#[tokio::test]
async fn promise_5_a_list_of_a_hundred_thousand_ids_is_refused_before_it_takes_memory() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let before = node.memory_kib().unwrap();
    let read = MarkRead { from: bob.user(), from_device: 1, send_ids: vec![1; 200_000] };
    ada.wire.send(9, Ask::MarkRead(read)).await.unwrap();
    assert_eq!(ada.wire.ended().await.unwrap(), Some(Code::FrameTooLarge));
    assert!(node.memory_kib().unwrap().saturating_sub(before) < 16 * 1024);
    bob.still_served().await;
}

#[tokio::test]
async fn promise_4_a_device_that_stays_away_holds_nothing_back_and_is_told_when_it_returns() {
    let node = node("[limits]\ndevice_idle_max = \"1s\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut tablet = link(&mut bob.wire, &bob.phone).await.unwrap();
    let id = ada.say(bob.user(), "while the tablet is away").await;
    assert_eq!(bob.hear_text().await, "while the tablet is away");
    bob.ack().await;
    ada.told(Kind::Delivered, id).await;
    let notice = loop {
        if let Some(Content::DeviceNotice(notice)) = bob.entry().await.unwrap().content {
            break notice;
        }
    };
    assert_eq!((notice.device, notice.kind()), (tablet.device, What::SetAside));

    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = tablet.login_frame(&wire.welcome.nonce).unwrap();
    match wire.ask(login).await.unwrap() {
        Say::LoggedIn(logged_in) => {
            assert!(logged_in.resync, "it lacks what came meanwhile");
            tablet.last = logged_in.acknowledged;
        }
        other => panic!("{other:?}"),
    }
    let mut tablet = Person::new(tablet, wire);
    ada.say(bob.user(), "now it is back").await;
    assert_eq!(tablet.hear_text().await, "now it is back");
}

#[tokio::test]
async fn promise_2_a_send_that_was_accepted_is_accepted_again_while_another_is_held_back() {
    let limits = "mailbox_messages = 3\ncontact_share = 100\nstranger_share = 100";
    let node = node(&format!("[limits]\n{limits}\nstrangers_share = 100")).await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob = bob.hang_up();
    for id in [10, 11, 12] {
        ada.say_as(id, bob.user, "fits").await.unwrap();
    }
    for id in [5, 13] {
        let answer = ada.wire.ask_as(id, message(bob.user, "too much")).await.unwrap();
        assert_eq!(code(&answer), Code::MailboxFull);
    }
    for id in [10, 11, 12] {
        ada.say_as(id, bob.user, "fits").await.unwrap();
    }
    let answer = ada.wire.ask_as(14, message(bob.user, "too much")).await.unwrap();
    assert_eq!(code(&answer), Code::MailboxFull);
}

#[tokio::test]
async fn promise_4_the_next_device_gets_what_came_while_none_was_linked_and_a_later_one_does_not() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let set = SetRegistrationLock { lock: "s3cret".into(), current: String::new() };
    bob.done(Ask::SetRegistrationLock(set)).await;
    // One message waits for the phone when it is unlinked, the other comes when there is no device.
    let first = ada.say(bob.user(), "before").await;
    let device = bob.phone.device;
    bob.wire.send(1_000, Ask::UnlinkDevice(UnlinkDevice { device })).await.unwrap();
    bob.wire.ended().await.unwrap();
    let second = ada.say(bob.user(), "while there is none").await;

    let seen = node.output().len();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let start = Ask::RegisterStart(RegisterStart { alias: "bob".into() });
    let Say::PinSent(pin_sent) = wire.ask(start).await.unwrap() else { panic!("no PIN") };
    let pin = node.pin("bob", seen).await.unwrap();
    let (alias, nonce) = (Alias::parse("bob").unwrap(), wire.welcome.nonce.clone());
    let mut phone = Phone::new();
    let mut proof = phone.proof(&nonce, &alias, (pin, pin_sent.token)).unwrap();
    proof.lock = "s3cret".into();
    match wire.ask(Ask::RegisterProve(proof.into())).await.unwrap() {
        Say::Registered(registered) => {
            assert_eq!(registered.user, bob.user(), "the lock keeps the account");
            (phone.user, phone.device) = (registered.user, registered.device);
            phone.last = registered.acknowledged;
        }
        other => panic!("{other:?}"),
    }
    let mut bob = Person::new(phone, wire);
    let mut tablet = link(&mut bob.wire, &bob.phone).await.unwrap();
    for text in ["before", "while there is none"] {
        assert_eq!(bob.hear_text().await, text);
    }
    bob.ack().await;
    let mut told = Vec::new();
    while told.len() < 2 {
        let receipt = ada.receipt().await;
        assert_eq!(receipt.kind(), Kind::Delivered);
        told.extend(receipt.send_ids);
    }
    assert_eq!(told, [first, second]);
    ada.say(bob.user(), "now there are two").await;
    let wire = tablet.login(&node.target()).await.unwrap();
    let mut tablet = Person::new(tablet, wire);
    assert_eq!(tablet.hear_text().await, "now there are two", "what comes from then on");
}
