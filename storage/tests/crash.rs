//! Promises that need a dying process, a full disk or a power cut.
//!
//! The disk tests mount file systems, so they need root; elsewhere they say so and pass.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod common;

use common::{append, envelope, options, user_of};
use proto::{Seq, ShardId};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use storage::{LogError, Row, Storage, StorageError, StorageOptions};

const CHILD_DIR: &str = "NATTER_TEST_CHILD_DIR";
const SHARDS: u16 = 4;

/// Not a test of its own: the process that the others kill. Appends without end, checkpoints now
/// and then, and prints what was answered.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let (storage, found) = Storage::open(Path::new(&dir), options()).unwrap();
    let mut next = [1u64; SHARDS as usize];
    for shard in 0..SHARDS {
        let applied = storage.load(ShardId(shard), &mut |_| {}).unwrap();
        let records = found.records.iter().find(|found| found.shard.0 == shard);
        let last = records.and_then(|found| found.records.last()).map_or(0, |record| record.0);
        next[usize::from(shard)] = applied.max(last) + 1;
    }
    let mut out = std::io::stdout();
    loop {
        let (sender, answers) = channel();
        for n in 0..200u64 {
            let shard = u16::try_from(n % u64::from(SHARDS)).unwrap();
            let index = next[usize::from(shard)];
            next[usize::from(shard)] += 1;
            let sender = sender.clone();
            let done = Box::new(move |outcome| sender.send((shard, index, outcome)).unwrap());
            let record = vec![u8::try_from(index % 256).unwrap(); 300];
            storage.log().append(ShardId(shard), index, record, done);
        }
        drop(sender);
        let mut lines = Vec::new();
        for (shard, index, outcome) in answers {
            assert_eq!(outcome, Ok(()));
            writeln!(lines, "appended {shard} {index}").unwrap();
        }
        out.write_all(&lines).unwrap();
        let shard = u16::try_from(next[0] % u64::from(SHARDS)).unwrap();
        let applied = next[usize::from(shard)] - 1;
        let user = user_of(ShardId(shard), 0);
        let row = Row::Message(user, Seq(applied), Some(envelope(applied, 0, 200)));
        storage.checkpoint(ShardId(shard), applied, vec![row]).unwrap();
        writeln!(out, "checkpointed {shard} {applied}").unwrap();
    }
}

fn spawn_child(dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// What a child was promised.
#[derive(Default, Debug)]
struct Promised {
    appended: BTreeMap<u16, u64>,
    checkpointed: Vec<(u16, u64)>,
}

impl Promised {
    /// Reads what the child says, at most `lines` lines; a half line was never said.
    fn read(&mut self, out: &mut impl BufRead, lines: usize) -> usize {
        for read in 0..lines {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return read;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["appended", shard, index] => {
                    let last = self.appended.entry(shard.parse().unwrap()).or_default();
                    *last = index.parse::<u64>().unwrap().max(*last);
                }
                ["checkpointed", shard, applied] => {
                    self.checkpointed.push((shard.parse().unwrap(), applied.parse().unwrap()));
                }
                _ => {}
            }
        }
        lines
    }

    fn verify(&self, dir: &Path) {
        let (storage, found) = Storage::open(dir, options()).unwrap();
        for (shard, last) in &self.appended {
            let applied = storage.load(ShardId(*shard), &mut |_| {}).unwrap();
            let records = found.records.iter().find(|found| found.shard.0 == *shard);
            let records = records.map_or(&[][..], |found| &found.records);
            for (place, (index, record)) in records.iter().enumerate() {
                assert_eq!(*index, applied + 1 + place as u64, "a hole in shard {shard}");
                assert_eq!(record, &vec![u8::try_from(index % 256).unwrap(); 300]);
            }
            let end = applied + records.len() as u64;
            assert!(end >= *last, "shard {shard}: {last} was promised, {end} is there");
        }
        for (shard, applied) in &self.checkpointed {
            let user = user_of(ShardId(*shard), 0);
            let seq = Seq(*applied);
            let held = storage.messages(user, Seq(seq.0 - 1), seq, 1, usize::MAX).unwrap();
            assert_eq!(held, [(seq, envelope(*applied, 0, 200))], "a checkpoint was lost");
        }
        storage.close();
    }
}

#[test]
fn nothing_answered_is_lost_by_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut promised = Promised::default();
    for round in 1..=10 {
        let (mut child, mut out) = spawn_child(dir.path());
        promised.read(&mut out, round * 500);
        child.kill().unwrap();
        child.wait().unwrap();
        while promised.read(&mut out, 1000) > 0 {}
        promised.verify(dir.path());
    }
    assert!(promised.appended[&0] > 1000, "{promised:?}");
}

/// A mounted file system; unmounted when it is dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` if this machine does not permit it.
    fn new(at: &Path, arguments: &[&str]) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let output = mount.args(arguments).arg(at).output().ok()?;
        if output.status.success() {
            return Some(Self(at.to_owned()));
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        println!("skipped: mount is not permitted here ({why})");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "{} is busy", self.0.display());
    }
}

/// Appends until the log is full; returns how many were kept.
fn fill(storage: &Storage, from: u64) -> u64 {
    let mut kept = from;
    loop {
        let outcome = append(storage, ShardId(0), kept + 1, vec![1; 100_000]).recv().unwrap();
        match outcome {
            Ok(()) => kept += 1,
            Err(refused) => {
                assert_eq!(refused, LogError::Full);
                return kept;
            }
        }
        assert!(kept < 10_000, "the disk does not fill up");
    }
}

