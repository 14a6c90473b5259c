//! Durable storage: a log that flushes every change first, tables that checkpoints write, and the
//! sessions table.
//!
//! The log is the only place to which a body is written at once. A checkpoint writes the undelivered
//! bodies to the tables, and then whole log segments are unlinked. One [`Storage`] serves all groups of a
//! node: its shards, and [`ShardId::META`]. Each group calls it from its own thread.
//!
//! ```text
//! DIR/lock        held while the node runs
//! DIR/version     of the data
//! DIR/making      exists until the first start has completed
//! DIR/reserve     space for checkpoints on a full disk
//! DIR/votes       the vote of each group
//! DIR/log/        segments of the log, and its reserve of space
//! DIR/tables/     the durable tables
//! DIR/snapshots/  snapshots being received; emptied at each start
//! DIR/sessions/   the sessions table; moved away and recreated if damaged
//! ```
//!
//! # Invariants
//! 1. A write that returned `Ok` survives SIGKILL and power cuts, except session rows, which are flushed
//!    lazily.
//! 2. A checkpoint, a snapshot and a wipe are atomic; the log drops records only afterwards.
//! 3. Damage is an error that names the file, and a full disk is an error too; never a panic, never
//!    silent loss.

mod directory;
pub mod engine;
mod error;
mod groups;
mod log;
mod messages;
mod rows;
pub mod schema;
mod sessions;
mod snapshot;
mod space;
mod upkeep;
mod votes;

pub use error::StorageError;
pub use log::{Done, Log, LogError};
pub use rows::Row;
pub use sessions::SessionTable;
pub use snapshot::{Export, Import};

use bytes::Bytes;
use directory::Directory;
use engine::fjall::Fjall;
use engine::sled::Sled;
use engine::{Durability, Engine, Views};
use groups::{GROUPS, Slot};
use parking_lot::Mutex;
use proto::{ShardId, stored};
use space::{Reserve, Space};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing::warn;
use upkeep::{CHECKPOINT_FREE_BYTES, RESERVE_BYTES};
use votes::Votes;

/// Sizes that an operator can set.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Bytes of a log segment. Default 16 MiB, range 64 KiB to 1 GiB: small enough that bodies leave
    /// the disk soon, large enough that creating one costs little.
    pub segment_bytes: u64,
    /// Free bytes below which the disk counts as nearly full. Default 256 MiB: room to write the memory
    /// of all shards to the tables.
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
    /// For all tables of [`schema::Table::DURABLE`].
    pub tables: Arc<dyn Views>,
    /// For the sessions table.
    pub sessions: Arc<dyn Engine>,
}

/// The records that the log held at start beyond the tables.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The groups that have such records, ascending.
    pub records: Vec<ShardRecords>,
}

/// Records of one group.
#[derive(Clone, Debug)]
pub struct ShardRecords {
    /// The group.
    pub shard: ShardId,
    /// Index and record, ascending without a gap, from the first index that is not in the tables.
    pub records: Vec<(u64, Bytes)>,
}

/// Name of the histogram of the log's flush times. The process that installs a recorder describes it.
pub const FLUSH_SECONDS: &str = "natter_log_flush_seconds";

/// Figures for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of records in the log, with their headers.
    pub log_bytes: u64,
    /// Segments of the log.
    pub log_segments: u64,
    /// Free bytes of the file system; at most a second old.
    pub free_bytes: u64,
    /// Flushes of the log since the start.
    pub flushes: u64,
    /// Records appended since the start.
    pub appended_records: u64,
    /// Bytes appended since the start, with headers.
    pub appended_bytes: u64,
}

/// The durable storage of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Log,
    votes: Votes,
    sessions: SessionTable,
    engines: Engines,
    groups: Vec<Slot>,
    space: Arc<Space>,
    dir: PathBuf,
    tables_dir: PathBuf,
    /// Held while a batch is written, from the check for space on.
    tables: Mutex<()>,
    reserve: Mutex<Reserve>,
    /// Rows with bodies removed since the last [`Storage::maintain`], and their bytes.
    removed: AtomicU64,
    removed_bytes: AtomicU64,
    /// Number of snapshots whose import began.
    imports: AtomicU64,
    closed: AtomicBool,
    /// Dropped last: it holds the lock.
    _directory: Directory,
}

impl Storage {
    /// Opens or creates `dir`: lock, version, tables, sessions, log. Blocking.
    ///
    /// # Errors
    /// [`StorageError::AlreadyOpen`], [`StorageError::NewerVersion`],
    /// [`StorageError::OlderVersion`], [`StorageError::Corrupt`], [`StorageError::DiskFull`],
    /// [`StorageError::Io`]; each names the path and the cure.
    pub fn open(dir: &Path, options: StorageOptions) -> Result<(Self, Recovered), StorageError> {
        let directory = Directory::open(dir)?;
        let engines = Engines {
            tables: Arc::new(Fjall::open(&dir.join("tables"))?),
            sessions: Arc::new(Sled::open(&dir.join("sessions"))?),
        };
        Self::assemble(directory, options, engines)
    }

