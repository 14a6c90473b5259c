//! Attacks by connections alone: silence, dripping, storms of logins, readers who do not read.

use super::{BOUNDS, siege};
use crate::people::message;
use anyhow::{Context as _, Result, ensure};
use proto::wire::{
    Block, GetAccount, ServerFrame, client_frame::Kind as Ask, server_frame::Kind as Say,
};
use tests::hostile::budget::Bounds;
use tests::hostile::silence::{Crowd, Silence};
use tests::hostile::sockets::{Door, account, source, tcp};
use tests::node::{Node, PATIENCE, until};
use tests::wire::Phone;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// Places for people who are not logged in, in these stories.
const STRANGERS: usize = 300;

/// Users whom each deaf reader blocks: five KiB in each answer that names them.
const BLOCKED: u64 = 600;

/// Logins beside the crowd.
const LOGINS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_of_many_addresses_lock_nobody_out() {
    let mut siege = siege(&format!("[limits]\nunauthenticated = {STRANGERS}")).await;
    let target = siege.node.target();
    let mut crowd = Crowd::new();
    let attack = async {
        crowd.gather(&target, Silence::ALL, 0..40, 3); // 960 at once, and each comes again
        until("a crowd larger than the room", PATIENCE, || {
            Ok((crowd.opened() > 3 * STRANGERS).then_some(()))
        })
        .await
    };
    siege.under(attack).await.unwrap();
    // The crowd stays. Who logs in now gets in at the first try, not when a stranger happens to go.
    let (mut phone, _wire) = Phone::register(&siege.node, "newcomer").await.unwrap();
    let logins = async {
        let mut failed = 0;
        for _ in 0..LOGINS {
            failed += usize::from(phone.resume(&target).await.is_err());
        }
        ensure!(failed <= LOGINS / 10, "{failed} of {LOGINS} logins failed");
        Ok(())
    };
    siege.under(logins).await.unwrap();
    let descriptors = STRANGERS as u64 + BOUNDS.descriptors;
    siege.lift(Bounds { descriptors, ..BOUNDS }).await.unwrap();
}

/// The first line of the answer to `GET /healthz`.
async fn health(node: &Node) -> Result<String> {
    let to = Door::Http.address(&node.target())?;
    let mut stream = tcp([127, 0, 0, 1].into(), to).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_requests_at_the_http_port_do_not_use_up_descriptors() {
    let mut siege = siege("").await;
    let target = siege.node.target();
    let mut crowd = Crowd::new();
    let attack = async {
        crowd.gather(&target, &[Silence::HalfHttp, Silence::Tcp(Door::Http)], 0..20, 25);
        until("a crowd", PATIENCE, || Ok((crowd.opened() > 800).then_some(()))).await
    };
    siege.under(attack).await.unwrap();
    assert!(health(&siege.node).await.unwrap().contains("200"));
    siege.lift(BOUNDS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_logins_is_survived() {
    let mut siege = siege("").await;
    let node = &siege.node;
    let mut phones = Vec::new();
    for number in 0..8 {
        let alias = format!("storm-{number}");
        phones.push(account(node, source(number), &alias).await.unwrap().0);
    }
    let target = node.target();
    let attack = async {
        let mut storm = JoinSet::new();
        for mut phone in phones {
            let target = target.clone();
            storm.spawn(async move {
                for round in 0..50 {
                    // By ticket; by a ticket of the attacker's own making, and then by key.
                    let is_forged = round % 3 == 0;
                    if is_forged {
                        phone.ticket = vec![round; 40].into();
                    }
                    let (_wire, resumed) = phone.resume(&target).await?;
                    ensure!(resumed != is_forged, "round {round}: resumed {resumed}");
                }
                Ok(())
            });
        }
        while let Some(ended) = storm.join_next().await {
            ended??;
        }
        Ok(())
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
}

/// Logs `phone` in, asks for something large again and again, reads nothing.
async fn ask_and_never_read(node: &tests::node::Target, mut phone: Phone) -> Result<()> {
    let mut wire = phone.login(node).await?;
    let asking = async {
        for id in 1.. {
            wire.send(id, Ask::GetAccount(GetAccount {})).await?;
        }
        anyhow::Ok(())
    };
    // It stalls, or is thrown out; the end of the story ends it.
    drop(tokio::time::timeout(std::time::Duration::from_secs(3), asking).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_never_read_cost_the_node_no_more_than_their_windows() {
    let mut siege = siege("[limits]\nwrite_timeout = \"10m\"").await;
    let mut phones = Vec::new();
    for number in 0..12 {
        let alias = format!("deaf-{number}");
        let (phone, mut wire) = account(&siege.node, source(number), &alias).await.unwrap();
        // Each answer is long.
        for user in 0..BLOCKED {
            let block = Ask::Block(Block { user: u64::MAX / 2 - user, unblock: false });
            wire.send(1_000 + user, block).await.unwrap();
        }
        let mut done = 0;
        while done < BLOCKED {
            let answer = |frame: &ServerFrame| matches!(frame.kind, Some(Say::Done(_)));
            wire.expect(|frame| answer(frame).then_some(())).await.unwrap();
            done += 1;
        }
        // Something waits for it, so that deliveries pile up, too.
        for id in 1..=20 {
            wire.send(id, message(phone.user, &"d".repeat(60_000))).await.unwrap();
        }
        phones.push(phone);
    }
    let target = siege.node.target();
    let attack = async {
        let mut deaf = JoinSet::new();
        for phone in phones {
            let target = target.clone();
            deaf.spawn(async move { ask_and_never_read(&target, phone).await });
        }
        let mut served = 0;
        while let Some(ended) = deaf.join_next().await {
            served += usize::from(ended?.is_ok());
        }
        ensure!(served > 0, "nobody got in");
        Ok(())
    };
    siege.under(attack).await.context("deaf readers").unwrap();
    // Of each a window, what is queued for its socket, and a few frames.
    siege.lift(Bounds { memory_kib: 32 * 1024, ..BOUNDS }).await.unwrap();
}
