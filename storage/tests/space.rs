//! Promises about space: what is delivered leaves the disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{append, at, files, segments, size, user_of};
use proto::{Seq, ShardId, stored};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use storage::{Row, Storage, StorageOptions};

const MARKER: &[u8] = b"a body that must leave the disk";

fn marked(n: u64) -> stored::Envelope {
    let body = [MARKER, &[b'.'; 300][..]].concat().into();
    let message = stored::Message { from: 1, send_id: n, body, ..Default::default() };
    let content = Some(stored::envelope::Content::Message(message));
    stored::Envelope { at_ms: n, expires_ms: 90_000_000 + n, content }
}

/// Files in which the marker is found.
fn marked_files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(dir) {
        let bytes = std::fs::read(&path).unwrap();
        let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == MARKER[0]);
        if starts.into_iter().any(|(at, _)| bytes[at..].starts_with(MARKER)) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn options() -> StorageOptions {
    StorageOptions { free_bytes_min: 0, ..StorageOptions::default() }
}

#[test]
fn a_million_delivered_messages_leave_a_small_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let (sender, answers) = sync_channel(1_000_000);
    let mut next = [0u64; 16];
    for n in 0..1_000_000u64 {
        let shard = u16::try_from(n % 16).unwrap();
        let index = next[usize::from(shard)];
        next[usize::from(shard)] += 1;
        let last = n % 50_000 == 49_999;
        let sender = sender.clone();
        let done = Box::new(move |outcome: Result<(), _>| {
            outcome.unwrap();
            if last {
                sender.send(()).unwrap();
            }
        });
        storage.log().append(ShardId(shard), index, vec![b'm'; 300], done);
        if last {
            answers.recv().unwrap();
            for shard in 0..16 {
                let applied = next[usize::from(shard)] - 1;
                storage.checkpoint(ShardId(shard), at(applied), Vec::new()).unwrap();
            }
        }
    }
    storage.maintain(false).unwrap();
    storage.maintain(true).unwrap();
    let usage = storage.usage();
    assert_eq!((usage.appended_records, usage.log_segments), (1_000_000, 0));
    let bytes = size(dir.path());
    println!("directory after a million messages: {} MiB", bytes / 1024 / 1024);
    assert!(bytes < 128 * 1024 * 1024, "{bytes} bytes");
}

#[test]
fn a_body_is_in_no_file_after_it_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let shard = ShardId(6);
    let (user, other) = (user_of(shard, 0), user_of(shard, 1));
    for index in 0..100 {
        append(&storage, shard, index, marked_record(index)).recv().unwrap().unwrap();
    }
    let rows = (1..=2000).map(|n| Row::Message(user, Seq(n), Some(marked(n))));
    let stays = Row::Message(other, Seq(1), Some(common::envelope(1, 0, 50)));
    let what = Some(stored::notice::What::Envelope(marked(1)));
    let owed = stored::Notice { number: 1, user: 1, what };
    let notice = |notice| Row::Notice { to: ShardId(2), number: 1, notice };
    let first = rows.chain([stays, notice(Some(owed))]).collect();
    storage.checkpoint(shard, at(99), first).unwrap();
    assert!(!marked_files(dir.path()).is_empty(), "the search finds what is there");

    let gone = Row::MessagesGone { user, first: Seq(1), last: Seq(2000) };
    storage.checkpoint(shard, at(100), vec![gone, notice(None)]).unwrap();
    storage.maintain(true).unwrap();
    assert_eq!(marked_files(dir.path()), Vec::<String>::new());
    assert_eq!(storage.messages(other, Seq(0), Seq(9), 9, 999).unwrap().len(), 1);
    assert_eq!(storage.due(shard, u64::MAX, 10).unwrap(), []);
    let bytes = size(dir.path());
    assert!(bytes < 128 * 1024 * 1024, "{bytes} bytes");
    storage.close();

    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert_eq!(storage.messages(other, Seq(0), Seq(9), 9, 999).unwrap().len(), 1);
    assert_eq!(storage.messages(user, Seq(0), Seq(9), 9, 999).unwrap(), []);
    storage.close();
}

#[test]
fn what_was_removed_before_a_restart_leaves_all_files_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let shard = ShardId(6);
    let user = user_of(shard, 0);
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    let rows = (1..=20).map(|n| Row::Message(user, Seq(n), Some(marked(n)))).collect();
    storage.checkpoint(shard, at(0), rows).unwrap();
    let gone = Row::MessagesGone { user, first: Seq(1), last: Seq(20) };
    storage.checkpoint(shard, at(1), vec![gone]).unwrap();
    storage.close();

    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    assert!(!marked_files(dir.path()).is_empty(), "the search finds what is there");
    storage.maintain(false).unwrap();
    assert_eq!(marked_files(dir.path()), Vec::<String>::new());
    storage.close();
}

#[test]
fn a_damaged_segment_keeps_nothing_else_from_leaving() {
    let dir = tempfile::tempdir().unwrap();
    let user = user_of(ShardId(6), 0);
    let (storage, _) = Storage::open(dir.path(), options()).unwrap();
    append(&storage, ShardId(5), 0, vec![0; 10]).recv().unwrap().unwrap();
    for index in 0..40 {
        append(&storage, ShardId(1), index, vec![0; 500_000]).recv().unwrap().unwrap();
    }
    storage.checkpoint(ShardId(1), at(39), Vec::new()).unwrap();
    let rows = (1..=20).map(|n| Row::Message(user, Seq(n), Some(marked(n)))).collect();
    storage.checkpoint(ShardId(6), at(0), rows).unwrap();
    let gone = Row::MessagesGone { user, first: Seq(1), last: Seq(20) };
    storage.checkpoint(ShardId(6), at(1), vec![gone]).unwrap();
    assert!(!marked_files(dir.path()).is_empty(), "the search finds what is there");
    let segment = segments(dir.path()).swap_remove(0);
    std::fs::write(segment, b"damaged").unwrap();

    storage.maintain(true).unwrap_err();
    assert_eq!(marked_files(dir.path()), Vec::<String>::new());
    storage.close();
}

fn marked_record(index: u64) -> Vec<u8> {
    [MARKER, &index.to_le_bytes()].concat()
}