    /// Like [`Storage::open`], with the given engines: for tests and simulations.
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
        directory: Directory,
        options: StorageOptions,
        engines: Engines,
    ) -> Result<(Self, Recovered), StorageError> {
        let dir = directory.path();
        let votes = if directory.is_new() { Votes::create } else { Votes::open };
        let votes = votes(&dir.join("votes"), usize::from(GROUPS))?;
        directory.begin()?;
        snapshot::begin(&dir.join("snapshots"))?;
        let tables_dir = dir.join("tables");
        let space = Arc::new(Space::new(dir, options.free_bytes_min));
        let groups = groups::load(engines.tables.as_ref(), &tables_dir)?;
        let (log, recovered) = Log::open(
            &dir.join("log"),
            options.segment_bytes.clamp(64 * 1024, 1024 * 1024 * 1024),
            Arc::clone(&space),
            &groups::known(engines.tables.as_ref(), &tables_dir, &groups)?,
        )?;
        let reserve = Reserve::new(dir.join("reserve"), RESERVE_BYTES);
        let sessions = SessionTable::new(Arc::clone(&engines.sessions));
        let storage = Self(Arc::new(Inner {
            log,
            votes,
            sessions,
            engines,
            groups,
            space,
            dir: dir.to_owned(),
            tables_dir,
            tables: Mutex::new(()),
            reserve: Mutex::new(reserve),
            // Bodies that were removed before the start may still be on disk.
            removed: AtomicU64::new(u64::from(!directory.is_new())),
            removed_bytes: AtomicU64::new(0),
            imports: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            _directory: directory,
        }));
        storage.restore_reserve();
        storage.clear_leftovers();
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

    /// Calls `row` with all rows of a group except its messages. Returns the last log entry that the
    /// tables include, or `None` if there is none. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for a row that cannot be decoded, [`StorageError::Io`],
    /// [`StorageError::NoSuchGroup`].
    pub fn load(
        &self,
        shard: ShardId,
        row: &mut dyn FnMut(Row),
    ) -> Result<Option<stored::Applied>, StorageError> {
        let home = self.slot(shard)?.home();
        let (view, dir) = (self.0.engines.tables.view()?, &self.0.tables_dir);
        rows::load(view.as_ref(), dir, home, row)?;
        rows::applied(view.as_ref(), dir, home)
    }

    /// The last log entry that the tables of a group include, or `None` if there is none. Blocking.
    ///
    /// # Errors
    /// As [`Storage::load`].
    pub fn applied(&self, shard: ShardId) -> Result<Option<stored::Applied>, StorageError> {
        let home = self.slot(shard)?.home();
        rows::applied(self.0.engines.tables.as_ref(), &self.0.tables_dir, home)
    }

    /// Writes `rows` and `applied` atomically and durably; then the log drops the group's records up to
    /// `applied`. Of two rows with one key the later one wins. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Outdated`] if the tables are newer, [`StorageError::DiskFull`],
    /// [`StorageError::Io`], [`StorageError::NoSuchGroup`]; then nothing was written.
    #[allow(clippy::needless_pass_by_value, reason = "nobody has a use for it afterwards")]
    pub fn checkpoint(
        &self,
        shard: ShardId,
        applied: stored::Applied,
        rows: Vec<Row>,
    ) -> Result<(), StorageError> {
        let slot = self.slot(shard)?;
        let changing = slot.change();
        self.not_older(shard, &applied)?;
        let mut changes = rows::Changes::new(self.0.engines.tables.as_ref(), slot.home());
        rows.into_iter().try_for_each(|row| changes.add(row))?;
        let (removed, removed_bytes) = (changes.removed, changes.removed_bytes);
        self.write_tables(changes.finish(&applied), Durability::Flushed)?;
        // Still under the lock, so that an older height never reaches the log after a newer one.
        self.0.log.forget(shard, rows::height(&applied));
        drop(changing);
        self.0.removed.fetch_add(removed, Ordering::Relaxed);
        self.0.removed_bytes.fetch_add(removed_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Fails if the tables include entries beyond `applied`.
    fn not_older(&self, group: ShardId, applied: &stored::Applied) -> Result<(), StorageError> {
        let (present, found) = (self.0.log.height_in_tables(group), rows::height(applied));
        if found < present {
            return Err(StorageError::Outdated { group: group.0, present, found });
        }
        Ok(())
    }

    /// Replaces the vote of a group, durably. Blocks for two flushes; never waits for the tables or for
    /// space.
    ///
    /// # Errors
    /// [`StorageError::Io`]: the vote may or may not be written, and no vote is accepted until a restart.
    /// [`StorageError::NoSuchGroup`].
    pub fn save_vote(&self, group: ShardId, vote: &stored::Vote) -> Result<(), StorageError> {
        self.open_only()?;
        self.0.votes.save(group, vote)
    }

    /// The vote of a group; `None` if it has never voted. From memory.
    ///
    /// # Errors
    /// [`StorageError::NoSuchGroup`].
    pub fn vote(&self, group: ShardId) -> Result<Option<stored::Vote>, StorageError> {
        self.0.votes.get(group)
    }

    /// True if less than [`StorageOptions::free_bytes_min`] is free, or a write met a full disk and no
    /// space was freed since. Cheap: it asks the disk at most once a second.
    pub fn nearly_full(&self) -> bool {
        self.0.space.nearly_full()
    }

    /// Free bytes in hundredths of [`StorageOptions::free_bytes_min`], `u64::MAX` if that is 0. Cheap, as
    /// [`Storage::nearly_full`] is.
    pub fn free_percent_of_min(&self) -> u64 {
        self.0.space.free_percent_of_min()
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

    /// Flushes everything and ends the log's thread; later calls return [`StorageError::Closed`] or
    /// [`LogError::Failed`]. The directory can be opened again once the last clone is dropped. Blocking.
    pub fn close(self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.log.close();
        let tables: &dyn Engine = self.0.engines.tables.as_ref();
        for engine in [tables, self.0.engines.sessions.as_ref()] {
            if let Err(error) = engine.flush() {
                warn!(%error, "tables not flushed at the end");
            }
        }
    }

    fn open_only(&self) -> Result<(), StorageError> {
        if self.0.closed.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }
}
