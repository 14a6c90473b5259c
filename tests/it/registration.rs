//! Stories of registration: nobody is kept out by others, and nobody gets what was another's.

use crate::clusters::{cluster, three, turn};
use crate::operators::page;
use crate::people::{Person, ada_and_bob, message_by_alias, node};
use bytes::Bytes;
use proto::wire::{
    DeleteAccount, LinkDevice, RegisterStart, SetRegistrationLock, UnlinkDevice,
    client_frame::Kind as Ask, deliver::Content, device_notice::Kind as NoticeKind, receipt::Kind,
    server_frame::Kind as Say,
};
use proto::{Alias, Code};
use std::time::Duration;
use tests::cluster::Cables;
use tests::hostile::sockets::{plain, source};
use tests::node::{Node, PATIENCE, eventually};
use tests::wire::{Phone, Wire};
use tests::workload::link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Settings without the ones that stories are usually told with.
async fn node_by_default(more: &str) -> Node {
    Node::start(crate::people::PROGRAM, more).await.unwrap()
}

fn start(alias: &str) -> Ask {
    Ask::RegisterStart(RegisterStart { alias: alias.into() })
}

/// Asks for a PIN on a connection of its own; the token.
async fn asked(node: &Node, alias: &str) -> Bytes {
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    match wire.ask(start(alias)).await.unwrap() {
        Say::PinSent(sent) => sent.token,
        other => panic!("no PIN: {other:?}"),
    }
}

/// Proves a PIN on a connection of its own.
async fn prove(node: &Node, alias: &str, pin: &str, token: &Bytes) -> Say {
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let alias = Alias::parse(alias).unwrap();
    let nonce = wire.welcome.nonce.clone();
    let proof = Phone::new().proof(&nonce, &alias, (pin.to_owned(), token.clone())).unwrap();
    wire.ask(Ask::RegisterProve(proof.into())).await.unwrap()
}

/// So many PINs of six digits that are not this one.
fn guesses(pin: &str, count: usize) -> Vec<String> {
    let all = (0..1_000_000).map(|number| format!("{number:06}"));
    all.filter(|guess| guess != pin).take(count).collect()
}

fn refusal(answer: &Say) -> Option<Code> {
    match answer {
        Say::Refused(refused) => Some(Code::from_number(refused.code)),
        _ => None,
    }
}

#[tokio::test]
async fn strangers_who_ask_and_guess_keep_nobody_from_registering() {
    let node = node_by_default("").await;
    let seen = node.output().len();
    let owner = asked(&node, "ada").await;
    let pin = node.pin("ada", seen).await.unwrap();
    let strangers = [asked(&node, "ada").await, asked(&node, "ada").await];
    for token in &strangers {
        let guesses = guesses(&pin, 6);
        for guess in &guesses[..5] {
            let answer = prove(&node, "ada", guess, token).await;
            assert_eq!(refusal(&answer), Some(Code::WrongPin));
        }
        assert_eq!(refusal(&prove(&node, "ada", &guesses[5], token).await), Some(Code::NoPin));
        let again = prove(&node, "ada", &guesses[4], token).await;
        assert_eq!(refusal(&again), Some(Code::WrongPin), "what was said of it before");
    }
    let answer = prove(&node, "ada", &pin, &owner).await;
    assert!(matches!(answer, Say::Registered(_)), "{answer:?}");
}

#[tokio::test]
async fn who_asks_after_strangers_have_used_up_the_hours_pins_proves_the_last_one() {
    let node = node_by_default("").await;
    let mut seen = node.output().len();
    for _ in 0..5 {
        seen = node.output().len();
        asked(&node, "ada").await;
        node.pin("ada", seen).await.unwrap();
    }
    let owner = asked(&node, "ada").await;
    let last = node.pin("ada", seen).await.unwrap();
    let answer = prove(&node, "ada", &last, &owner).await;
    assert!(matches!(answer, Say::Registered(_)), "{answer:?}");
}

