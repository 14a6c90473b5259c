//! Real links between real processes: each node is this test binary, started again.
//!
//! ractor's registry is one for each process, so two nodes never share one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "all of it is tests in real time, and nodes speak on their standard output"
)]

mod harness;
mod node;
mod strangers;

use std::time::Duration;

use harness::{Node, Start};

const SOON: Duration = Duration::from_secs(10);

/// Not a promise but a node: it runs when the variable is set and passes at once when it is not.
#[test]
fn node_process() {
    node::run_if_asked();
}

/// Two nodes, the second with the first as its seed, both up.
fn pair() -> (Node, Node) {
    let mut ada = Start::new(1).start();
    let mut bob = Start::new(2).seeds(&[&ada.address]).start();
    ada.wait_for(&format!("up {} 1", bob.id), SOON);
    bob.wait_for(&format!("up {} 1", ada.id), SOON);
    (ada, bob)
}

#[test]
fn nodes_find_each_other_by_a_seed_and_talk() {
    let (mut ada, mut bob) = pair();
    assert_eq!(ada.ask(&format!("call {} urgent 100 2000", bob.id)), "answer 100");
    assert_eq!(bob.ask(&format!("call {} bulk 4000000 5000", ada.id)), "answer 4000000");
    assert_eq!(ada.ask(&format!("cast {} 1000 200", bob.id)), "accepted 1000");
    bob.until("casts", |answer| answer == "casts 1000", SOON);
    assert_eq!(ada.ask("call 00000000000000ff urgent 1 100"), "error NotUp");
    assert_eq!(ada.ask(&format!("call {} normal 9000000 1000", bob.id)), "error Full");
    bob.kill();
    ada.wait_for(&format!("down {} 1", bob.id), SOON);
}

#[test]
fn a_node_gets_in_past_a_stranger_who_opens_connections_and_says_nothing() {
    let ada = Start::new(1).start();
    let stranger = strangers::silent(&ada.address);
    let mut bob = Start::new(2).seeds(&[&ada.address]).start();
    bob.wait_for(&format!("up {} 1", ada.id), SOON);
    assert!(stranger.stop() > 200, "there was hardly a stranger");
}

#[test]
fn a_node_listens_on_its_own_port_alone() {
    let (ada, bob) = pair();
    for node in [&ada, &bob] {
        let own = node.address.rsplit(':').next().unwrap();
        assert_eq!(strangers::listening(node.pid()), [own.parse::<u16>().unwrap()]);
    }
}

#[test]
fn a_seed_whose_name_has_no_address_is_named_with_the_reason() {
    let mut ada = Start::new(1).seeds(&["nobody.invalid:7403"]).start();
    let said = ada.wait_for("nobody.invalid:7403", SOON);
    assert!(said.contains("cannot be resolved") && said.contains("error="), "{said}");
}

#[test]
fn an_open_call_breaks_with_its_link() {
    let (mut ada, mut bob) = pair();
    ada.tell(&format!("call {} normal 0 60000", bob.id)); // An empty one is never answered.
    bob.wait_for("asked in vain", SOON);
    bob.kill();
    ada.wait_for("error Broken", SOON);
}

#[test]
fn another_cookie_is_refused_with_a_warning_at_both_ends() {
    let mut ada = Start::new(1).start();
    let mut eve = Start::new(2).cookie("another cookie").seeds(&[&ada.address]).start();
    ada.wait_for("cluster cookie differs", SOON);
    eve.wait_for("cluster cookie differs", SOON);
    assert_eq!((ada.ask("up"), eve.ask("up")), ("0".to_owned(), "0".to_owned()));
}

#[test]
fn a_killed_node_is_noticed_and_comes_back_as_its_next_incarnation() {
    let (mut ada, mut bob) = pair();
    let id = bob.id.clone();
    bob.kill();
    ada.wait_for(&format!("down {id} 1"), SOON);
    let bob = Start::new(2).incarnation(2).seeds(&[&ada.address]).start();
    ada.wait_for(&format!("up {id} 2"), SOON);
    assert_eq!(ada.ask(&format!("call {} urgent 10 2000", bob.id)), "answer 10");
}

#[test]
fn a_run_that_is_started_again_is_linked_again() {
    let (mut ada, mut bob) = pair();
    for _ in 0..2 {
        ada.tell("rerun");
        ada.wait_for(&format!("down {} 1", bob.id), SOON);
        bob.wait_for(&format!("down {} 1", ada.id), SOON);
        ada.wait_for(&format!("up {} 1", bob.id), SOON);
        bob.wait_for(&format!("up {} 1", ada.id), SOON);
        assert_eq!(ada.ask(&format!("call {} urgent 10 2000", bob.id)), "answer 10");
    }
}

