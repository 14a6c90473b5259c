//! The engine of the sessions table: sled, fast to overwrite, flushed lazily, recreated if damaged.
//!
//! ```text
//! write --> backlog, sled          after a failed write sled rejects all writes
//! flush --> the backlog is empty   write --> backlog    read --> backlog over sled
//!                                  space is free: sled is opened again and takes the backlog
//! ```
//!
//! # Invariants
//! 1. A read never returns an older value than the last write of this process. If sled cannot be opened
//!    again, reads of rows that are only on disk fail.
//! 2. The backlog and sled apply rows in the order of their writes.

mod backlog;

use super::{Batch, Durability, Engine, Read, Reclaim, Scan, Visit};
use crate::StorageError;
use crate::schema::Table;
use backlog::{Backlog, Row, visit_over};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tracing::{info, warn};

/// Bytes of sled's page cache: the pages of a million sessions. With a quarter of it each write costs
/// twice as much CPU, since pages are read again, and the process hardly uses less memory.
const CACHE_BYTES: u64 = 256 * 1024 * 1024;

/// Longest time that a session row stays unflushed. Other nodes have the row too.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Period in which sled frees unused space, in milliseconds. It flushes too.
const TIDY_EVERY_MS: u64 = 2_000;

/// Bytes that the disk must accept before sled is opened again: sled allocates 512 KiB at a time.
const PROBE_BYTES: usize = 4 * 1024 * 1024;

/// Flush periods between attempts to open the table again: 10 s.
const REOPEN_PAUSE: u32 = 20;

/// Rows of the backlog in one batch.
const PIECE_ROWS: usize = 256;

/// Attempts to open a locked directory, one every [`LOCK_PAUSE`]: sled stays locked for a moment after it
/// was closed.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Number of damaged directories that are kept for inspection.
const ASIDE_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Sled {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// `None` while it is being opened again, and if that failed.
    db: RwLock<Option<sled::Db>>,
    /// The lock of flushes. Taken after `db`.
    flushing: Mutex<()>,
    /// The lock of writers. Taken last.
    backlog: Mutex<Backlog>,
    /// The disk refused a write. Changed only with `backlog` locked.
    refused: AtomicBool,
    ending: AtomicBool,
}

impl Sled {
    /// Opens `dir`. If it is damaged, moves it away with a warning and creates a new one.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        let db = match try_open(dir) {
            Ok(db) => db,
            Err(Refused::Io(error)) => return Err(StorageError::io(dir, error)),
            Err(Refused::Damaged(what)) => {
                let aside = set_aside(dir)?;
                warn!(error = what, aside = %aside.display(), "sessions table damaged; moved away and recreated");
                try_open(dir).map_err(|refused| refused.into_error(dir))?
            }
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            db: RwLock::new(Some(db)),
            flushing: Mutex::default(),
            backlog: Mutex::default(),
            refused: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let table = Arc::clone(&shared);
        let flusher = thread::Builder::new().name("sessions".into());
        let flusher = flusher.spawn(move || table.flush_periodically());
        let flusher = flusher.map_err(|error| StorageError::io(dir, error))?;
        Ok(Self { shared, flusher: Some(flusher) })
    }
}

impl Drop for Sled {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        if let Some(flusher) = self.flusher.take() {
            flusher.thread().unpark();
            // A panicked thread was logged and flushes no more.
            flusher.join().ok();
        }
    }
}