#[tokio::test]
async fn an_owner_whose_pins_strangers_spent_and_made_worthless_is_sent_a_long_one_at_once() {
    let node = node_by_default("").await;
    let mut seen = node.output().len();
    asked(&node, "ada").await;
    let short = node.pin("ada", seen).await.unwrap();
    for _ in 0..4 {
        let token = asked(&node, "ada").await;
        for guess in guesses(&short, 5) {
            let answer = prove(&node, "ada", &guess, &token).await;
            assert_eq!(refusal(&answer), Some(Code::WrongPin));
        }
    }
    seen = node.output().len();
    let owner = asked(&node, "ada").await;
    let long = node.pin("ada", seen).await.unwrap();
    assert_eq!(long.len(), 10, "only long PINs count by now");
    let answer = prove(&node, "ada", &long, &owner).await;
    assert!(matches!(answer, Say::Registered(_)), "{answer:?}");
}

#[tokio::test]
async fn pins_of_the_whole_cluster_are_bounded_and_the_operator_is_told() {
    // One PIN an hour for each of the 16 parts.
    let settings = "[registration]\npins_per_hour = 16\nrequests_per_address_per_hour = 1000\n";
    let node = node_by_default(settings).await;
    let (mut sent, mut refused) = (Vec::new(), 0);
    for number in 0..100 {
        let alias = format!("person-{number}");
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        match wire.ask(start(&alias)).await.unwrap() {
            Say::PinSent(_) => sent.push(alias),
            other => {
                assert_eq!(refusal(&other), Some(Code::PinNotSent));
                refused += 1;
            }
        }
    }
    assert_eq!((sent.len(), refused), (16, 84));
    // Who was sent one can ask again.
    asked(&node, &sent[0]).await;
    let metrics = page(&node, "/metrics").await;
    assert!(metrics.contains("natter_pins_used_up_total 84"), "{metrics}");
    assert!(node.errors().contains("registration.pins_per_hour is used up"), "{}", node.errors());
}

/// The code of a refusal and how long it says to wait, in minutes.
fn wait(answer: &Say) -> Option<(Code, u32)> {
    match answer {
        Say::Refused(no) => Some((Code::from_number(no.code), no.retry_after_ms.div_ceil(60_000))),
        _ => None,
    }
}

#[tokio::test]
async fn a_registration_that_has_to_wait_says_for_how_long() {
    let node =
        node_by_default("[registration]\npin_ttl = \"1m\"\nrequests_per_alias_per_hour = 1\n")
            .await;
    let (seen, token) = (node.output().len(), asked(&node, "ada").await);
    let pin = node.pin("ada", seen).await.unwrap();
    assert!(matches!(prove(&node, "ada", &pin, &token).await, Say::Registered(_)));
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let told = wait(&wire.ask(start("ada")).await.unwrap());
    assert_eq!(told, Some((Code::TooFast, 60)), "the next PIN of this alias");
    for number in 0.. {
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        let answer = wire.ask(start(&format!("person-{number}"))).await.unwrap();
        if let Some(told) = wait(&answer) {
            assert_eq!((told, number), ((Code::TooFast, 60), 28), "the hour of this address");
            break;
        }
    }
}

