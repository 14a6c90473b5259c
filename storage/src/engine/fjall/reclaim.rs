//! Removes deleted bodies from fjall's files: first from its journal, then from its tables.
//!
//! fjall begins a new journal only after 64 MB, and unlinks an old one when all of its rows are in files
//! of the tables. So this code fills the journal with zeros, punches holes before the zeros reach the
//! disk, and flushes the tables.

use super::{Fjall, Open, Tree, failed};
use crate::StorageError;
use crate::engine::{Reclaim, holes};
use fjall::{PersistMode, Slice};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// fjall begins a new journal beyond this position, in bytes.
pub(super) const JOURNAL_BYTES: u64 = 64_000_000;

/// Bytes of one write of zeros.
const FILLING_BYTES: usize = 1024 * 1024;

/// Pause after each write, and before a table is flushed, so that others get the disk and the cores. All
/// pauses together take two seconds.
const PAUSE: Duration = Duration::from_millis(20);

/// The key of a marker row in each table, beyond all other keys. fjall unlinks a journal when each table's
/// files hold a row as new as the newest in the journal. Compaction may remove that row, but not this one.
const MARK: [u8; 65] = [0xff; 65];

/// How long to wait for a flush of the tables: tries, and the pause between them. One minute.
const FLUSH_TRIES: u32 = 12_000;
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

impl Fjall {
    pub(super) fn remove_for_good(&self, reclaim: Reclaim) -> Result<(), StorageError> {
        // A flush during a compaction would wait for the worker, which is busy with the compaction.
        let _reclaiming = self.reclaiming.lock();
        self.fill_journal()?;
        self.flush_alone(|tree| tree.unflushed.load(Ordering::Relaxed))?;
        match reclaim {
            Reclaim::Journal => Ok(()),
            Reclaim::JournalAndTables => {
                self.compact()?;
                // fjall unlinks replaced files when it creates the next ones.
                self.flush_alone(|tree| tree.holds_bodies)
            }
        }
    }

    /// Writes zeros until fjall begins a new journal.
    fn fill_journal(&self) -> Result<(), StorageError> {
        let filling = Slice::from(vec![0; FILLING_BYTES]);
        let journal = journal(&self.dir).map_err(|error| StorageError::io(&self.dir, error))?;
        let mut looked = 0;
        for _ in 0..=JOURNAL_BYTES / FILLING_BYTES as u64 {
            self.write_now(|open| {
                open.filling.unflushed.store(true, Ordering::Relaxed);
                open.filling.keyspace.insert(b"filling", filling.clone())?;
                match holes::punch(&journal, looked) {
                    Ok(end) => looked = end,
                    // One large flush at the end would delay the log, which flushes to the same disk.
                    Err(_) => open.db.persist(PersistMode::SyncData)?,
                }
                Ok(())
            })?;
            thread::sleep(PAUSE);
        }
        self.write_now(|open| open.filling.keyspace.clear())
    }

    /// Flushes the memtables of some tables, without concurrent writers, and waits until all journals but
    /// the current one are gone.
    fn flush_alone(&self, wanted: impl Fn(&Tree) -> bool) -> Result<(), StorageError> {
        let _writing = self.writer();
        self.reopen_if_shut()?;
        let guard = self.read();
        let open = guard.as_ref().ok_or_else(|| self.shut())?;
        self.flush(open, open.trees().filter(|tree| wanted(tree)))
    }

    /// Compacts the tables with bodies. Gigabytes take tens of seconds, so others may write meanwhile.
    fn compact(&self) -> Result<(), StorageError> {
        let _compacting = self.compacting();
        self.beside.store(0, Ordering::Relaxed);
        self.with(|open| {
            let mut trees = open.trees().filter(|tree| tree.holds_bodies);
            trees.try_for_each(|tree| tree.keyspace.major_compact())
        })
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

/// The current journal of fjall: the file `N.jnl` with the highest number.
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
    use super::super::BESIDE_BYTES;
    use super::*;
    use crate::engine::{Batch, Durability, Engine, Read};
    use crate::schema::Table;
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
        if holes::punch(&file, 0).is_err_and(|error| error.kind() == ErrorKind::Unsupported) {
            return skip::skipped("files have no holes here");
        }
        assert!(space < JOURNAL_BYTES / 8, "{space} bytes");
        drop(tables);

        let tables = Fjall::open(dir.path()).unwrap();
        for key in [1, 2] {
            let found = tables.get(Table::Messages, &[key; 10]).unwrap();
            assert_eq!(found, Some(vec![key; 100_000]));
        }
    }

    fn batch(bytes: u64) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Messages, vec![1; 10], vec![1; usize::try_from(bytes).unwrap()]);
        batch
    }

    #[test]
    fn tables_are_written_while_they_are_compacted_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let tables = Fjall::open(dir.path()).unwrap();
        {
            let _writing = tables.writer();
            tables.compact().unwrap();
        }
        let compacting = tables.compacting();
        let (sender, written) = std::sync::mpsc::channel();
        let within = Duration::from_secs(20);
        thread::scope(|scope| {
            let write = || {
                tables.write(batch(1), Durability::Lazy).unwrap();
                sender.send(()).unwrap();
            };
            scope.spawn(write);
            assert_eq!(written.recv_timeout(within), Ok(()), "there is no end of it to wait for");
            tables.beside.store(BESIDE_BYTES, Ordering::Relaxed);
            scope.spawn(write);
            assert!(written.recv_timeout(Duration::from_millis(300)).is_err(), "too much");
            drop(compacting);
            assert_eq!(written.recv_timeout(within), Ok(()));
        });
    }

    #[test]
    fn tables_that_a_full_disk_shut_say_so_until_a_write_opens_them() {
        let dir = tempfile::tempdir().unwrap();
        let tables = Fjall::open(dir.path()).unwrap();
        tables.write(batch(5), Durability::Flushed).unwrap();
        *tables.open.write() = None;
        let read = || tables.get(Table::Messages, &[1; 10]);
        assert!(matches!(read(), Err(StorageError::DiskFull { .. })), "{:?}", read());
        let compacting = tables.compacting();
        let refused = tables.write(batch(1), Durability::Lazy);
        assert!(matches!(refused, Err(StorageError::DiskFull { .. })), "{refused:?}");
        drop(compacting);
        tables.write(batch(6), Durability::Lazy).unwrap();
        assert_eq!(read().unwrap(), Some(vec![1; 6]));
    }
}
