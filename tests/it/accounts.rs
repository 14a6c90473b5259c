//! Stories of accounts: sessions and tickets, taking over, unlinking, deleting, blocking.

use crate::people::{Person, ada_and_bob, code, message, message_by_alias, node};
use proto::Code;
use proto::wire::{
    Block, DeleteAccount, GetAccount, Logout, Lookup, Resume, UnlinkDevice,
    client_frame::Kind as Ask, lookup::Who, receipt::Kind, server_frame::Kind as Say,
};
use tests::wire::{Phone, Wire};
use tests::workload::link;

#[tokio::test]
async fn a_message_to_an_alias_says_whose_it_is_and_one_to_nobody_is_refused() {
    let node = node("").await;
    let mut ada = Person::join(&node, "+49 151 1234567").await;
    let mut bob = Person::join(&node, "Bob@Example.org").await;
    let to = |alias: &str| message_by_alias(alias, "hello");
    match ada.wire.ask(to("bob@example.org")).await.unwrap() {
        Say::Accepted(accepted) => assert_eq!(accepted.user, bob.user()),
        other => panic!("{other:?}"),
    }
    assert_eq!(bob.hear_text().await, "hello");
    assert_eq!(ada.wire.refused(to("nobody")).await.unwrap(), Code::UnknownUser);
    assert_eq!(ada.wire.refused(to("?")).await.unwrap(), Code::BadRequest);
    let gone = ada.wire.refused(message(4711, "hello")).await.unwrap();
    assert_eq!(gone, Code::UnknownUser);
    let who = Some(Who::Alias("+491511234567".into()));
    match bob.wire.ask(Ask::Lookup(Lookup { who })).await.unwrap() {
        Say::Found(found) => {
            assert_eq!((found.user, found.devices.len()), (ada.user(), 1));
            assert_eq!(found.devices[0].key, ada.phone.public_key().unwrap());
            assert_eq!(found.devices[0].name, "", "names are left out");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_ticket_resumes_and_after_a_logout_only_the_key_does() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let (wire, resumed) = ada.phone.resume(&node.target()).await.unwrap();
    assert!(resumed);
    ada.wire = wire;
    ada.done(Ask::Logout(Logout {})).await;
    assert_eq!(ada.wire.ended().await.unwrap(), None);
    let (wire, resumed) = ada.phone.resume(&node.target()).await.unwrap();
    assert!(!resumed, "the ticket is void after a logout");
    ada.wire = wire;
    ada.still_served().await;
}

#[tokio::test]
async fn the_same_device_elsewhere_replaces_the_connection() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut old = std::mem::replace(&mut ada.wire, Wire::connect(&node.target()).await.unwrap());
    ada.phone.login_on(&mut ada.wire).await.unwrap();
    assert_eq!(old.ended().await.unwrap(), Some(Code::Replaced));
    ada.still_served().await;
}

#[tokio::test]
async fn a_second_login_on_a_connection_is_refused() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let again = ada.phone.login_frame(&ada.wire.welcome.nonce).unwrap();
    assert_eq!(ada.wire.refused(again).await.unwrap(), Code::AlreadyLoggedIn);
    ada.still_served().await;
}

#[tokio::test]
async fn who_registers_an_alias_again_is_a_new_user_and_the_old_one_is_gone() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut new = Person::join(&node, "ada").await;
    assert_ne!(new.user(), ada.user());
    assert_eq!(ada.wire.ended().await.unwrap(), Some(Code::Unlinked));
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = ada.phone.login_frame(&wire.welcome.nonce).unwrap();
    assert_eq!(wire.refused(login).await.unwrap(), Code::BadCredentials);
    assert_eq!(bob.wire.refused(message(ada.user(), "gone")).await.unwrap(), Code::UnknownUser);
    bob.say(new.user(), "to the new phone").await;
    assert_eq!(new.hear_text().await, "to the new phone");
}

