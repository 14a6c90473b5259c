//! Promise 10: a ticket opens once, on one node and in a cluster, and neither it nor its use is lost when
//! nodes are killed.

use crate::clusters::{cluster, three, turn};
use crate::people::{Person, code, node};
use anyhow::ensure;
use bytes::Bytes;
use proto::Code;
use proto::wire::{GetAccount, Resume, client_frame::Kind as Ask, server_frame::Kind as Say};
use tests::cluster::{Cables, Cluster};
use tests::node::{PATIENCE, eventually};
use tests::wire::Wire;

#[tokio::test]
async fn promise_10_a_ticket_survives_a_kill_and_the_one_before_stays_used() {
    let mut node = node("").await;
    let mut phone = Person::join(&node, "ada").await.hang_up();
    for _ in 0..5 {
        let used = phone.ticket.clone();
        let (_wire, resumed) = phone.resume(&node.target()).await.unwrap();
        assert!(resumed, "its ticket was as durable as a message");
        node.kill().unwrap();
        node.restart().await.unwrap();
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        let resume = Ask::Resume(Resume { ticket: used, acknowledged: 0, away: false });
        assert_eq!(wire.refused(resume).await.unwrap(), Code::BadTicket);
    }
}

/// Resumes with one ticket on all nodes at once. How many of them let it in, and the ticket for the
/// next time.
async fn resume_everywhere(cluster: &Cluster, nodes: &[usize], ticket: &Bytes) -> (usize, Bytes) {
    let mut wires = Vec::new();
    for node in nodes {
        wires.push(Wire::connect(&cluster.target(*node)).await.unwrap());
    }
    for wire in &mut wires {
        let resume = Resume { ticket: ticket.clone(), acknowledged: 0, away: false };
        wire.send(1, Ask::Resume(resume)).await.unwrap();
    }
    let (mut opened, mut next) = (0, ticket.clone());
    for wire in &mut wires {
        match wire.expect(|frame| frame.kind.clone().filter(|_| frame.id == 1)).await.unwrap() {
            Say::LoggedIn(logged_in) => {
                opened += 1;
                next = logged_in.ticket;
            }
            other => assert!([Code::BadTicket, Code::Unavailable].contains(&code(&other))),
        }
    }
    (opened, next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_10_a_ticket_opens_once_in_a_cluster_too_and_after_a_node_died() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut phone = Person::join(&cluster.nodes()[0], "ada").await.hang_up();
    for round in 0..20 {
        let (opened, next) = resume_everywhere(&cluster, &[0, 1, 2], &phone.ticket).await;
        assert_eq!(opened, 1, "round {round}");
        phone.ticket = next;
    }
    let used = phone.ticket.clone();
    let (_wire, resumed) = phone.resume(&cluster.target(1)).await.unwrap();
    assert!(resumed);
    cluster.kill(1).unwrap();
    let (opened, _) = resume_everywhere(&cluster, &[0, 2], &used).await;
    assert_eq!(opened, 0, "the node that took it is dead, what it did is not");
    // Once the shard has a leader again, that is said for good.
    let said = eventually(PATIENCE, async || {
        let mut wire = Wire::connect(&cluster.target(2)).await?;
        let resume = Resume { ticket: used.clone(), acknowledged: 0, away: false };
        let code = wire.refused(Ask::Resume(resume)).await?;
        ensure!(code != Code::Unavailable, "no leader");
        Ok(code)
    });
    assert_eq!(said.await.unwrap(), Code::BadTicket);
    let (_wire, resumed) = phone.resume(&cluster.target(2)).await.unwrap();
    assert!(resumed, "and the next one is good everywhere");
}

#[tokio::test]
async fn promise_10_what_a_stranger_asks_without_an_id_is_not_done() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut wire = Wire::connect(&node.target()).await.unwrap();
    let seen = node.output().len();
    let start = proto::wire::RegisterStart { alias: "eve".into() };
    wire.send(0, Ask::RegisterStart(start)).await.unwrap();
    wire.send(0, ada.phone.login_frame(&wire.welcome.nonce).unwrap()).await.unwrap();
    let ticket = ada.phone.ticket.clone();
    wire.send(0, Ask::Resume(Resume { ticket, acknowledged: 0, away: false })).await.unwrap();
    // What follows is answered, so all of that was read.
    let lookup = Ask::GetAccount(GetAccount {});
    assert_eq!(wire.refused(lookup).await.unwrap(), Code::NotLoggedIn);
    ada.still_served().await;
    assert_eq!(node.output().len(), seen, "a PIN was sent");
    drop(wire);
    let (_wire, resumed) = ada.phone.resume(&node.target()).await.unwrap();
    assert!(resumed, "the ticket was not used up");
}
