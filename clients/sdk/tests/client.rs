//! The SDK's promises, against a node that misbehaves on purpose.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    reason = "a test that is surprised has failed"
)]

#[path = "client/failover.rs"]
mod failover;
mod node;

use natter_sdk::{
    Alias, Client, ClientOptions, Code, DeviceKey, DisconnectReason, Event, FileStore, MemoryStore,
    Proof, SendError, Status, Tls, UserId, register_prove, register_start,
};
use node::{Conn, NONCE, Node, USER, identity, next, options, start};
use proto::{
    DeviceId, signed,
    wire::{self, client_frame::Kind as Ask, server_frame::Kind},
};
use std::time::Duration;

const BOB: UserId = UserId(5);

fn message(event: Event) -> Option<(u64, String)> {
    match event {
        Event::Message(m) => Some((m.ack.seq().0, String::from_utf8(m.body.to_vec()).unwrap())),
        _ => None,
    }
}

fn verify(public: &[u8], message: &[u8], signature: &[u8]) {
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public);
    key.verify(message, signature).expect("the signature proves the key");
}

#[tokio::test]
async fn registration_and_login_over_tls_prove_the_device_key() {
    let (node, ca) = Node::tls().await;
    let mut options = ClientOptions::tls(node.address(), Tls::from_ca_pem(ca.as_bytes()).unwrap());
    options.server_name = Some("localhost".into());
    let alias = Alias::parse("Ada@Example.org").unwrap();
    let key = DeviceKey::generate().unwrap();

    let person = async {
        let sent = register_start(&options, &alias).await.unwrap();
        assert_eq!((sent.expires, sent.digits), (Duration::from_mins(10), 6));
        let token = sent.token.clone();
        let proof = |pin| Proof { pin, token: &token, lock: "" };
        let wrong = register_prove(&options, &alias, proof("000000"), key.clone(), "laptop").await;
        assert_eq!(wrong.unwrap_err().code(), Some(Code::WrongPin));
        register_prove(&options, &alias, proof("123456"), key.clone(), "laptop").await.unwrap()
    };
    let server = async {
        let mut conn = node.accept().await;
        let (id, ask) = conn.hear().await;
        assert!(matches!(ask, Ask::RegisterStart(start) if start.alias == "ada@example.org"));
        let token = bytes::Bytes::from_static(b"token");
        conn.say(id, Kind::PinSent(wire::PinSent { expires_s: 600, digits: 6, token })).await;
        let mut conn = node.accept().await;
        let (id, _) = conn.hear().await;
        conn.refuse(id, Code::WrongPin, 0).await;
        let mut conn = node.accept().await;
        let (id, ask) = conn.hear().await;
        let Ask::RegisterProve(prove) = ask else { panic!("expected proof, got {ask:?}") };
        assert_eq!(prove.token.as_ref(), b"token", "the token comes back with the PIN");
        verify(&prove.device_key, &signed::register(&NONCE, &alias), &prove.signature);
        let ticket = bytes::Bytes::new();
        let registered = wire::Registered { user: USER, device: 1, ticket, acknowledged: 0 };
        conn.say(id, Kind::Registered(registered)).await;
    };
    let (identity, ()) = tokio::join!(person, server);
    assert_eq!((identity.user, identity.device), (UserId(USER), DeviceId(1)));

    let (client, _events) = Client::login(options, identity, MemoryStore::new()).unwrap();
    let mut conn = node.accept().await;
    let (id, ask) = conn.hear().await;
    let Ask::Login(login) = ask else { panic!("expected a login, got {ask:?}") };
    let signed = signed::login(&NONCE, UserId(USER), DeviceId(1));
    verify(key.public(), &signed, &login.signature);
    conn.logged_in(id, 0).await;
    client.ready().await.unwrap();
}

