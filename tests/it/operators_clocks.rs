//! Stories of clocks that are wrong.

use crate::clusters::{cluster, three, turn};
use crate::operators::page;
use crate::people::{PROGRAM, Person, applied, settings};
use anyhow::{Result, ensure};
use proto::Code;
use proto::wire::{
    Send, client_frame::Kind as Ask, deliver::Content, receipt::Kind as Told, send::To,
    server_frame::Kind as Say,
};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use tests::cluster::{Cables, Cluster, admin};
use tests::node::{Node, eventually};
use tests::under_test::CLOCK_FILE;
use tests::wire::Phone;

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(1);

const MONTH_MS: i64 = 31 * 24 * 3_600_000;

/// People who are away; so many that most shards have one.
const AWAY: usize = 12;

/// Long enough to leave memory for the tables before it ends.
const SHORT_S: u32 = 8;

/// Sends and waits for one tick, until a leader is there.
async fn send(from: &mut Person, to: u64, body: &str, ttl_s: u32) -> u64 {
    let id = from.fresh_id();
    let asked = eventually(PATIENCE, async || {
        let to = Some(To::User(to));
        let send = Send { to, body: body.to_owned().into(), ttl_s };
        match from.wire.ask_as(id, Ask::Send(send)).await? {
            Say::Accepted(_) => Ok(()),
            // A clock that is set back empties the buckets of rates.
            Say::Refused(refused)
                if [Code::Unavailable, Code::TooFast].map(Code::number).contains(&refused.code) =>
            {
                anyhow::bail!("not now: {refused:?}")
            }
            other => panic!("{other:?}"),
        }
    });
    asked.await.unwrap();
    id
}

/// Waits until all of `ids` have ended; nothing else may.
async fn all_end(person: &mut Person, mut ids: BTreeSet<u64>) {
    while !ids.is_empty() {
        let entry = tokio::time::timeout(PATIENCE, person.entry()).await;
        let Some(Content::Receipt(receipt)) = entry.unwrap().unwrap().content else { continue };
        if receipt.kind == i32::from(Told::Expired) {
            for id in receipt.send_ids {
                assert!(ids.remove(&id), "send {id} has ended though it had a month to live");
            }
        }
        person.ack().await;
    }
}

/// Each of them gets what was sent first.
async fn all_hear(away: Vec<Phone>, cluster: &Cluster, node: usize) {
    for mut phone in away {
        let (wire, _) = phone.resume(&cluster.target(node)).await.unwrap();
        assert_eq!(Person::new(phone, wire).hear_text().await, "for a month");
    }
}

async fn shows(cluster: &Cluster, node: usize, path: &str, part: &str) -> Result<()> {
    let shown = page(&cluster.nodes()[node], path).await;
    ensure!(shown.contains(part), "{path} lacks {part:?}: {shown}");
    Ok(())
}

