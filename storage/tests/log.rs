//! Promises of the log: order, one flush for many, torn tails, damage, and segments that go.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Records, append, at, open_on, segments};
use proto::ShardId;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use storage::engine::memory::Memory;
use storage::{LogError, Storage, StorageError};

fn open(dir: &Path, tables: &Arc<Memory>) -> Result<(Storage, Records), StorageError> {
    open_on(dir, Arc::clone(tables) as _)
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
    for index in 0..20_000u64 {
        let (sender, watcher) = (sender.clone(), storage.clone());
        let done = Box::new(move |outcome: Result<(), _>| {
            sender.send((index, outcome, watcher.usage())).unwrap();
        });
        storage.log().append(ShardId(2), index, index.to_le_bytes().to_vec(), done);
    }
    for index in 0..20_000 {
        let (answered, outcome, usage) = answers.recv().unwrap();
        assert_eq!((answered, outcome), (index, Ok(())));
        assert!(usage.appended_records > index, "answered before it was flushed");
    }
    let usage = storage.usage();
    assert_eq!(usage.appended_records, 20_000);
    assert!(usage.flushes < 10_000, "{usage:?}");
    storage.close();

    let (_, found) = open(dir.path(), &Arc::default()).unwrap();
    let expected: Vec<_> = (0..20_000u64).map(|n| (n, n.to_le_bytes().to_vec())).collect();
    assert_eq!(found, Records::from([(2, expected)]));
}

#[test]
fn a_panicking_answer_does_not_stop_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    storage.log().append(ShardId(0), 0, vec![1], Box::new(|_| panic!("as the test wants")));
    append(&storage, ShardId(0), 1, vec![2]).recv().unwrap().unwrap();
}

#[test]
fn a_torn_tail_is_cut_and_nothing_before_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_blocks(&storage, 0..10, 100);
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
        assert_eq!(indexes(&found), (0..kept).collect::<Vec<_>>());
        append_blocks(&storage, kept..kept + 3, 100);
        storage.close();
        let (storage, found) = open(dir.path(), &Arc::default()).unwrap();
        assert_eq!(indexes(&found), (0..kept + 3).collect::<Vec<_>>());
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
    append_blocks(&storage, 0..10, 100);
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
    append_blocks(&storage, 0..50, 100_000);
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
    assert_eq!(indexes(&found), (0..50).collect::<Vec<_>>());
}

#[test]
fn segments_go_when_all_they_hold_is_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append(&storage, ShardId(5), 0, vec![5; 10]).recv().unwrap().unwrap();
    append_blocks(&storage, 0..50, 100_000);
    let before = segments(dir.path()).len();
    storage.checkpoint(ShardId(1), at(40), Vec::new()).unwrap();
    assert_eq!(segments(dir.path()).len(), before, "shard 5 holds the first one");
    storage.checkpoint(ShardId(5), at(0), Vec::new()).unwrap();
    assert!(segments(dir.path()).len() < before);
    storage.checkpoint(ShardId(1), at(49), Vec::new()).unwrap();
    storage.maintain(true).unwrap();
    assert_eq!(segments(dir.path()), Vec::<PathBuf>::new(), "the open one went as well");
    append_blocks(&storage, 50..51, 10);
    assert_eq!(storage.usage().log_segments, 1);
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(indexes(&found), [50]);
}

#[test]
fn an_idle_group_does_not_pin_the_segments_of_other_groups() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    for index in 0..3 {
        append(&storage, ShardId(5), index, vec![5; 10]).recv().unwrap().unwrap();
    }
    append_blocks(&storage, 0..40, 500_000);
    let before = segments(dir.path()).len();
    storage.maintain(false).unwrap();
    assert_eq!(segments(dir.path()).len(), before, "group 1 moves on, and will have a checkpoint");
    storage.checkpoint(ShardId(1), at(39), Vec::new()).unwrap();
    storage.maintain(false).unwrap();
    assert!(segments(dir.path()).len() <= 2, "{before} before");
    append(&storage, ShardId(5), 3, vec![5; 10]).recv().unwrap().unwrap();
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    let expected: Vec<_> = (0..4).map(|index| (index, vec![5; 10])).collect();
    assert_eq!(found, Records::from([(5, expected)]));
}

/// Appends to group 1, one flush each; what is appended says in which round it was.
fn append_round(storage: &Storage, round: u8, indexes: std::ops::Range<u64>, bytes: usize) {
    for index in indexes {
        append(storage, ShardId(1), index, vec![round; bytes]).recv().unwrap().unwrap();
    }
}

fn truncate(storage: &Storage, group: ShardId, index: u64) {
    let (sender, receiver) = channel();
    let done = Box::new(move |outcome| sender.send(outcome).unwrap());
    storage.log().truncate(group, index, done);
    receiver.recv().unwrap().unwrap();
}

/// Index and round of the records found of group 1.
fn rounds(records: &Records) -> Vec<(u64, u8)> {
    let of_group = records.get(&1).into_iter().flatten();
    of_group.map(|(index, record)| (*index, record[0])).collect()
}

