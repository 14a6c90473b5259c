//! Removed bodies leave the files of fjall: first its journal, then its tables.
//!
//! fjall begins a new journal only after 64 MB of it, and unlinks the old one when all rows that were
//! in it are in files of their tables. So the journal is filled up with zeros, which are given back to
//! the file system before they reach the disk, and the tables are flushed.

use super::{Fjall, Open, Tree, failed};
use crate::StorageError;
use crate::engine::{Reclaim, holes};
use crate::schema::Table;
use fjall::{PersistMode, Slice};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// fjall begins a new journal beyond this position, in bytes.
pub(super) const JOURNAL_BYTES: u64 = 64_000_000;

/// One write of filling, in bytes.
const FILLING_BYTES: usize = 1024 * 1024;

/// Pause after each, and before a table is flushed, so that others have the disk and the cores. There is
/// no hurry: it comes to two seconds.
const PAUSE: Duration = Duration::from_millis(20);

/// A row of each table, beyond every key of ours. fjall unlinks a journal when each table's files hold
/// a row as new as the newest in the journal, which compaction may have removed; this one stays.
const MARK: [u8; 65] = [0xff; 65];

/// How long a flush of the tables is awaited: tries, and the pause between them. One minute.
const FLUSH_TRIES: u32 = 12_000;
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

impl Fjall {
    pub(super) fn remove_for_good(&self, reclaim: Reclaim) -> Result<(), StorageError> {
        self.fill_journal()?;
        let _writing = self.writer();
        self.reopen_if_shut()?;
        let guard = self.read();
        let open = guard.as_ref().ok_or(StorageError::Closed)?;
        self.flush_tables(open)?;
        match reclaim {
            Reclaim::Journal => Ok(()),
            Reclaim::JournalAndTables => self.compact(open),
        }
    }

    /// Writes filling until fjall is willing to begin a new journal.
    fn fill_journal(&self) -> Result<(), StorageError> {
        let filling = Slice::from(vec![0; FILLING_BYTES]);
        let journal = journal(&self.dir).map_err(|error| StorageError::io(&self.dir, error))?;
        let mut looked = 0;
        for _ in 0..=JOURNAL_BYTES / FILLING_BYTES as u64 {
            self.write_now(|open| {
                open.filling.unflushed.store(true, Ordering::Relaxed);
                open.filling.keyspace.insert(b"filling", filling.clone())?;
                match holes::dig(&journal, looked) {
                    Ok(end) => looked = end,
                    // All of it at the end would keep the log waiting, which flushes to the same disk.
                    Err(_) => open.db.persist(PersistMode::SyncData)?,
                }
                Ok(())
            })?;
            thread::sleep(PAUSE);
        }
        self.write_now(|open| open.filling.keyspace.clear())
    }

    /// Makes files of all rows in memory and waits until the journals before the present one are
    /// gone.
    fn flush_tables(&self, open: &Open) -> Result<(), StorageError> {
        let unflushed = |tree: &&Tree| tree.unflushed.load(Ordering::Relaxed);
        self.flush(open, open.trees().filter(unflushed))
    }

    /// Removed rows leave the files of the tables with bodies.
    fn compact(&self, open: &Open) -> Result<(), StorageError> {
        let bodies = || Table::DURABLE.into_iter().filter(|table| table.holds_bodies());
        let trees = || bodies().filter_map(|table| open.tree(table));
        for tree in trees() {
            tree.keyspace.major_compact().map_err(|error| failed(&self.dir, error))?;
        }
        // fjall lets go of the files that this replaced when the next ones are made.
        self.flush(open, trees())
    }

    fn flush<'a>(
        &self,
        open: &Open,
        trees: impl Iterator<Item = &'a Tree>,
    ) -> Result<(), StorageError> {
        let fail = |error| failed(&self.dir, error);
        for tree in trees {
            thread::sleep(PAUSE);
            tree.keyspace.insert(MARK, b"").map_err(fail)?;
            tree.keyspace.rotate_memtable().map_err(fail)?;
            tree.unflushed.store(false, Ordering::Relaxed);
        }
        for _ in 0..FLUSH_TRIES {
            let flushing = open.trees().any(|tree| tree.keyspace.sealed_memtable_count() > 0);
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

/// The journal that fjall writes to: the file `N.jnl` with the highest number.
fn journal(dir: &Path) -> std::io::Result<File> {
    let number = |path: &Path| -> Option<u64> {
        path.file_name()?.to_str()?.strip_suffix(".jnl")?.parse().ok()
    };
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        newest = newest.max(number(&path).map(|number| (number, path)));
    }
    let (_, path) = newest.ok_or(ErrorKind::NotFound)?;
    File::options().read(true).write(true).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::engine::{Batch, Durability, Engine, Read};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn filling_the_journal_takes_no_space_and_loses_no_row() {
        let dir = tempfile::tempdir().unwrap();
        let tables = Fjall::open(dir.path()).unwrap();
        let put = |key: u8| {
            let mut batch = Batch::default();
            batch.put(Table::Messages, vec![key; 10], vec![key; 100_000]);
            tables.write(batch, Durability::Lazy).unwrap();
        };
        put(1);
        tables.fill_journal().unwrap();
        put(2);
        let file = journal(dir.path()).unwrap();
        let space = file.metadata().unwrap().blocks() * 512;
        if holes::dig(&file, 0).is_err_and(|error| error.kind() == ErrorKind::Unsupported) {
            println!("skipped: files have no holes here");
            return;
        }
        assert!(space < JOURNAL_BYTES / 8, "{space} bytes");
        drop(tables);

        let tables = Fjall::open(dir.path()).unwrap();
        for key in [1, 2] {
            let found = tables.get(Table::Messages, &[key; 10]).unwrap();
            assert_eq!(found, Some(vec![key; 100_000]));
        }
    }
}
