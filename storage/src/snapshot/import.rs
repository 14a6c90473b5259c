//! The receiver of a snapshot: writes it to a file and checks it at the end.

use super::format;
use crate::space::Space;
use crate::{CHECKPOINT_FREE_BYTES, Storage, StorageError};
use bytes::Bytes;
use proto::{ShardId, stored};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::warn;

/// A snapshot that is being received. Dropping it before [`Import::finish`] discards it.
#[derive(Debug)]
pub struct Import {
    group: ShardId,
    part: PathBuf,
    whole: PathBuf,
    file: BufWriter<File>,
    space: Arc<Space>,
    finished: bool,
}

impl Import {
    /// Adds the next piece. Blocking.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn write(&mut self, piece: &Bytes) -> Result<(), StorageError> {
        if self.space.free_bytes() < CHECKPOINT_FREE_BYTES + piece.len() as u64 {
            return Err(StorageError::DiskFull { path: self.part.clone() });
        }
        self.file.write_all(piece).map_err(|error| StorageError::io(&self.part, error))
    }

    /// Checks the whole snapshot. Call [`Storage::install`] next. Blocking.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`], [`StorageError::DiskFull`], [`StorageError::Io`]; then it is
    /// discarded.
    pub fn finish(mut self) -> Result<stored::Applied, StorageError> {
        let fail = |error| StorageError::io(&self.part, error);
        self.file.flush().map_err(fail)?;
        // Flushed so that a full disk shows here.
        self.file.get_ref().sync_data().map_err(fail)?;
        let applied = format::read(&self.part, self.group, &mut |_, _, _| Ok(()))?;
        fs::rename(&self.part, &self.whole).map_err(fail)?;
        self.finished = true;
        Ok(applied)
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_file(&self.part)
        {
            warn!(file = %self.part.display(), %error, "part of a snapshot not removed");
        }
    }
}

impl Storage {
    /// Starts to receive a snapshot of a group. Of several, the last one to finish is installed.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`], [`StorageError::NoSuchGroup`].
    pub fn import(&self, group: ShardId) -> Result<Import, StorageError> {
        self.slot(group)?;
        let dir = self.snapshots_dir();
        let number = self.0.imports.fetch_add(1, Ordering::Relaxed);
        let part = dir.join(format!("{}-{number}.part", group.0));
        let file = fs::create_dir_all(&dir).and_then(|()| File::create(&part));
        let file = file.map_err(|error| StorageError::io(&part, error))?;
        let file = BufWriter::with_capacity(256 * 1024, file);
        let (whole, space) = (self.received(group), Arc::clone(&self.0.space));
        Ok(Import { group, part, whole, file, space, finished: false })
    }
}
