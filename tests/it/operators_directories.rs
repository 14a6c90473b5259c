//! Stories of the data directory: what was in use and lacks a part is refused, and nothing is lost.

use crate::people::{Person, ada_and_bob, node};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::disk::SmallDisk;
use tests::node::{Node, PATIENCE, until};
use tests::status::Status;

/// Every file and folder in a directory, with its length.
fn content(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        }
        let bytes = if path.is_dir() { 0 } else { path.metadata().unwrap().len() };
        found.insert(path, bytes);
    }
    found
}

async fn refused(node: &mut Node) -> String {
    let before = node.errors().len();
    node.spawn().unwrap();
    assert!(!node.ended().await.unwrap().success(), "it started");
    node.errors().split_off(before)
}

#[tokio::test]
async fn a_directory_that_lacks_a_part_is_refused_by_name_and_keeps_every_message() {
    let mut node = node("").await;
    let (mut ada, bob) = ada_and_bob(&node).await;
    let mut bob = bob.hang_up();
    ada.say(bob.user, "kept").await;
    assert!(node.stop().await.unwrap().success());
    let data = node.target().data_dir().to_owned();
    let aside = node.dir().join("aside");
    for part in [
        "node.key",
        "cookie",
        "store",
        "store/version",
        "store/votes",
        "store/tables",
        "store/log",
        "store/sessions",
        "incarnation",
    ] {
        fs::rename(data.join(part), &aside).unwrap();
        let before = content(&data);
        let said = refused(&mut node).await;
        for word in [part, "missing", "backup"] {
            assert!(said.contains(word), "{part}: {said:?} lacks {word:?}");
        }
        assert!(!said.contains("removed this node"), "{said}");
        assert_eq!(content(&data), before, "{part}: something was changed");
        fs::rename(&aside, data.join(part)).unwrap();
    }
    fs::rename(data.join("store/tables"), &aside).unwrap();
    fs::create_dir(data.join("store/tables")).unwrap();
    assert!(refused(&mut node).await.contains("store/tables"));
    fs::remove_dir(data.join("store/tables")).unwrap();
    fs::rename(&aside, data.join("store/tables")).unwrap();
    let key = fs::read(data.join("node.key")).unwrap();
    fs::write(data.join("node.key"), [7; 32]).unwrap();
    let said = refused(&mut node).await;
    assert!(said.contains("node.key") && said.contains("belongs to node"), "{said}");
    fs::write(data.join("node.key"), key).unwrap();

    node.restart().await.unwrap();
    let (wire, _) = bob.resume(&node.target()).await.unwrap();
    assert_eq!(Person::new(bob, wire).hear_text().await, "kept");
}

#[tokio::test]
async fn a_first_start_that_was_killed_at_any_moment_is_made_up_for() {
    let mut node = Node::prepare(crate::people::PROGRAM, &crate::people::settings("")).unwrap();
    let data = node.target().data_dir().to_owned();
    for part in ["node.key", "cookie", "store/version", "store/log", "incarnation", "in-use"] {
        node.spawn().unwrap();
        until(part, PATIENCE, || Ok(data.join(part).exists().then_some(()))).await.unwrap();
        node.kill().unwrap();
    }
    node.restart().await.unwrap();
    ada_and_bob(&node).await;
}

#[tokio::test]
async fn a_node_that_stays_alone_by_its_settings_is_a_member_and_complains_of_nothing() {
    let any = "\"127.0.0.1:0\"";
    let node = node(&format!(
        "[node]\ndata_dir = \"{{dir}}/data\"\n[listen]\nclient = {any}\nwebsocket = {any}\n\
         plain = {any}\nhttp = {any}\n[cluster]\nlisten = \"\"\n"
    ))
    .await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    ada.say(bob.user(), "alone").await;
    assert_eq!(bob.hear_text().await, "alone");
    let program = Path::new(crate::people::PROGRAM);
    let status =
        tests::cluster::admin(program, node.target().data_dir(), &["cluster", "status"]).await;
    let status: Status = serde_json::from_str(&status.unwrap()).unwrap();
    assert_eq!((status.place.as_str(), status.members.len()), ("member", 1));
    assert!(status.groups.iter().all(|group| group.status.leader == Some(status.node)));
    let log = node.errors();
    assert!(!log.contains("does not become"), "{log}");
}

#[tokio::test]
async fn a_first_start_without_space_ends_when_told_to_and_the_next_one_with_space_goes_on() {
    let mut node = Node::prepare(crate::people::PROGRAM, "").unwrap();
    let (data, aside) = (node.dir().join("data"), node.dir().join("aside"));
    let disk = match SmallDisk::mount(&data, 8 << 20) {
        Ok(disk) => disk,
        Err(error) => return skip::skipped(error),
    };
    node.spawn().unwrap();
    let waits = || Ok(node.errors().contains("no space for the log").then_some(()));
    until("a node that waits for space", PATIENCE, waits).await.unwrap();
    assert!(node.stop().await.unwrap().success(), "{}", node.errors());
    // A larger disk.
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&aside).status().unwrap();
    assert!(copied.success());
    drop(disk);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    node.restart().await.unwrap();
    Person::join(&node, "ada").await.still_served().await;
}
