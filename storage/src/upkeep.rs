//! Space: made sure of before the tables are written, given back after rows were removed.

use crate::engine::{Batch, Durability, Reclaim};
use crate::schema::Table;
use crate::space::Reserve;
use crate::{Storage, StorageError};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

/// Bytes of files that an engine writes for each byte of a batch, at most: journal and table.
const WRITE_FACTOR: u64 = 3;

/// Free bytes below which no space is given back: where files have no holes, the engine writes 64 MB to
/// let go of a journal.
const RECLAIM_FREE_BYTES: u64 = 192 * 1024 * 1024;

/// Free bytes below which the tables are not written: an engine that meets a full disk halfway has to
/// be opened again.
pub(crate) const CHECKPOINT_FREE_BYTES: u64 = 4 * 1024 * 1024;

/// Space set aside for checkpoints, in bytes. They are what empties the log of a full disk.
pub(crate) const RESERVE_BYTES: u64 = 2 * CHECKPOINT_FREE_BYTES;

/// Segments of the log that a group which stands still may keep, beside those in which its records are.
const CARRY_SEGMENTS: usize = 16;

/// Tables with bodies up to this size are compacted whenever a row was removed, in bytes.
const SMALL_TABLE_BYTES: u64 = 64 * 1024 * 1024;

impl Storage {
    /// Gives back the space of what was removed. Blocking, for up to seconds: call it from a thread
    /// of its own, a few times a minute.
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
        self.restore_reserve();
        self.clear_leftovers();
        let carried = self.carry(if force { 0 } else { CARRY_SEGMENTS });
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
        carried
    }

    /// Lets go of segments that are kept by a group which stands still.
    fn carry(&self, segments_max: usize) -> Result<(), StorageError> {
        let Some(group) = self.0.log.stands_still(segments_max) else { return Ok(()) };
        let _changing = self.slot(group.group)?.change();
        self.0.log.carry(group)?;
        self.0.log.settle();
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

    /// Writes a batch if there is room for it.
    pub(crate) fn write_tables(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), StorageError> {
        let _writing = self.0.tables.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_room(batch.bytes())?;
        self.noting_full(self.0.engines.tables.write(batch, durability))
    }

    /// Makes sure that a batch of `bytes` fits, with the reserve if need be.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<(), StorageError> {
        let need = bytes.saturating_mul(WRITE_FACTOR) + CHECKPOINT_FREE_BYTES;
        if self.0.space.free_bytes() >= need {
            return Ok(());
        }
        self.0.space.met_its_end();
        if self.0.space.ask() >= need || (self.give_reserve() && self.0.space.ask() >= need) {
            return Ok(());
        }
        Err(StorageError::DiskFull { path: self.0.tables_dir.clone() })
    }

    /// Gives the reserve to the tables; the log leaves as much to them until it is restored.
    fn give_reserve(&self) -> bool {
        self.0.space.keep(RESERVE_BYTES);
        self.reserve().give()
    }

    pub(crate) fn restore_reserve(&self) {
        let mut reserve = self.reserve();
        self.0.space.keep(0);
        reserve.restore(&self.0.space);
        self.0.space.keep(if reserve.is_held() { 0 } else { RESERVE_BYTES });
    }

    fn reserve(&self) -> MutexGuard<'_, Reserve> {
        self.0.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noting_full(&self, outcome: Result<(), StorageError>) -> Result<(), StorageError> {
        if matches!(outcome, Err(StorageError::DiskFull { .. })) {
            self.0.space.met_its_end();
        }
        outcome
    }
}