#[tokio::test]
async fn a_node_with_another_certificate_is_not_trusted() {
    let (node, _) = Node::tls().await;
    let (_, other_ca) = Node::tls().await;
    let mut options =
        ClientOptions::tls(node.address(), Tls::from_ca_pem(other_ca.as_bytes()).unwrap());
    options.server_name = Some("localhost".into());
    let (_client, mut events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let server = async {
        let accepted = tokio::spawn(async move { node.accept().await });
        assert!(accepted.await.is_err(), "the handshake fails");
    };
    let person = next(&mut events, |event| match event {
        Event::Disconnected { reason: DisconnectReason::Failed(_) } => Some(()),
        _ => None,
    });
    tokio::join!(person, server);
}

#[tokio::test]
async fn unanswered_sends_are_sent_again_in_order_with_the_same_ids() {
    let node = Node::plain().await;
    let (client, _events) = start(&node, MemoryStore::starting_at(1));
    let mut conn = node.accept_login().await;
    let handles: Vec<_> = (0..100).map(|n| client.send(BOB, format!("{n}")).unwrap()).collect();
    let ids: Vec<u64> = handles.iter().map(|handle| handle.id().0).collect();
    assert_eq!(ids, (1..=100).collect::<Vec<u64>>(), "ids are small and grow by one");
    let before: Vec<String> = conn.hear_bodies(64).await;
    assert_eq!(before[63], "63");
    conn.accept_send(1).await;
    assert_eq!(conn.hear_send().await.0, 65, "one answer opens the window by one");
    drop(conn);

    let mut conn = node.accept_login().await;
    let mut got = Vec::new();
    while got.len() < 99 {
        let (id, body) = conn.hear_send().await;
        assert_eq!(body, (id - 1).to_string().into_bytes());
        got.push(id);
        conn.accept_send(id).await;
        conn.accept_send(id).await; // An answer twice harms nothing.
    }
    assert_eq!(got, (2..=100).collect::<Vec<u64>>());
    for handle in handles {
        let id = handle.id().0;
        assert_eq!(handle.await.unwrap().at_ms, 1000 + id);
    }
    assert_eq!(client.waiting(), 0);
}

#[tokio::test]
async fn a_refused_conversation_waits_and_keeps_its_order() {
    let node = Node::plain().await;
    let (client, _events) = start(&node, MemoryStore::starting_at(1));
    let mut conn = node.accept_login().await;
    let first = client.send(BOB, "1").unwrap();
    let second = client.send(BOB, "2").unwrap();
    let other = client.send(UserId(6), "3").unwrap();
    assert_eq!(conn.hear_bodies(3).await, ["1", "2", "3"]);
    conn.refuse(1, Code::TooFast, 50).await;
    conn.refuse(2, Code::TooFast, 50).await;
    conn.accept_send(3).await;
    other.await.unwrap();
    assert_eq!(conn.hear_bodies(2).await, ["1", "2"]);
    conn.accept_send(1).await;
    conn.refuse(2, Code::Blocked, 0).await;
    first.await.unwrap();
    let refused = second.await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Blocked));
}

#[tokio::test]
async fn a_bad_ticket_falls_back_to_the_key_on_the_same_connection() {
    let node = Node::plain().await;
    let (client, mut events) = start(&node, MemoryStore::new());
    drop(node.accept_login().await);
    let mut conn = node.accept().await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Resume(resume) if resume.ticket[..] == b"ticket"[..]));
    conn.refuse(id, Code::BadTicket, 0).await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Login(_)), "{ask:?}");
    conn.logged_in(id, 0).await;
    next(&mut events, |e| matches!(e, Event::Disconnected { .. }).then_some(())).await;
    next(&mut events, |e| matches!(e, Event::Connected).then_some(())).await;
    assert_eq!(client.status(), Status::Online);
}

#[tokio::test]
async fn an_entry_is_seen_once_and_acknowledged_when_the_application_says_so() {
    let node = Node::plain().await;
    let (_client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    for seq in 1..=3 {
        conn.deliver(seq, None).await;
    }
    let second = next(&mut events, |e| message(e).filter(|m| m.0 == 2)).await;
    assert_eq!(second.1, "m2");
    let third = next(&mut events, |e| matches!(e, Event::Message(_)).then_some(e)).await;
    drop(conn);

    let mut conn = node.accept().await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Resume(resume) if resume.acknowledged == 0), "nothing was");
    conn.logged_in(id, 0).await;
    for seq in 1..=4 {
        conn.deliver(seq, None).await;
    }
    assert_eq!(next(&mut events, message).await.0, 4, "1 to 3 were seen before");
    third.ack();
    assert_eq!(conn.hear_ack().await, 3);
}