#[tokio::test]
async fn whoever_guesses_a_registration_lock_keeps_the_owners_new_phone_out_no_longer() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let (lock, current) = ("s3cret".to_owned(), String::new());
    let set = Ask::SetRegistrationLock(SetRegistrationLock { lock, current });
    for _ in 0..3 {
        ada.done(set.clone()).await; // As after an answer that was lost.
    }
    let (seen, token) = (node.output().len(), asked(&node, "ada").await);
    let pin = node.pin("ada", seen).await.unwrap();
    let alias = Alias::parse("ada").unwrap();
    // Whoever reads the PIN proves it; here both are the same phone, at two addresses.
    let phone = Phone::new();
    let prove = |nonce: &[u8], lock: String| {
        let mut proof = phone.proof(nonce, &alias, (pin.clone(), token.clone())).unwrap();
        proof.lock = lock;
        Ask::RegisterProve(proof.into())
    };
    let mut thief = plain(&node.target(), source(6)).await.unwrap();
    let nonce = thief.welcome.nonce.clone();
    for guess in 0..5 {
        let answer = thief.ask(prove(&nonce, format!("guess {guess}"))).await.unwrap();
        assert_eq!(refusal(&answer), Some(Code::WrongLock));
    }
    let answer = thief.ask(prove(&nonce, "s3cret".into())).await.unwrap();
    assert_eq!(wait(&answer), Some((Code::TooFast, 24 * 60 / 5)), "and tells nothing");
    let mut owner = plain(&node.target(), source(1)).await.unwrap();
    let nonce = owner.welcome.nonce.clone();
    match owner.ask(prove(&nonce, "s3cret".into())).await.unwrap() {
        Say::Registered(registered) => assert_eq!(registered.user, ada.user()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_alias_does_not_count_for_the_address() {
    let node = node_by_default("").await;
    for _ in 0..40 {
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        assert_eq!(wire.refused(start("?")).await.unwrap(), Code::BadRequest);
    }
    asked(&node, "ada").await;
}

/// A gateway that answers 500 to so many requests, then 200.
#[allow(clippy::disallowed_methods, reason = "a test waits for what it needs of it")]
async fn gateway(failures: usize) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            while stream.read(&mut request).await.is_ok_and(|read| read == request.len()) {}
            let status = if number < failures { "500 Down" } else { "200 OK" };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            drop(stream.write_all(answer.as_bytes()).await);
        }
    };
    (port, tokio::spawn(serve))
}

#[tokio::test]
async fn a_pin_that_the_gateway_did_not_take_does_not_count() {
    // Each PIN is tried three times.
    let (port, gateway) = gateway(3 * 7).await;
    let settings = format!(
        "[registration]\nsender = \"webhook\"\nrequests_per_address_per_hour = 5\n\
         requests_per_alias_per_hour = 5\n[registration.webhook]\n\
         url = \"http://127.0.0.1:{port}/\"\nsecret = \"0123456789abcdef0123\"\n"
    );
    let node = node_by_default(&settings).await;
    for _ in 0..7 {
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        assert_eq!(wire.refused(start("ada")).await.unwrap(), Code::PinNotSent);
    }
    asked(&node, "ada").await;
    gateway.abort();
}

#[tokio::test]
async fn who_asked_for_a_pin_keeps_a_place_no_longer_than_a_login_takes() {
    let limits = "[limits]\nlogin_timeout = \"1s\"\nframes_before_login = 1000";
    let node = node(limits).await;
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let mut often = tokio::time::interval(Duration::from_millis(200));
    let mut sent = 0;
    // Each further PIN would hold the place for another second.
    while matches!(wire.ask(start(&format!("person-{sent}"))).await, Ok(Say::PinSent(_))) {
        sent += 1;
        assert!(sent < 50, "who asks again and again keeps a place for ever");
        often.tick().await;
    }
    assert!(sent > 1);
    assert_eq!(wire.ended().await.unwrap(), Some(Code::TimedOut));
}

#[tokio::test]
async fn a_key_of_small_order_is_no_device_key() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut identity = vec![0; 32];
    identity[0] = 1;
    let device_key: Bytes = identity.into();
    let link = LinkDevice { device_key: device_key.clone(), device_name: "weak".into() };
    assert_eq!(ada.wire.refused(Ask::LinkDevice(link)).await.unwrap(), Code::BadRequest);
    let seen = node.output().len();
    let token = asked(&node, "eve").await;
    let pin = node.pin("eve", seen).await.unwrap();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let (eve, nonce) = (Alias::parse("eve").unwrap(), wire.welcome.nonce.clone());
    let mut proof = Phone::new().proof(&nonce, &eve, (pin, token)).unwrap();
    proof.device_key = device_key;
    assert_eq!(wire.refused(Ask::RegisterProve(proof.into())).await.unwrap(), Code::BadRequest);
}

