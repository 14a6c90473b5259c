//! Promise 10: nobody gets in, and whatever strangers send, the node answers with codes, stays up,
//! and its memory comes back.

use crate::people::{Person, ada_and_bob, message, node};
use proto::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_LOGIN};
use proto::wire::{
    Ack, GetAccount, Login, RegisterProve, Resume, client_frame::Kind as Ask,
    server_frame::Kind as Say,
};
use proto::{Alias, Code};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::net::{Ipv4Addr, SocketAddr};
use tests::node::{Node, PATIENCE, eventually, until};
use tests::wire::{Phone, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A length prefix.
fn prefix(length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(length as u64, &mut bytes);
    bytes
}

#[tokio::test]
async fn promise_10_random_bytes_are_answered_with_a_code_and_the_node_stays_up() {
    let mut node = node("[limits]\nlogin_timeout = \"1s\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut rng = StdRng::seed_from_u64(10);
    for round in 0..200 {
        let mut bytes = vec![0; rng.random_range(1..3000)];
        rng.fill(&mut bytes[..]);
        let mut wire = Wire::plain(&node.target()).await.unwrap();
        drop(wire.send_bytes(&bytes).await); // it may have been thrown out already
        let code = wire.ended().await.unwrap();
        let known = [
            Code::BadFrame,
            Code::FrameTooLarge,
            Code::TimedOut,
            Code::NotLoggedIn,
            Code::NotSupported,
        ];
        assert!(code.is_none_or(|code| known.contains(&code)), "round {round}: {code:?}");
    }
    for _ in 0..50 {
        let mut bytes = vec![0; 2000];
        rng.fill(&mut bytes[..]);
        let address = node.target().addresses().unwrap().client;
        let mut stream = TcpStream::connect(address).await.unwrap();
        drop(stream.write_all(&bytes).await); // no TLS at all
        drop(stream.read_to_end(&mut Vec::new()).await);
    }
    assert!(node.runs());
    ada.say(bob.user(), "still here").await;
    assert_eq!(bob.hear_text().await, "still here");
}

#[tokio::test]
async fn promise_10_random_bytes_after_login_end_that_connection_alone() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..50 {
        let mut bytes = vec![0; rng.random_range(20..3000)];
        rng.fill(&mut bytes[..]);
        bytes[0] |= 0x80; // a long frame, so that the end is not waited for
        bytes[1] |= 0x80;
        bytes[2] |= 0x80;
        bytes[3] |= 0x80; // and a prefix that is too long
        ada.wire.send_bytes(&bytes).await.unwrap();
        assert_eq!(ada.wire.ended().await.unwrap(), Some(Code::BadFrame));
        ada.again(&node.target()).await;
    }
    bob.still_served().await;
}

#[tokio::test]
async fn promise_10_an_oversized_frame_is_refused_by_its_length_alone() {
    let node = node("").await;
    let mut stranger = Wire::connect(&node.target()).await.unwrap();
    stranger.send_bytes(&prefix(FRAME_BYTES_MAX_BEFORE_LOGIN + 1)).await.unwrap();
    assert_eq!(stranger.ended().await.unwrap(), Some(Code::FrameTooLarge));

    let mut ada = Person::join(&node, "ada").await;
    ada.wire.send_bytes(&prefix(FRAME_BYTES_MAX + 1)).await.unwrap();
    assert_eq!(ada.wire.ended().await.unwrap(), Some(Code::FrameTooLarge));
}

#[tokio::test]
async fn promise_10_half_a_frame_and_then_silence_is_timed_out() {
    let node = node("[limits]\nlogin_timeout = \"500ms\"").await;
    let mut silent = Wire::connect(&node.target()).await.unwrap();
    let mut half = Wire::connect(&node.target()).await.unwrap();
    half.send_bytes(&prefix(100)).await.unwrap();
    half.send_bytes(b"half").await.unwrap();
    assert_eq!(half.ended().await.unwrap(), Some(Code::TimedOut));
    assert_eq!(silent.ended().await.unwrap(), Some(Code::TimedOut));
}

#[tokio::test]
async fn promise_10_nothing_is_done_before_a_login() {
    let node = node("").await;
    let (ada, _bob) = ada_and_bob(&node).await;
    let mut stranger = Wire::connect(&node.target()).await.unwrap();
    for ask in [message(ada.user(), "spam"), Ask::GetAccount(GetAccount {})] {
        assert_eq!(stranger.refused(ask).await.unwrap(), Code::NotLoggedIn);
    }
    stranger.send(0, Ask::Ack(Ack { seq: 1 })).await.unwrap();
    let many = async {
        for _ in 0..100 {
            stranger.ask(Ask::GetAccount(GetAccount {})).await?;
        }
        anyhow::Ok(())
    };
    assert!(many.await.is_err(), "a stranger may ask for ever");
}

#[tokio::test]
async fn promise_10_a_wrong_signature_and_an_unknown_device_are_told_apart_by_nobody() {
    let node = node("").await;
    let (ada, bob) = ada_and_bob(&node).await;
    let target = node.target();
    let mut wire = Wire::connect(&target).await.unwrap();
    let Ask::Login(good) = ada.phone.login_frame(&wire.welcome.nonce).unwrap() else { panic!() };
    let mut broken = good.signature.to_vec();
    broken[7] ^= 1;
    for wrong in [
        Login { signature: broken.into(), ..good.clone() },
        Login { signature: bytes::Bytes::default(), ..good.clone() },
        Login { user: bob.user(), ..good.clone() },
        Login { device: 9, ..good.clone() },
        Login { user: 4711, ..good.clone() },
        Login { user: 0, device: 0, ..good.clone() },
    ] {
        assert_eq!(wire.refused(Ask::Login(wrong)).await.unwrap(), Code::BadCredentials);
    }
}

#[tokio::test]
async fn promise_10_a_login_that_was_overheard_is_worth_nothing_on_another_connection() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    let target = node.target();
    let mut first = Wire::connect(&target).await.unwrap();
    let overheard = ada.phone.login_frame(&first.welcome.nonce).unwrap();
    assert!(matches!(first.ask(overheard.clone()).await.unwrap(), Say::LoggedIn(_)));
    let mut second = Wire::connect(&target).await.unwrap();
    assert_ne!(first.welcome.nonce, second.welcome.nonce);
    assert_eq!(second.refused(overheard).await.unwrap(), Code::BadCredentials);
}

