//! Stories of whoever runs a node: stopping, settings, ports, certificates, pages.

use crate::people::{PROGRAM, Person, ada_and_bob, node, settings};
use proto::Code;
use rustix::process::Signal;
use std::fs;
use std::os::unix::net::UnixStream;
use tests::node::{Node, PATIENCE, until};
use tests::wire::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

#[tokio::test]
async fn sigterm_says_go_away_and_ends_with_exit_0() {
    let mut node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let id = ada.say(bob.user(), "before the stop").await;
    let mut stranger = Wire::connect(&node.target()).await.unwrap();
    node.signal(Signal::TERM).unwrap();
    assert_eq!(ada.wire.ended().await.unwrap(), Some(Code::GoingAway));
    assert_eq!(stranger.ended().await.unwrap(), Some(Code::GoingAway));
    assert!(node.ended().await.unwrap().success());
    assert!(node.target().addresses().is_none(), "no address of a node that is gone");
    node.restart().await.unwrap();
    bob.again(&node.target()).await;
    assert_eq!(bob.hear().await.send_id, id);
}

#[tokio::test]
async fn the_newcomers_demo_ends_well_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let demo =
        Command::new(PROGRAM).args(["demo", "--once"]).env("TMPDIR", temporary.path()).output();
    let demo = timeout(PATIENCE * 2, demo).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&demo.stdout).into_owned();
    assert!(demo.status.success(), "{told}");
    for part in [
        "killed",
        "started again",
        "three hold the same",
        "\u{2713}\u{2713} read",
        "Every tick came",
    ] {
        assert!(told.contains(part), "{told:?} lacks {part:?}");
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "its files are removed");
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_nodes_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Command::new(PROGRAM)
        .args(["demo", "--once"])
        .env("TMPDIR", temporary.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let folder = temporary.path().join(format!("natter-demo-{}", demo.id().unwrap()));
    let sockets: Vec<_> =
        (1..=3).map(|node| folder.join(format!("node-{node}/admin.sock"))).collect();
    let answer = |socket: &std::path::PathBuf| UnixStream::connect(socket).is_ok();
    until("three nodes", PATIENCE, || Ok(sockets.iter().all(answer).then_some(()))).await.unwrap();
    demo.kill().await.unwrap();
    until("no node", PATIENCE, || Ok((!sockets.iter().any(answer)).then_some(()))).await.unwrap();
}