#[test]
fn an_earlier_start_of_a_node_does_not_displace_a_later_one() {
    let mut ada = Start::new(1).start();
    let bob = Start::new(2).incarnation(2).seeds(&[&ada.address]).start();
    ada.wait_for(&format!("up {} 2", bob.id), SOON);
    let mut ghost = Start::new(2).incarnation(1).seeds(&[&ada.address]).start();
    ada.wait_for("a later start of it was seen", SOON);
    ghost.wait_for("another process runs with a copy of this data directory", SOON);
    assert_eq!(ada.ask(&format!("call {} urgent 10 2000", bob.id)), "answer 10");
    ghost.kill();
}

#[test]
fn a_node_finds_by_learned_addresses_alone_and_after_the_address_changed() {
    let mut ada = Start::new(1).start();
    let mut bob = Start::new(2).start();
    let learn = |node: &Node| format!("learn {} {}", node.id, node.address);
    ada.tell(&learn(&bob));
    bob.tell(&learn(&ada));
    ada.wait_for(&format!("up {} 1", bob.id), SOON);
    bob.kill();
    ada.wait_for(&format!("down {} 1", bob.id), SOON);
    let bob = Start::new(2).incarnation(2).start(); // Another port.
    ada.tell(&learn(&bob));
    ada.wait_for(&format!("up {} 2", bob.id), SOON);
}

#[test]
fn nodes_that_dial_each_other_at_once_and_themselves_are_linked_once() {
    let mut ada = Start::new(1).start();
    let mut bob = Start::new(2).start();
    let all = [ada.address.clone(), bob.address.clone()];
    for address in &all {
        ada.tell(&format!("seed {address}"));
        bob.tell(&format!("seed {address}"));
    }
    ada.wait_for(&format!("up {} 1", bob.id), SOON);
    bob.wait_for(&format!("up {} 1", ada.id), SOON);
    // Two connections may both come up before one of them is given up: one down and up again.
    let answers = |answer: &str| answer == "answer 10";
    ada.until(&format!("call {} urgent 10 5000", bob.id), answers, SOON);
    bob.until(&format!("call {} urgent 10 5000", ada.id), answers, SOON);
    ada.until("up", |up| up == "1", SOON);
    bob.until("up", |up| up == "1", SOON);
}

#[test]
fn a_node_that_hangs_is_noticed_costs_bounded_memory_and_comes_back() {
    let (mut ada, bob) = pair();
    let before = ada.memory_bytes();
    ada.tell(&format!("flood {} 20000 200 4", bob.id));
    bob.signal("STOP");
    let stopped = std::time::Instant::now();
    let down = format!("down {} 1", bob.id);
    let mut most = 0;
    while !ada.has(&down) && stopped.elapsed() < SOON {
        most = most.max(ada.memory_bytes().saturating_sub(before));
        std::thread::sleep(Duration::from_millis(10));
    }
    ada.wait_for(&down, SOON);
    let noticed = stopped.elapsed();
    println!("noticed after {noticed:?}, memory grew by {} KiB", most >> 10);
    assert!(noticed < Duration::from_secs(5), "{noticed:?}");
    assert!(most < 64 << 20, "{most}");
    ada.wait_for("flood over", SOON);
    bob.signal("CONT");
    ada.wait_for(&format!("up {} 1", bob.id), SOON);
    ada.until(&format!("call {} urgent 10 1000", bob.id), |answer| answer == "answer 10", SOON);
}

#[test]
fn what_is_urgent_overtakes_bulk() {
    let (mut ada, bob) = pair();
    ada.tell(&format!("bulk {} 20", bob.id));
    let mut waits = Vec::new();
    while !ada.has("bulk over") {
        let begun = std::time::Instant::now();
        assert_eq!(ada.ask(&format!("call {} urgent 100 5000", bob.id)), "answer 100");
        waits.push(begun.elapsed());
    }
    println!("{} urgent calls beside bulk, longest {:?}", waits.len(), waits.iter().max());
    assert!(waits.iter().max().is_some_and(|longest| *longest < Duration::from_secs(2)));
}

#[test]
fn a_silent_client_does_not_keep_nodes_out() {
    let mut ada = Start::new(1).start();
    let _silent: Vec<_> =
        (0..20).map(|_| std::net::TcpStream::connect(&ada.address).unwrap()).collect();
    let bob = Start::new(2).seeds(&[&ada.address]).start();
    ada.wait_for(&format!("up {} 1", bob.id), Duration::from_secs(2));
}
