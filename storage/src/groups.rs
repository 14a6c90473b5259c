//! The groups of this node: where the rows of each are, and how all of them are replaced atomically.
//!
//! A group has two homes, which are ranges of keys, and uses one of them. To replace or remove all rows,
//! storage prepares the other home and then writes and flushes one row of table `groups`, which makes it
//! the current one. A crash or a full disk before that row leaves the group unchanged; after it, the
//! change is complete. The rows of the old home are removed afterwards, at the latest by the next start.
//!
//! # Invariants
//! 1. The unused home of a group is empty before anything is written to it.
//! 2. The rows of a group do not change while it moves to its other home.
//! 3. The end of a wiped group's log is kept for ever: a replica that has acknowledged an entry must not
//!    vote as if it never had.

use crate::engine::{Batch, Durability, Read, Scan};
use crate::log::Known;
use crate::rows::{self, unreadable};
use crate::schema::{self, Home, Parts, Table};
use crate::{Storage, StorageError};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::{ShardId, stored};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use tracing::warn;

/// Number of groups of a node.
pub(crate) const GROUPS: u16 = ShardId::META.0 + 1;

/// Bytes of one batch when many rows are moved or removed.
pub(crate) const BATCH_BYTES: u64 = 1024 * 1024;

/// Bytes that a removed row takes in a batch beside its key.
const REMOVAL_BYTES: u64 = 32;

/// One group.
#[derive(Debug)]
pub(crate) struct Slot {
    group: ShardId,
    home: AtomicU16,
    /// The first block of the log whose records of this group are not void.
    begin: AtomicU64,
    /// The end of its log when it was wiped.
    wiped: Mutex<Option<stored::LogId>>,
    /// The other home may hold old rows.
    leftover: AtomicBool,
    changing: Mutex<()>,
}

impl Slot {
    fn load(tables: &dyn Read, dir: &Path, group: ShardId) -> Result<Self, StorageError> {
        let row = tables.get(Table::Groups, &schema::group_key(group))?;
        let (home, begin, wiped) = match row {
            None => (Home::first_of(group), 0, None),
            Some(row) => decode(group, &row).ok_or_else(|| unreadable(dir, Table::Groups))?,
        };
        Ok(Self {
            group,
            home: AtomicU16::new(home.number()),
            begin: AtomicU64::new(begin),
            wiped: Mutex::new(wiped),
            leftover: AtomicBool::new(true),
            changing: Mutex::new(()),
        })
    }

    /// Its current home.
    pub(crate) fn home(&self) -> Home {
        let number = self.home.load(Ordering::Acquire);
        Home::from_number(self.group, number).unwrap_or(Home::first_of(self.group))
    }

    fn wiped(&self) -> MutexGuard<'_, Option<stored::LogId>> {
        self.wiped.lock()
    }

    /// The lock of every change of its rows.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }
}

/// A row of table `groups`: the group's home, its first block, the end of its log when it was wiped.
fn decode(group: ShardId, row: &[u8]) -> Option<(Home, u64, Option<stored::LogId>)> {
    let mut row = Parts(row);
    let home = Home::from_number(group, row.u16()?)?;
    let begin = row.u64()?;
    let wiped = match row.rest() {
        [] => None,
        bytes => Some(stored::LogId::decode(bytes).ok()?),
    };
    Some((home, begin, wiped))
}

/// Reads the rows of table `groups`.
pub(crate) fn load(tables: &dyn Read, dir: &Path) -> Result<Vec<Slot>, StorageError> {
    (0..GROUPS).map(|group| Slot::load(tables, dir, ShardId(group))).collect()
}

/// The state of all groups that the log needs.
pub(crate) fn known(
    tables: &dyn Read,
    dir: &Path,
    slots: &[Slot],
) -> Result<Vec<Known>, StorageError> {
    let known = |slot: &Slot| {
        let applied = rows::applied(tables, dir, slot.home())?;
        let height = applied.as_ref().map_or(0, rows::height);
        Ok(Known { height, begin: slot.begin.load(Ordering::Acquire) })
    };
    slots.iter().map(known).collect()
}

impl Storage {
    /// The group `group`, if it exists and storage is open.
    pub(crate) fn slot(&self, group: ShardId) -> Result<&Slot, StorageError> {
        self.open_only()?;
        let slot = self.0.groups.get(usize::from(group.0));
        slot.ok_or(StorageError::NoSuchGroup(group.0))
    }

