//! What is durable: a log in which every change is flushed first, tables for what stays, and the
//! sessions table.
//!
//! A body is written to the log and nowhere else. A checkpoint moves to the tables what is still
//! undelivered by then, and whole log segments are unlinked. One [`Storage`] serves all shards of a
//! node; shards call it from their own threads.
//!
//! ```text
//! DIR/lock       held while the node runs
//! DIR/version    of the data
//! DIR/reserve    space set aside for checkpoints
//! DIR/log/       segments of the log, and a reserve of space
//! DIR/tables/    what must survive
//! DIR/sessions/  who is connected where; set aside and begun anew if damaged
//! ```
//!
//! # Invariants
//! 1. What was answered `Ok` survives SIGKILL and power cuts, except session rows, which are lazy.
//! 2. A checkpoint is in the tables whole or not at all, and only then are its records forgotten.
//! 3. Damage is an error that names the file, a full disk is an error value; never a panic, never
//!    silent loss.

mod directory;
pub mod engine;
mod error;
mod log;
mod messages;
mod rows;
pub mod schema;
mod sessions;
mod space;

pub use error::StorageError;
pub use log::{Done, Log, LogError};
pub use rows::Row;
pub use sessions::SessionTable;

use bytes::Bytes;
use directory::Directory;
use engine::fjall::Fjall;
use engine::sled::Sled;
use engine::{Durability, Engine, Reclaim};
use proto::ShardId;
use schema::Table;
use space::{Reserve, Space};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::warn;

/// Sizes that an operator may choose.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Bytes of a log segment. Default 16 MiB, range 64 KiB to 1 GiB: small enough that bodies leave
    /// the disk soon, large enough that making one costs nothing.
    pub segment_bytes: u64,
    /// Free bytes under which the disk counts as nearly full. Default 256 MiB: room for what is in
    /// memory to reach the tables.
    pub free_bytes_min: u64,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 * 1024 * 1024, free_bytes_min: 256 * 1024 * 1024 }
    }
}

/// The engines under the tables.
#[derive(Clone, Debug)]
pub struct Engines {
    /// For all tables of [`Table::DURABLE`].
    pub tables: Arc<dyn Engine>,
    /// For the sessions table.
    pub sessions: Arc<dyn Engine>,
}

/// What the log held at start and the tables do not.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The shards that have such records, ascending.
    pub records: Vec<ShardRecords>,
}

/// Records of one shard.
#[derive(Clone, Debug)]
pub struct ShardRecords {
    /// Whose they are.
    pub shard: ShardId,
    /// Log index and record, in the order in which they were appended.
    pub records: Vec<(u64, Bytes)>,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of records in the log, with their headers.
    pub log_bytes: u64,
    /// Segments of the log.
    pub log_segments: u64,
    /// Bytes that the file system has left; at most a second old.
    pub free_bytes: u64,
    /// Flushes of the log since the start.
    pub flushes: u64,
    /// Records appended since the start.
    pub appended_records: u64,
    /// Bytes appended since the start, with headers.
    pub appended_bytes: u64,
}

/// All that a node keeps on disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Log,
    sessions: SessionTable,
    engines: Engines,
    space: Arc<Space>,
    tables_dir: PathBuf,
    /// Held while tables are read and written as one.
    tables: Mutex<()>,
    reserve: Mutex<Reserve>,
    /// Rows with bodies removed since the last [`Storage::maintain`], and their bytes.
    removed: AtomicU64,
    removed_bytes: AtomicU64,
    closed: AtomicBool,
    /// Dropped last: it holds the lock.
    _directory: Directory,
}

/// Bytes of files that an engine writes for each byte of a batch, at most: journal and table.
const WRITE_FACTOR: u64 = 3;

/// Free bytes below which no space is given back: the engine writes up to 64 MB to let go of a journal.
const RECLAIM_FREE_BYTES: u64 = 192 * 1024 * 1024;

/// Free bytes below which a checkpoint is not begun: an engine that meets a full disk halfway has to
/// be opened again.
const CHECKPOINT_FREE_BYTES: u64 = 4 * 1024 * 1024;

/// Space set aside for checkpoints, in bytes. They are what empties the log of a full disk.
const RESERVE_BYTES: u64 = 2 * CHECKPOINT_FREE_BYTES;

