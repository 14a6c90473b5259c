//! fjall, for what must survive: LSM tables behind one journal.
//!
//! fjall begins a new journal only after 64 MB of it, so bodies of removed rows would stay in it for
//! as long as little is written. [`Fjall::reclaim`] therefore fills the journal up, and flushes all
//! tables, after which fjall unlinks it.
//!
//! # Invariants
//! 1. After an error of the disk fjall refuses every write; the next write opens it anew.
//! 2. Nothing waits for fjall's worker without a limit: it ends at such an error.
//! 3. Views hold on to the files, so they end before fjall is opened anew, and with [`Fjall`].

use super::{Batch, Durability, Engine, Read, Reclaim, Scan, Views, Visit};
use crate::StorageError;
use crate::schema::Table;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Slice, Snapshot};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::thread;
use std::time::Duration;

/// Memory for blocks that were read, in bytes. What is read often lives in the shards.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Rows of one table held in memory before they become a file, in bytes.
const MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;

/// Blocks of messages are read in order, so they may be large. Bytes.
const MESSAGE_BLOCK_BYTES: u32 = 16 * 1024;

/// fjall begins a new journal beyond this position, in bytes.
const JOURNAL_BYTES: u64 = 64_000_000;

/// One write of filling, in bytes. The disk has it before the next one: all at once would keep the log,
/// which flushes to the same disk, waiting for as long as 64 MB take.
const FILLING_BYTES: usize = 256 * 1024;

/// Pause after each, so that the log and other writers have their turn: three seconds in all.
const FILLING_PAUSE: Duration = Duration::from_millis(10);

/// A row of each table, beyond every key of ours. fjall unlinks a journal when each table's files hold
/// a row as new as the newest in the journal, which compaction may have removed; this one stays.
const MARK: [u8; 65] = [0xff; 65];

/// How long a flush of the tables is awaited: tries, and the pause between them. One minute.
const FLUSH_TRIES: u32 = 12_000;
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Fjall {
    dir: PathBuf,
    open: RwLock<Option<Open>>,
    /// Held by whoever writes.
    writer: Mutex<()>,
    /// A write failed for another reason than a full disk.
    broken: AtomicBool,
    views: Mutex<Vec<Weak<Mutex<Option<Held>>>>>,
}

struct Open {
    tables: Vec<Keyspace>,
    filling: Keyspace,
    db: Database,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("tables", &self.tables.len()).finish_non_exhaustive()
    }
}

fn keyspace(tables: &[Keyspace], table: Table) -> Option<&Keyspace> {
    let place = Table::DURABLE.iter().position(|known| *known == table)?;
    tables.get(place)
}

impl Open {
    fn table(&self, table: Table) -> Option<&Keyspace> {
        keyspace(&self.tables, table)
    }

    fn keyspaces(&self) -> impl Iterator<Item = &Keyspace> {
        self.tables.iter().chain([&self.filling])
    }
}