#[test]
fn a_later_record_replaces_an_earlier_one_and_all_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 0..10, 100);
    append_round(&storage, 2, 4..6, 100);
    append_round(&storage, 3, 5..7, 100);
    storage.close();
    let surviving = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3)];
    let (storage, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), surviving);
    // All over again, from the first one.
    append_round(&storage, 4, 0..2, 100);
    storage.close();
    let (storage, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), [(0, 4), (1, 4)]);
    truncate(&storage, ShardId(1), 1);
    truncate(&storage, ShardId(2), 0);
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), [(0, 4)]);
}

#[test]
fn what_was_replaced_in_another_segment_stays_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 0..40, 100_000);
    append_round(&storage, 2, 15..30, 100_000);
    assert!(segments(dir.path()).len() > 4);
    storage.close();
    let expected = |from: u64| -> Vec<_> {
        (0..30)
            .map(|index| (index, if index < 15 { 1 } else { 2 }))
            .skip_while(|r| r.0 < from)
            .collect()
    };
    let (storage, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), expected(0));
    storage.close();

    // A torn overwrite has replaced nothing.
    let last = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    let (storage, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), expected(0)[..29]);
    storage.close();
}

#[test]
fn a_torn_overwrite_leaves_what_it_would_have_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_round(&storage, 1, 0..10, 100);
    append_round(&storage, 2, 3..4, 100);
    storage.close();
    let segment = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&segment).unwrap();
    fs::write(&segment, &whole[..whole.len() - 20]).unwrap();
    let (storage, found) = open(dir.path(), &Arc::default()).unwrap();
    assert_eq!(rounds(&found), (0..10).map(|index| (index, 1)).collect::<Vec<_>>());
    storage.close();
}

#[test]
fn a_segment_of_replaced_records_goes_without_a_checkpoint_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 0..40, 100_000);
    append_round(&storage, 2, 10..12, 100_000);
    let before = segments(dir.path()).len();
    storage.checkpoint(ShardId(1), at(9), Vec::new()).unwrap();
    assert!(segments(dir.path()).len() < before, "records 12 to 39 do not count");
    storage.close();
    let (storage, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), [(10, 2), (11, 2)]);
    storage.checkpoint(ShardId(1), at(11), Vec::new()).unwrap();
    storage.maintain(true).unwrap();
    assert_eq!(segments(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn what_was_replaced_may_have_lost_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 0..1, 100);
    storage.close();
    // The next segment begins in the middle of what its end replaces: the first one may go.
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 1..3, 100);
    append_round(&storage, 2, 0..1, 100);
    assert_eq!(segments(dir.path()).len(), 2);
    storage.checkpoint(ShardId(2), at(0), Vec::new()).unwrap();
    assert_eq!(segments(dir.path()).len(), 1);
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), [(0, 2)]);
}

#[test]
fn a_gap_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    append_round(&storage, 1, 0..5, 100);
    append_round(&storage, 1, 6..7, 100);
    storage.close();
    let opened = open(dir.path(), &tables);
    let Err(StorageError::Corrupt { file, what, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!(file, segments(dir.path())[0]);
    assert!(what.contains("record 5 of group 1"), "{what}");
}

#[test]
fn a_group_that_does_not_begin_where_the_tables_end_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_round(&storage, 1, 1..3, 100);
    storage.close();
    assert!(matches!(open(dir.path(), &Arc::default()), Err(StorageError::Corrupt { .. })));
    let tables = Arc::default();
    let other = tempfile::tempdir().unwrap();
    let (storage, _) = open(other.path(), &tables).unwrap();
    storage.checkpoint(ShardId(1), at(0), Vec::new()).unwrap();
    storage.close();
    let (_, found) = open(dir.path(), &tables).unwrap();
    assert_eq!(rounds(&found), [(1, 1), (2, 1)]);
}

#[test]
fn all_seventeen_groups_have_logs_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Arc::default();
    let (storage, _) = open(dir.path(), &tables).unwrap();
    for group in 0..=16 {
        for index in 0..=u64::from(group) {
            let record = vec![u8::try_from(group).unwrap(); 9];
            append(&storage, ShardId(group), index, record).recv().unwrap().unwrap();
        }
    }
    storage.checkpoint(ShardId::META, at(15), Vec::new()).unwrap();
    storage.close();
    let (storage, found) = open(dir.path(), &tables).unwrap();
    for group in 0..16 {
        assert_eq!(found[&group].len(), usize::from(group) + 1);
    }
    assert_eq!(found[&16], [(16, vec![16; 9])]);
    assert_eq!(storage.applied(ShardId::META).unwrap(), Some(at(15)));
    assert_eq!(storage.applied(ShardId(0)).unwrap(), None);
}

#[test]
fn a_log_whose_directory_is_gone_fails_and_does_not_wait_for_space() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open(dir.path(), &Arc::default()).unwrap();
    append_blocks(&storage, 0..1, 100);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let mut blocks =
        (1..100).map(|n| append(&storage, ShardId(1), n, vec![0; 100_000]).recv().unwrap());
    let refused = blocks.find_map(Result::err);
    assert_eq!(refused, Some(LogError::Failed), "no segment can be made");
    let later = append(&storage, ShardId(4), 0, vec![1]).recv().unwrap();
    assert_eq!(later, Err(LogError::Failed), "it is shut for all");
}
