//! What the tests of storage share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use proto::{ShardId, UserId, stored};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use storage::{LogError, Storage, StorageOptions};

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