#[tokio::test]
async fn a_hole_ends_the_connection_and_the_next_resumes_before_it() {
    let node = Node::plain().await;
    let (_client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    conn.deliver(1, None).await;
    conn.deliver(4, Some(1)).await;
    conn.deliver(6, None).await;
    assert_eq!(next(&mut events, message).await.0, 1);
    assert_eq!(next(&mut events, message).await.0, 4, "2 and 3 were not meant for it");
    let hole = next(&mut events, |e| match e {
        Event::Disconnected { reason: DisconnectReason::Hole { seq } } => Some(seq.0),
        _ => None,
    });
    assert_eq!(hole.await, 6);
    let mut conn = node.accept_login().await;
    conn.deliver(5, Some(4)).await;
    assert_eq!(conn.try_hear().await.map(|(id, _)| id), None, "4 was never sent here: a hole");
    let mut conn = node.accept_login().await;
    for (seq, after) in [(1, 0), (4, 1), (5, 4), (6, 5)] {
        conn.deliver(seq, Some(after)).await;
    }
    assert_eq!(next(&mut events, message).await.0, 5);
    assert_eq!(next(&mut events, message).await.0, 6);
}

#[tokio::test]
async fn automatic_acknowledgement_is_coalesced_and_trails_the_application() {
    let node = Node::plain().await;
    let mut options = options(&node);
    options.auto_ack = true;
    let (_client, mut events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let mut conn = node.accept_login().await;
    for seq in 1..=200 {
        conn.deliver(seq, None).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.push(next(&mut events, message).await.0);
    }
    assert_eq!(seen, (1..=200).collect::<Vec<u64>>());
    let mut acks = vec![conn.hear_ack().await];
    while *acks.last().unwrap() < 199 {
        acks.push(conn.hear_ack().await);
    }
    assert_eq!(acks.last(), Some(&199), "200 is acknowledged when the next one is asked for");
    assert!(acks.len() <= 50, "{} acknowledgements for 200 entries", acks.len());
}

#[tokio::test]
async fn unsent_messages_and_the_acknowledged_place_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::plain().await;
    let (client, mut events) = start(&node, FileStore::open(dir.path()).unwrap());
    let mut conn = node.accept_login().await;
    conn.deliver(1, None).await;
    next(&mut events, |e| matches!(e, Event::Message(_)).then_some(e)).await.ack();
    assert_eq!(conn.hear_ack().await, 1);
    drop(client.send(BOB, "one").unwrap());
    drop(client.send(BOB, "two").unwrap());
    let (one, _) = conn.hear_send().await;
    client.close().await;
    drop((client, events, conn));

    let (client, mut events) = start(&node, FileStore::open(dir.path()).unwrap());
    let mut conn = node.accept().await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Resume(resume) if resume.acknowledged == 1));
    conn.logged_in(id, 1).await;
    assert_eq!(conn.hear_send().await, (one, b"one".to_vec()), "with the same id");
    let (two, _) = conn.hear_send().await;
    assert_eq!(client.send(BOB, "three").unwrap().id().0, two + 1, "no id is used twice");
    conn.accept_send(two).await;
    let answered = next(&mut events, |e| match e {
        Event::Answered { send_id, result: Ok(_) } => Some(send_id.0),
        _ => None,
    });
    assert_eq!(answered.await, two, "nobody holds its handle: the answer is an event");
}