#[tokio::test]
async fn an_unlinked_device_is_thrown_out_and_neither_key_nor_ticket_bring_it_back() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    let mut wire = tablet.login(&node.target()).await.unwrap();
    let device = tablet.device;
    let unknown = Ask::UnlinkDevice(UnlinkDevice { device: 99 });
    assert_eq!(ada.wire.refused(unknown).await.unwrap(), Code::UnknownDevice);
    ada.done(Ask::UnlinkDevice(UnlinkDevice { device })).await;
    assert_eq!(wire.ended().await.unwrap(), Some(Code::Unlinked));

    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = tablet.login_frame(&wire.welcome.nonce).unwrap();
    assert_eq!(wire.refused(login).await.unwrap(), Code::Unlinked);
    let ticket = tablet.ticket.clone();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let resume = Ask::Resume(Resume { ticket, acknowledged: 0, away: false });
    assert_eq!(wire.refused(resume).await.unwrap(), Code::Unlinked);
}

#[tokio::test]
async fn an_unlinked_device_no_longer_holds_back_two_ticks() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let tablet = link(&mut bob.wire, &bob.phone).await.unwrap();
    let id = ada.say(bob.user(), "hello").await;
    bob.hear().await;
    bob.ack().await;
    bob.done(Ask::UnlinkDevice(UnlinkDevice { device: tablet.device })).await;
    ada.told(Kind::Delivered, id).await;
}

#[tokio::test]
async fn a_deleted_account_is_gone_and_its_senders_are_told() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "too late").await;
    bob.hear().await; // not acknowledged
    let mut away = link(&mut bob.wire, &bob.phone).await.unwrap();
    drop(away.login(&node.target()).await.unwrap());
    bob.wire.send(77, Ask::DeleteAccount(DeleteAccount {})).await.unwrap();
    let last = bob.wire.ended().await.unwrap();
    assert!(last.is_none_or(|code| code == Code::Unlinked), "{last:?}");
    ada.told(Kind::Undeliverable, id).await;
    let answer = ada.wire.refused(message(bob.user(), "anyone?")).await.unwrap();
    assert_eq!(answer, Code::UnknownUser);
    let who = Some(Who::Alias("bob".into()));
    let answer = ada.wire.refused(Ask::Lookup(Lookup { who })).await.unwrap();
    assert_eq!(answer, Code::UnknownUser);
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = bob.phone.login_frame(&wire.welcome.nonce).unwrap();
    assert_eq!(wire.refused(login).await.unwrap(), Code::BadCredentials);

    let resume = Resume { ticket: away.ticket.clone(), acknowledged: 0, away: false };
    let told = wire.refused(Ask::Resume(resume)).await.unwrap();
    assert_eq!(told, Code::Unlinked, "a device that was away hears what became of it");

    let (new, _wire) = Phone::register(&node, "bob").await.unwrap();
    assert_ne!(new.user, bob.user(), "the alias is free, the user id is never given again");
}

#[tokio::test]
async fn who_is_blocked_is_refused_until_unblocked() {
    let mut node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "before").await;
    let block = |user, unblock| Ask::Block(Block { user, unblock });
    bob.done(block(ada.user(), false)).await;
    assert_eq!(code(&ada.wire.ask(message(bob.user(), "blocked")).await.unwrap()), Code::Blocked);
    node.kill().unwrap();
    node.restart().await.unwrap();
    ada.again(&node.target()).await;
    bob.again(&node.target()).await;
    assert_eq!(code(&ada.wire.ask(message(bob.user(), "blocked")).await.unwrap()), Code::Blocked);
    match bob.wire.ask(Ask::GetAccount(GetAccount {})).await.unwrap() {
        Say::Account(account) => assert_eq!(account.blocked, [ada.user()]),
        other => panic!("{other:?}"),
    }
    bob.done(block(ada.user(), true)).await;
    ada.say(bob.user(), "after").await;
    assert_eq!(bob.hear_text().await, "before");
    assert_eq!(bob.hear_text().await, "after");
}