fn try_open(dir: &Path) -> Result<sled::Db, Refused> {
    let mut tries = 0;
    loop {
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let config = sled::Config::new()
                .path(dir)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(TIDY_EVERY_MS));
            config.open()
        }));
        match opened {
            Ok(Ok(db)) => return Ok(db),
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

impl Shared {
    #[allow(clippy::wildcard_enum_match_arm, reason = "sled's enum: all the rest is damage")]
    fn failed(&self, error: sled::Error) -> StorageError {
        match error {
            sled::Error::Io(error) => StorageError::io(&self.dir, error),
            other => StorageError::corrupt(&self.dir, 0, other.to_string()),
        }
    }

    fn db(&self) -> RwLockReadGuard<'_, Option<sled::Db>> {
        self.db.read()
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock()
    }

    /// The backlog, if sled may lack some of its rows.
    fn backlog_if_refused(&self) -> Option<MutexGuard<'_, Backlog>> {
        self.refused.load(Ordering::Acquire).then(|| self.backlog())
    }

    /// The error while the disk can be neither read nor flushed.
    fn shut(&self) -> StorageError {
        StorageError::DiskFull { path: self.dir.clone() }
    }

    /// Writes rows to the backlog and, unless it rejects writes, to sled.
    fn write(&self, rows: Vec<Row>) -> Result<(), StorageError> {
        let db = self.db();
        let mut backlog = self.backlog();
        if let Some(db) = db.as_ref().filter(|_| !self.refused.load(Ordering::Acquire)) {
            match write_rows(db, &rows) {
                Ok(()) => {}
                Err(sled::Error::Io(error)) => self.set_refused(&error),
                Err(error) => return Err(self.failed(error)),
            }
        }
        backlog.keep(rows);
        Ok(())
    }

    /// Records that the disk refused a write; sled rejects all writes from now on.
    fn set_refused(&self, error: &io::Error) {
        if !self.refused.swap(true, Ordering::AcqRel) {
            let dir = self.dir.display();
            warn!(%dir, %error, "the disk refuses session rows; they stay in memory until it accepts them");
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        let db = self.db();
        let Some(db) = db.as_ref().filter(|_| !self.refused.load(Ordering::Acquire)) else {
            return Err(self.shut());
        };
        let _flushing = self.flushing.lock();
        if !self.backlog().begin_flush() {
            return Ok(());
        }
        let flushed = db.flush();
        let mut backlog = self.backlog();
        match flushed {
            Ok(_bytes) => backlog.end_flush(),
            Err(error) => {
                if let sled::Error::Io(error) = &error {
                    self.set_refused(error);
                }
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    /// The loop of the flush thread.
    fn flush_periodically(&self) {
        let mut pause = 0;
        while !self.ending.load(Ordering::Acquire) {
            thread::park_timeout(FLUSH_EVERY);
            if !self.refused.load(Ordering::Acquire) {
                // `set_refused` logged a refusal; any other error is returned to the next writer.
                self.flush().ok();
            } else if pause > 0 {
                pause -= 1;
            } else if takes_writes(&self.dir) {
                match self.reopen() {
                    Ok(()) => {
                        info!(dir = %self.dir.display(), "session rows are on the disk again");
                    }
                    Err(error) => {
                        warn!(%error, "the sessions table cannot be opened again");
                        pause = REOPEN_PAUSE;
                    }
                }
            }
        }
    }

    /// Opens sled again and writes the backlog to it. Readers wait meanwhile, a second or two for a million
    /// rows.
    fn reopen(&self) -> Result<(), StorageError> {
        let mut open = self.db.write();
        *open = None;
        let db = try_open(&self.dir).map_err(|refused| refused.into_error(&self.dir))?;
        let mut backlog = self.backlog();
        backlog.begin_flush();
        for rows in backlog.to_flush().chunks(PIECE_ROWS) {
            write_rows(&db, rows).map_err(|error| self.failed(error))?;
        }
        db.flush().map_err(|error| self.failed(error))?;
        backlog.end_flush();
        self.refused.store(false, Ordering::Release);
        *open = Some(db);
        Ok(())
    }
}

fn write_rows(db: &sled::Db, rows: &[Row]) -> sled::Result<()> {
    // sled writes its buffer to the disk before each batch. A single row is atomic without one.
    match rows {
        [(key, Some(value))] => db.insert(key, value.as_slice()).map(|_| ()),
        [(key, None)] => db.remove(key).map(|_| ()),
        _ => {
            let mut batch = sled::Batch::default();
            for (key, value) in rows {
                match value {
                    Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                    None => batch.remove(key.as_slice()),
                }
            }
            db.apply_batch(batch)
        }
    }
}

/// True if the disk accepts [`PROBE_BYTES`] beside `dir`.
fn takes_writes(dir: &Path) -> bool {
    let file = dir.with_extension("probe");
    let takes = File::create(&file).and_then(|mut probe| {
        probe.write_all(&vec![0; PROBE_BYTES])?;
        probe.sync_all()
    });
    takes.is_ok() & fs::remove_file(&file).is_ok()
}

enum Refused {
    Io(io::Error),
    Damaged(String),
}

impl Refused {
    fn into_error(self, dir: &Path) -> StorageError {
        match self {
            Self::Io(error) => StorageError::io(dir, error),
            Self::Damaged(what) => StorageError::corrupt(dir, 0, what),
        }
    }
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

/// It has one table, in sled's default tree.
impl Read for Sled {
    fn get(&self, _table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let db = self.shared.db();
        if let Some(backlog) = self.shared.backlog_if_refused()
            && let Some(kept) = backlog.get(key)
        {
            return Ok(kept.clone());
        }
        let db = db.as_ref().ok_or_else(|| self.shared.shut())?;
        let value = db.get(key).map_err(|error| self.shared.failed(error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        // No lock is held while visiting: `visit` may read other rows.
        let (db, kept) = {
            let db = self.shared.db();
            let kept = self.shared.backlog_if_refused();
            (db.clone(), kept.map(|backlog| backlog.range(scan.from, scan.to)))
        };
        let (db, kept) = (db.ok_or_else(|| self.shared.shut())?, kept.unwrap_or_default());
        visit_over(db.range(scan.from..scan.to), kept, visit)
            .map_err(|error| self.shared.failed(error))
    }
}

impl Engine for Sled {
    /// While the disk is full, rows stay in memory; that is an error only for a flushed write.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let rows = batch.into_rows().map(|(_, key, value)| (key, value));
        self.shared.write(rows.collect())?;
        match durability {
            Durability::Flushed => self.flush(),
            Durability::Lazy => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.shared.flush()
    }

    fn reclaim(&self, _reclaim: Reclaim) -> Result<(), StorageError> {
        Ok(())
    }

    fn table_bytes(&self, _table: Table) -> u64 {
        self.shared.db().as_ref().and_then(|db| db.size_on_disk().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