impl Fjall {
    /// Opens or makes the tables in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        let open = open_db(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            open: RwLock::new(Some(open)),
            writer: Mutex::new(()),
            broken: AtomicBool::new(false),
            views: Mutex::default(),
        })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Open) -> Result<T, fjall::Error>,
    ) -> Result<T, StorageError> {
        match self.read().as_ref() {
            Some(open) => work(open).map_err(|error| failed(&self.dir, error)),
            None => Err(StorageError::Closed),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the tables again if a full disk has shut them. After any other failure nobody knows what
    /// the disk has, and opening them would only read the cache: they stay shut until a restart.
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
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        self.end_views();
        *open = None;
        *open = Some(open_db(&self.dir)?);
        Ok(())
    }

    /// Lets go of the files that views hold; they refuse to read on.
    fn end_views(&self) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        for held in views.drain(..).filter_map(|view| view.upgrade()) {
            *held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Writes filling until fjall is willing to begin a new journal.
    fn fill_journal(&self) -> Result<(), StorageError> {
        let filling = Slice::from(vec![0; FILLING_BYTES]);
        for _ in 0..=JOURNAL_BYTES / FILLING_BYTES as u64 {
            self.write_now(|open| {
                open.filling.insert(b"filling", filling.clone())?;
                open.db.persist(PersistMode::SyncData)
            })?;
            thread::sleep(FILLING_PAUSE);
        }
        self.write_now(|open| {
            open.filling.clear()?;
            open.db.persist(PersistMode::SyncData)
        })
    }

    /// Does `work` as the only one who writes.
    fn write_now(
        &self,
        work: impl FnOnce(&Open) -> Result<(), fjall::Error>,
    ) -> Result<(), StorageError> {
        let _writing = self.writer();
        self.reopen_if_shut()?;
        self.with(work)
    }

    /// Makes files of all rows in memory and waits until the journals before the present one are
    /// gone.
    fn flush_tables(&self, open: &Open) -> Result<(), StorageError> {
        let fail = |error| failed(&self.dir, error);
        for keyspace in open.keyspaces() {
            keyspace.insert(MARK, b"").map_err(fail)?;
            keyspace.rotate_memtable().map_err(fail)?;
        }
        for _ in 0..FLUSH_TRIES {
            let flushing = open.keyspaces().any(|keyspace| keyspace.sealed_memtable_count() > 0);
            if !flushing && open.db.outstanding_flushes() == 0 && open.db.journal_count() == 1 {
                return Ok(());
            }
            open.db.persist(PersistMode::Buffer).map_err(fail)?;
            thread::sleep(FLUSH_PAUSE);
        }
        let late = std::io::Error::from(ErrorKind::TimedOut);
        Err(StorageError::io(&self.dir, late))
    }
}

fn open_db(dir: &Path) -> Result<Open, StorageError> {
    // fjall answers some damage with a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = Database::builder(dir).cache_size(CACHE_BYTES).worker_threads(1).open()?;
        let table = |table: &Table| db.keyspace(table.name(), || options(*table));
        let tables = Table::DURABLE.iter().map(table).collect::<fjall::Result<Vec<_>>>()?;
        let filling = db.keyspace("filling", || {
            KeyspaceCreateOptions::default().max_memtable_size(4 * JOURNAL_BYTES)
        })?;
        Ok(Open { tables, filling, db })
    }));
    match opened {
        Ok(opened) => opened.map_err(|error| failed(dir, error)),
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

/// What a view holds on to.
struct Held {
    snapshot: Snapshot,
    tables: Vec<Keyspace>,
}

/// All tables as of one moment.
struct View {
    dir: PathBuf,
    held: Arc<Mutex<Option<Held>>>,
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
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_ref() else {
            let cause = std::io::Error::other("the tables were opened anew meanwhile");
            return Err(StorageError::io(&self.dir, cause));
        };
        let Some(keyspace) = keyspace(&held.tables, table) else { return Ok(None) };
        work(&held.snapshot, keyspace).map(Some).map_err(|error| failed(&self.dir, error))
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
        let held = self
            .with(|open| Ok(Held { snapshot: open.db.snapshot(), tables: open.tables.clone() }))?;
        let held = Arc::new(Mutex::new(Some(held)));
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&held));
        Ok(Box::new(View { dir: self.dir.clone(), held }))
    }
}

impl Read for Fjall {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.with(|open| match open.table(table) {
            Some(keyspace) => Ok(keyspace.get(key)?.map(|value| value.to_vec())),
            None => Ok(None),
        })
    }

    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.with(|open| {
            let Some(keyspace) = open.table(scan.table) else { return Ok(()) };
            visit_rows(keyspace.range(scan.from..scan.to), visit)
        })
    }
}

impl Engine for Fjall {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.write_now(|open| {
            let mut writes = open.db.batch().durability(Some(match durability {
                Durability::Flushed => PersistMode::SyncData,
                Durability::Lazy => PersistMode::Buffer,
            }));
            for (table, key, value) in batch.into_rows() {
                let Some(keyspace) = open.table(table) else { continue };
                match value {
                    Some(value) => writes.insert(keyspace, key, value),
                    None => writes.remove(keyspace, key),
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
        self.fill_journal()?;
        let _writing = self.writer();
        self.reopen_if_shut()?;
        let guard = self.read();
        let open = guard.as_ref().ok_or(StorageError::Closed)?;
        let fail = |error| failed(&self.dir, error);
        self.flush_tables(open)?;
        match reclaim {
            Reclaim::Journal => {}
            Reclaim::JournalAndTables => {
                for table in Table::DURABLE.iter().filter(|table| table.holds_bodies()) {
                    open.table(*table).map_or(Ok(()), Keyspace::major_compact).map_err(fail)?;
                }
            }
        }
        // A second round lets go of the files that the first one replaced.
        self.flush_tables(open)
    }

    fn table_bytes(&self, table: Table) -> u64 {
        self.read().as_ref().and_then(|o| o.table(table).map(Keyspace::disk_space)).unwrap_or(0)
    }
}