    /// Removes everything of a group except its vote and `last`, the end of its log: rows, applied index,
    /// records in the log, and a received snapshot. The group then begins again, with a snapshot or at
    /// index 0. Blocking, about a second for a hundred thousand rows.
    ///
    /// The caller must not append to the group meanwhile. The removal is atomic, also in a crash; calling
    /// it again is safe.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`], [`StorageError::NoSuchGroup`]; then nothing
    /// was removed.
    pub fn wipe(&self, group: ShardId, last: Option<stored::LogId>) -> Result<(), StorageError> {
        let slot = self.slot(group)?;
        let _changing = slot.change();
        self.clear_leftover(slot)?;
        let begin = self.settled_block()?;
        self.move_to(slot, slot.home().other(), (begin, last))?;
        self.0.log.wipe(group);
        self.forget_received(group);
        self.try_clear_leftover(slot);
        Ok(())
    }

    /// The end of a group's log when it was wiped; `None` if it never was, or was empty. From memory.
    ///
    /// # Errors
    /// [`StorageError::NoSuchGroup`].
    pub fn wiped(&self, group: ShardId) -> Result<Option<stored::LogId>, StorageError> {
        Ok(*self.slot(group)?.wiped())
    }

    /// Waits until all records queued so far are flushed; returns the number of the next block.
    pub(crate) fn settled_block(&self) -> Result<u64, StorageError> {
        let shut = || std::io::Error::other("the log is shut; the node must start again");
        let next = self.0.log.settle();
        next.ok_or_else(|| StorageError::io(&self.0.dir.join("log"), shut()))
    }

    /// Makes `home` the group's current home. Flushes this and all earlier writes.
    fn move_to(
        &self,
        slot: &Slot,
        home: Home,
        (begin, wiped): (u64, Option<stored::LogId>),
    ) -> Result<(), StorageError> {
        let id = wiped.map(|id| id.encode_to_vec()).unwrap_or_default();
        let value = [&home.number().to_be_bytes()[..], &begin.to_be_bytes(), &id].concat();
        let mut batch = Batch::default();
        batch.put(Table::Groups, schema::group_key(slot.group), value);
        slot.leftover.store(true, Ordering::Release);
        self.write_tables(batch, Durability::Flushed)?;
        *slot.wiped() = wiped;
        slot.begin.store(begin, Ordering::Release);
        slot.home.store(home.number(), Ordering::Release);
        Ok(())
    }

    /// Lets `fill` write all rows to the other home, then makes that the current one.
    pub(crate) fn replace(
        &self,
        slot: &Slot,
        fill: impl FnOnce(Home) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.clear_leftover(slot)?;
        let home = slot.home().other();
        slot.leftover.store(true, Ordering::Release);
        let log = (slot.begin.load(Ordering::Acquire), *slot.wiped());
        let moved = fill(home).and_then(|()| self.move_to(slot, home, log));
        self.try_clear_leftover(slot);
        moved
    }

    /// Removes rows of unused homes. Failures are logged and tried again later.
    pub(crate) fn clear_leftovers(&self) {
        for slot in self.0.groups.iter().filter(|slot| slot.leftover.load(Ordering::Acquire)) {
            let _changing = slot.change();
            self.try_clear_leftover(slot);
        }
    }

    fn try_clear_leftover(&self, slot: &Slot) {
        if let Err(error) = self.clear_leftover(slot) {
            warn!(group = slot.group.0, %error, "old rows of a group not removed, will try again");
        }
    }

    fn clear_leftover(&self, slot: &Slot) -> Result<(), StorageError> {
        if slot.leftover.load(Ordering::Acquire) {
            let state = Table::STATE.into_iter().map(|(_, table)| table);
            for table in state.chain([Table::Applied]) {
                self.clear(table, slot.home().other())?;
            }
            slot.leftover.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn clear(&self, table: Table, home: Home) -> Result<(), StorageError> {
        let (mut from, to) = (home.begin(), home.end());
        loop {
            let (mut batch, mut batch_bytes, mut row_bytes, mut count) =
                (Batch::default(), 0, 0, 0);
            let scan = Scan { table, from: &from, to: &to };
            self.0.engines.tables.scan(scan, &mut |key, value| {
                batch.remove(table, key.to_vec());
                batch_bytes += key.len() as u64 + REMOVAL_BYTES;
                row_bytes += value.len() as u64;
                count += 1;
                let enough = batch_bytes >= BATCH_BYTES;
                if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            let Some(last) = batch.last_key() else { return Ok(()) };
            from = schema::after(last);
            self.write_tables(batch, Durability::Lazy)?;
            if table.holds_bodies() {
                self.0.removed.fetch_add(count, Ordering::Relaxed);
                self.0.removed_bytes.fetch_add(row_bytes, Ordering::Relaxed);
            }
        }
    }
}
