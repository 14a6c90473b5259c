//! Which node serves a client, and what it does when that node is gone, silent or unwilling.

use crate::{
    BOB,
    node::{Node, identity, next, options, start},
};
use natter_sdk::{Alias, Client, ClientOptions, Code, Event, Events, MemoryStore, register_start};
use proto::wire::{self, client_frame::Kind as Ask, server_frame::Kind};
use std::time::Duration;

/// An address where nobody listens.
async fn nobody() -> String {
    Node::plain().await.address()
}

fn start_with(addresses: &[String]) -> (Client, Events) {
    let mut options = ClientOptions::plain(addresses.join(","));
    options.backoff_min = Duration::from_mins(1); // there is one attempt
    Client::login(options, identity(), MemoryStore::new()).unwrap()
}

#[tokio::test]
async fn addresses_where_nobody_listens_are_passed_over_in_one_attempt() {
    let node = Node::plain().await;
    let addresses = [nobody().await, nobody().await, node.address()];
    let (client, mut events) = start_with(&addresses);
    let _conn = node.accept_login().await;
    next(&mut events, |e| matches!(e, Event::Connected).then_some(())).await;
    assert_eq!(client.node(), Some(node.address()));
}

#[tokio::test]
async fn a_node_that_says_nothing_is_passed_over_in_one_attempt() {
    let (silent, node) = (Node::plain().await, Node::plain().await);
    let (client, mut events) = start_with(&[silent.address(), node.address()]);
    let _conn = node.accept_login().await; // the silent one accepts and says no `Welcome`
    next(&mut events, |e| matches!(e, Event::Connected).then_some(())).await;
    assert_eq!(client.node(), Some(node.address()));
}

#[tokio::test]
async fn a_client_whose_node_died_resumes_elsewhere_with_its_ticket_or_else_its_key() {
    let (first, second) = (Node::plain().await, Node::plain().await);
    let mut options = options(&first);
    options.addresses.push(second.address());
    let (client, mut events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let conn = first.accept_login().await;
    let address = first.address();
    next(&mut events, |e| matches!(e, Event::Connected).then_some(())).await;
    assert_eq!(client.node(), Some(address));
    let handle = client.send(BOB, "to whoever is there").unwrap();
    drop((conn, first));

    let mut conn = second.accept().await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Resume(_)), "{ask:?}");
    conn.refuse(id, Code::BadTicket, 0).await;
    let (id, ask) = conn.hear().await;
    assert!(matches!(ask, Ask::Login(_)), "{ask:?}");
    conn.logged_in(id, 0).await;
    let (id, body) = conn.hear_send().await;
    assert_eq!(body, b"to whoever is there");
    conn.accept_send(id).await;
    handle.await.unwrap();
    assert_eq!(client.node(), Some(second.address()));
}

#[tokio::test]
async fn a_node_that_refuses_the_login_for_now_is_left_for_the_next() {
    let (first, second) = (Node::plain().await, Node::plain().await);
    let mut options = options(&first);
    options.addresses.push(second.address());
    let (client, _events) = Client::login(options, identity(), MemoryStore::new()).unwrap();
    let mut conn = first.accept().await;
    let (id, _) = conn.hear().await;
    conn.refuse(id, Code::Unavailable, 1).await;
    let _conn = second.accept_login().await;
    client.ready().await.unwrap();
    assert_eq!(client.node(), Some(second.address()));
}

#[tokio::test]
async fn go_away_moves_the_client_to_the_address_it_names() {
    let (old, new) = (Node::plain().await, Node::plain().await);
    let (client, _events) = start(&old, MemoryStore::starting_at(1));
    let mut conn = old.accept_login().await;
    let handle = client.send(BOB, "late").unwrap();
    let (id, _) = conn.hear_send().await;
    let addresses = vec![new.address()];
    let code = Code::GoingAway.number();
    let away = wire::GoAway { code, after_ms: 1, addresses, text: String::new() };
    conn.say(0, Kind::GoAway(away)).await;
    conn.accept_send(id).await;
    handle.await.unwrap();
    let mut conn = new.accept_login().await;
    client.send(BOB, "next").unwrap();
    assert_eq!(conn.hear_bodies(1).await, ["next"]);
}

#[tokio::test]
async fn a_registration_that_is_refused_for_now_is_asked_again_elsewhere() {
    let (first, second) = (Node::plain().await, Node::plain().await);
    let mut options = options(&first);
    options.addresses.push(second.address());
    let alias = Alias::parse("ada").unwrap();
    let server = async {
        let mut conn = first.accept().await;
        let (id, _) = conn.hear().await;
        conn.refuse(id, Code::Unavailable, 1).await;
        let mut conn = second.accept().await;
        let (id, ask) = conn.hear().await;
        assert!(matches!(ask, Ask::RegisterStart(start) if start.alias == "ada"));
        conn.refuse(id, Code::TooFast, 1).await;
    };
    let (sent, ()) = tokio::join!(register_start(&options, &alias), server);
    assert_eq!(sent.unwrap_err().code(), Some(Code::TooFast), "what a person must know is told");

    options.addresses.truncate(1);
    let server = async {
        let mut conn = first.accept().await;
        let (id, _) = conn.hear().await;
        conn.refuse(id, Code::Unavailable, 60_000).await;
    };
    let (sent, ()) = tokio::join!(register_start(&options, &alias), server);
    assert_eq!(sent.unwrap_err().code(), Some(Code::Unavailable), "patience ends");
}
