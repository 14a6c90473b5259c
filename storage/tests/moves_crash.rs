//! Groups whose move is cut short: by SIGKILL, and by a power cut, which needs root to mount.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod common;

use common::process::{Disk, Victim, spawn};
use common::{append, at, envelope, options, receive, records, stream, user_of};
use proto::{Seq, ShardId};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::time::Duration;
use storage::{Row, Storage};

const MOVER_DIR: &str = "NATTER_TEST_MOVER_DIR";

/// Where a snapshot waits that movers install.
fn snapshot_file(dir: &Path) -> PathBuf {
    dir.with_extension("stream")
}

const MOVED: ShardId = ShardId(5);

/// Not a test of its own: installs a snapshot and forgets the group, without end.
#[test]
fn mover() {
    let Some(dir) = std::env::var_os(MOVER_DIR) else { return };
    let dir = Path::new(&dir);
    let (storage, _) = Storage::open(dir, options()).unwrap();
    let snapshot = fs::read(snapshot_file(dir)).unwrap();
    let mut out = std::io::stdout();
    loop {
        receive(&storage, MOVED, &snapshot).unwrap();
        writeln!(out, "installing").unwrap();
        storage.install(MOVED).unwrap();
        append(&storage, MOVED, 101, vec![1]).recv().unwrap().unwrap();
        writeln!(out, "installed").unwrap();
        storage.wipe(MOVED, None).unwrap();
        append(&storage, MOVED, 0, vec![2]).recv().unwrap().unwrap();
        writeln!(out, "wiped").unwrap();
    }
}

/// Starts a mover and waits until it installs.
fn begin_to_move(dir: &Path) -> (Victim, BufReader<ChildStdout>) {
    let (child, mut out) = spawn("mover", MOVER_DIR, dir);
    let mut line = String::new();
    while !line.starts_with("installing") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0);
    }
    (child, out)
}

/// A snapshot of a few thousand messages, put where movers look for it.
fn prepare(dir: &Path) -> Vec<u8> {
    let source = tempfile::tempdir().unwrap();
    let user = user_of(MOVED, 0);
    let (storage, _) = Storage::open(source.path(), options()).unwrap();
    let rows = (1..=4000).map(|n| Row::Message(user, Seq(n), Some(envelope(n, n * 1000, 1000))));
    storage.checkpoint(MOVED, at(100), rows.collect()).unwrap();
    let snapshot = stream(&storage, MOVED);
    fs::write(snapshot_file(dir), &snapshot).unwrap();
    snapshot
}

/// Judges what is found after `said` was the last that a mover said. Says what it found.
fn verify(dir: &Path, snapshot: &[u8], said: Option<&str>, first: bool) -> String {
    let user = user_of(MOVED, 0);
    let (storage, found) = Storage::open(dir, options()).unwrap();
    let now = stream(&storage, MOVED);
    let found = records(found).remove(&MOVED.0).unwrap_or_default();
    let installed = now == snapshot;
    if installed {
        assert!(found.is_empty() || found == [(101, vec![1])], "{found:?}");
        assert_eq!(storage.messages(user, Seq(3999), Seq(4000), 9, 9999).unwrap().len(), 1);
    } else {
        assert_eq!(storage.applied(MOVED).unwrap(), None, "half installed");
        storage.load(MOVED, &mut |row| assert_eq!(format!("{row:?}"), "")).unwrap();
        assert!(now.len() < 100, "rows that nobody has");
        assert!(found.is_empty() || found == [(0, vec![2])], "{found:?}");
    }
    storage.close();
    // What was said is done; what followed may be.
    let place = (said, installed, found.is_empty());
    let possible = match said {
        Some("installed") => !installed || !found.is_empty(),
        Some("wiped") => installed || !found.is_empty(),
        _ => said.is_none() && (installed || !found.is_empty() || first),
    };
    assert!(possible, "a record was lost: {place:?}");
    format!("{place:?}")
}

#[test]
fn a_killed_move_is_done_or_not_begun() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let snapshot = prepare(&dir);
    let mut seen = BTreeMap::new();
    for round in 0..10u64 {
        let (child, out) = begin_to_move(&dir);
        // Anywhere in the install, or in the wipe that follows.
        std::thread::sleep(Duration::from_millis(round * 210 % 600));
        drop(child);
        let said = out.lines().map_while(Result::ok).filter(|line| line.ends_with("ed")).last();
        let place = verify(&dir, &snapshot, said.as_deref(), round == 0);
        *seen.entry(place).or_insert(0) += 1;
    }
    println!("{seen:#?}");
    assert!(seen.len() >= 2, "{seen:?}");
}

#[test]
fn a_power_cut_leaves_a_move_done_or_not_begun() {
    let Some(disk) = Disk::new() else { return };
    let dir = disk.dir();
    let snapshot = prepare(&dir);
    let mut seen = BTreeMap::new();
    for round in 0..5u64 {
        let (child, mut out) = begin_to_move(&dir);
        std::thread::sleep(Duration::from_millis(round * 150 % 700));
        // Whatever it said is left aside: this is about halves.
        let mut place = String::new();
        disk.cut(&child, |dir| place = verify(dir, &snapshot, None, true));
        *seen.entry(place).or_insert(0) += 1;
        drop(child);
        out.read_to_end(&mut Vec::new()).unwrap();
    }
    println!("{seen:#?}");
}
