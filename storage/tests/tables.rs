//! Promises of the tables, on real directories.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{at, envelope, options, user_of};
use proto::{Alias, DeviceId, Seq, ShardId, UserId, stored};
use storage::{Row, Storage, StorageError};

const SHARD: ShardId = ShardId(3);

fn all_kinds(user: UserId) -> Vec<Row> {
    let alias = Alias::parse("ada").unwrap();
    vec![
        Row::Account(user, Some(stored::Account { created_ms: 1, ..Default::default() })),
        Row::Device(
            user,
            DeviceId(2),
            Some(stored::Device { name: "n".into(), ..Default::default() }),
        ),
        Row::Cursors(user, Some(stored::Cursors { next: 9, ..Default::default() })),
        Row::Recent {
            to: user,
            from: UserId(7),
            device: DeviceId(1),
            ids: Some(stored::RecentIds { used_ms: 4, ..Default::default() }),
        },
        Row::Alias(alias.clone(), Some(stored::AliasOwner { user: user.0, claim: 9 })),
        Row::Pin(alias, Some(stored::AliasPins { wrong_in_day: 3, ..Default::default() })),
        Row::Stream(ShardId(9), stored::Stream { sent: 5, settled: 4, received: 3 }),
        Row::Notice {
            to: ShardId(9),
            number: 5,
            notice: Some(stored::Notice { number: 5, user: 8, ..Default::default() }),
        },
    ]
}

#[test]
fn a_checkpoint_is_loaded_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let user = user_of(SHARD, 1);
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    storage.checkpoint(SHARD, at(42), all_kinds(user)).unwrap();
    storage.checkpoint(ShardId(4), at(7), all_kinds(user_of(ShardId(4), 1))).unwrap();
    storage.close();

    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let mut rows = Vec::new();
    assert_eq!(storage.load(SHARD, &mut |row| rows.push(row)).unwrap(), Some(at(42)));
    assert_eq!(rows, all_kinds(user));
    assert_eq!(storage.load(ShardId(5), &mut |_| panic!("not of this shard")).unwrap(), None);
}

#[test]
fn a_removed_row_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let user = user_of(SHARD, 1);
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    storage.checkpoint(SHARD, at(1), all_kinds(user)).unwrap();
    let gone = vec![Row::Account(user, None), Row::Cursors(user, None)];
    storage.checkpoint(SHARD, at(2), gone).unwrap();
    let mut rows = Vec::new();
    storage.load(SHARD, &mut |row| rows.push(row)).unwrap();
    assert_eq!(rows.len(), all_kinds(user).len() - 2);
}

#[test]
fn messages_are_read_in_order_within_their_limits() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let user = user_of(SHARD, 1);
    let rows = (1..=100).map(|n| Row::Message(user, Seq(n), Some(envelope(n, 0, 100))));
    storage.checkpoint(SHARD, at(1), rows.collect()).unwrap();
    let seqs = |after, up_to, limit, bytes_max| -> Vec<u64> {
        let entries = storage.messages(user, Seq(after), Seq(up_to), limit, bytes_max).unwrap();
        assert!(entries.iter().all(|(seq, entry)| *entry == envelope(seq.0, 0, 100)));
        entries.into_iter().map(|(seq, _)| seq.0).collect()
    };
    assert_eq!(seqs(0, 100, 3, usize::MAX), [1, 2, 3]);
    assert_eq!(seqs(97, u64::MAX, 10, usize::MAX), [98, 99, 100]);
    assert_eq!(seqs(10, 12, 10, usize::MAX), [11, 12]);
    assert_eq!(seqs(10, 20, 10, 1), [11], "at least one");
    assert_eq!(seqs(10, 20, 10, 300).len(), 2);
    assert!(seqs(100, 200, 10, 1000).is_empty());
    assert!(seqs(5, 4, 10, 1000).is_empty());
}

#[test]
fn a_range_of_messages_goes_even_if_it_came_in_the_same_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let (user, other) = (user_of(SHARD, 1), user_of(SHARD, 2));
    let put = |user, n| Row::Message(user, Seq(n), Some(envelope(n, 0, 10)));
    let first = (1..=10).map(|n| put(user, n)).chain([put(other, 5)]);
    storage.checkpoint(SHARD, at(1), first.collect()).unwrap();
    let gone = Row::MessagesGone { user, first: Seq(1), last: Seq(11) };
    storage.checkpoint(SHARD, at(2), vec![put(user, 11), put(user, 12), gone]).unwrap();
    let left = |user| -> Vec<u64> {
        let entries = storage.messages(user, Seq(0), Seq(u64::MAX), 100, usize::MAX).unwrap();
        entries.into_iter().map(|(seq, _)| seq.0).collect()
    };
    assert_eq!(left(user), [12]);
    assert_eq!(left(other), [5]);
}

