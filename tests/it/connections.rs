//! Stories of connections: heartbeats, WebSocket, requests of the future, bodies too large.

use crate::people::{Person, ada_and_bob, message, node};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use proto::Code;
use proto::limits::BODY_BYTES_MAX;
use proto::wire::{
    ClientFrame, Pong, ServerFrame, client_frame::Kind as Ask, server_frame::Kind as Say,
};
use tests::node::Node;
use tests::wire::{Phone, tls};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, http::HeaderValue};

#[tokio::test]
async fn a_silent_client_is_asked_and_one_that_does_not_answer_is_let_go() {
    let node = node("[limits]\nheartbeat = \"300ms\"").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    // Bob's phone is not read, so it answers no Ping.
    let mut bob = bob;
    for _ in 0..10 {
        // Reading answers every Ping: Ada stays far longer than a silence may last.
        drop(tokio::time::timeout(std::time::Duration::from_millis(100), ada.wire.read()).await);
    }
    ada.still_served().await;
    let raw = node.target();
    let mut deaf = tests::wire::Wire::connect(&raw).await.unwrap();
    bob.phone.login_on(&mut deaf).await.unwrap();
    let code = deaf.ended_without_pong().await.unwrap();
    assert_eq!(code, Some(Code::TimedOut));
}

#[tokio::test]
async fn an_idle_client_is_asked_before_common_proxies_cut_its_connection() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    assert_eq!(ada.wire.welcome.heartbeat_s, 45);
}

#[tokio::test]
async fn clients_of_a_node_that_ends_are_told_to_come_back_one_after_the_other() {
    let node = node("").await;
    let mut people = Vec::new();
    for alias in ["ada", "bob", "cyx", "dan", "eve"] {
        people.push(Person::join(&node, alias).await);
    }
    node.signal(rustix::process::Signal::TERM).unwrap();
    let mut waits = std::collections::BTreeSet::new();
    for person in &mut people {
        let away = person.wire.expect(|frame| match &frame.kind {
            Some(Say::GoAway(away)) => Some(away.clone()),
            _ => None,
        });
        let away = away.await.unwrap();
        assert_eq!(away.code, Code::GoingAway.number());
        waits.insert(away.after_ms);
    }
    assert_eq!(waits, [0, 2, 4, 6, 8].into());
}

#[tokio::test]
async fn a_request_of_the_future_is_refused_and_other_frames_of_it_are_ignored() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    // Field 99, length-delimited, "new": once with the id 42, once without.
    ada.wire.send_bytes(b"\x08\x08\x2a\x9a\x06\x03new").await.unwrap();
    let refused = ada.wire.expect(|frame| if frame.id == 42 { frame.kind.clone() } else { None });
    assert_eq!(crate::people::code(&refused.await.unwrap()), Code::NotSupported);
    ada.wire.send_bytes(b"\x06\x9a\x06\x03new").await.unwrap();
    ada.still_served().await;
}

#[tokio::test]
async fn a_send_without_an_id_is_not_stored_for_it_could_not_be_answered_or_retried() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.wire.send(0, message(bob.user(), "nameless")).await.unwrap();
    ada.say(bob.user(), "named").await;
    assert_eq!(bob.hear_text().await, "named");
}

#[tokio::test]
async fn the_longest_body_fits_and_a_longer_one_is_refused() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let longest = "b".repeat(BODY_BYTES_MAX);
    ada.say(bob.user(), &longest).await;
    assert_eq!(bob.hear_text().await, longest);
    let longer = message(bob.user(), &"b".repeat(BODY_BYTES_MAX + 1));
    assert_eq!(ada.wire.refused(longer).await.unwrap(), Code::BodyTooLarge);
    ada.still_served().await;
}

/// A WebSocket to a node.
pub(crate) async fn websocket(node: &Node) -> WebSocketStream<TlsStream<TcpStream>> {
    let address = node.target().addresses().unwrap().websocket;
    let stream = tls(&node.target(), &address, &["http/1.1"]).await.unwrap();
    let mut request = format!("wss://localhost/{address}").into_client_request().unwrap();
    let protocol = HeaderValue::from_static("natter.v1");
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "natter.v1");
    socket
}

#[tokio::test]
async fn a_browser_speaks_the_same_frames_without_the_length() {
    let node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let bob: Phone = bob.hang_up();
    let mut socket = websocket(&node).await;
    let read = async |socket: &mut WebSocketStream<_>| loop {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            return <ServerFrame as prost::Message>::decode(bytes).unwrap().kind.unwrap();
        }
    };
    let frame = |id, kind| {
        let bytes = prost::Message::encode_to_vec(&ClientFrame { id, kind: Some(kind) });
        Message::Binary(BytesMut::from(&bytes[..]).freeze())
    };
    let Say::Welcome(welcome) = read(&mut socket).await else { panic!("no welcome") };
    let login = bob.login_frame(&welcome.nonce).unwrap();
    socket.send(frame(1, login)).await.unwrap();
    assert!(matches!(read(&mut socket).await, Say::LoggedIn(_)));
    ada.say(bob.user, "hello, browser").await;
    loop {
        if let Say::Deliver(deliver) = read(&mut socket).await {
            assert!(format!("{deliver:?}").contains("hello, browser"));
            break;
        }
    }
    socket.send(frame(2, message(ada.user(), "hello, phone"))).await.unwrap();
    assert_eq!(ada.hear_text().await, "hello, phone");
    socket.send(frame(0, Ask::Pong(Pong {}))).await.unwrap();
    socket.close(None).await.unwrap();
    let mut next = async || socket.next().await.expect("the node answers a goodbye").unwrap();
    while !matches!(next().await, Message::Close(_)) {}
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_for_ever_ends_its_connection() {
    let node = node("[limits]\nheartbeat = \"300ms\"").await;
    let mut ada = Person::join(&node, "ada").await;
    // A length of 262,143 and no more than a byte of it each time: never silent, never whole.
    ada.wire.send_bytes(&[0xff, 0xff, 0x0f]).await.unwrap();
    let patience = tokio::time::Instant::now() + tests::node::PATIENCE;
    let mut told = None;
    while told.is_none() && tokio::time::Instant::now() < patience {
        drop(ada.wire.send_bytes(&[0]).await);
        let wait = std::time::Duration::from_millis(50);
        if let Ok(read) = tokio::time::timeout(wait, ada.wire.read()).await {
            let frame = read.unwrap().expect("it is told why");
            if let Some(Say::GoAway(away)) = frame.kind {
                told = Some(Code::from_number(away.code));
            }
        }
    }
    assert_eq!(told, Some(Code::TimedOut));
}

#[tokio::test]
async fn bytes_that_are_no_frame_are_told_why() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    // A `Send` whose alias is no UTF-8.
    ada.wire.send_bytes(b"\x07\x08\x05\x12\x03\x12\x01\xff").await.unwrap();
    let away = ada.wire.expect(|frame| match &frame.kind {
        Some(Say::GoAway(away)) => Some(away.clone()),
        _ => None,
    });
    let away = away.await.unwrap();
    assert_eq!(away.code, Code::BadFrame.number());
    assert!(away.text.contains("Send.to") && away.text.contains("UTF-8"), "{away:?}");
}
