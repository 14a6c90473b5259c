//! Every table, every key, the version of the data directory, and how an older one is brought up.
//!
//! Numbers in keys are big-endian, so that keys sort as their numbers do. A durable key begins with
//! its shard (two bytes): a shard is one contiguous range of each table.
//!
//! | table | key after the shard | value |
//! |---|---|---|
//! | `applied` | | log index, 8 bytes |
//! | `accounts`, `cursors` | user 8 | `stored::Account`, `stored::Cursors` |
//! | `devices` | user 8, device 4 | `stored::Device` |
//! | `recent` | to 8, from 8, device 4 | `stored::RecentIds` |
//! | `aliases`, `pins` | alias, UTF-8 | `stored::AliasOwner`, `stored::PendingPin` |
//! | `streams` | other shard 2 | `stored::Stream` |
//! | `notices` | other shard 2, number 8 | `stored::Notice` |
//! | `messages` | user 8, seq 8 | expiry in ms 8 (0: never), `stored::Envelope` |
//! | `expiries` | expiry minute 8, user 8, first seq 8 | last seq 8 |
//! | `sessions` | (no shard) user 8, device 4 | `stored::Session` |

use crate::StorageError;
use crate::engine::Engine;
use proto::{Alias, DeviceId, Seq, ShardId, UserId};
use std::path::Path;

/// Version of the data directory that this program writes.
pub const VERSION: u32 = 1;

/// One step from a version to the next. It must be safe to run again after a crash.
type Migration = fn(&dyn Engine) -> Result<(), StorageError>;

/// `MIGRATIONS[n]` brings version `n + 1` to `n + 2`.
const MIGRATIONS: [Migration; VERSION as usize - 1] = [];

/// Brings tables of version `found` to [`VERSION`].
pub(crate) fn migrate(found: u32, engine: &dyn Engine) -> Result<(), StorageError> {
    MIGRATIONS.iter().skip(found.saturating_sub(1) as usize).try_for_each(|step| step(engine))
}

/// Text of the file `version`.
pub(crate) fn version_text() -> String {
    format!("natter data {VERSION}\n")
}

/// Reads the text of the file `version`.
pub(crate) fn parse_version(dir: &Path, text: &str) -> Result<u32, StorageError> {
    let number = text.strip_prefix("natter data ").and_then(|rest| rest.trim().parse().ok());
    match number {
        Some(found) if found > VERSION => {
            Err(StorageError::NewerVersion { dir: dir.to_owned(), found, known: VERSION })
        }
        Some(found) if found > 0 => Ok(found),
        Some(_) | None => {
            Err(StorageError::corrupt(&dir.join("version"), 0, "not a version of natter data"))
        }
    }
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// How far a shard's log is in the tables.
    Applied,
    /// Accounts.
    Accounts,
    /// Devices of accounts.
    Devices,
    /// Where mailboxes stand.
    Cursors,
    /// Send ids seen last.
    Recent,
    /// Who owns an alias.
    Aliases,
    /// Registrations that wait for a PIN.
    Pins,
    /// What shards owe each other, as numbers.
    Streams,
    /// What shards owe each other.
    Notices,
    /// Entries of mailboxes that left memory.
    Messages,
    /// When these end.
    Expiries,
    /// Who is connected where. The only lazy table.
    Sessions,
}

impl Table {
    /// The tables of which nothing flushed may be lost.
    pub const DURABLE: [Self; 11] = [
        Self::Applied,
        Self::Accounts,
        Self::Devices,
        Self::Cursors,
        Self::Recent,
        Self::Aliases,
        Self::Pins,
        Self::Streams,
        Self::Notices,
        Self::Messages,
        Self::Expiries,
    ];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Accounts => "accounts",
            Self::Devices => "devices",
            Self::Cursors => "cursors",
            Self::Recent => "recent",
            Self::Aliases => "aliases",
            Self::Pins => "pins",
            Self::Streams => "streams",
            Self::Notices => "notices",
            Self::Messages => "messages",
            Self::Expiries => "expiries",
            Self::Sessions => "sessions",
        }
    }

    /// Whether rows carry bodies, which must leave the disk when they are removed.
    pub fn holds_bodies(self) -> bool {
        matches!(self, Self::Messages | Self::Notices)
    }
}

/// Milliseconds of one row of `expiries`.
pub(crate) const EXPIRY_BUCKET_MS: u64 = 60_000;

fn key(shard: ShardId, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.extend_from_slice(&shard.0.to_be_bytes());
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// First key of a shard.
pub(crate) fn shard_begin(shard: ShardId) -> Vec<u8> {
    key(shard, &[])
}

/// The key after a shard's last.
pub(crate) fn shard_end(shard: ShardId) -> Vec<u8> {
    shard.0.checked_add(1).map_or_else(|| vec![0xff; 64], |next| shard_begin(ShardId(next)))
}

pub(crate) fn user_key(shard: ShardId, user: UserId) -> Vec<u8> {
    key(shard, &[&user.0.to_be_bytes()])
}

pub(crate) fn device_key(shard: ShardId, user: UserId, device: DeviceId) -> Vec<u8> {
    key(shard, &[&user.0.to_be_bytes(), &device.0.to_be_bytes()])
}

pub(crate) fn recent_key(shard: ShardId, to: UserId, from: UserId, device: DeviceId) -> Vec<u8> {
    key(shard, &[&to.0.to_be_bytes(), &from.0.to_be_bytes(), &device.0.to_be_bytes()])
}

pub(crate) fn alias_key(shard: ShardId, alias: &Alias) -> Vec<u8> {
    key(shard, &[alias.as_str().as_bytes()])
}

pub(crate) fn stream_key(shard: ShardId, other: ShardId) -> Vec<u8> {
    key(shard, &[&other.0.to_be_bytes()])
}

pub(crate) fn notice_key(shard: ShardId, to: ShardId, number: u64) -> Vec<u8> {
    key(shard, &[&to.0.to_be_bytes(), &number.to_be_bytes()])
}

pub(crate) fn message_key(user: UserId, seq: Seq) -> Vec<u8> {
    key(user.shard(), &[&user.0.to_be_bytes(), &seq.0.to_be_bytes()])
}

pub(crate) fn expiry_key(user: UserId, minute: u64, first: Seq) -> Vec<u8> {
    let parts = [minute.to_be_bytes(), user.0.to_be_bytes(), first.0.to_be_bytes()];
    key(user.shard(), &[&parts[0], &parts[1], &parts[2]])
}

/// The first key of `expiries` that is later than `minute`.
pub(crate) fn expiry_end(shard: ShardId, minute: u64) -> Vec<u8> {
    key(shard, &[&minute.saturating_add(1).to_be_bytes()])
}

pub(crate) fn session_key(user: UserId, device: DeviceId) -> Vec<u8> {
    [&user.0.to_be_bytes()[..], &device.0.to_be_bytes()].concat()
}

/// The least key greater than `key`.
pub(crate) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Takes a key or value apart, front to back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl<'a> Parts<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    pub(crate) fn user(&mut self) -> Option<UserId> {
        self.u64().map(UserId)
    }

    pub(crate) fn device(&mut self) -> Option<DeviceId> {
        self.u32().map(DeviceId)
    }

    pub(crate) fn alias(&mut self) -> Option<Alias> {
        let text = std::str::from_utf8(std::mem::take(&mut self.0)).ok()?;
        Alias::parse(text).ok()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}