#[test]
fn entries_are_due_when_their_time_ends_and_until_they_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let user = user_of(SHARD, 1);
    let minute = 60_000;
    let put = |n, expires_ms| Row::Message(user, Seq(n), Some(envelope(n, expires_ms, 10)));
    let rows = vec![
        put(1, 0),
        put(2, 2 * minute + 5),
        put(3, 2 * minute + 50),
        put(4, 9 * minute),
        put(5, 2 * minute + 1),
    ];
    storage.checkpoint(SHARD, at(1), rows).unwrap();
    let due = |now_ms, limit| -> Vec<u64> {
        let entries = storage.due(SHARD, now_ms, limit).unwrap();
        entries.into_iter().map(|(_, seq, _)| seq.0).collect()
    };
    assert!(due(2 * minute, 10).is_empty());
    assert_eq!(due(2 * minute + 5, 10), [2, 5]);
    assert_eq!(due(2 * minute + 5, 1), [2]);
    assert_eq!(due(3 * minute, 10), [2, 3, 5]);
    let gone = [2, 3, 5].map(|n| Row::Message(user, Seq(n), None));
    storage.checkpoint(SHARD, at(2), gone.into()).unwrap();
    assert!(due(3 * minute, 10).is_empty());
    assert_eq!(due(9 * minute, 10), [4]);
    assert!(storage.due(ShardId(4), 99 * minute, 10).unwrap().is_empty());
}

#[test]
fn sessions_are_kept_and_a_damaged_table_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let session = stored::Session { version: 3, online: true, ..Default::default() };
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let all = [1, 2, 3].map(|n| ((UserId(n), DeviceId(1)), Some(session)));
    storage.sessions().write(&all).unwrap();
    storage.sessions().write(&[((UserId(2), DeviceId(1)), None)]).unwrap();
    storage.close();

    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert_eq!(storage.sessions().get(UserId(1), DeviceId(1)).unwrap(), Some(session));
    let mut users = Vec::new();
    storage.sessions().scan(&mut |user, _, _| users.push(user.0)).unwrap();
    assert_eq!(users, [1, 3]);
    storage.close();

    for file in ["conf", "db"] {
        std::fs::write(dir.path().join("sessions").join(file), b"rubbish").unwrap();
    }
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert_eq!(storage.sessions().get(UserId(1), DeviceId(1)).unwrap(), None);
    assert!(dir.path().join("sessions.damaged-1").exists());
}

#[test]
fn the_sessions_of_a_user_are_as_they_were_written_last() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let table = storage.sessions();
    let on = |node| stored::Session { node, online: true, ..Default::default() };
    let write =
        |user, device, row| table.write(&[((UserId(user), DeviceId(device)), row)]).unwrap();
    let found = |user| -> Vec<(u32, u64)> {
        table.of(UserId(user)).unwrap().iter().map(|(device, row)| (device.0, row.node)).collect()
    };
    assert_eq!(found(1), []);
    write(1, 1, Some(on(10)));
    write(1, 2, Some(on(20)));
    write(2, 1, Some(on(30)));
    for _ in 0..2 {
        assert_eq!((found(1), found(2)), (vec![(1, 10), (2, 20)], vec![(1, 30)]));
    }
    write(1, 1, Some(on(11)));
    assert_eq!((found(1), found(2)), (vec![(1, 11), (2, 20)], vec![(1, 30)]));
    write(1, 2, None);
    assert_eq!(found(1), [(1, 11)]);
}

#[test]
fn sessions_are_written_in_batches_and_read_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let table = storage.sessions();
    let session = |n| stored::Session { node: 1 << 60, version: n, ..Default::default() };
    let key = |n: u64| (UserId(n / 2), DeviceId(u32::try_from(n % 2).unwrap()));
    let row = |n: u64| (key(n), Some(session(n)));
    let rows: Vec<_> = (0..1001).map(row).collect();
    for chunk in rows.chunks(100) {
        table.write(chunk).unwrap();
    }
    table.write(&[row(5), (key(5), Some(session(77)))]).unwrap();
    assert_eq!(table.get(UserId(2), DeviceId(1)).unwrap(), Some(session(77)), "the later counts");
    table.write(&[(key(5), Some(session(78))), (key(5), None), row(5)]).unwrap();
    for limit in [1, 7, 500, 1001, 2000] {
        let (mut after, mut found, mut pages) = (None, Vec::new(), 0);
        loop {
            let before = found.len();
            let page = &mut |user, device, session| found.push(((user, device), Some(session)));
            after = table.scan_from(after, limit, page).unwrap();
            pages += 1;
            assert!(found.len() - before <= limit);
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, rows);
        assert_eq!(pages, rows.len().div_ceil(limit));
    }
}

