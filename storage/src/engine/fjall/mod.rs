//! The engine of the durable tables: fjall, LSM trees behind one journal.
//!
//! # Invariants
//! 1. After a disk error fjall rejects every write; the next write opens it again.
//! 2. No caller waits for fjall's worker without a limit: the worker ends at such an error.
//! 3. A compaction blocks no write until [`BESIDE_BYTES`] were written during it.
//! 4. Views hold fjall's files open, so they end before fjall is opened again, and with [`Fjall`].

mod reclaim;

use crate::StorageError;
use crate::engine::{Batch, Durability, Engine, Read, Reclaim, Scan, Views, Visit};
use crate::schema::Table;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Bytes of the block cache. Small, since the shards hold in memory what is read often.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Bytes of one table's memtable.
const MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;

/// Block size of messages, in bytes: large, since they are read in order.
const MESSAGE_BLOCK_BYTES: u32 = 16 * 1024;

/// Most bytes written during a compaction: they stay in memory, since fjall's only worker is busy.
const BESIDE_BYTES: u64 = 8 * MEMTABLE_BYTES;

#[derive(Debug)]
pub(crate) struct Fjall {
    dir: PathBuf,
    open: RwLock<Option<Open>>,
    /// The lock of writers.
    writer: Mutex<()>,
    /// The lock of compaction, which runs beside writers. Taken after `writer` if both are taken.
    compacting: Mutex<()>,
    /// The lock of reclaiming.
    reclaiming: Mutex<()>,
    /// Bytes of batches since the last compaction began.
    beside: AtomicU64,
    /// A write failed, and not because the disk was full.
    broken: AtomicBool,
    views: Mutex<Vec<Weak<Mutex<Option<ViewFiles>>>>>,
}

struct Open {
    /// Of [`Table::DURABLE`], in their order.
    trees: Vec<Tree>,
    filling: Tree,
    db: Database,
}

/// An LSM tree.
struct Tree {
    keyspace: Keyspace,
    holds_bodies: bool,
    /// Some rows may be in the memtable and the journal only.
    unflushed: AtomicBool,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("trees", &self.trees.len()).finish_non_exhaustive()
    }
}

fn place(table: Table) -> Option<usize> {
    Table::DURABLE.iter().position(|known| *known == table)
}

impl Open {
    fn tree(&self, table: Table) -> Option<&Tree> {
        self.trees.get(place(table)?)
    }

    fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.trees.iter().chain([&self.filling])
    }
}

impl Tree {
    /// A tree that was just opened: recovery may have read rows from the journal to its memtable.
    fn new(keyspace: Keyspace, holds_bodies: bool) -> Self {
        Self { keyspace, holds_bodies, unflushed: AtomicBool::new(true) }
    }
}

impl Fjall {
    /// Opens or creates the tables in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        let open = open_db(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            open: RwLock::new(Some(open)),
            writer: Mutex::new(()),
            compacting: Mutex::new(()),
            reclaiming: Mutex::new(()),
            beside: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            views: Mutex::default(),
        })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Open) -> Result<T, fjall::Error>,
    ) -> Result<T, StorageError> {
        match self.read().as_ref() {
            Some(open) => guarded(&self.dir, || work(open)),
            None => Err(self.shut()),
        }
    }

    /// The error until the next write opens the tables again: only a full disk shuts them.
    fn shut(&self) -> StorageError {
        StorageError::DiskFull { path: self.dir.clone() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.open.read()
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock()
    }

    /// Opens the tables again if a full disk has shut them. After any other failure the content of the disk
    /// is unknown, and the page cache would hide it: the tables stay shut until a restart.
    fn reopen_if_shut(&self) -> Result<(), StorageError> {
        if self.broken.load(Ordering::Acquire) {
            let cause = std::io::Error::other("a write failed; the node must start again");
            return Err(StorageError::io(&self.dir, cause));
        }
        let usable =
            self.read().as_ref().is_some_and(|o| o.db.persist(PersistMode::Buffer).is_ok());
        if usable {
            return Ok(());
        }
        // Waiting for a compaction here would block all readers too.
        let Some(_compacting) = self.compacting.try_lock() else { return Err(self.shut()) };
        let mut open = self.open.write();
        self.end_views();
        *open = None;
        *open = Some(open_db(&self.dir)?);
        Ok(())
    }

    /// Closes the files of all views; further reads of them fail.
    fn end_views(&self) {
        let mut views = self.views.lock();
        for held in views.drain(..).filter_map(|view| view.upgrade()) {
            *held.lock() = None;
        }
    }

    /// Does `work` with the writers' lock.
    fn write_now(
        &self,
        work: impl FnOnce(&Open) -> Result<(), fjall::Error>,
    ) -> Result<(), StorageError> {
        let _writing = self.writer();
        self.reopen_if_shut()?;
        self.with(work)
    }

    fn compacting(&self) -> MutexGuard<'_, ()> {
        self.compacting.lock()
    }

    /// Waits for a running compaction if [`BESIDE_BYTES`] were written during it.
    fn wait_for_compaction(&self, bytes: u64) {
        if self.beside.fetch_add(bytes, Ordering::Relaxed) + bytes > BESIDE_BYTES {
            drop(self.compacting());
        }
    }
}

fn open_db(dir: &Path) -> Result<Open, StorageError> {
    guarded(dir, || {
        let db = Database::builder(dir).cache_size(CACHE_BYTES).worker_threads(1).open()?;
        let tree = |table: &Table| {
            let keyspace = db.keyspace(table.name(), || options(*table))?;
            Ok(Tree::new(keyspace, table.holds_bodies()))
        };
        let trees = Table::DURABLE.iter().map(tree).collect::<fjall::Result<Vec<_>>>()?;
        let filling = db.keyspace("filling", || {
            KeyspaceCreateOptions::default().max_memtable_size(4 * reclaim::JOURNAL_BYTES)
        })?;
        Ok(Open { trees, filling: Tree::new(filling, false), db })
    })
}

