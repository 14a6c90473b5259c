//! Stories of whoever runs a node: signals, a log that nobody reads, files that are nobody else's.

use crate::people::{PROGRAM, ada_and_bob, message, node, settings};
use proto::Code;
use rustix::process::Signal;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use tests::node::{Node, PATIENCE, until};
use tests::wire::Phone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) async fn page(node: &Node, path: &str) -> String {
    let address = node.target().addresses().unwrap().http;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut page = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut page)).await.unwrap().unwrap();
    page
}

/// Waits until the node has said each of `parts` in one line after the first `seen` bytes.
async fn said(node: &Node, seen: usize, parts: &[&str]) -> String {
    until(&format!("a line with {parts:?}"), PATIENCE, || {
        let log = node.errors();
        let lines = log.get(seen..).unwrap_or_default();
        let found = lines.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        Ok(found.map(str::to_owned))
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    let node = Node::prepare(PROGRAM, &settings("[log]\nfilter = \"trace\"")).unwrap();
    let mut command = tokio::process::Command::from(node.command().unwrap());
    let mut running = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    until("the node", PATIENCE, || Ok(node.target().addresses())).await.unwrap();
    let mut people = 0;
    // Far more than a pipe takes, whatever one registration logs.
    while !page(&node, "/metrics").await.lines().any(|line| {
        let lost = line.strip_prefix("natter_output_lines_dropped_total{output=\"stderr\"} ");
        lost.is_some_and(|lost| lost != "0")
    }) {
        people += 1;
        Phone::register(&node, &format!("person{people}")).await.unwrap();
        assert!(people < 2_000, "nothing was ever dropped");
    }
    assert!(page(&node, "/healthz").await.starts_with("HTTP/1.1 200"));
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "in spite of it").await;
    assert_eq!(bob.hear_text().await, "in spite of it");

    let mut log = running.stderr.take().unwrap();
    let mut read = Vec::new();
    let losses = async {
        while !String::from_utf8_lossy(&read).contains("lines of stderr dropped") {
            log.read_buf(&mut read).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, losses).await.expect("what was lost is said");
    running.kill().await.unwrap();
}

#[tokio::test]
async fn a_hang_up_reads_the_settings_again_and_says_what_changed() {
    let mut node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let more = "[limits]\nunauthenticated = 77\n[log]\nfilter = \"debug\"\n[tls]\nnames = [\"a\"]\n\
         [rates]\nsends = \"1/1h\"";
    node.configure(&settings(more)).unwrap();
    let seen = node.errors().len();
    node.signal(Signal::HUP).unwrap();
    let line = said(&node, seen, &["settings read again"]).await;
    for part in
        ["limits.unauthenticated", "log.filter", "rates.sends", "needs_restart=\"tls.names\""]
    {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    ada.say(bob.user(), "on").await;
    assert_eq!(bob.hear_text().await, "on");
    let again = ada.wire.refused(message(bob.user(), "again")).await.unwrap();
    assert_eq!(again, Code::TooFast);
    said(&node, seen, &["DEBUG"]).await;

    node.configure(&settings("[limits]\nunauthenticated = 0")).unwrap();
    let seen = node.errors().len();
    node.signal(Signal::HUP).unwrap();
    said(&node, seen, &["settings not read again", "limits.unauthenticated"]).await;
    for signal in [Signal::USR1, Signal::USR2, Signal::PIPE] {
        node.signal(signal).unwrap();
    }
    said(&node, seen, &["SIGUSR1"]).await;
    said(&node, seen, &["SIGUSR2"]).await;
    assert!(node.runs());
    ada.still_served().await;
    assert!(node.stop().await.unwrap().success());
}

#[tokio::test]
async fn a_hang_up_while_a_node_starts_does_not_end_it() {
    let mut node = node("").await;
    node.stop().await.unwrap();
    let seen = node.errors().len();
    node.spawn().unwrap();
    // The first line comes once signals are caught.
    until("a first line", PATIENCE, || Ok((node.errors().len() > seen).then_some(())))
        .await
        .unwrap();
    node.signal(Signal::HUP).unwrap();
    node.ready().await.unwrap();
    said(&node, seen, &["settings read again"]).await;
}

/// Everything in `folder` that others than the owner may open.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.mode() & 0o077 != 0 {
            found.push(format!("{} {:o}", path.display(), metadata.mode()));
        }
        if metadata.is_dir() {
            found.extend(open_to_others(&path));
        }
    }
    found
}

#[tokio::test]
async fn what_a_node_writes_is_its_users_alone() {
    let mut node = Node::prepare(PROGRAM, &settings("")).unwrap();
    let data = node.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
    node.restart().await.unwrap();
    ada_and_bob(&node).await;
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    assert_eq!(open_to_others(&data), Vec::<String>::new());
}

#[tokio::test]
async fn a_cookie_in_a_file_that_others_can_read_is_warned_of() {
    let cookie = "0123456789abcdef0123456789abcdef";
    let mut node = Node::prepare(
        PROGRAM,
        &settings(&format!("[cluster]\nlisten = \"\"\ncookie = \"{cookie}\"")),
    )
    .unwrap();
    let text = fs::read_to_string(node.dir().join("node.toml")).unwrap();
    let text = text.replacen("[cluster]\nlisten = \"127.0.0.1:0\"\n", "", 1);
    fs::write(node.dir().join("node.toml"), text).unwrap();
    fs::set_permissions(node.dir().join("node.toml"), Permissions::from_mode(0o644)).unwrap();
    node.restart().await.unwrap();
    let line = said(&node, 0, &["cluster.cookie", "others can read", "chmod 600"]).await;
    assert!(!line.contains(cookie), "the secret itself is in the log");
}
