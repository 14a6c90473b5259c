//! Stories of a device that asks to be linked: its person types its code on another device.

use crate::clusters::{cluster, three, turn};
use crate::people::{Person, node};
use proto::wire::{
    LinkDevice, LinkRequested, RegisterStart, SetRegistrationLock, client_frame::Kind as Ask,
    server_frame::Kind as Say,
};
use proto::{Alias, Code};
use tests::cluster::Cables;
use tests::hostile::sockets::{plain, source};
use tests::node::{Node, PATIENCE, eventually};
use tests::wire::{Phone, Wire};

/// Asks on this connection that `tablet` be linked to `alias`'s account.
async fn asks(wire: &mut Wire, tablet: &Phone, alias: &str) -> Say {
    let alias = Alias::parse(alias).unwrap();
    let ask = tablet.link_frame(&wire.welcome.nonce, &alias).unwrap();
    wire.ask(Ask::RequestLink(ask.into())).await.unwrap()
}

/// The next request that somebody's device is told of.
async fn told(person: &mut Person) -> LinkRequested {
    let asked = person.wire.expect(|frame| match &frame.kind {
        Some(Say::LinkRequested(asked)) => Some(asked.clone()),
        _ => None,
    });
    asked.await.unwrap()
}

async fn links(person: &mut Person, asked: LinkRequested) {
    let LinkRequested { device_key, device_name } = asked;
    let answer = person.wire.ask(Ask::LinkDevice(LinkDevice { device_key, device_name })).await;
    assert!(matches!(answer.unwrap(), Say::Linked(_)));
}

/// A device asks `there`, its person has another one `here`.
async fn is_linked(here: &Node, there: &Node, alias: &str) {
    let mut ada = Person::join(here, alias).await;
    let mut tablet = Phone::new();
    let mut wire = Wire::connect(&there.target()).await.unwrap();
    // Another node hears of Ada's session in a moment; the tablet asks until then.
    let asked = eventually(PATIENCE, async || {
        let mut wire = Wire::connect(&there.target()).await?;
        assert!(matches!(asks(&mut wire, &tablet, alias).await, Say::Done(_)));
        let asked = tokio::time::timeout(std::time::Duration::from_secs(1), told(&mut ada));
        Ok(asked.await?)
    });
    let asked = asked.await.unwrap();
    assert_eq!(asked.device_key, tablet.public_key().unwrap());
    assert_eq!(asked.device_name, "test tablet");
    links(&mut ada, asked).await;
    match asks(&mut wire, &tablet, alias).await {
        Say::Registered(registered) => {
            assert_eq!(registered.user, ada.user());
            (tablet.user, tablet.device) = (registered.user, registered.device);
        }
        other => panic!("{other:?}"),
    }
    let mut tablet = Person::new(tablet, wire);
    tablet.still_served().await;
    tablet.wire = tablet.phone.login(&there.target()).await.unwrap();
    tablet.still_served().await;
    ada.still_served().await;
}

#[tokio::test]
async fn whoever_has_a_device_links_a_new_phone_though_thieves_use_up_all_tries_at_the_lock() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let (lock, current) = ("s3cret".into(), String::new());
    ada.done(Ask::SetRegistrationLock(SetRegistrationLock { lock, current })).await;
    let (thief, alias) = (Phone::new(), Alias::parse("ada").unwrap());
    let seen = node.output().len();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let Say::PinSent(sent) =
        wire.ask(Ask::RegisterStart(RegisterStart { alias: "ada".into() })).await.unwrap()
    else {
        panic!("no PIN")
    };
    let pin = node.pin("ada", seen).await.unwrap();
    let mut wrong = 0;
    for number in 0..6 {
        let mut wire = plain(&node.target(), source(number)).await.unwrap();
        for guess in 0..5 {
            let proof = (pin.clone(), sent.token.clone());
            let mut proof = thief.proof(&wire.welcome.nonce, &alias, proof).unwrap();
            proof.lock = format!("guess {guess}");
            let code = wire.refused(Ask::RegisterProve(proof.into())).await.unwrap();
            wrong += u32::from(code == Code::WrongLock);
        }
    }
    assert_eq!(wrong, 20, "of all addresses in a day");
    let phone = Phone::new();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    assert!(matches!(asks(&mut wire, &phone, "ada").await, Say::Done(_)));
    let asked = told(&mut ada).await;
    links(&mut ada, asked).await;
    assert!(matches!(asks(&mut wire, &phone, "ada").await, Say::Registered(_)));
}

#[tokio::test]
async fn a_device_that_asks_is_let_in_once_another_has_linked_its_key() {
    let node = node("").await;
    is_linked(&node, &node, "ada").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_two_devices_may_be_on_two_nodes() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    is_linked(&cluster.nodes()[0], &cluster.nodes()[1], "ada").await;
}

#[tokio::test]
async fn who_asks_learns_nothing_and_proves_the_key() {
    let node = node("").await;
    let ada = Person::join(&node, "ada").await;
    let tablet = Phone::new();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    assert!(matches!(asks(&mut wire, &tablet, "nobody").await, Say::Done(_)));
    let away = ada.hang_up();
    assert!(matches!(asks(&mut wire, &tablet, "ada").await, Say::Done(_)));
    // Ada's key is linked, and whoever names it without proving it does not get in.
    let alias = Alias::parse("ada").unwrap();
    let mut forged = tablet.link_frame(&wire.welcome.nonce, &alias).unwrap();
    forged.device_key = away.public_key().unwrap();
    let refused = wire.refused(Ask::RequestLink(forged.into())).await.unwrap();
    assert_eq!(refused, Code::BadCredentials);
    let mut elsewhere = tablet.link_frame(&wire.welcome.nonce, &alias).unwrap();
    elsewhere.alias = "nobody".into();
    let refused = wire.refused(Ask::RequestLink(elsewhere.into())).await.unwrap();
    assert_eq!(refused, Code::BadCredentials, "the signature names the account");
    for (key, name, alias) in [
        (vec![1; 5], "tablet", "ada"),
        (tablet.public_key().unwrap().to_vec(), "\u{202e}tablet", "ada"),
        (tablet.public_key().unwrap().to_vec(), "tablet", "?"),
    ] {
        let mut ask =
            tablet.link_frame(&wire.welcome.nonce, &Alias::parse("ada").unwrap()).unwrap();
        (ask.device_key, ask.device_name, ask.alias) = (key.into(), name.into(), alias.into());
        let refused = wire.refused(Ask::RequestLink(ask.into())).await.unwrap();
        assert_eq!(refused, Code::BadRequest, "{name:?} {alias:?}");
    }
}

#[tokio::test]
async fn a_flood_of_requests_reaches_no_devices_and_ends_for_its_address() {
    let node = node("[rates]\nlinks = \"5/1h\"\nlinks_per_address = \"20/1h\"\n").await;
    let mut ada = Person::join(&node, "ada").await;
    let (mut asked, mut refused) = (0, 0);
    for _ in 0..3 {
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        for _ in 0..10 {
            match asks(&mut wire, &Phone::new(), "ada").await {
                Say::Done(_) => asked += 1,
                other => {
                    assert_eq!(crate::people::code(&other), Code::TooFast);
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((asked, refused), (20, 10), "of one address");
    for _ in 0..5 {
        told(&mut ada).await;
    }
    ada.still_served().await;
    let more = tokio::time::timeout(std::time::Duration::from_millis(300), told(&mut ada)).await;
    assert!(more.is_err(), "a device was told of more than the rate allows");
}