/// Runs `work` and turns a panic into an error: fjall panics on some kinds of damage.
fn guarded<T>(
    dir: &Path,
    work: impl FnOnce() -> Result<T, fjall::Error>,
) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failed(dir, error)),
        Err(_panic) => Err(StorageError::corrupt(dir, 0, "it made the engine panic")),
    }
}

fn options(table: Table) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
    if table == Table::Messages {
        options.data_block_size_policy(fjall::config::BlockSizePolicy::all(MESSAGE_BLOCK_BYTES))
    } else {
        options
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "fjall's enum, and open to more: all is damage")]
fn failed(dir: &Path, error: fjall::Error) -> StorageError {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            StorageError::io(dir, error)
        }
        fjall::Error::Locked => StorageError::AlreadyOpen { dir: dir.to_owned(), owner: None },
        fjall::Error::Poisoned => {
            StorageError::io(dir, std::io::Error::other("a write failed before"))
        }
        other => StorageError::corrupt(dir, 0, other.to_string()),
    }
}

impl Drop for Fjall {
    fn drop(&mut self) {
        self.end_views();
    }
}

/// The files of a view.
struct ViewFiles {
    snapshot: Snapshot,
    /// Of [`Table::DURABLE`], in their order.
    keyspaces: Vec<Keyspace>,
}

/// A view of all tables at one moment.
struct View {
    dir: PathBuf,
    held: Arc<Mutex<Option<ViewFiles>>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl View {
    fn with<T>(
        &self,
        table: Table,
        work: impl FnOnce(&Snapshot, &Keyspace) -> Result<T, fjall::Error>,
    ) -> Result<Option<T>, StorageError> {
        let held = self.held.lock();
        let Some(held) = held.as_ref() else {
            let cause = std::io::Error::other("the tables were opened again meanwhile");
            return Err(StorageError::io(&self.dir, cause));
        };
        let keyspace = place(table).and_then(|place| held.keyspaces.get(place));
        let Some(keyspace) = keyspace else { return Ok(None) };
        guarded(&self.dir, || work(&held.snapshot, keyspace)).map(Some)
    }
}

impl Read for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let value = self.with(table, |snapshot, keyspace| snapshot.get(keyspace, key))?;
        Ok(value.flatten().map(|value| value.to_vec()))
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.with(scan.table, |snapshot, keyspace| {
            visit_rows(snapshot.range(keyspace, scan.from..scan.to), visit)
        })
        .map(|_| ())
    }
}

fn visit_rows(rows: fjall::Iter, visit: &mut Visit<'_>) -> Result<(), fjall::Error> {
    for row in rows {
        let (key, value) = row.into_inner()?;
        if visit(&key, &value) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

impl Views for Fjall {
    fn view(&self) -> Result<Box<dyn Read>, StorageError> {
        let held = self.with(|open| {
            let keyspaces = open.trees.iter().map(|tree| tree.keyspace.clone()).collect();
            Ok(ViewFiles { snapshot: open.db.snapshot(), keyspaces })
        })?;
        let held = Arc::new(Mutex::new(Some(held)));
        let mut views = self.views.lock();
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&held));
        Ok(Box::new(View { dir: self.dir.clone(), held }))
    }
}

impl Read for Fjall {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.with(|open| match open.tree(table) {
            Some(tree) => Ok(tree.keyspace.get(key)?.map(|value| value.to_vec())),
            None => Ok(None),
        })
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.with(|open| {
            let Some(tree) = open.tree(scan.table) else { return Ok(()) };
            visit_rows(tree.keyspace.range(scan.from..scan.to), visit)
        })
    }
}

impl Engine for Fjall {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.wait_for_compaction(batch.bytes());
        self.write_now(|open| {
            let mut writes = open.db.batch().durability(Some(match durability {
                Durability::Flushed => PersistMode::SyncData,
                Durability::Lazy => PersistMode::Buffer,
            }));
            for (table, key, value) in batch.into_rows() {
                let Some(tree) = open.tree(table) else { continue };
                tree.unflushed.store(true, Ordering::Relaxed);
                match value {
                    Some(value) => writes.insert(&tree.keyspace, key, value),
                    None => writes.remove(&tree.keyspace, key),
                }
            }
            writes.commit().inspect_err(|error| {
                if let fjall::Error::Io(cause) = error
                    && cause.kind() != ErrorKind::StorageFull
                {
                    self.broken.store(true, Ordering::Release);
                }
            })
        })
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.with(|open| open.db.persist(PersistMode::SyncAll))
    }

    fn reclaim(&self, reclaim: Reclaim) -> Result<(), StorageError> {
        self.remove_for_good(reclaim)
    }

    fn table_bytes(&self, table: Table) -> u64 {
        let bytes = |open: &Open| open.tree(table).map(|tree| tree.keyspace.disk_space());
        self.read().as_ref().and_then(bytes).unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_makes_fjall_panic_is_an_error_and_the_tables_stay_open() {
        let dir = tempfile::tempdir().unwrap();
        let tables = Fjall::open(dir.path()).unwrap();
        let read = tables.with(|_| -> Result<(), fjall::Error> { panic!("as the test wants") });
        assert!(matches!(read, Err(StorageError::Corrupt { .. })), "{read:?}");
        assert_eq!(tables.get(Table::Messages, b"none").unwrap(), None);
    }
}