async fn refused_to_start(node: &mut Node, parts: &[&str]) {
    node.spawn().unwrap();
    let status = node.ended().await.unwrap();
    assert!(!status.success(), "it started with wrong settings");
    let said = node.errors() + &node.output();
    for part in parts {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn wrong_settings_name_file_key_value_and_cure() {
    for (toml, parts) in [
        ("[limits]\nheartbeat = \"soon\"", ["node.toml", "limits.heartbeat", "soon"]),
        ("[limits]\nconections = 5", ["node.toml", "limits.conections", "connections"]),
        ("[registration]\npin_digits = 4", ["node.toml", "registration.pin_digits", "4"]),
        ("[tls]\ncertificate = \"/nowhere\"\nkey = \"/nowhere\"", ["tls", "/nowhere", ""]),
    ] {
        let mut node = Node::prepare(PROGRAM, toml).unwrap();
        refused_to_start(&mut node, &parts).await;
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let toml = format!(
        "[node]\ndata_dir = \"{{dir}}/data\"\n[listen]\nclient = \"{taken}\"\nwebsocket = \"\"\nhttp = \"\"\n[cluster]\nlisten = \"\"\n"
    );
    let mut node = Node::prepare(PROGRAM, &toml).unwrap();
    refused_to_start(&mut node, &["listen.client", &taken, "the port is taken"]).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = other.local_addr().unwrap().to_string();
    for (name, value, part) in [
        ("LISTEN__CLIENT", taken.as_str(), "listen.client"),
        ("LISTEN__WEBSOCKET", &taken, "listen.websocket"),
        ("LISTEN__PLAIN", &taken, "listen.plain"),
        ("LISTEN__HTTP", &taken, "listen.http"),
        ("CLUSTER__LISTEN", &taken, "cluster.listen"),
        ("CLUSTER__SEEDS", "[\"127.0.0.1:1\"]", "data/cookie"),
        ("CLUSTER__COOKIE_FILE", "/nowhere/cookie", "start that node first"),
        ("TLS__NAMES", "[\"\u{e9}\"]", "tls.names"),
        ("REGISTRATION__SENDER", "webhook", "registration.webhook"),
    ] {
        let mut node = Node::prepare(PROGRAM, "").unwrap();
        node.finds(&format!("NATTER_{name}"), value);
        refused_to_start(&mut node, &[part]).await;
        assert!(!node.dir().join("data").exists(), "{part}: a failed start made a data directory");
    }
}

#[tokio::test]
async fn a_directory_that_another_node_uses_is_refused_and_left_alone() {
    let first = node("").await;
    let mut ada = Person::join(&first, "ada").await;
    let mut second = first.command().unwrap().spawn().unwrap();
    let status =
        until("the second node to give up", PATIENCE, || Ok(second.try_wait()?)).await.unwrap();
    assert!(!status.success());
    let said = first.errors();
    assert!(said.contains("another") || said.contains("in use") || said.contains("lock"), "{said}");
    ada.still_served().await;
    assert!(first.target().addresses().is_some(), "the addresses of the first one stay");
}

pub(crate) async fn page(node: &Node, path: &str) -> String {
    let address = node.target().addresses().unwrap().http;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

#[tokio::test]
async fn health_and_metrics_are_pages_and_promtool_accepts_them() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "counted").await;
    bob.hear().await;
    for path in ["/healthz", "/readyz"] {
        assert!(page(&node, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    let metrics = page(&node, "/metrics").await;
    assert!(metrics.contains("\nnatter_connections 2\n"), "{metrics}");
    for secret in ["counted", "natter-pin"] {
        assert!(!metrics.contains(secret), "{secret} in the metrics");
    }
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    let promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        return skip::skipped("promtool is not installed (Debian: apt-get install prometheus)");
    };
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), body.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{body}", String::from_utf8_lossy(&output.stderr));
}

fn certificate() -> (String, String) {
    let names = vec!["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart() {
    let mut node = Node::prepare(
        PROGRAM,
        &settings(
            "[tls]\ncertificate = \"{dir}/data/tls/cert.pem\"\nkey = \"{dir}/data/tls/key.pem\"",
        ),
    )
    .unwrap();
    let tls = node.dir().join("data/tls");
    fs::create_dir_all(&tls).unwrap();
    let write = |(certificate, key): &(String, String)| {
        fs::write(tls.join("key.pem"), key).unwrap();
        fs::write(tls.join("cert.pem"), certificate).unwrap();
    };
    write(&certificate());
    node.restart().await.unwrap();
    let (mut ada, mut bob) = ada_and_bob(&node).await;

    write(&certificate()); // clients now trust only the new one
    let target = node.target();
    let mut renewed = None;
    for _ in 0..PATIENCE.as_millis() / 100 {
        renewed = Wire::connect(&target).await.ok();
        if renewed.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(renewed.is_some(), "the new certificate is not used");
    ada.say(bob.user(), "on the old connection").await;
    assert_eq!(bob.hear_text().await, "on the old connection");
}

#[tokio::test]
async fn neither_pins_nor_bodies_nor_keys_are_in_the_log() {
    let node = node("[log]\nfilter = \"trace\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    let secret = "SECRET-BODY-4711";
    ada.say(bob.user(), secret).await;
    assert_eq!(bob.hear_text().await, secret);
    let pin = node.pin("ada", 0).await.unwrap();
    let log = node.errors();
    assert!(!log.is_empty(), "nothing was logged, so this proves nothing");
    assert!(!log.contains(secret), "a body is in the log");
    let lines = log.lines().filter(|line| line.contains(&format!("pin={pin}")));
    assert_eq!(lines.collect::<Vec<_>>(), Vec::<&str>::new(), "a PIN is in the log");
}

#[tokio::test]
async fn too_few_files_are_refused_by_a_check_and_told_in_the_log_as_it_is_written() {
    let limited = ["prlimit", "--nofile=1024:1024"].map(str::to_owned).to_vec();
    let settings = settings("[limits]\nconnections = 19000\n[log]\nformat = \"json\"");
    let mut node = Node::prepare(PROGRAM, &settings).unwrap();
    node.launched_by(limited);
    let checked = node.command().unwrap().arg("--check").status().unwrap();
    let said = node.errors();
    assert!(!checked.success() && said.contains("limits.connections 19000"), "{said}");
    fs::remove_file(node.dir().join("stderr.log")).unwrap();
    node.restart().await.unwrap();
    let log = node.errors();
    let first = log.lines().next().unwrap();
    assert!(first.contains("limits.connections"), "{log}");
    for line in log.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "not JSON: {line}");
    }
}
