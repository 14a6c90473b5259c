//! Promises of the log: order, one flush for many, torn tails, damage, and segments that go.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{append, files, options};
use proptest::prelude::*;
use proto::ShardId;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use storage::engine::memory::Memory;
use storage::{Engines, Recovered, Storage, StorageError};

type Records = BTreeMap<u16, Vec<(u64, Vec<u8>)>>;

fn open(dir: &Path, tables: &Arc<Memory>) -> Result<(Storage, Records), StorageError> {
    let engines = Engines { tables: Arc::clone(tables) as _, sessions: Arc::default_memory() };
    Storage::open_with(dir, options(), engines).map(|(storage, found)| (storage, records(found)))
}

trait DefaultMemory {
    fn default_memory() -> Self;
}

impl DefaultMemory for Arc<dyn storage::engine::Engine> {
    fn default_memory() -> Self {
        Arc::new(Memory::default())
    }
}

fn records(found: Recovered) -> Records {
    let owned = |(index, bytes): (u64, bytes::Bytes)| (index, bytes.to_vec());
    let of_shard = |found: storage::ShardRecords| {
        (found.shard.0, found.records.into_iter().map(owned).collect())
    };
    found.records.into_iter().map(of_shard).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found = files(&dir.join("log"));
    found.retain(|path| path.extension().is_some_and(|ext| ext == "log"));
    found.sort();
    found
}

/// Appends `indexes` one flush each, so that each is a block of its own.
fn append_blocks(storage: &Storage, indexes: impl Iterator<Item = u64>, bytes: usize) {
    for index in indexes {
        let record = vec![u8::try_from(index % 256).unwrap(); bytes];
        append(storage, ShardId(1), index, record).recv().unwrap().unwrap();
    }
}

fn indexes(records: &Records) -> Vec<u64> {
    records.get(&1).map_or(Vec::new(), |found| found.iter().map(|(index, _)| *index).collect())
}

#[test]
fn many_appends_share_a_flush_and_are_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    let (sender, answers) = channel();
    for index in 1..=20_000u64 {
        let (sender, watcher) = (sender.clone(), storage.clone());
        let done = Box::new(move |outcome: Result<(), _>| {
            sender.send((index, outcome, watcher.usage())).unwrap();
        });
        storage.log().append(ShardId(2), index, index.to_le_bytes().to_vec(), done);
    }
    for index in 1..=20_000 {
        let (answered, outcome, usage) = answers.recv().unwrap();
        assert_eq!((answered, outcome), (index, Ok(())));
        assert!(usage.appended_records >= index, "answered before it was flushed");
    }
    let usage = storage.usage();
    assert_eq!(usage.appended_records, 20_000);
    assert!(usage.flushes < 10_000, "{usage:?}");
    storage.close();

    let (_, found) = open(dir.path(), &Arc::default()).unwrap();
    let expected: Vec<_> = (1..=20_000u64).map(|n| (n, n.to_le_bytes().to_vec())).collect();
    assert_eq!(found, Records::from([(2, expected)]));
}

#[test]
fn a_panicking_answer_does_not_stop_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    storage.log().append(ShardId(0), 1, vec![1], Box::new(|_| panic!("as the test wants")));
    append(&storage, ShardId(0), 2, vec![2]).recv().unwrap().unwrap();
}

#[test]
fn a_torn_tail_is_cut_and_nothing_before_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_blocks(&storage, 1..=10, 100);
    storage.close();
    let segment = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&segment).unwrap();
    let block = (whole.len() - 32) / 10;

    for (torn, kept) in [
        (whole[..whole.len() - 1].to_vec(), 9),
        (whole[..whole.len() - block + 10].to_vec(), 9),
        ([&whole[..], &whole[32..32 + block / 2]].concat(), 10),
        ([&whole[..], &[0xb1; 5000]].concat(), 10),
        ([&whole[..], &[0; 5000]].concat(), 10),
        (whole[..32].to_vec(), 0),
        (vec![0; 4096], 0),
        (Vec::new(), 0),
    ] {
        fs::write(&segment, &torn).unwrap();
        let (storage, found) = open(dir.path(), &Arc::default()).unwrap();
        assert_eq!(indexes(&found), (1..=kept).collect::<Vec<_>>());
        append_blocks(&storage, kept + 1..=kept + 3, 100);
        storage.close();
        let (storage, found) = open(dir.path(), &Arc::default()).unwrap();
        assert_eq!(indexes(&found), (1..=kept + 3).collect::<Vec<_>>());
        storage.close();
        for path in segments(dir.path()) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn damage_before_the_tail_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_blocks(&storage, 1..=10, 100);
    storage.close();
    let segment = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&segment).unwrap();
    let block = (whole.len() - 32) / 10;
    for at in [32, 32 + 4 * block + 7, 32 + 8 * block + block - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&segment, &damaged).unwrap();
        let opened = open(dir.path(), &Arc::default());
        let Err(StorageError::Corrupt { file, offset, .. }) = opened else { panic!("{opened:?}") };
        let block_of_damage = (at - 32) / block;
        assert_eq!((file, offset), (segment.clone(), (32 + block_of_damage * block) as u64));
        assert_eq!(fs::read(&segment).unwrap(), damaged, "nothing was changed");
    }
    let mut damaged = whole;
    damaged[5] ^= 1;
    fs::write(&segment, &damaged).unwrap();
    assert!(matches!(
        open(dir.path(), &Arc::default()),
        Err(StorageError::Corrupt { offset: 0, .. })
    ));
}

