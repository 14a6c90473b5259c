//! A store that forgets at the end of the process: for tests and for bots that keep nothing.

use super::{Change, Saved, Store};
use crate::error::StoreError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2026-01-01 in seconds of Unix time.
const EPOCH_S: u64 = 1_767_225_600;

/// Ids for each millisecond: a process that sends faster than 64,000 messages/s for all its life
/// could meet the ids of its successor.
const IDS_PER_MS: u64 = 64;

/// Keeps state in memory.
///
/// Send ids begin at one derived from the time, so that a restarted process does not use them
/// again; the clock must not be set back between two runs.
#[derive(Debug)]
pub struct MemoryStore {
    saved: Saved,
}

impl MemoryStore {
    /// A store whose send ids begin at the present time.
    #[allow(
        clippy::disallowed_methods,
        reason = "nothing else tells this run of the process from the one before"
    )]
    pub fn new() -> Self {
        let since_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let since_epoch = since_unix.saturating_sub(Duration::from_secs(EPOCH_S));
        let ms = u64::try_from(since_epoch.as_millis()).unwrap_or(0);
        Self::starting_at(ms * IDS_PER_MS + 1)
    }

    /// A store whose first send id is `first`, 1 or more.
    pub fn starting_at(first: u64) -> Self {
        Self { saved: Saved { send_ids_used: first, ..Saved::default() } }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Saved, StoreError> {
        Ok(self.saved.clone())
    }

    /// Nothing is kept beyond what the running client knows anyway.
    fn record(&mut self, _changes: &[Change]) -> Result<(), StoreError> {
        Ok(())
    }
}