#[test]
fn a_full_disk_refuses_and_heals() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) =
        Mount::new(&root.path().join("disk"), &["-t", "tmpfs", "-o", "size=64m", "none"])
    else {
        return;
    };
    let dir = disk.0.join("data");
    let options = StorageOptions { segment_bytes: 1024 * 1024, free_bytes_min: 16 * 1024 * 1024 };
    let (storage, _) = Storage::open(&dir, options).unwrap();
    assert!(!storage.nearly_full());
    let kept = fill(&storage, 0);
    assert!(kept > 100 && storage.nearly_full());
    assert!(matches!(fill(&storage, kept), again if again == kept), "still full");

    // What is in the tables leaves the log, so there is space again.
    let mut applied = kept;
    storage.checkpoint(ShardId(0), applied, Vec::new()).unwrap();
    for _ in 0..3 {
        let refilled = fill(&storage, applied);
        assert!(refilled > applied, "no space came back");
        applied = refilled;
        storage.checkpoint(ShardId(0), applied, Vec::new()).unwrap();
    }

    // A checkpoint that does not fit is refused whole, and one that fits is then taken.
    let user = user_of(ShardId(0), 0);
    let row = |n| Row::Message(user, Seq(n), Some(envelope(n, 0, 200_000)));
    let refused = storage.checkpoint(ShardId(0), applied, (1..=300).map(row).collect());
    assert!(matches!(refused, Err(StorageError::DiskFull { .. })), "{refused:?}");
    assert!(storage.messages(user, Seq(0), Seq(300), 1, 1).unwrap().is_empty());
    storage.checkpoint(ShardId(0), applied, vec![row(1)]).unwrap();
    append(&storage, ShardId(0), applied + 1, vec![2; 10]).recv().unwrap().unwrap();
    storage.close();

    let (storage, found) = Storage::open(&dir, options).unwrap();
    assert_eq!(storage.load(ShardId(0), &mut |_| {}).unwrap(), applied);
    let records: Vec<_> = found.records.iter().flat_map(|found| &found.records).collect();
    assert_eq!(records, [&(applied + 1, bytes::Bytes::from(vec![2; 10]))]);
    assert_eq!(storage.messages(user, Seq(0), Seq(300), 9, usize::MAX).unwrap().len(), 1);
    storage.close();
}

#[test]
fn tables_open_again_after_the_disk_was_full_of_something_else() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) =
        Mount::new(&root.path().join("disk"), &["-t", "tmpfs", "-o", "size=64m", "none"])
    else {
        return;
    };
    let dir = disk.0.join("data");
    let (storage, _) = Storage::open(&dir, options()).unwrap();
    let user = user_of(ShardId(0), 0);
    let row = |n| Row::Message(user, Seq(n), Some(envelope(n, 0, 100_000)));
    let stranger = disk.0.join("stranger");
    let mut written = 0;
    for n in 1..=20 {
        // The stranger takes all space between the check and the write, as far as a test can.
        let mut file = fs::File::create(&stranger).unwrap();
        if n % 3 == 0 {
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        let outcome = storage.checkpoint(ShardId(0), n, vec![row(n)]);
        drop(file);
        fs::remove_file(&stranger).unwrap();
        match outcome {
            Ok(()) => written += 1,
            Err(error) => println!("checkpoint {n}: {error}"),
        }
    }
    storage.checkpoint(ShardId(0), 21, vec![row(21)]).unwrap();
    let held = storage.messages(user, Seq(0), Seq(99), 99, usize::MAX).unwrap().len();
    assert!(held > written, "{held} held, {written} written");
    storage.close();
    let (storage, _) = Storage::open(&dir, options()).unwrap();
    assert_eq!(storage.load(ShardId(0), &mut |_| {}).unwrap(), 21);
    assert_eq!(storage.messages(user, Seq(0), Seq(99), 99, usize::MAX).unwrap().len(), held);
    storage.close();
}

/// Stops a process, and goes on when it is dropped.
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn nothing_answered_is_lost_by_a_power_cut() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("disk.img");
    fs::File::create(&image).unwrap().set_len(256 * 1024 * 1024).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: no mkfs.ext4 here");
        return;
    }
    let loop_mount = |image: &Path, at: &str| {
        Mount::new(&root.path().join(at), &["-o", "loop", image.to_str().unwrap()])
    };
    let Some(disk) = loop_mount(&image, "disk") else { return };
    let dir = disk.0.join("data");
    let mut promised = Promised::default();
    for round in 1..=4 {
        let (mut child, mut out) = spawn_child(&dir);
        promised.read(&mut out, 700 * round);
        // What was said by now is a promise; what the file system has not written is lost.
        signal(&child, "-STOP");
        let cut = root.path().join("cut.img");
        fs::copy(&image, &cut).unwrap();
        {
            let copy = loop_mount(&cut, "cut").unwrap();
            promised.verify(&copy.0.join("data"));
        }
        signal(&child, "-CONT");
        child.kill().unwrap();
        child.wait().unwrap();
        while promised.read(&mut out, 1000) > 0 {}
    }
    assert!(promised.appended[&0] > 400, "{promised:?}");
}
