//! Promises about groups that move: snapshots are equal row for row, and a group is replaced or
//! forgotten at once, whatever fails meanwhile.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{append, at, envelope, files, height, open_on, options, receive, stream, user_of};
use proto::{DeviceId, Seq, ShardId, UserId, stored};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use storage::engine::memory::Memory;
use storage::engine::{Batch, Durability, Engine, Read, Reclaim, Scan, Views, Visit};
use storage::schema::Table;
use storage::{Row, Storage, StorageError};

const GROUP: ShardId = ShardId(3);
const OTHER: ShardId = ShardId(4);

/// Rows of all kinds; `n` messages of 100 kB in them.
fn rows(group: ShardId, stamp: u64, n: u64) -> Vec<Row> {
    let (user, other) = (user_of(group, 0), user_of(group, 1));
    let message = |seq| {
        let expires_ms = if seq % 2 == 0 { 60_000 * seq } else { 0 };
        Row::Message(user, Seq(seq), Some(envelope(seq + stamp, expires_ms, 100_000)))
    };
    let notice = stored::Notice { number: stamp, user: 8, ..Default::default() };
    let mut rows: Vec<_> = (1..=n).map(message).collect();
    rows.extend([
        Row::Account(user, Some(stored::Account { created_ms: stamp, ..Default::default() })),
        Row::Device(other, DeviceId(2), Some(stored::Device::default())),
        Row::Cursors(user, Some(stored::Cursors { next: n + 1, ..Default::default() })),
        Row::Recent {
            to: user,
            from: UserId(7),
            device: DeviceId(1),
            ids: Some(stored::RecentIds { used_ms: stamp, ..Default::default() }),
        },
        Row::Stream(ShardId(9), stored::Stream { sent: stamp, settled: 4, received: 3 }),
        Row::Notice { to: ShardId(9), number: stamp, notice: Some(notice) },
        Row::Meta(Some(stored::Meta { version: stamp, ..Default::default() })),
    ]);
    rows
}

/// The stream of a group that has `rows` as of `applied`.
fn snapshot(group: ShardId, applied: u64, rows: Vec<Row>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open_on(dir.path(), Arc::new(Memory::default())).unwrap();
    storage.checkpoint(group, at(applied), rows).unwrap();
    stream(&storage, group)
}

#[test]
fn a_snapshot_is_equal_row_for_row_though_writes_go_on() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, _) = Storage::open(here.path(), options()).unwrap();
    let (to, _) = Storage::open(there.path(), options()).unwrap();
    let user = user_of(GROUP, 0);
    from.checkpoint(GROUP, at(20), rows(GROUP, 1, 30)).unwrap();
    from.checkpoint(OTHER, at(9), rows(OTHER, 2, 3)).unwrap();
    let before = stream(&from, GROUP);

    let mut export = from.export(GROUP).unwrap();
    assert_eq!(*export.applied(), at(20));
    let mut received = Vec::new();
    for index in 21.. {
        let Some(piece) = export.next(300_000).unwrap() else { break };
        received.extend_from_slice(&piece);
        let gone = Row::MessagesGone { user, first: Seq(1), last: Seq(index) };
        let mut changes = rows(GROUP, index, 2);
        changes.push(gone);
        from.checkpoint(GROUP, at(index), changes).unwrap();
        from.maintain(index % 5 == 0).unwrap();
    }
    assert!(received == before, "the view has changed");
    drop(export);

    to.checkpoint(GROUP, at(2), rows(GROUP, 9, 40)).unwrap();
    to.checkpoint(OTHER, at(9), rows(OTHER, 2, 3)).unwrap();
    assert_eq!(receive(&to, GROUP, &received).unwrap(), at(20));
    assert_eq!(to.applied(GROUP).unwrap(), Some(at(2)), "not installed yet");
    assert_eq!(to.install(GROUP).unwrap(), at(20));
    to.close();

    let (to, _) = Storage::open(there.path(), options()).unwrap();
    assert!(stream(&to, GROUP) == before, "other rows than were sent");
    assert!(stream(&to, OTHER) == stream(&from, OTHER), "another group was touched");
    let held = to.messages(user, Seq(0), Seq(u64::MAX), 100, usize::MAX).unwrap();
    assert_eq!(held.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), (1..=30).collect::<Vec<_>>());
    let due = to.due(GROUP, 60_000 * 9, 100).unwrap();
    assert_eq!(due.iter().map(|(_, seq, _)| seq.0).collect::<Vec<_>>(), [2, 4, 6, 8]);
    assert!(matches!(to.install(GROUP), Err(StorageError::Io { .. })), "it is used up");

    // And on to the next checkpoint, and to the next snapshot, which moves the group back.
    to.checkpoint(GROUP, at(21), vec![Row::Message(user, Seq(1), None)]).unwrap();
    assert_eq!(to.messages(user, Seq(0), Seq(9), 1, usize::MAX).unwrap()[0].0, Seq(2));
    let now = stream(&from, GROUP);
    receive(&to, GROUP, &now).unwrap();
    to.install(GROUP).unwrap();
    assert!(stream(&to, GROUP) == now);
}

