//! Promises that need a dying process, a full disk or a power cut.
//!
//! The disk tests mount file systems, so they need root; elsewhere they say so and pass.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod common;

use common::process::{Disk, Mount, Victim, spawn};
use common::{append, at, envelope, height, options, records, user_of};
use proto::{Seq, ShardId, stored};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::channel;
use storage::{LogError, Row, Storage, StorageError, StorageOptions};

const CHILD_DIR: &str = "NATTER_TEST_CHILD_DIR";
const GROUPS: [ShardId; 4] = [ShardId(0), ShardId(1), ShardId(2), ShardId::META];

/// Appends of one run of a child; more than it makes.
const RUN: u64 = 1 << 32;

/// A record says when it was appended.
fn record(stamp: u64) -> Vec<u8> {
    let mut record = vec![u8::try_from(stamp % 256).unwrap(); 300];
    record[..8].copy_from_slice(&stamp.to_le_bytes());
    record
}

/// Not a test of its own: the process that the others kill. Votes, appends without end, replaces
/// what it appended, checkpoints now and then, and prints what was answered.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let (storage, found) = Storage::open(Path::new(&dir), options()).unwrap();
    let mut out = std::io::stdout();
    let mut next = [0u64; GROUPS.len()];
    for (place, group) in GROUPS.into_iter().enumerate() {
        let applied = storage.applied(group).unwrap();
        let records = found.records.iter().find(|found| found.shard == group);
        let last = records.and_then(|found| found.records.last()).map(|record| record.0 + 1);
        next[place] = last.unwrap_or(height(applied.as_ref()));
    }
    let mut stamp = storage.vote(ShardId(0)).unwrap().map_or(0, |vote| vote.term / RUN + 1) * RUN;
    for round in 0.. {
        let group = GROUPS[round % GROUPS.len()];
        let vote = stored::Vote { term: stamp, node: 5, committed: true };
        storage.save_vote(ShardId(0), &vote).unwrap();
        storage.save_vote(group, &vote).unwrap();
        writeln!(out, "voted 0 {stamp}\nvoted {} {stamp}", group.0).unwrap();
        let (sender, answers) = channel();
        for n in 0..200 {
            let (place, group) = (n % GROUPS.len(), GROUPS[n % GROUPS.len()]);
            if n >= 196 {
                next[place] -= 5;
            }
            let index = next[place];
            next[place] += 1;
            stamp += 1;
            let (sender, at) = (sender.clone(), stamp);
            let done = Box::new(move |outcome| sender.send((group, index, at, outcome)).unwrap());
            storage.log().append(group, index, record(stamp), done);
        }
        drop(sender);
        let mut lines = Vec::new();
        for (group, index, stamp, outcome) in answers {
            assert_eq!(outcome, Ok(()));
            writeln!(lines, "appended {} {index} {stamp}", group.0).unwrap();
        }
        out.write_all(&lines).unwrap();
        let applied = next[round % GROUPS.len()] - 1;
        let user = user_of(ShardId(group.0 % 16), 0);
        let row = Row::Message(user, Seq(applied), Some(envelope(applied, 0, 200)));
        let row = if group == ShardId::META { Vec::new() } else { vec![row] };
        storage.checkpoint(group, at(applied), row).unwrap();
        writeln!(out, "checkpointed {} {applied}", group.0).unwrap();
    }
}

fn spawn_child(dir: &Path) -> (Victim, BufReader<ChildStdout>) {
    spawn("child", CHILD_DIR, dir)
}

/// What a child was promised.
#[derive(Default, Debug)]
struct Promised {
    /// By group: the stamp of each index.
    appended: BTreeMap<u16, BTreeMap<u64, u64>>,
    voted: BTreeMap<u16, u64>,
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
            let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
            let group = u16::try_from(numbers.first().copied().unwrap_or(0)).unwrap();
            match (words.first().copied(), &numbers[..]) {
                (Some("appended"), [_, index, stamp]) => {
                    let records = self.appended.entry(group).or_default();
                    records.split_off(index);
                    records.insert(*index, *stamp);
                }
                (Some("voted"), [_, stamp]) => {
                    self.voted.insert(group, *stamp);
                }
                (Some("checkpointed"), [_, applied]) => self.checkpointed.push((group, *applied)),
                _ => {}
            }
        }
        lines
    }

    fn verify(&self, dir: &Path) {
        let (storage, found) = Storage::open(dir, options()).unwrap();
        let found = records(found);
        for (group, promised) in &self.appended {
            let applied = height(storage.applied(ShardId(*group)).unwrap().as_ref());
            let records = found.get(group).map_or(&[][..], |found| found);
            for (place, (index, _)) in records.iter().enumerate() {
                assert_eq!(*index, applied + place as u64, "a hole in group {group}");
            }
            for (index, stamp) in promised.range(applied..) {
                let place = usize::try_from(index - applied).ok().and_then(|n| records.get(n));
                assert!(place.is_some(), "group {group} lost {index}");
                let (_, found) = place.unwrap();
                let found_stamp = u64::from_le_bytes(found[..8].try_into().unwrap());
                assert_eq!(*found, record(found_stamp));
                assert!(found_stamp >= *stamp, "group {group}: an old record {index} came back");
                if found_stamp > *stamp {
                    // It was replaced, and all after it, before that was answered.
                    break;
                }
            }
        }
        for (group, stamp) in &self.voted {
            let vote = storage.vote(ShardId(*group)).unwrap().unwrap();
            assert!(vote.term >= *stamp, "group {group} forgot a vote");
        }
        for (group, applied) in &self.checkpointed {
            if *group == ShardId::META.0 {
                assert!(height(storage.applied(ShardId::META).unwrap().as_ref()) > *applied);
                continue;
            }
            let user = user_of(ShardId(*group), 0);
            let seq = Seq(*applied);
            let held = storage.messages(user, Seq(seq.0 - 1), seq, 1, usize::MAX).unwrap();
            assert_eq!(held, [(seq, envelope(*applied, 0, 200))], "a checkpoint was lost");
        }
        storage.close();
    }

    fn is_enough(&self, records: u64) -> bool {
        let last = self.appended.get(&16).and_then(BTreeMap::last_key_value);
        last.is_some_and(|(index, _)| *index > records)
    }
}

