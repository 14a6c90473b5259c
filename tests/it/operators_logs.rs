//! Stories of whoever reads a node's log: an event that matters is one line, and what repeats is few.

use crate::people::{PROGRAM, Person, ada_and_bob, node, settings};
use proto::wire::{DeleteAccount, UnlinkDevice, client_frame::Kind as Ask};
use tests::node::{Node, PATIENCE, until};
use tests::workload::link;

/// Lines of the first start of a node alone, which an operator reads whole.
const FIRST_START_LINES: usize = 10;

/// Waits for the one line of the log that says `words`.
async fn line(node: &Node, words: &str) -> String {
    let found = || {
        let log = node.errors();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(words)).collect();
        assert!(lines.len() <= 1, "{words:?} is told more than once:\n{log}");
        Ok(lines.first().map(|line| (*line).to_owned()))
    };
    let line = until(words, PATIENCE, found).await;
    line.unwrap_or_else(|error| panic!("{error}\n{}", node.errors()))
}

#[tokio::test]
async fn a_first_start_is_some_lines_and_the_last_one_says_ready() {
    let node = node("[log]\nformat = \"json\"").await;
    line(&node, "node ready").await;
    let log = node.errors();
    assert!(log.lines().count() <= FIRST_START_LINES, "{log}");
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["message"].is_string(), "{line}");
        for debug in ["Some(", "None", "{ "] {
            assert!(!line.contains(debug), "Rust's own words are for nobody: {line}");
        }
    }
}

#[tokio::test]
async fn registering_linking_unlinking_and_deleting_are_one_line_each_and_name_no_alias() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let registered = line(&node, "registered").await;
    assert!(registered.contains(&format!("user={}", ada.user())), "{registered}");
    let tablet = link(&mut ada.wire, &ada.phone).await.unwrap();
    let device = tablet.device;
    line(&node, &format!("device linked user={} device={device}", ada.user())).await;
    ada.done(Ask::UnlinkDevice(UnlinkDevice { device })).await;
    line(&node, "device unlinked").await;
    ada.wire.send(77, Ask::DeleteAccount(DeleteAccount {})).await.unwrap();
    line(&node, "account deleted").await;
    assert!(!node.errors().contains("ada"), "{}", node.errors());
}

#[tokio::test]
async fn traffic_is_no_line_at_all() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "first").await;
    bob.hear().await;
    bob.ack().await;
    let before = node.errors().lines().count();
    for number in 0..100 {
        ada.say(bob.user(), &number.to_string()).await;
        bob.hear().await;
        bob.ack().await;
    }
    let log = node.errors();
    // The node says once, when it has had time to count, how many groups it leads.
    assert!(log.lines().count() <= before + 1, "{log}");
}

#[tokio::test]
async fn a_start_that_fails_is_told_in_the_form_of_the_log() {
    let json = "[log]\nformat = \"json\"\n";
    let node = node(json).await;
    let wrong = Node::prepare(PROGRAM, &settings(&format!("{json}[limits]\nunauthenticated = 0")));
    let text = Node::prepare(PROGRAM, &settings("[limits]\nunauthenticated = 0")).unwrap();
    // Once before there is a log, once after: the directory is in use.
    for (node, words) in [(&wrong.unwrap(), "limits.unauthenticated"), (&node, "in use")] {
        let mut command = node.command().unwrap();
        let ended = command.stderr(std::process::Stdio::piped()).output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let log = String::from_utf8(ended.stderr).unwrap();
        let lines = log.lines().map(serde_json::from_str::<serde_json::Value>);
        let lines: Vec<_> = lines.map(|line| line.expect(&log)).collect();
        let last = lines.last().expect("a reason");
        let (level, error) = (&last["level"], last["error"].as_str().unwrap());
        assert!(level == "ERROR" && error.contains(words), "{log}");
        assert!(last["timestamp"].is_string() && last["message"].is_string(), "{log}");
    }
    let ended = text.command().unwrap().stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(String::from_utf8(ended.stderr).unwrap().starts_with("natter: "));
}