/// Tables with bodies up to this size are compacted whenever a row was removed, in bytes.
const SMALL_TABLE_BYTES: u64 = 64 * 1024 * 1024;

impl Storage {
    /// Opens `dir`, or makes it: lock, version, tables, sessions, log. Blocking.
    ///
    /// # Errors
    /// [`StorageError::AlreadyOpen`], [`StorageError::NewerVersion`], [`StorageError::Corrupt`],
    /// [`StorageError::DiskFull`], [`StorageError::Io`]; each names the path and the cure.
    pub fn open(dir: &Path, options: StorageOptions) -> Result<(Self, Recovered), StorageError> {
        let directory = Directory::open(dir)?;
        let engines = Engines {
            tables: Arc::new(Fjall::open(&dir.join("tables"))?),
            sessions: Arc::new(Sled::open(&dir.join("sessions"))?),
        };
        Self::assemble(directory, options, engines)
    }

    /// Like [`Storage::open`], on engines of the caller's choice: for tests and simulations.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn open_with(
        dir: &Path,
        options: StorageOptions,
        engines: Engines,
    ) -> Result<(Self, Recovered), StorageError> {
        Self::assemble(Directory::open(dir)?, options, engines)
    }

    fn assemble(
        mut directory: Directory,
        options: StorageOptions,
        engines: Engines,
    ) -> Result<(Self, Recovered), StorageError> {
        directory.upgrade(engines.tables.as_ref())?;
        let dir = directory.path();
        let tables_dir = dir.join("tables");
        let space = Arc::new(Space::new(dir, options.free_bytes_min));
        let (log, recovered) = Log::open(
            &dir.join("log"),
            options.segment_bytes.clamp(64 * 1024, 1024 * 1024 * 1024),
            Arc::clone(&space),
            &mut |shard| rows::applied(engines.tables.as_ref(), &tables_dir, shard),
        )?;
        let mut reserve = Reserve::new(dir.join("reserve"), RESERVE_BYTES);
        reserve.restore(&space);
        let sessions = SessionTable::new(Arc::clone(&engines.sessions));
        let storage = Self(Arc::new(Inner {
            log,
            sessions,
            engines,
            space,
            tables_dir,
            tables: Mutex::new(()),
            reserve: Mutex::new(reserve),
            // What was removed before the start may still be on disk.
            removed: AtomicU64::new(u64::from(!directory.is_new())),
            removed_bytes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            _directory: directory,
        }));
        Ok((storage, recovered))
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// The sessions table.
    pub fn sessions(&self) -> &SessionTable {
        &self.0.sessions
    }

    /// Calls `row` with all rows of a shard but its messages, and returns the log index up to which
    /// they are applied, 0 for nothing. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for a row that is not understood, [`StorageError::Io`].
    pub fn load(&self, shard: ShardId, row: &mut dyn FnMut(Row)) -> Result<u64, StorageError> {
        self.open_only()?;
        let (engine, dir) = (self.0.engines.tables.as_ref(), &self.0.tables_dir);
        rows::load(engine, dir, shard, row)?;
        rows::applied(engine, dir, shard)
    }

    /// Writes `rows` and `applied`, all or nothing, durably; then the log forgets the shard's
    /// records up to `applied`. Of two rows with one key the later counts. Blocking.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`]; then nothing was written.
    pub fn checkpoint(
        &self,
        shard: ShardId,
        applied: u64,
        rows: Vec<Row>,
    ) -> Result<(), StorageError> {
        self.open_only()?;
        let writing = self.lock_tables();
        let engine = self.0.engines.tables.as_ref();
        let mut changes = rows::Changes::new(engine, shard);
        rows.into_iter().try_for_each(|row| changes.add(row))?;
        let (removed, removed_bytes) = (changes.removed, changes.removed_bytes);
        let batch = changes.finish(applied);
        self.make_room(batch.bytes())?;
        self.noting_full(engine.write(batch, Durability::Flushed))?;
        drop(writing);
        self.0.removed.fetch_add(removed, Ordering::Relaxed);
        self.0.removed_bytes.fetch_add(removed_bytes, Ordering::Relaxed);
        self.0.log.forget(shard, applied);
        Ok(())
    }

    /// Gives back the space of what was removed. Blocking, for up to seconds: call it from a thread
    /// of its own, about once a minute.
    ///
    /// Does work only if there is reason. Rows with bodies that were removed leave the engine's
    /// journal at each call; they leave the tables if these are small, or hold a quarter of removed
    /// rows, or if `force`. With `force` all of it is done whether there is reason or not.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn maintain(&self, force: bool) -> Result<(), StorageError> {
        self.open_only()?;
        self.0.log.rotate_if_spent(1);
        self.reserve().restore(&self.0.space);
        let removed = self.0.removed.swap(0, Ordering::Relaxed);
        // Giving space back takes some first: on a disk that is nearly full it waits.
        if self.0.space.ask() < RECLAIM_FREE_BYTES {
            self.0.removed.fetch_add(removed, Ordering::Relaxed);
        } else if removed > 0 || force {
            let reclaim = self.how_to_reclaim(force);
            if let Err(error) = self.noting_full(self.0.engines.tables.reclaim(reclaim)) {
                self.0.removed.fetch_add(removed, Ordering::Relaxed);
                return Err(error);
            }
        }
        if force {
            self.0.log.settle();
        }
        Ok(())
    }

    fn how_to_reclaim(&self, force: bool) -> Reclaim {
        let bodies = Table::DURABLE.iter().filter(|table| table.holds_bodies());
        let bytes: u64 = bodies.map(|table| self.0.engines.tables.table_bytes(*table)).sum();
        let removed_bytes = self.0.removed_bytes.load(Ordering::Relaxed);
        let worth_it = bytes <= SMALL_TABLE_BYTES || removed_bytes >= bytes / 4;
        // Compaction writes new files before it unlinks the old ones.
        let fits = self.0.space.free_bytes() >= bytes + CHECKPOINT_FREE_BYTES;
        if (worth_it || force) && fits {
            self.0.removed_bytes.store(0, Ordering::Relaxed);
            Reclaim::JournalAndTables
        } else {
            Reclaim::Journal
        }
    }

    /// Whether less than [`StorageOptions::free_bytes_min`] is free, or a write met a full disk and
    /// no space has come since. Cheap: the disk is asked at most once a second.
    pub fn nearly_full(&self) -> bool {
        self.0.space.nearly_full()
    }

    /// Figures for metrics.
    pub fn usage(&self) -> Usage {
        let log = self.0.log.usage();
        Usage {
            log_bytes: log.bytes,
            log_segments: log.segments,
            free_bytes: self.0.space.free_bytes(),
            flushes: log.flushes,
            appended_records: log.appended_records,
            appended_bytes: log.appended_bytes,
        }
    }

    /// Flushes everything and ends the log's thread; later calls answer [`StorageError::Closed`] or
    /// [`LogError::Failed`]. The directory can be opened again when the last clone is dropped.
    /// Blocking.
    pub fn close(self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.log.close();
        for engine in [&self.0.engines.tables, &self.0.engines.sessions] {
            if let Err(error) = engine.flush() {
                warn!(%error, "tables not flushed at the end");
            }
        }
    }

    /// Makes sure that a batch of `bytes` fits, with the reserve if need be.
    fn make_room(&self, bytes: u64) -> Result<(), StorageError> {
        let need = bytes.saturating_mul(WRITE_FACTOR) + CHECKPOINT_FREE_BYTES;
        if self.0.space.free_bytes() >= need {
            return Ok(());
        }
        self.0.space.met_its_end();
        if self.0.space.ask() >= need || (self.reserve().give() && self.0.space.ask() >= need) {
            return Ok(());
        }
        Err(StorageError::DiskFull { path: self.0.tables_dir.clone() })
    }

    fn reserve(&self) -> MutexGuard<'_, Reserve> {
        self.0.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_only(&self) -> Result<(), StorageError> {
        if self.0.closed.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    fn lock_tables(&self) -> MutexGuard<'_, ()> {
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noting_full(&self, outcome: Result<(), StorageError>) -> Result<(), StorageError> {
        if matches!(outcome, Err(StorageError::DiskFull { .. })) {
            self.0.space.met_its_end();
        }
        outcome
    }
}