#[test]
fn a_snapshot_that_is_not_whole_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = open_on(dir.path(), Arc::new(Memory::default())).unwrap();
    storage.checkpoint(GROUP, at(5), rows(GROUP, 5, 1)).unwrap();
    let before = stream(&storage, GROUP);
    let whole = snapshot(GROUP, 20, rows(GROUP, 1, 1));
    let mut bad: Vec<Vec<u8>> = Vec::new();
    bad.extend((0..whole.len()).step_by(997).map(|end| whole[..end].to_vec()));
    bad.extend((0..whole.len()).step_by(991).map(|place| {
        let mut changed = whole.clone();
        changed[place] ^= 4;
        changed
    }));
    bad.push(whole[..whole.len() - 1].to_vec());
    bad.push([&whole[..], &[0]].concat());
    bad.push(snapshot(OTHER, 20, rows(OTHER, 1, 1)));
    for bad in bad {
        let refused = receive(&storage, GROUP, &bad);
        assert!(matches!(refused, Err(StorageError::BadSnapshot { .. })), "{refused:?}");
        assert!(files(&dir.path().join("snapshots")).is_empty());
    }
    assert!(storage.install(GROUP).is_err());
    assert!(stream(&storage, GROUP) == before);

    drop(storage.import(GROUP).unwrap());
    assert!(files(&dir.path().join("snapshots")).is_empty(), "what was dropped is forgotten");
    receive(&storage, GROUP, &snapshot(GROUP, 4, Vec::new())).unwrap();
    let outdated = storage.install(GROUP);
    assert!(matches!(outdated, Err(StorageError::Outdated { present: 6, found: 5, .. })));
    receive(&storage, GROUP, &whole).unwrap();
    storage.install(GROUP).unwrap();
    assert!(stream(&storage, GROUP) == whole);
}

#[test]
fn what_was_received_and_not_installed_is_gone_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    receive(&storage, GROUP, &snapshot(GROUP, 4, Vec::new())).unwrap();
    storage.close();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert!(!dir.path().join("snapshots").exists());
    assert!(storage.install(GROUP).is_err());
    assert_eq!(storage.applied(GROUP).unwrap(), None);
}

/// Tables in memory whose writes fail after some.
#[derive(Debug)]
struct Failing {
    tables: Memory,
    /// Writes that still succeed.
    left: AtomicI64,
    /// One write fails for lack of space, or all from one on.
    once: bool,
}

impl Failing {
    fn new(tables: Memory, once: bool) -> Arc<Self> {
        Arc::new(Self { tables, left: AtomicI64::new(i64::MAX), once })
    }

    fn bytes(&self) -> u64 {
        let tables = Table::DURABLE.into_iter().filter(|table| *table != Table::Groups);
        tables.map(|table| self.tables.table_bytes(table)).sum()
    }
}

impl Read for Failing {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.tables.get(table, key)
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.tables.scan(scan, visit)
    }
}

impl Engine for Failing {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 || (self.once && left < 0) {
            return self.tables.write(batch, durability);
        }
        Err(StorageError::DiskFull { path: "somewhere".into() })
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.tables.flush()
    }

    fn reclaim(&self, reclaim: Reclaim) -> Result<(), StorageError> {
        self.tables.reclaim(reclaim)
    }

    fn table_bytes(&self, table: Table) -> u64 {
        self.tables.table_bytes(table)
    }
}