/// A device that is being unlinked links others as fast as it can. A third device hears of each in the
/// order of the log: of none after the thief is out.
async fn evicts_a_flooding_thief(node: &Node, alias: &str) {
    let mut ada = Person::join(node, alias).await;
    let mut tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    let wire = tablet.login(&node.target()).await.unwrap();
    let mut tablet = Person::new(tablet, wire);
    let mut thief = link(&mut ada.wire, &ada.phone).await.unwrap();
    let mut wire = thief.login(&node.target()).await.unwrap();
    for id in 100..160 {
        let device_key = Phone::new().public_key().unwrap();
        let link = LinkDevice { device_key, device_name: "mine".into() };
        wire.send(id, Ask::LinkDevice(link)).await.unwrap();
        if id == 130 {
            let unlink = Ask::UnlinkDevice(UnlinkDevice { device: thief.device });
            ada.wire.send(7, unlink).await.unwrap();
        }
    }
    wire.ended().await.unwrap();
    // Nothing that the thief has sent comes after this.
    let fence = ada.say(ada.user(), "the end").await;
    let mut is_out = false;
    loop {
        match tablet.entry().await.unwrap().content {
            Some(Content::DeviceNotice(notice)) if notice.kind() == NoticeKind::Unlinked => {
                assert_eq!(notice.device, thief.device);
                is_out = true;
            }
            Some(Content::DeviceNotice(notice)) if notice.by_device == thief.device => {
                assert!(!is_out, "the thief linked device {} after it was out", notice.device);
            }
            Some(Content::Message(message)) if message.send_id == fence => break,
            _ => {}
        }
    }
    assert!(is_out);
}

#[tokio::test]
async fn a_device_that_is_unlinked_links_no_other_however_it_floods() {
    let node = node("").await;
    for round in 0..5 {
        evicts_a_flooding_thief(&node, &format!("ada-{round}")).await;
    }
}

#[tokio::test]
async fn registering_again_with_the_same_key_unlinks_all_others() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut thief = link(&mut ada.wire, &ada.phone).await.unwrap();
    let mut thiefs = thief.login(&node.target()).await.unwrap();
    let (user, device) = (ada.phone.user, ada.phone.device);
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    ada.phone.register_on(&node, &mut wire, "ada").await.unwrap();
    assert_eq!((ada.phone.user, ada.phone.device), (user, device));
    assert_eq!(thiefs.ended().await.unwrap(), Some(Code::Unlinked));
    ada.wire = wire;
    ada.still_served().await;
}

#[tokio::test]
async fn who_takes_an_alias_over_gets_nothing_of_the_old_owners() {
    let node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let old = bob.hang_up();
    let id = ada.say(old.user, "for the old owner").await;
    let mut new = Person::join(&node, "bob").await;
    assert_ne!(new.user(), old.user);
    ada.told(Kind::Undeliverable, id).await;
    match ada.wire.ask(message_by_alias("bob", "for the new one")).await.unwrap() {
        Say::Accepted(accepted) => assert_eq!(accepted.user, new.user()),
        other => panic!("{other:?}"),
    }
    assert_eq!(new.hear_text().await, "for the new one");
}