#[test]
fn nothing_answered_is_lost_by_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut promised = Promised::default();
    for round in 1..=10 {
        let (child, mut out) = spawn_child(dir.path());
        promised.read(&mut out, round * 500);
        drop(child);
        while promised.read(&mut out, 1000) > 0 {}
        promised.verify(dir.path());
    }
    assert!(promised.is_enough(1000), "{:?}", promised.voted);
}

/// Appends until the log is full; returns the index that was refused.
fn fill(storage: &Storage, from: u64) -> u64 {
    let mut kept = from;
    loop {
        let outcome = append(storage, ShardId(0), kept, vec![1; 100_000]).recv().unwrap();
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

    // What would fit is refused as well if it comes after what does not: the log has no gap.
    let big = append(&storage, ShardId(0), kept, vec![1; 600_000]);
    let small = [kept + 1, kept + 2].map(|index| append(&storage, ShardId(0), index, vec![1; 10]));
    assert_eq!(big.recv().unwrap(), Err(LogError::Full));
    for answer in small {
        assert_eq!(answer.recv().unwrap(), Err(LogError::Full));
    }
    let later = append(&storage, ShardId(0), kept + 1, vec![1; 10]);
    assert_eq!(later.recv().unwrap(), Err(LogError::Full));

    // What is in the tables leaves the log, so there is space again.
    let mut next = kept;
    storage.checkpoint(ShardId(0), at(next - 1), Vec::new()).unwrap();
    for _ in 0..3 {
        let refilled = fill(&storage, next);
        assert!(refilled > next, "no space came back");
        next = refilled;
        storage.checkpoint(ShardId(0), at(next - 1), Vec::new()).unwrap();
    }

    // A checkpoint that does not fit is refused whole, and one that fits is then taken.
    let user = user_of(ShardId(0), 0);
    let row = |n| Row::Message(user, Seq(n), Some(envelope(n, 0, 200_000)));
    let refused = storage.checkpoint(ShardId(0), at(next - 1), (1..=300).map(row).collect());
    assert!(matches!(refused, Err(StorageError::DiskFull { .. })), "{refused:?}");
    assert!(storage.messages(user, Seq(0), Seq(300), 1, 1).unwrap().is_empty());
    storage.checkpoint(ShardId(0), at(next - 1), vec![row(1)]).unwrap();
    append(&storage, ShardId(0), next, vec![2; 10]).recv().unwrap().unwrap();
    storage.close();

    let (storage, found) = Storage::open(&dir, options).unwrap();
    assert_eq!(storage.applied(ShardId(0)).unwrap(), Some(at(next - 1)));
    let records: Vec<_> = found.records.iter().flat_map(|found| &found.records).collect();
    assert_eq!(records, [&(next, bytes::Bytes::from(vec![2; 10]))]);
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
    // A view must not keep them from it.
    let mut export = storage.export(ShardId(0)).unwrap();
    let mut written = 0;
    for n in 1..=20 {
        // The stranger takes all space between the check and the write, as far as a test can.
        let mut file = fs::File::create(&stranger).unwrap();
        if n % 3 == 0 {
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        let outcome = storage.checkpoint(ShardId(0), at(n), vec![row(n)]);
        drop(file);
        fs::remove_file(&stranger).unwrap();
        match outcome {
            Ok(()) => written += 1,
            Err(error) => println!("checkpoint {n}: {error}"),
        }
    }
    storage.checkpoint(ShardId(0), at(21), vec![row(21)]).unwrap();
    let held = storage.messages(user, Seq(0), Seq(99), 99, usize::MAX).unwrap().len();
    assert!(held > written, "{held} held, {written} written");
    assert!(export.next(usize::MAX).is_err(), "a view of tables that are no longer open");
    storage.close();
    let (storage, _) = Storage::open(&dir, options()).unwrap();
    assert_eq!(storage.applied(ShardId(0)).unwrap(), Some(at(21)));
    assert_eq!(storage.messages(user, Seq(0), Seq(99), 99, usize::MAX).unwrap().len(), held);
    storage.close();
}

#[test]
fn nothing_answered_is_lost_by_a_power_cut() {
    let Some(disk) = Disk::new() else { return };
    let mut promised = Promised::default();
    for round in 1..=4 {
        let (child, mut out) = spawn_child(&disk.dir());
        promised.read(&mut out, 700 * round);
        // What was said by now is a promise; what the file system has not written is lost.
        disk.cut(&child, |dir| promised.verify(dir));
        drop(child);
        while promised.read(&mut out, 1000) > 0 {}
    }
    assert!(promised.is_enough(400), "{:?}", promised.voted);
}
