//! A group on its way from one node to another: all of its rows as of one place in its log.
//!
//! ```text
//! sender    export --- pieces ---> import.write   receiver
//!                                  import.finish  checks all of it
//!                                  install        the group moves to the new rows, at once
//! ```
//!
//! Received snapshots do not outlive a restart: what was not installed is sent again.
//!
//! # Invariants
//! 1. An export is of one moment, however slowly it is read and whatever is written meanwhile.
//! 2. Nothing of a snapshot is seen before all of it was checked and written.
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

/// Removes what was received before the start.
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

    /// Where the snapshot of a group waits to be installed.
    fn received(&self, group: ShardId) -> PathBuf {
        self.snapshots_dir().join(format!("{}.snapshot", group.0))
    }

    /// Removes the snapshot that waits to be installed, if there is one.
    pub(crate) fn forget_received(&self, group: ShardId) {
        let path = self.received(group);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "snapshot not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Replaces all rows of a group by those of the snapshot that [`Import::finish`] left, and
    /// forgets the group's records up to its place. Blocking, about ten seconds for a million rows.
    ///
    /// All of it is done or nothing, also after a crash. Nothing of the group may be under way: what
    /// its owner has in memory is outdated afterwards, and so is a checkpoint of it, which is refused.
    /// Records beyond the snapshot stay; if they contradict it, [`crate::Log::truncate`] comes before.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`], [`StorageError::Outdated`] if the tables are further,
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