#[tokio::test]
async fn the_registration_lock_keeps_the_account_and_survives_a_kill() {
    let mut node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let lock = |lock: &str, current: &str| {
        let (lock, current) = (lock.into(), current.into());
        Ask::SetRegistrationLock(SetRegistrationLock { lock, current })
    };
    assert_eq!(ada.wire.refused(lock("abc", "")).await.unwrap(), Code::BadRequest);
    ada.done(lock("s3cret", "")).await;
    assert_eq!(ada.wire.refused(lock("mine", "wrong")).await.unwrap(), Code::WrongLock);
    let files = node.files_with(b"s3cret").unwrap();
    assert!(files.is_empty(), "the lock is stored as a digest: {files:?}");
    node.kill().unwrap();
    node.restart().await.unwrap();

    let seen = node.output().len();
    let token = asked(&node, "ada").await;
    let pin = node.pin("ada", seen).await.unwrap();
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let (alias, nonce) = (Alias::parse("ada").unwrap(), wire.welcome.nonce.clone());
    let phone = Phone::new();
    for (lock, answer) in [("", Code::WrongLock), ("guess", Code::WrongLock)] {
        let mut proof = phone.proof(&nonce, &alias, (pin.clone(), token.clone())).unwrap();
        proof.lock = lock.into();
        assert_eq!(
            wire.refused(Ask::RegisterProve(proof.into())).await.unwrap(),
            answer,
            "{lock:?}"
        );
    }
    let mut proof = phone.proof(&nonce, &alias, (pin, token)).unwrap();
    proof.lock = "s3cret".into();
    match wire.ask(Ask::RegisterProve(proof.into())).await.unwrap() {
        Say::Registered(registered) => assert_eq!(registered.user, ada.user()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_device_that_was_unlinked_while_it_was_away_is_told_so_if_it_proves_its_key() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    ada.done(Ask::UnlinkDevice(UnlinkDevice { device: tablet.device })).await;
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let login = tablet.login_frame(&wire.welcome.nonce).unwrap();
    assert_eq!(wire.refused(login.clone()).await.unwrap(), Code::Unlinked);
    let Ask::Login(mut forged) = login else { panic!() };
    forged.signature = vec![7; 64].into();
    assert_eq!(wire.refused(Ask::Login(forged)).await.unwrap(), Code::BadCredentials);
}

/// Deletes an account and registers its alias at once, many times: the alias always has an owner. The
/// PIN is there before, so that nothing but the cluster is between the two.
async fn deletes_and_registers(nodes: &[Node], rounds: usize) {
    for round in 0..rounds {
        let (alias, here) = (format!("ada-{round}"), &nodes[round % nodes.len()]);
        let there = &nodes[(round + 1) % nodes.len()];
        let mut old = Person::join(here, &alias).await;
        let seen = there.output().len();
        let token = asked(there, &alias).await;
        let pin = there.pin(&alias, seen).await.unwrap();
        let (phone, name) = (Phone::new(), Alias::parse(&alias).unwrap());
        let mut first = Some(Wire::connect(&there.target()).await.unwrap());
        let concurrent = round % 2 == 0;
        old.wire.send(7, Ask::DeleteAccount(DeleteAccount {})).await.unwrap();
        if !concurrent {
            old.wire.ended().await.unwrap();
        }
        let registered = eventually(PATIENCE, async || {
            let mut wire = match first.take() {
                Some(wire) => wire,
                None => Wire::connect(&there.target()).await?,
            };
            let proof = (pin.clone(), token.clone());
            let proof = phone.proof(&wire.welcome.nonce, &name, proof)?;
            match wire.ask(Ask::RegisterProve(proof.into())).await? {
                Say::Registered(registered) => anyhow::Ok((registered, wire)),
                other => anyhow::bail!("{other:?}"),
            }
        });
        let (registered, wire) = registered.await.unwrap();
        let mut new = Person::new(phone, wire);
        new.phone.user = registered.user;
        let mut asker = Person::join(here, &format!("asker-{round}")).await;
        let sent = eventually(PATIENCE, async || {
            match asker.wire.ask(message_by_alias(&alias, "hello")).await? {
                Say::Accepted(accepted) => anyhow::Ok(accepted.user),
                other => anyhow::bail!("{other:?}"),
            }
        });
        assert_eq!(sent.await.unwrap(), new.user(), "round {round}");
        assert_eq!(new.hear_text().await, "hello");
    }
}

#[tokio::test]
async fn registering_right_after_or_during_a_deletion_ends_well() {
    let nodes = [node("").await];
    deletes_and_registers(&nodes, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_right_after_or_during_a_deletion_ends_well_in_a_cluster() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    tokio::time::timeout(Duration::from_mins(3), deletes_and_registers(cluster.nodes(), 12))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_other_devices_are_told_of_one_that_is_linked() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    let mut wire = tablet.login(&node.target()).await.unwrap();
    let watch = link(&mut wire, &tablet).await.unwrap();
    match ada.entry().await.unwrap().content {
        Some(Content::DeviceNotice(notice)) => {
            let told = (notice.kind(), notice.device, notice.by_device);
            assert_eq!(told, (NoticeKind::Linked, watch.device, tablet.device));
        }
        other => panic!("{other:?}"),
    }
}
