//! sled, for the sessions table: fast to overwrite, flushed lazily, rebuilt if it is damaged.

use super::{Batch, Durability, Engine, Read, Reclaim, Scan, Visit};
use crate::StorageError;
use crate::schema::Table;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use tracing::warn;

/// Memory for pages, in bytes: those of a million sessions. With a quarter of it each row that is
/// written costs twice as much CPU, since pages are read again, and memory is hardly less.
const CACHE_BYTES: u64 = 256 * 1024 * 1024;

/// Longest time that a session row stays unflushed, in milliseconds. Peers have it as well.
const FLUSH_EVERY_MS: u64 = 500;

/// How often a locked directory is tried, every [`LOCK_PAUSE`]: sled stays locked for a moment after
/// it was closed.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Directories that were set aside and are kept for a look.
const ASIDE_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Sled {
    dir: PathBuf,
    db: sled::Db,
}

impl Sled {
    /// Opens `dir`. A damaged one is set aside, with a warning, and begun anew.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        match Self::try_open(dir) {
            Ok(engine) => Ok(engine),
            Err(Refused::Io(error)) => Err(StorageError::io(dir, error)),
            Err(Refused::Damaged(what)) => {
                let aside = set_aside(dir)?;
                warn!(error = what, aside = %aside.display(), "sessions table damaged and begun anew");
                Self::try_open(dir).map_err(|refused| match refused {
                    Refused::Io(error) => StorageError::io(dir, error),
                    Refused::Damaged(what) => StorageError::corrupt(dir, 0, what),
                })
            }
        }
    }

    fn try_open(dir: &Path) -> Result<Self, Refused> {
        let mut tries = 0;
        loop {
            // sled answers some damage with a panic.
            let opened = catch_unwind(AssertUnwindSafe(|| {
                let config = sled::Config::new()
                    .path(dir)
                    .cache_capacity(CACHE_BYTES)
                    .flush_every_ms(Some(FLUSH_EVERY_MS));
                config.open()
            }));
            match opened {
                Ok(Ok(db)) => return Ok(Self { dir: dir.to_owned(), db }),
                Ok(Err(sled::Error::Io(error))) if is_locked(&error) => {
                    tries += 1;
                    if tries == LOCK_TRIES {
                        return Err(Refused::Io(error));
                    }
                    thread::sleep(LOCK_PAUSE);
                }
                Ok(Err(sled::Error::Io(error))) if !is_damage(&error) => {
                    return Err(Refused::Io(error));
                }
                Ok(Err(error)) => return Err(Refused::Damaged(error.to_string())),
                Err(_panic) => return Err(Refused::Damaged("it made sled panic".to_owned())),
            }
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "sled's enum: all the rest is damage")]
    fn failed(&self, error: sled::Error) -> StorageError {
        match error {
            sled::Error::Io(error) => StorageError::io(&self.dir, error),
            other => StorageError::corrupt(&self.dir, 0, other.to_string()),
        }
    }
}

enum Refused {
    Io(io::Error),
    Damaged(String),
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock")
}

fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other
    )
}

fn set_aside(dir: &Path) -> Result<PathBuf, StorageError> {
    let name = |n: u32| dir.with_extension(format!("damaged-{n}"));
    let aside = (1..ASIDE_MAX).map(name).find(|path| !path.exists());
    let aside = aside.unwrap_or_else(|| name(ASIDE_MAX));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|error| StorageError::io(&aside, error))?;
    }
    fs::rename(dir, &aside).map_err(|error| StorageError::io(dir, error))?;
    Ok(aside)
}

/// One table only, so the default tree is it.
impl Read for Sled {
    fn get(&self, _table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let value = self.db.get(key).map_err(|error| self.failed(error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        for row in self.db.range(scan.from..scan.to) {
            let (key, value) = row.map_err(|error| self.failed(error))?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let rows: Vec<_> = batch.into_rows().collect();
        // sled writes out its buffer before each batch. A single row is whole without one.
        let written = match rows.as_slice() {
            [(_, key, Some(value))] => self.db.insert(key, value.as_slice()).map(|_| ()),
            [(_, key, None)] => self.db.remove(key).map(|_| ()),
            _ => self.db.apply_batch(to_batch(rows)),
        };
        written.map_err(|error| self.failed(error))?;
        match durability {
            Durability::Flushed => self.flush(),
            Durability::Lazy => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.db.flush().map(|_bytes| ()).map_err(|error| self.failed(error))
    }

    fn reclaim(&self, _reclaim: Reclaim) -> Result<(), StorageError> {
        Ok(())
    }

    fn table_bytes(&self, _table: Table) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

fn to_batch(rows: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>) -> sled::Batch {
    let mut batch = sled::Batch::default();
    for (_, key, value) in rows {
        match value {
            Some(value) => batch.insert(key, value),
            None => batch.remove(key),
        }
    }
    batch
}
