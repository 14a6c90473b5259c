//! Floods of each request: every one has a rate, and honest people are served meanwhile.

use super::{BOUNDS, siege};
use crate::people::{Person, ada_and_bob, code, node};
use anyhow::{Context as _, ensure};
use proto::Code;
use proto::wire::{
    Ack, Block, GetAccount, LinkDevice, Lookup, MarkRead, Pong, Privacy, SetContact, SetPresence,
    SetPrivacy, Subscribe, UnlinkDevice, client_frame::Kind as Ask, lookup,
    server_frame::Kind as Say,
};
use tests::hostile::floods::flood;
use tests::hostile::sockets::{account, source};

/// Requests of one kind in a flood: more than any person makes in an hour.
const FLOOD: usize = 3_000;

type Make = fn(u64, u64) -> Ask;

/// Each request that costs the node something, made from a number and a user who is there.
const KINDS: &[(&str, Make)] = &[
    ("lookup of numbers", |number, _| {
        let alias = format!("+4915{:09}", 100_000_000 + number);
        Ask::Lookup(Lookup { who: Some(lookup::Who::Alias(alias)) })
    }),
    ("lookup of users", |number, user| {
        Ask::Lookup(Lookup { who: Some(lookup::Who::User(user ^ number)) })
    }),
    ("subscribe", |number, user| Ask::Subscribe(Subscribe { user, unsubscribe: number % 2 == 1 })),
    ("set presence", |number, _| Ask::SetPresence(SetPresence { away: number % 2 == 0 })),
    ("set privacy", |_, _| Ask::SetPrivacy(SetPrivacy { privacy: Some(Privacy::default()) })),
    ("get account", |_, _| Ask::GetAccount(GetAccount {})),
    ("mark read", |number, from| {
        Ask::MarkRead(MarkRead { from, from_device: 1, send_ids: vec![number + 1] })
    }),
    ("set contact", |number, user| Ask::SetContact(SetContact { user, remove: number % 2 == 1 })),
    ("block", |number, user| Ask::Block(Block { user, unblock: number % 2 == 1 })),
    ("link device", |number, _| {
        let device_key = vec![0x55; 32].into();
        Ask::LinkDevice(LinkDevice { device_key, device_name: format!("{number}") })
    }),
    ("unlink device", |_, _| Ask::UnlinkDevice(UnlinkDevice { device: 77 })),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_any_request_is_refused_as_too_fast() {
    let mut siege = siege("[rates]\n").await;
    let (other, _wire) = account(&siege.node, source(1000), "other").await.unwrap();
    let mut attackers = Vec::new();
    for (number, (what, make)) in (0..).zip(KINDS) {
        let alias = format!("flood-{number}");
        let (_, wire) = account(&siege.node, source(number), &alias).await.unwrap();
        attackers.push((*what, *make, wire));
    }
    let attack = async {
        let mut free = Vec::new();
        for (what, make, wire) in &mut attackers {
            let tally = flood(wire, 1, FLOOD, |number| make(number, other.user)).await?;
            if !tally.stopped_by(&[Code::TooFast]) || tally.granted > FLOOD / 2 {
                free.push(format!("{what}: {tally:?}"));
            }
        }
        ensure!(free.is_empty(), "without a rate: {free:#?}");
        Ok(())
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
}

/// Changes of mind of one person: more than anybody is told of in a minute.
const STORM: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_presence_reaches_subscribers_as_a_trickle() {
    let siege = siege("[rates]\n").await;
    let mut watchers = Vec::new();
    let (eve, mut storm) = account(&siege.node, source(1), "eve").await.unwrap();
    for number in 0..10 {
        let mut watcher = Person::join(&siege.node, &format!("watcher-{number}")).await;
        let contact = SetContact { user: watcher.user(), remove: false };
        assert!(matches!(storm.ask(Ask::SetContact(contact)).await.unwrap(), Say::Done(_)));
        watcher.done(Ask::Subscribe(Subscribe { user: eve.user, unsubscribe: false })).await;
        let there = watcher.wire.expect(|frame| match &frame.kind {
            Some(Say::Presence(presence)) => Some(presence.online),
            _ => None,
        });
        assert!(there.await.unwrap(), "who storms is seen");
        watchers.push(watcher);
    }
    // Changes at once are told as one; so each waits until all have seen the one before.
    let storming = |number| Ask::SetPresence(SetPresence { away: number % 2 == 0 });
    let mut changes = 0;
    let refused = loop {
        match storm.ask(storming(changes)).await.unwrap() {
            Say::Done(_) => {}
            other => break other,
        }
        for watcher in &mut watchers {
            let seen = watcher.wire.expect(|frame| match &frame.kind {
                Some(Say::Presence(presence)) => {
                    (presence.online == (changes % 2 == 1)).then_some(())
                }
                _ => None,
            });
            seen.await.unwrap();
        }
        changes += 1;
        assert!(changes < STORM, "each of {changes} changes reached every subscriber");
    };
    assert_eq!(code(&refused), Code::TooFast);
    flood(&mut storm, STORM, 1000, storming).await.unwrap();
    for watcher in &mut watchers {
        // All that came until an answer that was asked for after the storm.
        watcher.still_served().await;
        let mut frames = 0;
        while let Ok(next) =
            tokio::time::timeout(std::time::Duration::from_millis(20), watcher.wire.next()).await
        {
            frames += usize::from(matches!(next.unwrap().1, Say::Presence(_)));
        }
        assert!(frames < 100, "{frames} frames of presence from a thousand changes");
    }
    siege.lift(BOUNDS).await.unwrap();
}

/// Frames that ask for nothing and say nothing new. They have no id.
const NEEDLESS: &[(&str, Ask)] = &[
    ("Ack of nothing", Ask::Ack(Ack { seq: 1 })),
    ("Ack of what never was", Ask::Ack(Ack { seq: u64::MAX })),
    ("Pong", Ask::Pong(Pong {})),
];

/// Somewhat more of them than pass in a minute.
const TOO_MANY: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_acks_and_pongs_that_say_nothing_ends_its_connection_as_too_fast() {
    let mut siege = siege("[rates]\n").await;
    let target = siege.node.target();
    let mut attackers = Vec::new();
    for (number, (what, frame)) in (0..).zip(NEEDLESS) {
        let alias = format!("needless-{number}");
        let (phone, wire) = account(&siege.node, source(number), &alias).await.unwrap();
        attackers.push((*what, frame.clone(), phone, wire));
    }
    let attack = async {
        for (what, frame, phone, wire) in &mut attackers {
            for _ in 0..TOO_MANY {
                wire.send(0, frame.clone()).await.ok();
            }
            let away = wire.expect(|said| match &said.kind {
                Some(Say::GoAway(away)) => Some(away.clone()),
                _ => None,
            });
            let away = away.await.with_context(|| format!("{what}: not ended"))?;
            ensure!(away.code == Code::TooFast.number() && away.after_ms > 0, "{what}: {away:?}");
            // Who comes back finds the same bucket, and is cut off however much is written.
            let mut again = phone.login(&target).await?;
            while again.send(0, frame.clone()).await.is_ok() {}
        }
        Ok(())
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acknowledges_each_message_alone_is_not_too_fast() {
    let node = node("[rates]\n").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for number in 0..2 * TOO_MANY {
        ada.say(bob.user(), &number.to_string()).await;
        assert_eq!(bob.hear_text().await, number.to_string());
        bob.ack().await;
    }
    bob.still_served().await;
}
