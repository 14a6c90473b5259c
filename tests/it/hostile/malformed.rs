//! Attacks by what is in a frame: fields out of their range, frames cut short, one small field
//! repeated until the frame is full, headers without end.

use super::{BOUNDS, siege};
use crate::people::{Person, node};
use bytes::BytesMut;
use proto::limits::UNANSWERED_MAX;
use proto::wire::{
    Ack, ClientFrame, GetAccount, MarkRead, Ping, Refused, ServerFrame, client_frame::Kind as Ask,
    server_frame::Kind as Say,
};
use proto::{Code, frame};
use tests::hostile::malformed::{out_of_range, out_of_range_before_login, swollen};
use tests::hostile::sockets::{Door, account, plain, source, tcp};
use tests::node::PATIENCE;
use tests::wire::tls_on;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

#[tokio::test]
async fn each_field_out_of_its_range_is_refused_by_code_and_the_connection_goes_on() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut eve = Person::join(&node, "eve").await;
    let mut odd = Vec::new();
    for malformed in out_of_range(ada.user()) {
        match eve.wire.ask(malformed.ask.clone()).await.unwrap() {
            Say::Refused(refused) if is_right(&refused, malformed.codes) => {}
            other => {
                odd.push(format!("{}: {other:?} to {:?}", malformed.what, short(&malformed.ask)));
            }
        }
    }
    eve.still_served().await;
    ada.still_served().await;
    assert!(odd.is_empty(), "{odd:#?}");
}

/// Whether a refusal has the code, and names the field if it is one of a field.
fn is_right(refused: &Refused, codes: &[Code]) -> bool {
    let code = Code::from_number(refused.code);
    let names_field = refused.text.starts_with("field `");
    codes.contains(&code) && names_field == (code == Code::BadRequest)
}

/// The beginning of what was asked.
fn short(ask: &Ask) -> String {
    format!("{ask:?}").chars().take(120).collect()
}

#[tokio::test]
async fn a_stranger_with_fields_out_of_range_is_refused_by_code() {
    let node = node("[limits]\nframes_before_login = 1000\nbytes_before_login = \"1MiB\"").await;
    let mut odd = Vec::new();
    for malformed in out_of_range_before_login() {
        let mut wire = plain(&node.target(), source(1)).await.unwrap();
        match wire.ask(malformed.ask.clone()).await.unwrap() {
            Say::Refused(refused) if is_right(&refused, malformed.codes) => {}
            other => {
                odd.push(format!("{}: {other:?} to {:?}", malformed.what, short(&malformed.ask)));
            }
        }
    }
    assert!(odd.is_empty(), "{odd:#?}");
}

