//! Attacks on registration: aliases that are locked for their owners, PINs that are voided or
//! guessed, tables that are filled.

use super::{BOUNDS, siege};
use crate::people::Person;
use anyhow::{Result, ensure};
use bytes::Bytes;
use proto::wire::{RegisterStart, client_frame::Kind as Ask, server_frame::Kind as Say};
use proto::{Alias, Code};
use tests::hostile::sockets::{plain, source};
use tests::node::{Node, PATIENCE, eventually};
use tests::wire::{Phone, Wire};

/// Defaults of registration, as a node has them that is used by the public.
async fn public_node() -> Node {
    Node::start(crate::people::PROGRAM, "").await.unwrap()
}

async fn start(wire: &mut Wire, alias: &str) -> Result<Say> {
    wire.ask(Ask::RegisterStart(RegisterStart { alias: alias.into() })).await
}

/// The token of a PIN that was sent; one that nobody made if none was.
fn token_of(answer: &Say) -> Bytes {
    match answer {
        Say::PinSent(sent) => sent.token.clone(),
        _ => Bytes::from_static(&[7; 40]),
    }
}

#[tokio::test]
async fn others_who_ask_for_pins_do_not_keep_the_owner_from_registering() {
    let node = public_node().await;
    let target = node.target();
    // Eight strangers, each from a place of its own, ask for a PIN of ada's alias and guess.
    for number in 0..8 {
        let mut eve = plain(&target, source(number)).await.unwrap();
        let token = token_of(&start(&mut eve, "ada").await.unwrap());
        let nonce = eve.welcome.nonce.clone();
        let alias = Alias::parse("ada").unwrap();
        for guess in 0..6 {
            let guess = (format!("00000{guess}"), token.clone());
            let prove = Phone::new().proof(&nonce, &alias, guess).unwrap();
            drop(eve.ask(Ask::RegisterProve(prove.into())).await.unwrap());
        }
    }
    // Whoever asks now, the owner holds the PIN that was sent last.
    let mut ada = Wire::connect(&target).await.unwrap();
    let answer = start(&mut ada, "ada").await.unwrap();
    assert!(matches!(answer, Say::PinSent(_)), "the owner is locked out: {answer:?}");
    let pin = node.pin("ada", 0).await.unwrap();
    let alias = Alias::parse("ada").unwrap();
    let prove = Phone::new().proof(&ada.welcome.nonce, &alias, (pin, token_of(&answer))).unwrap();
    let answer = ada.ask(Ask::RegisterProve(prove.into())).await.unwrap();
    assert!(matches!(answer, Say::Registered(_)), "{answer:?}");
}

#[tokio::test]
async fn a_pin_that_was_sent_stays_good_whoever_asks_for_another() {
    let node = public_node().await;
    let target = node.target();
    let alias = Alias::parse("ada").unwrap();
    let mut ada = Wire::connect(&target).await.unwrap();
    let seen = node.output().len();
    let token = token_of(&start(&mut ada, "ada").await.unwrap());
    let pin = node.pin("ada", seen).await.unwrap();
    let mut eve = plain(&target, source(1)).await.unwrap();
    let hers = token_of(&start(&mut eve, "ada").await.unwrap());
    for guess in 0..10 {
        let guess = (format!("9{guess:05}"), hers.clone());
        let prove = Phone::new().proof(&eve.welcome.nonce, &alias, guess);
        drop(eve.ask(Ask::RegisterProve(prove.unwrap().into())).await.unwrap());
    }
    let prove = Phone::new().proof(&ada.welcome.nonce, &alias, (pin, token)).unwrap();
    let answer = ada.ask(Ask::RegisterProve(prove.into())).await.unwrap();
    assert!(matches!(answer, Say::Registered(_)), "{answer:?}");
}

#[tokio::test]
async fn malformed_aliases_do_not_lock_an_address() {
    let node = public_node().await;
    for _ in 0..5 {
        let mut wire = plain(&node.target(), [127, 0, 0, 1].into()).await.unwrap();
        for _ in 0..12 {
            let answer = start(&mut wire, "no alias at all").await.unwrap();
            assert_eq!(crate::people::code(&answer), Code::BadRequest);
        }
    }
    Phone::register(&node, "ada").await.expect("an address is locked by malformed aliases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_registrations_is_refused_and_newcomers_get_in() {
    let mut siege = siege("").await;
    // From here on the limits of a public node hold.
    let node = public_node().await;
    let attack = async {
        let (mut sent, mut refused) = (0, 0);
        for number in 0..60 {
            let mut eve = plain(&node.target(), source(number % 6)).await?;
            for alias in 0..12 {
                match start(&mut eve, &format!("squat-{number}-{alias}")).await? {
                    Say::PinSent(_) => sent += 1,
                    Say::Refused(refusal) => {
                        let code = Code::from_number(refusal.code);
                        ensure!(code == Code::TooFast, "{code:?}");
                        refused += 1;
                    }
                    other => anyhow::bail!("{other:?}"),
                }
            }
        }
        ensure!(refused > sent, "{sent} PINs were sent, {refused} requests refused");
        eventually(PATIENCE, async || Phone::register(&node, "newcomer").await.map(drop)).await
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
    let mut ada = Person::join(&node, "ada").await;
    ada.still_served().await;
}
