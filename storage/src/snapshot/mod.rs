//! Snapshots: all rows of a group as of one log entry, sent from node to node.
//!
//! ```text
//! sender    export --- pieces ---> import.write   receiver
//!                                  import.finish  checks all of it
//!                                  install        replaces the rows atomically
//! ```
//!
//! A restart discards received snapshots that were not installed; the sender sends them again.
//!
//! # Invariants
//! 1. An export shows one moment, however slowly it is read and whatever is written meanwhile.
//! 2. No reader sees a row of a snapshot before all of it was checked and written.
//! 3. Memory does not grow with the group.

mod export;
mod format;
mod import;

pub use export::Export;
pub use import::Import;

use crate::engine::{Batch, Durability};
use crate::groups::BATCH_BYTES;
use crate::schema::{Home, Table};
use crate::{Storage, StorageError, rows};
use prost::Message;
use proto::{ShardId, stored};
use std::fs;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Removes snapshots received before the start.
pub(crate) fn begin(dir: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::io(dir, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Storage {
    fn snapshots_dir(&self) -> PathBuf {
        self.0.dir.join("snapshots")
    }

    /// The file of a received snapshot that was not installed yet.
    fn received(&self, group: ShardId) -> PathBuf {
        self.snapshots_dir().join(format!("{}.snapshot", group.0))
    }

    /// Removes the received snapshot that was not installed, if there is one.
    pub(crate) fn forget_received(&self, group: ShardId) {
        let path = self.received(group);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "snapshot not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Replaces all rows of a group by those of the snapshot from [`Import::finish`], and drops the group's
    /// log records that it includes. Blocking, about ten seconds for a million rows.
    ///
    /// Atomic, also in a crash. The caller must not write to the group meanwhile: its memory is outdated
    /// afterwards, and a checkpoint of it fails. Log records beyond the snapshot stay; if they conflict
    /// with it, call [`crate::Log::truncate`] first.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`], [`StorageError::Outdated`] if the tables are newer,
    /// [`StorageError::DiskFull`], [`StorageError::Io`]; then nothing was changed.
    pub fn install(&self, group: ShardId) -> Result<stored::Applied, StorageError> {
        let slot = self.slot(group)?;
        let _changing = slot.change();
        let path = self.received(group);
        let applied = format::read(&path, group, &mut |_, _, _| Ok(()))?;
        self.not_older(group, &applied)?;
        let bytes = fs::metadata(&path).map_err(|error| StorageError::io(&path, error))?.len();
        self.make_room(bytes)?;
        self.settled_block()?;
        self.replace(slot, |home| self.fill(home, &path, group, &applied))?;
        self.0.log.forget(group, rows::height(&applied));
        if let Err(error) = fs::remove_file(&path) {
            warn!(file = %path.display(), %error, "installed snapshot not removed");
        }
        Ok(applied)
    }

    fn fill(
        &self,
        home: Home,
        path: &Path,
        group: ShardId,
        applied: &stored::Applied,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        format::read(path, group, &mut |table, key, value| {
            batch.put(table, home.key(&[key]), value.to_vec());
            bytes += (key.len() + value.len()) as u64;
            if bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            self.write_tables(std::mem::take(&mut batch), Durability::Lazy)
        })?;
        batch.put(Table::Applied, home.begin(), applied.encode_to_vec());
        self.write_tables(batch, Durability::Lazy)
    }
}
