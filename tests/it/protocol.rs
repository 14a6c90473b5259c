//! PROTOCOL.md as the author of another client reads it: what it says of the corners, tried on a node.

use crate::people::{Person, ada_and_bob, code, message, node};
use proto::Code;
use proto::wire::{
    Ack, GetAccount, Logout, Lookup, MarkRead, Ping, RegisterStart, Resume, Send, UnlinkDevice,
    client_frame::Kind as Ask, deliver::Content, lookup, receipt::Kind, send::To,
    server_frame::Kind as Say,
};
use tests::node::Node;
use tests::wire::{Wire, tls};
use tests::workload::link;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn opens_with(node: &Node, protocols: &[&str]) -> bool {
    let address = node.target().addresses().unwrap().client;
    match tls(&node.target(), &address, protocols).await {
        Ok(stream) => Wire::welcome(Box::new(stream)).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn tls_without_a_protocol_name_is_welcome_and_with_a_foreign_one_is_not() {
    let node = node("").await;
    assert!(opens_with(&node, &["natter/1"]).await);
    assert!(opens_with(&node, &["h2", "natter/1"]).await);
    assert!(opens_with(&node, &[]).await, "no ALPN at all");
    assert!(!opens_with(&node, &["h2"]).await);
    assert!(!opens_with(&node, &["natter/2"]).await);
}

/// The status of the answer to a request to become a WebSocket.
async fn upgrade(node: &Node, headers: &str) -> String {
    let headers = format!(
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}"
    );
    get(node, &headers).await
}

/// The status of the answer to any HTTP request.
async fn get(node: &Node, headers: &str) -> String {
    let address = node.target().addresses().unwrap().websocket;
    let mut stream = tls(&node.target(), &address, &[]).await.unwrap();
    let request = format!("GET /any HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test]
async fn a_websocket_must_offer_the_subprotocol() {
    let node = node("").await;
    assert_eq!(upgrade(&node, "sec-websocket-protocol: natter.v1\r\n").await, "101");
    assert_eq!(upgrade(&node, "sec-websocket-protocol: chat, natter.v1\r\n").await, "101");
    assert_eq!(upgrade(&node, "").await, "400");
    assert_eq!(upgrade(&node, "sec-websocket-protocol: natter.v2\r\n").await, "400");
    assert_eq!(get(&node, "").await, "400", "a page, not a WebSocket");
}

#[tokio::test]
async fn two_unanswered_requests_with_one_id_get_two_answers_that_nobody_can_tell_apart() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let look_up = |user| Ask::Lookup(Lookup { who: Some(lookup::Who::User(user)) });
    ada.wire.send(5, look_up(bob.user())).await.unwrap();
    ada.wire.send(5, look_up(ada.user())).await.unwrap();
    for _ in 0..2 {
        let found = ada.wire.expect(|frame| match (&frame.kind, frame.id) {
            (Some(Say::Found(found)), 5) => Some(found.user),
            _ => None,
        });
        let found = found.await.unwrap();
        assert!([ada.user(), bob.user()].contains(&found));
    }
    // Of two sends with one id the first is stored; the second counts as its retry.
    ada.wire.send(6, message(bob.user(), "first")).await.unwrap();
    ada.wire.send(6, message(bob.user(), "second")).await.unwrap();
    for _ in 0..2 {
        let accepted = |frame: &proto::wire::ServerFrame| {
            matches!((&frame.kind, frame.id), (Some(Say::Accepted(_)), 6)).then_some(())
        };
        ada.wire.expect(accepted).await.unwrap();
    }
    ada.say_as(7, bob.user(), "third").await.unwrap();
    assert_eq!(bob.hear_text().await, "first");
    assert_eq!(bob.hear_text().await, "third");
}

#[tokio::test]
async fn an_ack_above_what_was_sent_counts_only_for_what_was_sent() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "one").await;
    bob.hear().await;
    bob.wire.send(0, Ask::Ack(Ack { seq: 1 << 40 })).await.unwrap();
    ada.told(Kind::Delivered, id).await;
    ada.say(bob.user(), "two").await;
    bob.again(&node.target()).await;
    assert_eq!(bob.hear_text().await, "two");
}

#[tokio::test]
async fn a_login_that_claims_more_than_the_mailbox_ever_held_deletes_nothing_and_begins_anew() {
    let node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let mut phone = bob.hang_up();
    let id = ada.say(phone.user, "never sent to the phone").await;
    for by_ticket in [true, false] {
        phone.last = 1 << 40;
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        let (ticket, acknowledged) = (phone.ticket.clone(), phone.last);
        let login = phone.login_frame(&wire.welcome.nonce).unwrap();
        let resume = Ask::Resume(Resume { ticket, acknowledged, away: false });
        let answer = wire.ask(if by_ticket { resume } else { login }).await.unwrap();
        let Say::LoggedIn(logged_in) = answer else { panic!("{answer:?}") };
        assert!(logged_in.resync && logged_in.acknowledged == 0, "{logged_in:?}");
        phone.keep(&logged_in);
        let mut bob = Person::new(phone, wire);
        assert_eq!(bob.hear_text().await, "never sent to the phone");
        phone = bob.hang_up();
    }
    let wire = phone.login(&node.target()).await.unwrap();
    Person::new(phone, wire).ack().await;
    ada.told(Kind::Delivered, id).await;
}