#[tokio::test]
async fn a_frame_that_is_cut_short_at_any_byte_ends_its_connection_with_a_code() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    let target = node.target();
    let mut whole = BytesMut::new();
    let wire = plain(&target, source(2)).await.unwrap();
    let kind = Some(ada.phone.login_frame(&wire.welcome.nonce).unwrap());
    frame::encode(&ClientFrame { id: 9, kind }, &mut whole);
    let content = &whole[1..]; // after its length, which takes one byte
    assert_eq!(usize::from(whole[0]), content.len());
    for length in 1..content.len() {
        let mut bytes = vec![u8::try_from(length).unwrap()];
        bytes.extend_from_slice(&content[..length]);
        let mut wire = plain(&target, source(2)).await.unwrap();
        wire.send_bytes(&bytes).await.unwrap();
        // A whole field less is a frame, too: of another meaning, and answered.
        let heard = timeout(PATIENCE, wire.read()).await.unwrap().unwrap();
        let code = match heard.and_then(|frame| frame.kind) {
            Some(Say::Refused(refused)) => refused.code,
            Some(Say::GoAway(away)) => away.code,
            other => panic!("{length} of {}: {other:?}", content.len()),
        };
        let may = [Code::BadFrame, Code::BadCredentials, Code::NotSupported, Code::NotLoggedIn];
        assert!(may.contains(&Code::from_number(code)), "{length}: {code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_full_of_one_small_field_takes_no_more_than_its_length() {
    let mut siege = siege("").await;
    let target = siege.node.target();
    let mut accounts = Vec::new();
    for number in 0..3 {
        let alias = format!("swollen-{number}");
        accounts.push(account(&siege.node, source(number), &alias).await.unwrap());
    }
    let attack = async {
        for (what, content) in swollen() {
            // Before login the length alone is too much.
            let mut wire = plain(&target, source(100)).await?;
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(content.len() as u64, &mut bytes);
            bytes.extend_from_slice(&content);
            drop(wire.send_bytes(&bytes).await);
            let code = wire.ended().await?;
            // None: reset before it was read. NotLoggedIn: too many bytes, whatever they are.
            let may = [None, Some(Code::FrameTooLarge), Some(Code::NotLoggedIn)];
            anyhow::ensure!(may.contains(&code), "{what}: {code:?}");
            // After login many at once, on several connections.
            for (phone, wire) in &mut accounts {
                for _ in 0..UNANSWERED_MAX / 4 {
                    if wire.send_bytes(&bytes).await.is_err() {
                        break;
                    }
                }
                // All were read, or the connection has ended.
                if wire.send(0, Ask::Ping(Ping {})).await.is_ok() {
                    let pong = |frame: &ServerFrame| matches!(frame.kind, Some(Say::Pong(_)));
                    drop(wire.expect(|frame| pong(frame).then_some(())).await);
                }
                *wire = phone.login(&target).await?;
            }
        }
        Ok(())
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
}

#[tokio::test]
async fn the_headers_of_a_websocket_upgrade_are_bounded() {
    // Longer than this story waits: nothing but the length ends it.
    let node = node("[limits]\nhandshake_timeout = \"1m\"").await;
    let target = node.target();
    let begin = "GET / HTTP/1.1\r\nhost: localhost\r\n";
    for (header_bytes, is_too_much) in [(6 * 1024, false), (9 * 1024, true)] {
        let stream = tcp(source(3), Door::WebSocket.address(&target).unwrap()).await.unwrap();
        let mut stream = tls_on(&target, stream, &["http/1.1"]).await.unwrap();
        let header = format!("{begin}x-endless: {}\r\n", "e".repeat(header_bytes));
        stream.write_all(header.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        if !is_too_much {
            // It is whole now, and answered: it asks for no WebSocket.
            stream.write_all(b"\r\n").await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut answer = Vec::new();
        drop(timeout(PATIENCE / 2, stream.read_to_end(&mut answer)).await.unwrap());
        let is_answered = answer.starts_with(b"HTTP/1.1 400");
        assert_eq!(is_answered, !is_too_much, "{header_bytes} bytes: {answer:?}");
    }
    let mut ada = Person::join(&node, "ada").await;
    ada.still_served().await;
}

#[tokio::test]
async fn a_request_without_an_id_is_ignored_also_before_login() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    let mut wire = plain(&node.target(), source(4)).await.unwrap();
    let login = ada.phone.login_frame(&wire.welcome.nonce).unwrap();
    wire.send(0, login).await.unwrap();
    // Nobody is logged in: the next request is refused.
    assert_eq!(wire.refused(Ask::GetAccount(GetAccount {})).await.unwrap(), Code::NotLoggedIn);
    let mut ada = ada;
    ada.still_served().await;
}

#[tokio::test]
async fn the_largest_numbers_break_nothing() {
    const MAX: u64 = u64::MAX;
    let mut node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut bob = Person::join(&node, "bob").await;
    for id in [MAX - 1, MAX, MAX, 1, MAX - 3] {
        ada.say_as(id, bob.user(), &format!("as {id}")).await.unwrap();
    }
    let (from, from_device) = (ada.user(), ada.phone.device);
    for from_device in [from_device, u32::MAX] {
        let send_ids = vec![MAX, MAX, 0, 1];
        bob.done(Ask::MarkRead(MarkRead { from, from_device, send_ids })).await;
    }
    bob.wire.send(0, Ask::Ack(Ack { seq: MAX })).await.unwrap();
    bob.still_served().await;
    // A login that claims to have everything that will ever come.
    bob.phone.last = MAX;
    let mut wire = plain(&node.target(), source(5)).await.unwrap();
    bob.phone.login_on(&mut wire).await.unwrap();
    node.kill().unwrap();
    node.restart().await.unwrap();
    bob.phone.last = 0;
    let wire = bob.phone.login(&node.target()).await.unwrap();
    let mut bob = Person::new(bob.hang_up(), wire);
    ada.again(&node.target()).await;
    ada.say_as(2, bob.user(), "after all").await.unwrap();
    while bob.hear_text().await != "after all" {}
}