async fn leads(cluster: &Cluster, node: usize) -> Result<usize> {
    Ok(cluster.status(node).await?.leads())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_a_month_on_one_node_of_three_ends_nothing_and_leads_nothing() {
    let _turn = turn().await;
    let cluster = cluster(three(Cables::Loopback)).await;
    let mut ada = Person::join(&cluster.nodes()[0], "ada").await;
    let mut away = Vec::new();
    for number in 0..AWAY {
        let phone = Person::join(&cluster.nodes()[2], &format!("away{number}")).await.hang_up();
        send(&mut ada, phone.user, "for a month", 30 * 24 * 3_600).await;
        away.push(phone);
    }
    eventually(PATIENCE, async || {
        ensure!(leads(&cluster, 1).await? > 0, "node 1 leads nothing, so this proves nothing");
        Ok(())
    })
    .await
    .unwrap();

    cluster.set_clock(1, MONTH_MS).unwrap();
    eventually(PATIENCE, async || {
        shows(&cluster, 1, "/readyz", "its clock is 31 days ahead").await?;
        shows(&cluster, 1, "/metrics", "natter_clock_offset_seconds 26784").await?;
        ensure!(leads(&cluster, 1).await? == 0, "it leads with a wrong clock");
        let own = cluster.nodes()[1].target();
        let status = admin(PROGRAM.as_ref(), own.data_dir(), &["cluster", "status"]).await?;
        ensure!(status.contains("\"clock\":\"astray\""), "{status}");
        Ok(())
    })
    .await
    .unwrap();
    // What ends by right still does, in the same shards, from memory and from the tables.
    let mut short = BTreeSet::new();
    for phone in &away {
        short.insert(send(&mut ada, phone.user, "for seconds", SHORT_S).await);
    }
    all_end(&mut ada, short).await;

    cluster.set_clock(1, 0).unwrap();
    eventually(PATIENCE, async || {
        shows(&cluster, 1, "/readyz", "200 OK").await?;
        ensure!(leads(&cluster, 1).await? > 0, "it leads nothing though its clock is right");
        Ok(())
    })
    .await
    .unwrap();
    let log = cluster.nodes()[1].errors();
    for said in ["this node's clock is wrong", "this node's clock is right again"] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    all_hear(away, &cluster, 1).await;
}

/// Waits until the shard of a user, who is away, has looked `times` times for what is over: it does so
/// whenever it makes a checkpoint, and oftener.
async fn chores(node: &Node, from: &mut Person, user: u64, times: usize) {
    for _ in 0..times {
        let before = applied(node, user).await;
        send(from, user, "something to store", 30 * 24 * 3_600).await;
        eventually(PATIENCE, async || {
            ensure!(applied(node, user).await >= before + 2, "no checkpoint");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_node_alone_whose_clock_jumps_ends_nothing_by_it_and_knows_its_retries() {
    let mut node =
        Node::prepare(PROGRAM, &settings("[storage]\ncheckpoint_every = \"2s\"")).unwrap();
    let clock = node.dir().join("clock");
    let set = |ms: i64| fs::write(&clock, ms.to_string()).unwrap();
    set(0);
    node.finds(CLOCK_FILE, &clock.to_string_lossy());
    node.restart().await.unwrap();
    let mut ada = Person::join(&node, "ada").await;
    let mut bob = Person::join(&node, "bob").await.hang_up();
    let first = send(&mut ada, bob.user, "for a month", 30 * 24 * 3_600).await;
    let lacks = async |part: &str| {
        let log = node.errors();
        ensure!(log.contains(part), "{log}");
        Ok(())
    };

    set(MONTH_MS);
    eventually(PATIENCE, async || lacks("the clock has jumped").await).await.unwrap();
    assert!(page(&node, "/readyz").await.contains("200 OK"), "nobody else could serve");
    ada.say_as(first, bob.user, "for a month").await.unwrap();
    let short = send(&mut ada, bob.user, "for seconds", 1).await;
    // Memory is looked through each second, tables every ten: seven checkpoints later both were.
    chores(&node, &mut ada, bob.user, 7).await;
    set(0);
    eventually(PATIENCE, async || lacks("clock is right again").await).await.unwrap();
    let later = send(&mut ada, bob.user, "for seconds", 1).await;
    // What was sent while the clock was ahead lives as much longer.
    all_end(&mut ada, [later].into()).await;
    assert_ne!(short, later);
    let (wire, _) = bob.resume(&node.target()).await.unwrap();
    let mut bob = Person::new(bob, wire);
    assert_eq!((bob.hear().await.send_id, bob.hear().await.send_id), (first, short));
}

#[tokio::test]
async fn a_node_alone_believes_a_clock_that_jumped_after_as_long_as_it_jumped() {
    const JUMP_MS: u64 = 16_000;
    let mut node = Node::prepare(PROGRAM, &settings("")).unwrap();
    node.finds("NATTER_CLUSTER__CLOCK_DIFFERENCE_MAX", "1s");
    let clock = node.dir().join("clock");
    let set = |ms: u64| fs::write(&clock, ms.to_string()).unwrap();
    set(0);
    node.finds(CLOCK_FILE, &clock.to_string_lossy());
    node.restart().await.unwrap();
    let mut ada = Person::join(&node, "ada").await;
    let bob = Person::join(&node, "bob").await.hang_up();
    let (to, body) = (Some(To::User(bob.user)), "over when the clock jumps".into());
    let accepted_ms = match ada.wire.ask(Ask::Send(Send { to, body, ttl_s: 12 })).await.unwrap() {
        Say::Accepted(accepted) => accepted.at_ms,
        other => panic!("{other:?}"),
    };
    set(JUMP_MS);
    let ended_ms = loop {
        let entry = tokio::time::timeout(PATIENCE, ada.entry()).await.unwrap().unwrap();
        match entry.content {
            Some(Content::Receipt(told)) if told.kind == i32::from(Told::Expired) => {
                break entry.at_ms;
            }
            _ => {}
        }
    };
    // By the clock that jumped: it was over at once, and ended when the clock was believed.
    assert!(ended_ms >= accepted_ms + 2 * JUMP_MS, "it ended after {} ms", ended_ms - accepted_ms);
}