#[test]
fn damage_in_an_earlier_segment_and_a_missing_one_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_blocks(&storage, 1..=50, 100_000);
    storage.close();
    let segments = segments(dir.path());
    assert!(segments.len() >= 4, "{segments:?}");

    let whole = fs::read(&segments[1]).unwrap();
    fs::write(&segments[1], &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(open(dir.path(), &Arc::default()), Err(StorageError::Corrupt { .. })));
    fs::remove_file(&segments[1]).unwrap();
    assert!(matches!(open(dir.path(), &Arc::default()), Err(StorageError::Corrupt { .. })));
    fs::write(&segments[1], &whole).unwrap();
    let (_, found) = open(dir.path(), &Arc::default()).unwrap();
    assert_eq!(indexes(&found), (1..=50).collect::<Vec<_>>());
}

#[test]
fn segments_go_when_all_they_hold_is_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append(&storage, ShardId(5), 1, vec![5; 10]).recv().unwrap().unwrap();
    append_blocks(&storage, 1..=50, 100_000);
    let before = segments(dir.path()).len();
    storage.checkpoint(ShardId(1), 40, Vec::new()).unwrap();
    assert_eq!(segments(dir.path()).len(), before, "shard 5 holds the first one");
    assert_eq!(storage.log().held_by(), [ShardId(5)]);
    storage.checkpoint(ShardId(5), 1, Vec::new()).unwrap();
    assert!(segments(dir.path()).len() < before);
    assert_eq!(storage.log().held_by(), [ShardId(1)]);
    storage.checkpoint(ShardId(1), 50, Vec::new()).unwrap();
    storage.maintain(true).unwrap();
    assert_eq!(segments(dir.path()), Vec::<PathBuf>::new(), "the open one went as well");
    append_blocks(&storage, 51..=51, 10);
    assert_eq!(storage.usage().log_segments, 1);
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(indexes(&found), [51]);
}

/// What a run of the log may do.
#[derive(Clone, Debug)]
enum Step {
    Append {
        shard: u16,
        bytes: usize,
    },
    Checkpoint {
        shard: u16,
    },
    Maintain,
    Restart,
    /// The machine dies; up to `torn` bytes of a block that was being written are found.
    Crash {
        seed: u64,
        torn: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u16..4, 0usize..400_000).prop_map(|(shard, bytes)| Step::Append { shard, bytes }),
        2 => (0u16..4).prop_map(|shard| Step::Checkpoint { shard }),
        1 => Just(Step::Maintain),
        1 => Just(Step::Restart),
        2 => (any::<u64>(), 0usize..3000).prop_map(|(seed, torn)| Step::Crash { seed, torn }),
    ];
    prop::collection::vec(step, 1..40)
}

/// The file tree as a crash leaves it, with part of a further block at the end of the log.
fn crashed(dir: &Path, torn: usize) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("log")).unwrap();
    fs::copy(dir.join("version"), copy.path().join("version")).unwrap();
    for path in segments(dir) {
        fs::copy(&path, copy.path().join("log").join(path.file_name().unwrap())).unwrap();
    }
    if let Some(last) = segments(copy.path()).pop() {
        let mut bytes = fs::read(&last).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1).max(64);
        // The records end in 0xff, so `end` is the end of the last block.
        bytes.truncate(end);
        bytes.extend(vec![0x5a; torn]);
        fs::write(&last, bytes).unwrap();
    }
    copy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_answered_is_found_again(steps in steps()) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut tables = Arc::<Memory>::default();
        let (mut storage, _) = open(dir.path(), &tables).unwrap();
        let mut model = Records::new();
        let mut next = [1u64; 4];
        for step in steps {
            match step {
                Step::Append { shard, bytes } => {
                    let mut record = vec![7; bytes];
                    record.push(0xff);
                    let index = next[usize::from(shard)];
                    next[usize::from(shard)] += 1;
                    let answer = append(&storage, ShardId(shard), index, record.clone());
                    prop_assert_eq!(answer.recv().unwrap(), Ok(()));
                    model.entry(shard).or_default().push((index, record));
                }
                Step::Checkpoint { shard } => {
                    let applied = next[usize::from(shard)] - 1;
                    storage.checkpoint(ShardId(shard), applied, Vec::new()).unwrap();
                    model.remove(&shard);
                }
                Step::Maintain => storage.maintain(true).unwrap(),
                Step::Restart => {
                    storage.close();
                    let (opened, found) = open(dir.path(), &tables).unwrap();
                    prop_assert_eq!(&found, &model);
                    storage = opened;
                }
                Step::Crash { seed, torn } => {
                    let copy = crashed(dir.path(), torn);
                    tables = Arc::new(tables.crash(seed));
                    storage.close();
                    dir = copy;
                    let (opened, found) = open(dir.path(), &tables).unwrap();
                    prop_assert_eq!(&found, &model);
                    storage = opened;
                }
            }
        }
    }
}
