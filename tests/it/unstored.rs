//! Stories of what is never stored (typing, presence) and of what ends by itself (time to live).

use crate::people::{Person, ada_and_bob, node};
use proto::Code;
use proto::limits::{SIGNAL_BYTES_MAX, TTL_S_MAX};
use proto::wire::{
    Audience, Block, MarkRead, Ping, Presence, Privacy, Send, SetContact, SetPresence, SetPrivacy,
    Signal, Signaled, Subscribe, client_frame::Kind as Ask, receipt::Kind, send::To,
    server_frame::Kind as Say,
};

async fn presence(person: &mut Person) -> Presence {
    let presence = person.wire.expect(|frame| match &frame.kind {
        Some(Say::Presence(presence)) => Some(*presence),
        _ => None,
    });
    presence.await.unwrap()
}

#[tokio::test]
async fn typing_reaches_who_is_there_and_is_not_kept_for_who_is_not() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let typing = Signal { to: bob.user(), kind: 1, body: "x".into() };
    ada.wire.send(0, Ask::Signal(typing.clone())).await.unwrap();
    let signaled = bob.wire.expect(|frame| match &frame.kind {
        Some(Say::Signaled(signaled)) => Some(signaled.clone()),
        _ => None,
    });
    let (from, from_device) = (ada.user(), ada.phone.device);
    let expected = Signaled { from, from_device, kind: 1, body: "x".into() };
    assert_eq!(signaled.await.unwrap(), expected);

    let mut phone = bob.hang_up();
    ada.wire.send(0, Ask::Signal(typing)).await.unwrap();
    ada.say(phone.user, "a message").await;
    let wire = phone.login(&node.target()).await.unwrap();
    let mut bob = Person::new(phone, wire);
    loop {
        match bob.wire.next().await.unwrap().1 {
            Say::Signaled(signaled) => panic!("kept: {signaled:?}"),
            Say::CaughtUp(_) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn whom_one_blocks_sees_neither_ones_typing_nor_what_one_has_read() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let (user, from, from_device) = (ada.user(), ada.user(), ada.phone.device);
    let block = |unblock| Ask::Block(Block { user, unblock });
    let mark = |id| Ask::MarkRead(MarkRead { from, from_device, send_ids: vec![id] });
    let signal = |kind| Ask::Signal(Signal { to: user, kind, body: "".into() });
    let hidden = ada.say(bob.user(), "read while blocked").await;
    let shown = ada.say(bob.user(), "read after it").await;
    bob.done(block(false)).await;
    bob.done(mark(hidden)).await;
    bob.wire.send(0, signal(1)).await.unwrap();
    bob.done(block(true)).await;
    bob.done(mark(shown)).await;
    bob.wire.send(0, signal(2)).await.unwrap();
    let signaled = ada.wire.expect(|frame| match &frame.kind {
        Some(Say::Signaled(signaled)) => Some(signaled.kind),
        _ => None,
    });
    assert_eq!(signaled.await.unwrap(), 2);
    assert_eq!(ada.receipt().await.send_ids, [shown]);
}

#[tokio::test]
async fn a_signal_that_is_too_long_does_no_harm() {
    let node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let body = vec![0; SIGNAL_BYTES_MAX + 1].into();
    ada.wire.send(0, Ask::Signal(Signal { to: bob.user(), kind: 1, body })).await.unwrap();
    ada.wire.send(0, Ask::Ping(Ping {})).await.unwrap();
    let pong = ada.wire.expect(|frame| matches!(frame.kind, Some(Say::Pong(_))).then_some(()));
    pong.await.unwrap();
}

#[tokio::test]
async fn who_subscribes_sees_people_come_and_go() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    bob.knows(&ada).await;
    let user = bob.user();
    let subscribe = |unsubscribe| Ask::Subscribe(Subscribe { user, unsubscribe });
    ada.done(subscribe(false)).await;
    assert!(presence(&mut ada).await.online);
    bob.done(Ask::SetPresence(SetPresence { away: true })).await;
    assert!(!presence(&mut ada).await.online);
    bob.done(Ask::SetPresence(SetPresence { away: false })).await;
    assert!(presence(&mut ada).await.online);

    let mut phone = bob.hang_up();
    let gone = presence(&mut ada).await;
    assert!(!gone.online && gone.last_seen_ms > 1_700_000_000_000, "{gone:?}");
    let wire = phone.login(&node.target()).await.unwrap();
    assert!(presence(&mut ada).await.online);

    ada.done(subscribe(true)).await;
    let mut bob = Person::new(phone, wire);
    bob.done(Ask::SetPresence(SetPresence { away: true })).await;
    bob.say(ada.user(), "after the change").await;
    loop {
        match ada.wire.next().await.unwrap().1 {
            Say::Presence(presence) => panic!("not asked for: {presence:?}"),
            Say::Deliver(_) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn who_hides_is_not_seen() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    bob.knows(&ada).await;
    let nobody = Audience::Nobody.into();
    let privacy = Privacy { last_seen: nobody, online: nobody, read_receipts: 0 };
    bob.done(Ask::SetPrivacy(SetPrivacy { privacy: Some(privacy) })).await;
    ada.done(Ask::Subscribe(Subscribe { user: bob.user(), unsubscribe: false })).await;
    let hidden = Presence { user: bob.user(), online: false, last_seen_ms: 0 };
    assert_eq!(presence(&mut ada).await, hidden);
    let nobody = Ask::Subscribe(Subscribe { user: 4711, unsubscribe: false });
    assert_eq!(ada.wire.refused(nobody).await.unwrap(), Code::UnknownUser);
}

#[tokio::test]
async fn a_stranger_is_shown_nothing_and_a_contact_is() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.done(Ask::Subscribe(Subscribe { user: bob.user(), unsubscribe: false })).await;
    let hidden = Presence { user: bob.user(), online: false, last_seen_ms: 0 };
    assert_eq!(presence(&mut ada).await, hidden);
    ada.knows(&bob).await;
    bob.knows(&ada).await;
    let account = bob.wire.ask(Ask::GetAccount(proto::wire::GetAccount {})).await.unwrap();
    let Say::Account(account) = account else { panic!("{account:?}") };
    let shown = Privacy {
        last_seen: Audience::Contacts.into(),
        online: Audience::Contacts.into(),
        read_receipts: Audience::Everybody.into(),
    };
    assert_eq!((account.contacts, account.privacy), (vec![ada.user()], Some(shown)));
    ada.done(Ask::Subscribe(Subscribe { user: bob.user(), unsubscribe: false })).await;
    assert!(presence(&mut ada).await.online);
    for user in [0, bob.user()] {
        let wrong = Ask::SetContact(SetContact { user, remove: false });
        assert_eq!(bob.wire.refused(wrong).await.unwrap(), Code::BadRequest);
    }
    let unknown = Privacy { online: 77, ..Privacy::default() };
    let wrong = Ask::SetPrivacy(SetPrivacy { privacy: Some(unknown) });
    assert_eq!(bob.wire.refused(wrong).await.unwrap(), Code::BadRequest);
}

#[tokio::test]
async fn the_sender_is_told_when_the_time_to_live_ends_and_the_message_does_not_come() {
    let mut node = node("[storage]\ncheckpoint_every = \"200ms\"").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let mut phone = bob.hang_up();
    let to = phone.user;
    let short = |ttl_s| {
        let to = Some(To::User(to));
        Ask::Send(Send { to, body: "short-lived".into(), ttl_s })
    };
    let first = ada.fresh_id();
    assert!(matches!(ada.wire.ask_as(first, short(1)).await.unwrap(), Say::Accepted(_)));
    ada.told(Kind::Expired, first).await;

    let second = ada.fresh_id();
    assert!(matches!(ada.wire.ask_as(second, short(3)).await.unwrap(), Say::Accepted(_)));
    ada.say(to, "long-lived").await;
    node.kill().unwrap(); // the time goes on
    node.restart().await.unwrap();
    ada.again(&node.target()).await;
    ada.told(Kind::Expired, second).await;
    let wire = phone.login(&node.target()).await.unwrap();
    assert_eq!(Person::new(phone, wire).drain().await, ["long-lived"]);
    let eternal = ada.wire.refused(short(TTL_S_MAX + 1)).await.unwrap();
    assert_eq!(eternal, Code::BadRequest);
}