impl Views for Failing {
    fn view(&self) -> Result<Box<dyn Read>, StorageError> {
        self.tables.view()
    }
}

/// A storage in which the group has rows as of 10 and records up to 13, and a vote.
fn before_the_move(dir: &Path, tables: &Arc<Failing>) -> Storage {
    let (storage, _) = open_on(dir, Arc::clone(tables) as _).unwrap();
    storage.checkpoint(OTHER, at(2), rows(OTHER, 2, 2)).unwrap();
    // So that the segment stays.
    append(&storage, OTHER, 3, vec![3]).recv().unwrap().unwrap();
    for index in 0..=13 {
        append(&storage, GROUP, index, vec![7; 10]).recv().unwrap().unwrap();
    }
    storage.checkpoint(GROUP, at(10), rows(GROUP, 5, 25)).unwrap();
    let vote = stored::Vote { term: 3, node: 4, committed: false };
    storage.save_vote(GROUP, &vote).unwrap();
    storage
}

/// Index of the records found of the group.
fn indexes(found: &common::Records) -> Vec<u64> {
    found.get(&GROUP.0).into_iter().flatten().map(|(index, _)| *index).collect()
}

/// Does something that moves the group, with a crash at each write. `after` is what it comes to:
/// the stream of the group and the records that are left.
fn crash_at_each_write(
    prepare: impl Fn(&Storage),
    work: impl Fn(&Storage) -> Result<(), StorageError>,
    after: (&[u8], &[u64]),
) {
    for writes in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let tables = Failing::new(Memory::default(), false);
        let storage = before_the_move(dir.path(), &tables);
        prepare(&storage);
        let (before, other) = (stream(&storage, GROUP), stream(&storage, OTHER));
        let vote = storage.vote(GROUP).unwrap();
        tables.left.store(writes, Ordering::SeqCst);
        let outcome = work(&storage);
        let survived = tables.left.load(Ordering::SeqCst) >= 0;
        // As the crash finds them: closing would flush what is left.
        let crashed: Vec<_> = (0..4).map(|seed| tables.tables.crash(seed)).collect();
        storage.close();
        for tables in crashed {
            let tables = Failing::new(tables, false);
            let (storage, found) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
            let now = stream(&storage, GROUP);
            if outcome.is_ok() {
                assert!(now == after.0, "{writes} writes: done and not found");
                assert_eq!(indexes(&found), after.1);
            } else {
                assert!(now == before, "{writes} writes: half done");
                assert_eq!(indexes(&found), [11, 12, 13]);
            }
            assert!(stream(&storage, OTHER) == other);
            assert_eq!(found[&OTHER.0], [(3, vec![3])]);
            assert_eq!(storage.vote(GROUP).unwrap(), vote);
            let rows = (now.len() + other.len()) as u64;
            assert!(tables.bytes() < rows + 2000, "rows were left behind");
            storage.close();
        }
        if survived {
            assert!(writes >= 4, "only {writes} crashes");
            return;
        }
    }
}

#[test]
fn a_crash_at_any_write_of_an_install_leaves_all_or_nothing() {
    let after = snapshot(GROUP, 12, rows(GROUP, 9, 30));
    let received = |storage: &Storage| {
        receive(storage, GROUP, &after).unwrap();
    };
    let install = |storage: &Storage| storage.install(GROUP).map(|_| ());
    crash_at_each_write(received, install, (&after, &[13]));
}

#[test]
fn a_crash_at_any_write_of_a_wipe_leaves_all_or_nothing() {
    let nothing = {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = open_on(dir.path(), Arc::new(Memory::default())).unwrap();
        stream(&storage, GROUP)
    };
    crash_at_each_write(|_| (), |storage| storage.wipe(GROUP, None), (&nothing, &[]));
}

