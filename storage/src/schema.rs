//! Every table, every key, and the version of the data directory.
//!
//! Numbers in keys are big-endian, so that keys sort as their numbers do. A durable key begins with
//! the [`Home`] of its group (two bytes): a group is one contiguous range of each table. A group has
//! two homes and lives in one; the other is empty, or being filled, or being cleared.
//!
//! | table | key after the home | value |
//! |---|---|---|
//! | `groups` | (no home) group 2 | home 2, first block of the log that is not void 8, end of the log when it was wiped: `stored::LogId` |
//! | `applied` | | `stored::Applied` |
//! | `accounts`, `cursors` | user 8 | `stored::Account`, `stored::Cursors` |
//! | `devices` | user 8, device 4 | `stored::Device` |
//! | `recent` | to 8, from 8, device 4 | `stored::RecentIds` |
//! | `aliases`, `pins` | alias, UTF-8 | `stored::AliasOwner`, `stored::AliasPins` |
//! | `streams` | other shard 2 | `stored::Stream` |
//! | `notices` | other shard 2, number 8 | `stored::Notice` |
//! | `messages` | user 8, seq 8 | expiry in ms 8 (0: never), `stored::Envelope` |
//! | `expiries` | expiry minute 8, user 8, first seq 8 | last seq 8 |
//! | `meta` | | `stored::Meta` |
//! | `sessions` | (no home) user 8, device 4 | `stored::Session` |

use crate::StorageError;
use proto::{Alias, DeviceId, Seq, ShardId, UserId};
use std::path::Path;

/// Version of the data directory that this program writes.
pub const VERSION: u32 = 2;

/// Oldest version that this program reads.
const OLDEST: u32 = 2;

/// Text of the file `version`.
pub(crate) fn version_text() -> String {
    format!("natter data {VERSION}\n")
}

/// Checks the text of the file `version`.
pub(crate) fn check_version(dir: &Path, text: &str) -> Result<(), StorageError> {
    let number = text.strip_prefix("natter data ").and_then(|rest| rest.trim().parse().ok());
    let dir = dir.to_owned();
    match number {
        Some(found) if found > VERSION => {
            Err(StorageError::NewerVersion { dir, found, known: VERSION })
        }
        Some(found) if found >= OLDEST => Ok(()),
        Some(found) if found > 0 => Err(StorageError::OlderVersion { dir, found, known: OLDEST }),
        Some(_) | None => {
            Err(StorageError::corrupt(&dir.join("version"), 0, "not a version of natter data"))
        }
    }
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The home of each group, and the first block of its log.
    Groups,
    /// The last log entry that the tables include.
    Applied,
    /// Accounts.
    Accounts,
    /// Devices of accounts.
    Devices,
    /// Cursors of mailboxes.
    Cursors,
    /// Recent send ids.
    Recent,
    /// Owners of aliases.
    Aliases,
    /// Counters of registrations.
    Pins,
    /// The state of streams between shards.
    Streams,
    /// Notices to other shards.
    Notices,
    /// Mailbox entries.
    Messages,
    /// Expiries of mailbox entries.
    Expiries,
    /// Members, placements and settings of the cluster.
    Meta,
    /// Sessions: who is connected where. The only table that is flushed lazily.
    Sessions,
}

impl Table {
    /// The tables that must not lose a flushed row.
    pub const DURABLE: [Self; 13] = [
        Self::Groups,
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
        Self::Meta,
    ];

    /// The tables of a group's state, each with its number in a snapshot.
    pub(crate) const STATE: [(u8, Self); 11] = [
        (1, Self::Accounts),
        (2, Self::Devices),
        (3, Self::Cursors),
        (4, Self::Recent),
        (5, Self::Aliases),
        (6, Self::Pins),
        (7, Self::Streams),
        (8, Self::Notices),
        (9, Self::Messages),
        (10, Self::Expiries),
        (11, Self::Meta),
    ];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Groups => "groups",
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
            Self::Meta => "meta",
            Self::Sessions => "sessions",
        }
    }

    /// True if rows hold bodies, which must leave the disk when the row is removed.
    pub fn holds_bodies(self) -> bool {
        matches!(self, Self::Messages | Self::Notices)
    }
}

/// Milliseconds that one row of `expiries` covers.
pub(crate) const EXPIRY_BUCKET_MS: u64 = 60_000;

/// The range of a group's rows: the first two bytes of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home(u16);

impl Home {
    const SECOND: u16 = 0x8000;

    /// The first home of a group.
    pub(crate) fn first_of(group: ShardId) -> Self {
        Self(group.0)
    }

    /// The home with this number, if it is one of the two of `group`.
    pub(crate) fn from_number(group: ShardId, number: u16) -> Option<Self> {
        (number & !Self::SECOND == group.0).then_some(Self(number))
    }

    pub(crate) fn number(self) -> u16 {
        self.0
    }

    /// The group's other home.
    pub(crate) fn other(self) -> Self {
        Self(self.0 ^ Self::SECOND)
    }

    /// The first key of this home.
    pub(crate) fn begin(self) -> Vec<u8> {
        self.key(&[])
    }

    /// The key after the last of this home.
    pub(crate) fn end(self) -> Vec<u8> {
        self.0.checked_add(1).map_or_else(|| vec![0xff; 64], |next| Self(next).begin())
    }

    pub(crate) fn key(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = Vec::with_capacity(2 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.extend_from_slice(&self.0.to_be_bytes());
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }
}

pub(crate) fn group_key(group: ShardId) -> Vec<u8> {
    group.0.to_be_bytes().to_vec()
}

pub(crate) fn user_key(home: Home, user: UserId) -> Vec<u8> {
    home.key(&[&user.0.to_be_bytes()])
}

pub(crate) fn device_key(home: Home, user: UserId, device: DeviceId) -> Vec<u8> {
    home.key(&[&user.0.to_be_bytes(), &device.0.to_be_bytes()])
}

pub(crate) fn recent_key(home: Home, to: UserId, from: UserId, device: DeviceId) -> Vec<u8> {
    home.key(&[&to.0.to_be_bytes(), &from.0.to_be_bytes(), &device.0.to_be_bytes()])
}

pub(crate) fn alias_key(home: Home, alias: &Alias) -> Vec<u8> {
    home.key(&[alias.as_str().as_bytes()])
}

pub(crate) fn stream_key(home: Home, other: ShardId) -> Vec<u8> {
    home.key(&[&other.0.to_be_bytes()])
}

pub(crate) fn notice_key(home: Home, to: ShardId, number: u64) -> Vec<u8> {
    home.key(&[&to.0.to_be_bytes(), &number.to_be_bytes()])
}

pub(crate) fn message_key(home: Home, user: UserId, seq: Seq) -> Vec<u8> {
    home.key(&[&user.0.to_be_bytes(), &seq.0.to_be_bytes()])
}

pub(crate) fn expiry_key(home: Home, user: UserId, minute: u64, first: Seq) -> Vec<u8> {
    let parts = [minute.to_be_bytes(), user.0.to_be_bytes(), first.0.to_be_bytes()];
    home.key(&[&parts[0], &parts[1], &parts[2]])
}

/// The first key of `expiries` that is later than `minute`.
pub(crate) fn expiry_end(home: Home, minute: u64) -> Vec<u8> {
    home.key(&[&minute.saturating_add(1).to_be_bytes()])
}

pub(crate) fn session_key(user: UserId, device: DeviceId) -> Vec<u8> {
    [&user.0.to_be_bytes()[..], &device.0.to_be_bytes()].concat()
}

/// The least key greater than `key`.
pub(crate) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Decodes a key or value, front to back.
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