#[tokio::test]
async fn promise_10_a_ticket_opens_once_and_a_forged_one_never() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let target = node.target();
    let used = ada.phone.ticket.clone();
    let (_wire, resumed) = ada.phone.resume(&target).await.unwrap();
    assert!(resumed);
    let mut forged = ada.phone.ticket.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for ticket in [used, forged.into(), vec![0; 48].into(), vec![].into()] {
        let mut wire = Wire::connect(&target).await.unwrap();
        let resume = Ask::Resume(Resume { ticket, acknowledged: 0, away: false });
        assert_eq!(wire.refused(resume).await.unwrap(), Code::BadTicket);
        // The way out of it, on the same connection.
        let mut phone = Phone::new();
        std::mem::swap(&mut phone, &mut ada.phone);
        phone.login_on(&mut wire).await.unwrap();
        ada = Person::new(phone, wire);
        ada.still_served().await;
    }
}

#[tokio::test]
async fn promise_10_a_pin_opens_once_for_its_alias_and_is_not_guessed() {
    let node = node("").await;
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let (mallory, seen) = (Phone::new(), node.output().len());
    let alias = Alias::parse("ada").unwrap();
    let start = proto::wire::RegisterStart { alias: "ada".into() };
    let answer = wire.ask(Ask::RegisterStart(start)).await.unwrap();
    let Say::PinSent(sent) = answer else { panic!("{answer:?}") };
    let pin = node.pin("ada", seen).await.unwrap();
    let nonce = wire.welcome.nonce.clone();
    let prove = |alias: &Alias, pin: &str| {
        mallory.proof(&nonce, alias, (pin.into(), sent.token.clone())).unwrap()
    };

    let other = prove(&Alias::parse("bob").unwrap(), &pin);
    assert_eq!(wire.refused(Ask::RegisterProve(other.into())).await.unwrap(), Code::NoPin);
    let unsigned = RegisterProve { signature: vec![0; 64].into(), ..prove(&alias, &pin) };
    assert_eq!(
        wire.refused(Ask::RegisterProve(unsigned.into())).await.unwrap(),
        Code::BadCredentials
    );
    let guesses = (0..6).map(|number| format!("{number:06}")).filter(|guess| *guess != pin);
    for guess in guesses.take(5) {
        let proof = prove(&alias, &guess);
        let answer = wire.refused(Ask::RegisterProve(proof.into())).await.unwrap();
        assert_eq!(answer, Code::WrongPin, "{guess}");
    }
    let late = wire.refused(Ask::RegisterProve(prove(&alias, &pin).into())).await.unwrap();
    assert_eq!(late, Code::NoPin, "after five guesses the PIN is void");
}

/// One silent connection from an address of its own, so that limits for an address stay out of it.
async fn silent(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

async fn served_within_patience(node: &Node, ada: &mut Person) {
    let target = node.target();
    let resumed = eventually(PATIENCE, async || ada.phone.resume(&target).await).await;
    (ada.wire, _) = resumed.unwrap();
    ada.still_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_10_a_hundred_thousand_silent_connections_cost_nothing_that_stays() {
    const BATCHES: u8 = 100;
    const EACH: usize = 1000;
    let mut node = node("[limits]\nlogin_timeout = \"500ms\"").await;
    let mut ada = Person::join(&node, "ada").await;
    let addresses = node.target().addresses().unwrap();
    let doors = [addresses.client, addresses.plain, addresses.websocket];
    let mut after_first_kib = 0;
    for batch in 0..BATCHES {
        let to: SocketAddr = doors[usize::from(batch) % doors.len()].parse().unwrap();
        let from = Ipv4Addr::new(127, 0, 1 + batch, 1);
        let mut open = Vec::with_capacity(EACH);
        for _ in 0..EACH {
            open.push(silent(to, from).await.unwrap());
        }
        for mut stream in open {
            // Each is ended by the node; one that is not fails the story by its deadline.
            let rest = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
            drop(rest.expect("a silent connection is ended"));
        }
        if batch == 9 {
            after_first_kib = node.memory_kib().unwrap();
        }
    }
    assert!(node.runs());
    served_within_patience(&node, &mut ada).await;
    let back = until("memory to come back", PATIENCE, || {
        Ok((node.memory_kib()? < after_first_kib + 16 * 1024).then_some(()))
    });
    back.await.unwrap();
}