#[test]
fn a_full_disk_at_any_write_leaves_the_group_as_it_was() {
    let after = snapshot(GROUP, 12, rows(GROUP, 9, 30));
    for writes in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let tables = Failing::new(Memory::default(), true);
        let storage = before_the_move(dir.path(), &tables);
        let before = stream(&storage, GROUP);
        receive(&storage, GROUP, &after).unwrap();
        tables.left.store(writes, Ordering::SeqCst);
        let outcome = storage.install(GROUP);
        if tables.left.load(Ordering::SeqCst) >= 0 {
            assert!(writes > 4);
            return;
        }
        if outcome.is_err() {
            assert!(matches!(outcome, Err(StorageError::DiskFull { .. })), "{outcome:?}");
            assert!(stream(&storage, GROUP) == before);
            storage.checkpoint(GROUP, at(11), Vec::new()).unwrap();
            storage.install(GROUP).unwrap();
        }
        assert!(stream(&storage, GROUP) == after);
        storage.maintain(false).unwrap();
        let rows = (after.len() + stream(&storage, OTHER).len()) as u64;
        assert!(tables.bytes() < rows + 2000, "rows were left behind");
    }
}

#[test]
fn what_a_failed_install_left_behind_is_not_mixed_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Failing::new(Memory::default(), false);
    let storage = before_the_move(dir.path(), &tables);
    receive(&storage, GROUP, &snapshot(GROUP, 12, rows(GROUP, 9, 30))).unwrap();
    tables.left.store(2, Ordering::SeqCst);
    assert!(storage.install(GROUP).is_err());
    tables.left.store(i64::MAX, Ordering::SeqCst);
    let next = snapshot(GROUP, 13, rows(GROUP, 8, 3));
    receive(&storage, GROUP, &next).unwrap();
    storage.install(GROUP).unwrap();
    assert!(stream(&storage, GROUP) == next);
}

#[test]
fn a_wiped_group_begins_anew_at_its_first_record() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Failing::new(Memory::default(), false);
    let mut storage = before_the_move(dir.path(), &tables);
    for round in 1..=3u8 {
        let end = stored::LogId { term: round.into(), node: 1, index: 0 };
        storage.wipe(GROUP, None).unwrap();
        storage.wipe(GROUP, Some(end)).unwrap();
        if round == 2 {
            // Not even a segment is left.
            storage.checkpoint(OTHER, at(99), Vec::new()).unwrap();
            storage.maintain(true).unwrap();
            assert_eq!(storage.usage().log_segments, 0);
        }
        storage.close();
        let (opened, found) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
        assert_eq!(indexes(&found), []);
        assert_eq!(opened.applied(GROUP).unwrap(), None);
        assert_eq!(opened.vote(GROUP).unwrap().unwrap().term, 3);
        assert_eq!(opened.wiped(GROUP).unwrap(), Some(end));
        for index in 0..4 {
            append(&opened, GROUP, index, vec![round]).recv().unwrap().unwrap();
        }
        opened.close();
        let (opened, found) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
        let expected: Vec<_> = (0..4).map(|index| (index, vec![round])).collect();
        assert_eq!(found[&GROUP.0], expected);
        opened.checkpoint(GROUP, at(1), rows(GROUP, 1, 1)).unwrap();
        storage = opened;
    }
    let end = stored::LogId { term: 9, node: 1, index: 4 };
    storage.wipe(GROUP, Some(end)).unwrap();
    let far = snapshot(GROUP, 5000, rows(GROUP, 9, 1));
    receive(&storage, GROUP, &far).unwrap();
    storage.install(GROUP).unwrap();
    append(&storage, GROUP, 5001, vec![8]).recv().unwrap().unwrap();
    storage.close();
    let (storage, found) = open_on(dir.path(), Arc::clone(&tables) as _).unwrap();
    assert_eq!(found[&GROUP.0], [(5001, vec![8])]);
    assert_eq!(height(storage.applied(GROUP).unwrap().as_ref()), 5001);
    assert_eq!(storage.wiped(GROUP).unwrap(), Some(end), "a snapshot does not change what was");
    assert_eq!(storage.wiped(OTHER).unwrap(), None);
}

#[test]
fn a_snapshot_that_waits_to_be_installed_goes_with_a_wipe() {
    let dir = tempfile::tempdir().unwrap();
    let storage = before_the_move(dir.path(), &Failing::new(Memory::default(), false));
    receive(&storage, GROUP, &snapshot(GROUP, 12, rows(GROUP, 9, 30))).unwrap();
    let waiting = || std::fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    assert_eq!(waiting(), 1);
    storage.wipe(GROUP, None).unwrap();
    assert_eq!(waiting(), 0);
    assert!(storage.install(GROUP).is_err());
}
