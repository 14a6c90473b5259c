//! Whatever happens to a group, and whenever the machine dies, what was answered is found again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Records, append, at, height, open_on, receive, segments, stream};
use proptest::prelude::*;
use proto::{ShardId, stored};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use storage::engine::memory::Memory;
use storage::{Row, Storage};

const GROUPS: [ShardId; 3] = [ShardId(0), ShardId(7), ShardId::META];

/// What happens to one of the groups.
#[derive(Clone, Debug)]
enum Change {
    Append {
        bytes: usize,
    },
    /// The record so many places before the end is replaced.
    Overwrite {
        back: u64,
        bytes: usize,
    },
    Truncate {
        back: u64,
    },
    /// As of the record so many places before the end.
    Checkpoint {
        back: u64,
    },
    Vote,
    Wipe,
    /// A snapshot that is so far beyond the tables.
    Install {
        ahead: u64,
    },
}

#[derive(Clone, Debug)]
enum Step {
    Change(usize, Change),
    Maintain,
    Restart,
    /// The machine dies; up to `torn` bytes of a block that was being written are found.
    Crash {
        seed: u64,
        torn: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || 0usize..300_000;
    let change = prop_oneof![
        8 => bytes().prop_map(|bytes| Change::Append { bytes }),
        3 => (0u64..6, bytes()).prop_map(|(back, bytes)| Change::Overwrite { back, bytes }),
        1 => (0u64..6).prop_map(|back| Change::Truncate { back }),
        3 => (0u64..4).prop_map(|back| Change::Checkpoint { back }),
        1 => Just(Change::Vote),
        1 => Just(Change::Wipe),
        1 => (0u64..12).prop_map(|ahead| Change::Install { ahead }),
    ];
    let step = prop_oneof![
        12 => (0..GROUPS.len(), change).prop_map(|(group, change)| Step::Change(group, change)),
        1 => Just(Step::Maintain),
        1 => Just(Step::Restart),
        2 => (any::<u64>(), 0usize..3000).prop_map(|(seed, torn)| Step::Crash { seed, torn }),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a group should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Group {
    applied: Option<stored::Applied>,
    /// In the tables.
    stamp: Option<u64>,
    /// Beyond the tables.
    records: Vec<(u64, Vec<u8>)>,
    vote: Option<stored::Vote>,
}

impl Group {
    /// Index of the next record.
    fn next(&self) -> u64 {
        self.records.last().map_or(height(self.applied.as_ref()), |(index, _)| index + 1)
    }

    fn cut(&mut self, index: u64) {
        self.records.retain(|(earlier, _)| *earlier < index);
    }

    fn apply(&mut self, index: u64, stamp: u64) {
        self.applied = Some(at(index));
        self.stamp = Some(stamp);
        self.records.retain(|(earlier, _)| *earlier > index);
    }
}

fn stamped(stamp: u64) -> Vec<Row> {
    vec![Row::Stream(ShardId(1), stored::Stream { sent: stamp, ..Default::default() })]
}

fn snapshot(group: ShardId, index: u64, stamp: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open_on(dir.path(), Arc::new(Memory::default())).unwrap();
    storage.checkpoint(group, at(index), stamped(stamp)).unwrap();
    stream(&storage, group)
}

/// Does `change` to the storage and to the model.
fn change(storage: &Storage, group: ShardId, model: &mut Group, stamp: u64, change: &Change) {
    let replaced = |model: &Group, back: u64| {
        model.next().saturating_sub(back).max(height(model.applied.as_ref()))
    };
    let write = |model: &mut Group, index, bytes| {
        let mut record = vec![7; bytes];
        record.extend(stamp.to_le_bytes());
        record.push(0xff);
        append(storage, group, index, record.clone()).recv().unwrap().unwrap();
        model.cut(index);
        model.records.push((index, record));
    };
    match change {
        Change::Append { bytes } => write(model, model.next(), *bytes),
        Change::Overwrite { back, bytes } => write(model, replaced(model, *back), *bytes),
        Change::Truncate { back } => {
            let (sender, answer) = channel();
            let done = Box::new(move |outcome| sender.send(outcome).unwrap());
            let index = replaced(model, *back);
            storage.log().truncate(group, index, done);
            answer.recv().unwrap().unwrap();
            model.cut(index);
        }
        Change::Checkpoint { back } => {
            let Some(last) = model.next().checked_sub(1) else { return };
            let tables = height(model.applied.as_ref()).saturating_sub(1);
            let index = last.saturating_sub(*back).max(tables);
            storage.checkpoint(group, at(index), stamped(stamp)).unwrap();
            model.apply(index, stamp);
        }
        Change::Vote => {
            let vote = stored::Vote { term: stamp, node: 9, committed: false };
            storage.save_vote(group, &vote).unwrap();
            model.vote = Some(vote);
        }
        Change::Wipe => {
            storage.wipe(group, None).unwrap();
            *model = Group { vote: model.vote, ..Group::default() };
        }
        Change::Install { ahead } => {
            let index = height(model.applied.as_ref()) + ahead;
            receive(storage, group, &snapshot(group, index, stamp)).unwrap();
            storage.install(group).unwrap();
            model.apply(index, stamp);
        }
    }
}

/// The file tree as a crash leaves it, with part of a further block at the end of the log.
fn crashed(dir: &Path, torn: usize) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("log")).unwrap();
    for name in ["version", "votes"] {
        fs::copy(dir.join(name), copy.path().join(name)).unwrap();
    }
    for path in segments(dir) {
        fs::copy(&path, copy.path().join("log").join(path.file_name().unwrap())).unwrap();
    }
    if let Some(last) = segments(copy.path()).pop() {
        let mut bytes = fs::read(&last).unwrap();
        bytes.truncate(end_of_blocks(&bytes));
        bytes.extend(vec![0x5a; torn]);
        fs::write(&last, bytes).unwrap();
    }
    copy
}

/// Where the last block of a segment ends, from the lengths in the headers.
fn end_of_blocks(segment: &[u8]) -> usize {
    let mut at = 32;
    while segment.get(at..at + 4) == Some(&[0xb1, b'N', b'B', 0x1c]) {
        let length = segment[at + 8..at + 12].try_into().unwrap();
        at += 24 + u32::from_le_bytes(length) as usize;
    }
    at
}

fn check(storage: &Storage, found: &Records, model: &[Group; 3]) {
    let mut records: BTreeMap<u16, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
    for (group, expected) in GROUPS.into_iter().zip(model) {
        let mut rows = Vec::new();
        let applied = storage.load(group, &mut |row| rows.push(row)).unwrap();
        assert_eq!(rows, expected.stamp.map_or(Vec::new(), stamped), "group {group}");
        assert_eq!(applied, expected.applied, "group {group}");
        assert_eq!(storage.applied(group).unwrap(), applied);
        assert_eq!(storage.vote(group).unwrap(), expected.vote, "vote of group {group}");
        if !expected.records.is_empty() {
            records.insert(group.0, expected.records.clone());
        }
    }
    let places = |records: &Records| -> Vec<_> {
        let of_group = |(group, records): (&u16, &Vec<(u64, Vec<u8>)>)| {
            (*group, records.iter().map(|record| record.0).collect::<Vec<_>>())
        };
        records.iter().map(of_group).collect()
    };
    assert_eq!(places(found), places(&records));
    assert!(*found == records, "other records at the same places");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_answered_is_found_again(steps in steps()) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut tables = Arc::<Memory>::default();
        let (mut storage, _) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
        let mut model: [Group; 3] = Default::default();
        for (stamp, step) in (1..).zip(steps) {
            match step {
                Step::Change(n, what) => {
                    change(&storage, GROUPS[n], &mut model[n], stamp, &what);
                    continue;
                }
                Step::Maintain => {
                    storage.maintain(true).unwrap();
                    continue;
                }
                Step::Restart => storage.close(),
                Step::Crash { seed, torn } => {
                    let copy = crashed(dir.path(), torn);
                    tables = Arc::new(tables.crash(seed));
                    storage.close();
                    dir = copy;
                }
            }
            let (opened, found) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
            check(&opened, &found, &model);
            storage = opened;
        }
    }
}
