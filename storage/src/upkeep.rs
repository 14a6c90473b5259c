//! Disk space: checks it before tables are written, and frees it after rows were removed.

use crate::engine::{Batch, Durability, Reclaim};
use crate::schema::Table;
use crate::space::Reserve;
use crate::{Storage, StorageError};
use parking_lot::MutexGuard;
use std::sync::atomic::Ordering;

/// Most bytes of files that an engine writes for each byte of a batch: journal and table.
const WRITE_FACTOR: u64 = 3;

/// Free bytes below which no space is reclaimed: on file systems without holes, the engine writes 64 MB
/// to get rid of a journal.
const RECLAIM_FREE_BYTES: u64 = 192 * 1024 * 1024;

/// Free bytes below which the tables are not written: an engine that meets a full disk during a write must
/// be opened again.
pub(crate) const CHECKPOINT_FREE_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes set aside for checkpoints, which are what empties the log of a full disk.
pub(crate) const RESERVE_BYTES: u64 = 2 * CHECKPOINT_FREE_BYTES;

/// Number of segments without its own records that an idle group may pin.
const IDLE_SEGMENTS_MAX: usize = 16;

/// Tables with bodies up to this size are compacted after every removal, in bytes.
const SMALL_TABLE_BYTES: u64 = 64 * 1024 * 1024;

impl Storage {
    /// Frees the space of removed rows. Blocks for up to seconds: call it from a thread of its own, a few
    /// times a minute.
    ///
    /// Works only if it is needed. Each call removes deleted rows with bodies from the engine's journal. It
    /// removes them from the tables if these are small or a quarter of their rows is deleted. With `force`
    /// it does all of this in any case.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn maintain(&self, force: bool) -> Result<(), StorageError> {
        self.open_only()?;
        self.0.log.rotate_if_spent(1);
        self.restore_reserve();
        self.clear_leftovers();
        let rewrite = self.rewrite(if force { 0 } else { IDLE_SEGMENTS_MAX });
        let removed = self.0.removed.swap(0, Ordering::Relaxed);
        // Reclaiming space needs some first: it waits while the disk is nearly full.
        if self.0.space.ask() < RECLAIM_FREE_BYTES {
            self.0.removed.fetch_add(removed, Ordering::Relaxed);
        } else if removed > 0 || force {
            let reclaim = self.how_to_reclaim(force);
            if let Err(error) = self.record_full(self.0.engines.tables.reclaim(reclaim)) {
                self.0.removed.fetch_add(removed, Ordering::Relaxed);
                return Err(error);
            }
        }
        if force {
            self.0.log.settle();
        }
        rewrite
    }

    /// Rewrites the records of a group that is idle and pins old segments.
    fn rewrite(&self, segments_max: usize) -> Result<(), StorageError> {
        let Some(group) = self.0.log.idle_group(segments_max) else { return Ok(()) };
        let _changing = self.slot(group.group)?.change();
        self.0.log.rewrite(group)?;
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

    /// Writes a batch if the disk has room for it.
    pub(crate) fn write_tables(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), StorageError> {
        let _writing = self.0.tables.lock();
        self.make_room(batch.bytes())?;
        self.record_full(self.0.engines.tables.write(batch, durability))
    }

    /// Makes sure that a batch of `bytes` fits, with the reserve if need be.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<(), StorageError> {
        let need = bytes.saturating_mul(WRITE_FACTOR) + CHECKPOINT_FREE_BYTES;
        if self.0.space.free_bytes() >= need {
            return Ok(());
        }
        self.0.space.set_full();
        if self.0.space.ask() >= need || (self.give_reserve() && self.0.space.ask() >= need) {
            return Ok(());
        }
        Err(StorageError::DiskFull { path: self.0.tables_dir.clone() })
    }

    /// Frees the reserve for the tables; the log keeps off that space until the reserve is restored.
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
        self.0.reserve.lock()
    }

    fn record_full(&self, outcome: Result<(), StorageError>) -> Result<(), StorageError> {
        if matches!(outcome, Err(StorageError::DiskFull { .. })) {
            self.0.space.set_full();
        }
        outcome
    }
}