#[tokio::test]
async fn what_has_outlived_its_time_is_not_delivered_though_nobody_was_told_yet() {
    let node = node("[storage]\ncheckpoint_every = \"1s\"").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let mut phone = bob.hang_up();
    let to = Some(To::User(phone.user));
    let send = Ask::Send(Send { to, body: "too late".into(), ttl_s: 3 });
    let answer = ada.wire.ask_as(2, send).await.unwrap();
    let Say::Accepted(accepted) = answer else { panic!("{answer:?}") };
    ada.say_as(3, phone.user, "in time").await.unwrap();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    while wire.welcome.server_time_ms < accepted.at_ms + 3_000 {
        wire = Wire::connect(&node.target()).await.unwrap();
    }
    phone.login_on(&mut wire).await.unwrap();
    let mut bob = Person::new(phone, wire);
    assert_eq!(bob.drain().await, ["in time"]);
    bob.ack().await;
    ada.told(Kind::Expired, 2).await;
}

#[tokio::test]
async fn a_send_to_oneself_reaches_ones_other_devices_and_is_not_sent_back() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let id = ada.say(ada.user(), "a note").await; // alone: accepted, and nobody needs it
    let mut tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    let wire = tablet.login(&node.target()).await.unwrap();
    let mut tablet = Person::new(tablet, wire);
    let second = ada.say(ada.user(), "for the tablet").await;
    let came = tablet.hear().await;
    assert_eq!((came.from, came.send_id), (ada.user(), second));
    tablet.ack().await;
    ada.still_served().await;
    // Neither a message nor a copy nor a receipt of it comes to the device that sent it.
    let mut bob = Person::join(&node, "bob").await;
    bob.say(ada.user(), "hello").await;
    let entry = ada.entry().await.unwrap();
    let theirs = matches!(&entry.content, Some(Content::Message(m)) if m.from == bob.user());
    assert!(theirs, "after {id} and {second}: {entry:?}");
}

#[tokio::test]
async fn what_is_marked_read_three_times_is_told_once() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "hello").await;
    bob.hear().await;
    let (from, from_device) = (ada.user(), ada.phone.device);
    let mark = || Ask::MarkRead(MarkRead { from, from_device, send_ids: vec![id] });
    for _ in 0..3 {
        bob.done(mark()).await;
    }
    bob.ack().await;
    bob.say(ada.user(), "read it").await;
    let (mut read, mut delivered, mut heard) = (0, 0, false);
    while !heard || read == 0 || delivered == 0 {
        match ada.entry().await.unwrap().content {
            Some(Content::Receipt(receipt)) => {
                read += usize::from(receipt.kind == i32::from(Kind::Read));
                delivered += usize::from(receipt.kind == i32::from(Kind::Delivered));
            }
            Some(Content::Message(_)) => heard = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((read, delivered), (1, 1), "in either order");
}

#[tokio::test]
async fn who_unlinks_the_only_device_is_logged_out_and_can_register_again() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let device = ada.phone.device;
    ada.wire.send(9, Ask::UnlinkDevice(UnlinkDevice { device })).await.unwrap();
    let last = ada.wire.ended().await.unwrap();
    assert!(last.is_none_or(|code| code == Code::Unlinked), "{last:?}");
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = ada.phone.login_frame(&wire.welcome.nonce).unwrap();
    assert_eq!(wire.refused(login).await.unwrap(), Code::Unlinked);
    let mut again = Person::join(&node, "ada").await;
    again.still_served().await;
}

#[tokio::test]
async fn logout_is_answered_and_the_connection_ends_without_goaway() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    ada.wire.send(3, Ask::Logout(Logout {})).await.unwrap();
    let answer = ada.wire.expect(|frame| if frame.id == 3 { frame.kind.clone() } else { None });
    assert!(matches!(answer.await.unwrap(), Say::Done(_)));
    while let Some(frame) = ada.wire.read().await.unwrap() {
        assert!(!matches!(frame.kind, Some(Say::GoAway(_))), "{frame:?}");
    }
}

#[tokio::test]
async fn a_phone_number_may_be_written_as_people_write_it() {
    let node = node("").await;
    let ada = Person::join(&node, "+4915112345678").await;
    let mut bob = Person::join(&node, "bob").await;
    for spelling in
        ["+49 151 12345678", "+49-151-12345678", "+49 (151) 123.456.78", " +4915112345678 "]
    {
        let who = Some(lookup::Who::Alias(spelling.to_owned()));
        match bob.wire.ask(Ask::Lookup(Lookup { who })).await.unwrap() {
            Say::Found(found) => assert_eq!(found.user, ada.user(), "{spelling}"),
            other => panic!("{spelling}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn before_login_pings_are_answered_and_refusals_leave_the_connection_usable() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    wire.send(0, Ask::Ping(Ping {})).await.unwrap();
    wire.expect(|frame| matches!(frame.kind, Some(Say::Pong(_))).then_some(())).await.unwrap();
    let nobody = Ask::RegisterStart(RegisterStart { alias: "?".into() });
    assert_eq!(code(&wire.ask(nobody).await.unwrap()), Code::BadRequest);
    assert_eq!(wire.refused(Ask::GetAccount(GetAccount {})).await.unwrap(), Code::NotLoggedIn);
    let mut ada = ada;
    ada.phone.login_on(&mut wire).await.unwrap();
    let answer = wire.ask(Ask::GetAccount(GetAccount {})).await.unwrap();
    assert!(matches!(answer, Say::Account(_)), "{answer:?}");
}
