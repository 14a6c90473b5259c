//! What the tests of storage share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod process;

use proto::{ShardId, UserId, stored};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use storage::engine::Views;
use storage::engine::memory::Memory;
use storage::{Engines, LogError, Recovered, Storage, StorageError, StorageOptions};

/// Small segments; no demands on the disk of whoever runs the tests.
pub fn options() -> StorageOptions {
    StorageOptions { segment_bytes: 1024 * 1024, free_bytes_min: 0 }
}

/// The `n`th user of a shard.
pub fn user_of(shard: ShardId, n: u64) -> UserId {
    let of_shard = |user: &UserId| user.shard() == shard;
    (1..).map(UserId).filter(of_shard).nth(usize::try_from(n).unwrap()).unwrap()
}

pub fn envelope(n: u64, expires_ms: u64, body_bytes: usize) -> stored::Envelope {
    let body = vec![u8::try_from(n % 251).unwrap(); body_bytes].into();
    let message = stored::Message { from: 1, send_id: n, body, ..Default::default() };
    let content = Some(stored::envelope::Content::Message(message));
    stored::Envelope { at_ms: n, expires_ms, content }
}

/// Appends a record; the receiver gets the answer.
pub fn append(
    storage: &Storage,
    shard: ShardId,
    index: u64,
    record: Vec<u8>,
) -> Receiver<Result<(), LogError>> {
    let (sender, receiver) = channel();
    storage.log().append(
        shard,
        index,
        record,
        Box::new(move |outcome| {
            sender.send(outcome).ok();
        }),
    );
    receiver
}

/// All files below `dir`.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Bytes of all files below `dir`, as their lengths say.
pub fn size(dir: &Path) -> u64 {
    files(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

/// The place `index` of a group's log.
pub fn at(index: u64) -> stored::Applied {
    let id = Some(stored::LogId { term: 1, node: 7, index });
    stored::Applied { id, now_ms: 1000 + index, ..Default::default() }
}

/// The index after `applied`.
pub fn height(applied: Option<&stored::Applied>) -> u64 {
    applied.and_then(|applied| applied.id).map_or(0, |id| id.index + 1)
}

/// Records by group.
pub type Records = std::collections::BTreeMap<u16, Vec<(u64, Vec<u8>)>>;

pub fn records(found: Recovered) -> Records {
    let owned = |(index, bytes): (u64, bytes::Bytes)| (index, bytes.to_vec());
    let of_shard = |found: storage::ShardRecords| {
        (found.shard.0, found.records.into_iter().map(owned).collect())
    };
    found.records.into_iter().map(of_shard).collect()
}

/// Opens `dir` on tables in memory.
pub fn open_on(dir: &Path, tables: Arc<dyn Views>) -> Result<(Storage, Records), StorageError> {
    let engines = Engines { tables, sessions: Arc::new(Memory::default()) };
    Storage::open_with(dir, options(), engines).map(|(storage, found)| (storage, records(found)))
}

/// All of a group as it is sent to another node.
pub fn stream(storage: &Storage, group: ShardId) -> Vec<u8> {
    let mut export = storage.export(group).unwrap();
    let mut stream = Vec::new();
    while let Some(piece) = export.next(64 * 1024).unwrap() {
        assert!(piece.len() <= 64 * 1024);
        stream.extend_from_slice(&piece);
    }
    stream
}

/// Receives a stream in pieces.
pub fn receive(
    storage: &Storage,
    group: ShardId,
    stream: &[u8],
) -> Result<stored::Applied, StorageError> {
    let mut import = storage.import(group)?;
    for piece in stream.chunks(50_000) {
        import.write(&bytes::Bytes::copy_from_slice(piece))?;
    }
    import.finish()
}

/// Segments of the log, oldest first.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found = files(&dir.join("log"));
    found.retain(|path| path.extension().is_some_and(|ext| ext == "log"));
    found.sort();
    found
}