#[tokio::test]
async fn the_end_of_a_session_is_final() {
    let node = Node::plain().await;
    let (client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    let handle = client.send(BOB, "hello").unwrap();
    conn.hear_send().await;
    conn.refuse(0, Code::Replaced, 0).await;
    let code = next(&mut events, |e| match e {
        Event::Ended { code } => Some(code),
        _ => None,
    });
    assert_eq!(code.await, Code::Replaced);
    assert!(events.next().await.is_none());
    assert!(matches!(handle.await, Err(SendError::Ended(Code::Replaced))));
    assert!(matches!(client.send(BOB, "more"), Err(SendError::Ended(Code::Replaced))));
    let asked = client.account().await.unwrap_err();
    assert_eq!(asked.code(), Some(Code::Replaced));
}

#[tokio::test]
async fn requests_are_repeated_after_a_reconnect_and_refusals_are_typed() {
    let node = Node::plain().await;
    let (client, _events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    let asking = client.lookup(Alias::parse("bob").unwrap());
    let server = async {
        assert!(matches!(conn.hear().await.1, Ask::Lookup(_)));
        drop(conn);
        let mut conn = node.accept_login().await;
        let (id, ask) = conn.hear().await;
        assert!(matches!(ask, Ask::Lookup(_)));
        conn.say(id, Kind::Found(wire::Found { user: 5, devices: vec![] })).await;
        conn
    };
    let (found, mut conn) = tokio::join!(asking, server);
    assert_eq!(found.unwrap().user, BOB);

    let linking = client.link_device(&[1; 32], "phone");
    let server = async {
        let (id, _) = conn.hear().await;
        conn.refuse(id, Code::TooMany, 0).await;
        conn
    };
    let (refused, conn) = tokio::join!(linking, server);
    assert_eq!(refused.unwrap_err().code(), Some(Code::TooMany));
    drop::<Conn>(conn);
}

#[tokio::test]
async fn subscriptions_are_renewed_after_a_reconnect() {
    let node = Node::plain().await;
    let (client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    let server = async {
        let (id, _) = conn.hear().await;
        conn.say(id, Kind::Done(wire::Done {})).await;
    };
    let (done, ()) = tokio::join!(client.subscribe(BOB), server);
    done.unwrap();
    drop(conn);
    let mut conn = node.accept_login().await;
    assert!(matches!(conn.hear().await.1, Ask::Subscribe(wanted) if wanted.user == BOB.0));
    let presence = wire::Presence { user: BOB.0, online: true, last_seen_ms: 0 };
    conn.say(0, Kind::Presence(presence)).await;
    next(&mut events, |e| matches!(e, Event::Presence(p) if p.online).then_some(())).await;
}

#[tokio::test]
async fn a_silent_node_is_asked_and_then_left() {
    let mut node = Node::plain().await;
    node.heartbeat_s = 1;
    let (_client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    conn.say(0, Kind::Ping(wire::Ping {})).await;
    assert!(matches!(conn.hear().await, (0, Ask::Pong(_))));
    assert!(matches!(conn.hear().await, (0, Ask::Ping(_))), "silence is questioned");
    assert!(conn.try_hear().await.is_none(), "and then ended");
    let silent = |e| match e {
        Event::Disconnected { reason: DisconnectReason::Silent } => Some(()),
        _ => None,
    };
    next(&mut events, silent).await;
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection_and_not_the_client() {
    let node = Node::plain().await;
    let (client, mut events) = start(&node, MemoryStore::new());
    let mut conn = node.accept_login().await;
    conn.say_bytes(&[0xff; 64]).await;
    next(&mut events, |e| matches!(e, Event::Disconnected { .. }).then_some(())).await;
    let _conn = node.accept_login().await;
    client.ready().await.unwrap();
}

#[tokio::test]
async fn an_application_that_takes_no_events_stops_its_own_socket_and_loses_nothing() {
    let node = Node::plain().await;
    let mut options = options(&node);
    options.events_max = 8;
    let (client, mut events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let mut conn = node.accept_login().await;
    for seq in 1..=120 {
        conn.deliver(seq, None).await;
    }
    client.send(BOB, "still writing").unwrap();
    assert_eq!(conn.hear_bodies(1).await, ["still writing"]);
    for seq in 1..=120 {
        assert_eq!(next(&mut events, message).await.0, seq);
    }
}

#[tokio::test]
async fn a_full_outbox_refuses_instead_of_growing() {
    let node = Node::plain().await;
    let mut options = options(&node);
    options.outbox_max = 3;
    let (client, _events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    for _ in 0..3 {
        client.send(BOB, "x").unwrap();
    }
    assert!(matches!(client.send(BOB, "x"), Err(SendError::QueueFull { waiting: 3 })));
    let body = vec![0; proto::limits::BODY_BYTES_MAX + 1];
    assert!(matches!(client.send(BOB, body), Err(SendError::TooLarge { .. })));
}

#[tokio::test]
async fn a_client_without_a_node_closes_also_after_many_requests_were_given_up() {
    let mut options = ClientOptions::plain("127.0.0.1:9"); // nobody listens on the discard port
    options.request_timeout = Duration::from_millis(50);
    let (client, _events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let asked: Vec<_> = (0..80)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.lookup(BOB).await.is_err() })
        })
        .collect();
    for asked in asked {
        assert!(asked.await.unwrap(), "nobody can have answered");
    }
    tokio::time::timeout(Duration::from_secs(5), client.close()).await.expect("it closes");
}