#[test]
fn the_cluster_is_a_row_of_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let meta = stored::Meta { cluster: 5, version: 2, ..Default::default() };
    let rows = |storage: &Storage| {
        let mut rows = Vec::new();
        storage.load(ShardId::META, &mut |row| rows.push(row)).unwrap();
        rows
    };
    storage.checkpoint(ShardId::META, at(3), vec![Row::Meta(Some(meta.clone()))]).unwrap();
    storage.close();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert_eq!(rows(&storage), [Row::Meta(Some(meta))]);
    storage.checkpoint(ShardId::META, at(4), vec![Row::Meta(None)]).unwrap();
    assert_eq!(rows(&storage), []);
    assert!(matches!(
        storage.checkpoint(ShardId(17), at(1), Vec::new()),
        Err(StorageError::NoSuchGroup(17))
    ));
}

#[test]
fn tables_do_not_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    storage.checkpoint(SHARD, at(7), Vec::new()).unwrap();
    storage.close();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let outdated = storage.checkpoint(SHARD, at(6), all_kinds(user_of(SHARD, 1)));
    assert!(matches!(outdated, Err(StorageError::Outdated { group: 3, present: 8, found: 7 })));
    storage.load(SHARD, &mut |_| panic!("nothing was written")).unwrap();
    storage.checkpoint(SHARD, at(7), Vec::new()).unwrap();
}

#[test]
fn a_vote_is_kept_and_its_file_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let vote = |term| stored::Vote { term, node: u64::MAX, committed: true };
    assert_eq!(storage.vote(SHARD).unwrap(), None);
    storage.save_vote(SHARD, &vote(1)).unwrap();
    storage.save_vote(SHARD, &vote(2)).unwrap();
    storage.save_vote(ShardId::META, &vote(9)).unwrap();
    storage.close();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert_eq!(storage.vote(SHARD).unwrap(), Some(vote(2)));
    assert_eq!(storage.vote(ShardId::META).unwrap(), Some(vote(9)));
    storage.close();
    std::fs::remove_file(dir.path().join("votes")).unwrap();
    assert!(matches!(Storage::open(dir.path(), options()), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let second = Storage::open(dir.path(), options());
    let Err(StorageError::AlreadyOpen { owner, .. }) = second else { panic!("{second:?}") };
    assert_eq!(owner, Some(std::process::id()));
    storage.close();
    Storage::open(dir.path(), options()).unwrap();
}

#[test]
fn another_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Storage::open(dir.path(), options()).unwrap().0.close();
    let version = dir.path().join("version");
    std::fs::write(&version, "natter data 3\n").unwrap();
    let opened = Storage::open(dir.path(), options());
    let Err(error @ StorageError::NewerVersion { found: 3, known: 2, .. }) = opened else {
        panic!("{opened:?}")
    };
    assert!(error.to_string().contains("start the newer natter"), "{error}");
    assert_eq!(std::fs::read_to_string(&version).unwrap(), "natter data 3\n");
    std::fs::write(&version, "natter data 1\n").unwrap();
    let opened = Storage::open(dir.path(), options());
    let Err(error @ StorageError::OlderVersion { found: 1, known: 2, .. }) = opened else {
        panic!("{opened:?}")
    };
    assert!(error.to_string().contains("give it an empty directory"), "{error}");
    std::fs::write(&version, "something else").unwrap();
    assert!(matches!(Storage::open(dir.path(), options()), Err(StorageError::Corrupt { .. })));
}

#[test]
fn after_close_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let clone = storage.clone();
    storage.close();
    assert!(matches!(clone.checkpoint(SHARD, at(1), Vec::new()), Err(StorageError::Closed)));
    let answer = common::append(&clone, SHARD, 0, b"x".to_vec());
    assert_eq!(answer.recv().unwrap(), Err(storage::LogError::Failed));
}
