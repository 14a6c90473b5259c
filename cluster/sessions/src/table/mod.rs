//! ◇ The table: rows, digest and counts as one, changed by this node's writes, by what other nodes
//! send, and by what becomes known of nodes. No clock, task or chance.
//!
//! # Invariants
//! 1. A row is only replaced by one of higher [`rank`], or by its own normal form; so any order,
//!    loss and doubling of what nodes send comes to the same table.
//! 2. Digest and counts are those of exactly the stored rows.
//! 3. While no purge is due every stored row is in normal form and no tombstone is spent.

use super::digest::Digest;
use super::row::{self, Key, is_spent, put_offline, rank};
use super::rows::Rows;
use super::standing::Standing;
use links::PeerId;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use proto::stored::Session;
use proto::{NodeId, cluster};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use storage::StorageError;

mod pages;

/// Locks that keep apart who reads and writes the same row.
const STRIPES: usize = 64;

/// Rows that are best written together: a batch keeps those who want to write one of them waiting.
pub(super) const BATCH_ROWS: usize = 256;

/// A row took the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose row.
    pub key: Key,
    /// What was there; `None`: nothing.
    pub before: Option<Session>,
    /// What is there.
    pub after: Option<Session>,
}

enum Verdict {
    Keep,
    Put(Session),
    Drop,
}

impl Verdict {
    /// What there is then, if that is another row than before or none.
    fn change(self, key: Key, before: Option<Session>) -> Option<Change> {
        let after = match self {
            Self::Keep => return None,
            Self::Put(row) => Some(row),
            Self::Drop => None,
        };
        Some(Change { key, before, after })
    }
}

/// A piece of the table that was gone through.
#[derive(Debug)]
pub struct Piece<T> {
    /// What was found in it.
    pub found: Vec<T>,
    /// Where the next piece begins; `None`: this was the last.
    pub next: Option<Key>,
}

#[derive(Debug, Default)]
struct Counts {
    rows: AtomicU64,
    tombstones: AtomicU64,
    /// By node and incarnation.
    online: Mutex<BTreeMap<PeerId, u64>>,
}

impl Counts {
    fn replace(&self, before: Option<&Session>, after: Option<&Session>) {
        let count = |number: &AtomicU64, is: &dyn Fn(&Session) -> bool| {
            let one = |row: Option<&Session>| u64::from(row.is_some_and(is));
            number.fetch_add(one(after).wrapping_sub(one(before)), Relaxed);
        };
        count(&self.rows, &|_| true);
        count(&self.tombstones, &|row| row.gone);
        let (before, after) = (before.and_then(online_at), after.and_then(online_at));
        if before == after {
            return;
        }
        let mut online = self.online();
        if let Some(id) = before
            && let Some(number) = online.get_mut(&id)
        {
            *number -= 1;
            if *number == 0 {
                online.remove(&id);
            }
        }
        if let Some(id) = after {
            *online.entry(id).or_default() += 1;
        }
    }

    fn online(&self) -> MutexGuard<'_, BTreeMap<PeerId, u64>> {
        self.online.lock()
    }
}

fn online_at(row: &Session) -> Option<PeerId> {
    let id = PeerId { node: NodeId(row.node), incarnation: row.incarnation };
    row.online.then_some(id)
}

/// The table of one node.
#[derive(Debug)]
pub struct Table {
    rows: Box<dyn Rows>,
    me: PeerId,
    stripes: [Mutex<()>; STRIPES],
    standing: RwLock<Standing>,
    digest: Digest,
    counts: Counts,
    /// Tombstones of earlier times are dropped.
    cutoff_ms: AtomicU64,
    /// Purges that were found necessary, and the last of them that was done.
    purges_due: AtomicU64,
    purges_done: AtomicU64,
}

impl Table {
    /// Reads all rows once. Blocking.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn open(rows: Box<dyn Rows>, me: PeerId) -> Result<Self, StorageError> {
        let table = Self {
            rows,
            me,
            stripes: std::array::from_fn(|_| Mutex::new(())),
            standing: RwLock::new(Standing::new(me)),
            digest: Digest::default(),
            counts: Counts::default(),
            cutoff_ms: AtomicU64::new(0),
            purges_due: AtomicU64::new(0),
            purges_done: AtomicU64::new(0),
        };
        table.rows.visit(row::bucket_begin(0), &mut |key, row| {
            table.digest.replace(key, None, Some(&row));
            table.counts.replace(None, Some(&row));
            table.learn(PeerId { node: NodeId(row.node), incarnation: row.incarnation });
            ControlFlow::Continue(())
        })?;
        table.purge_if_needed();
        Ok(table)
    }

    /// What is known of nodes.
    pub fn standing(&self) -> RwLockReadGuard<'_, Standing> {
        self.standing.read()
    }

    /// Changes what is known of nodes. No row is written meanwhile.
    pub fn change_standing<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        let mut standing = self.standing.write();
        let outcome = change(&mut standing);
        drop(standing);
        self.purge_if_needed();
        outcome
    }

    /// An incarnation was heard of.
    pub fn learn(&self, id: PeerId) {
        let is_news = self.standing().is_news(id);
        if is_news {
            self.change_standing(|standing| standing.learn(id));
        }
    }

    /// Tombstones of before `cutoff_ms` are dropped from now on.
    pub(super) fn set_cutoff(&self, cutoff_ms: u64) {
        let before = self.cutoff_ms.swap(cutoff_ms, Relaxed);
        if cutoff_ms > before && self.counts.tombstones.load(Relaxed) > 0 {
            self.purges_due.fetch_add(1, Relaxed);
        }
    }

    fn purge_if_needed(&self) {
        let standing = self.standing();
        let dead = |id: &PeerId| {
            let (node, incarnation) = (id.node.0, id.incarnation);
            standing.is_dead(&Session { node, incarnation, ..Session::default() })
        };
        if self.counts.online().keys().any(dead) {
            self.purges_due.fetch_add(1, Relaxed);
        }
    }

    /// The newest purge that is due, or `None` if rows are all as they should be.
    pub fn purge_due(&self) -> Option<u64> {
        let due = self.purges_due.load(Relaxed);
        (due != self.purges_done.load(Relaxed)).then_some(due)
    }

    /// A purge that began when `due` was the newest has gone through all rows.
    pub fn purged(&self, due: u64) {
        self.purges_done.store(due, Relaxed);
    }

    /// Reads rows, lets `decide` for each, and writes them together: nobody else changes these rows or
    /// what is known of nodes meanwhile.
    fn alter_all<T>(
        &self,
        asked: Vec<(Key, T)>,
        mut decide: impl FnMut(&Standing, Option<Session>, T) -> Verdict,
    ) -> Result<Vec<Change>, StorageError> {
        let stripes: BTreeSet<_> =
            asked.iter().map(|(key, _)| row::part_of(*key) % STRIPES).collect();
        // In the same order everywhere.
        let _alone: Vec<_> = stripes.into_iter().map(|stripe| self.lock(stripe)).collect();
        let standing = self.standing();
        let mut written = BTreeMap::new();
        let mut changes = Vec::with_capacity(asked.len());
        for (key, asked) in asked {
            let before = match written.get(&key) {
                Some(row) => *row,
                None => self.rows.get(key)?,
            };
            if let Some(change) = decide(&standing, before, asked).change(key, before) {
                written.insert(key, change.after);
                changes.push(change);
            }
        }
        if !written.is_empty() {
            self.rows.write(&written.into_iter().collect::<Vec<_>>())?;
        }
        changes.iter().copied().for_each(|change| self.count(change));
        Ok(changes)
    }

    /// The same for one row: a login waits for it.
    fn alter(
        &self,
        key: Key,
        decide: impl FnOnce(&Standing, Option<Session>) -> Verdict,
    ) -> Result<Option<Change>, StorageError> {
        let _alone = self.lock(row::part_of(key) % STRIPES);
        let standing = self.standing();
        let before = self.rows.get(key)?;
        let Some(change) = decide(&standing, before).change(key, before) else { return Ok(None) };
        self.rows.write(&[(key, change.after)])?;
        self.count(change);
        Ok(Some(change))
    }

    fn lock(&self, stripe: usize) -> MutexGuard<'_, ()> {
        self.stripes[stripe].lock()
    }

    fn count(&self, Change { key, before, after }: Change) {
        self.digest.replace(key, before.as_ref(), after.as_ref());
        self.counts.replace(before.as_ref(), after.as_ref());
    }

    fn settle(&self, before: Option<Session>, after: Session) -> Verdict {
        if is_spent(&after, self.cutoff_ms.load(Relaxed)) {
            if before.is_some() { Verdict::Drop } else { Verdict::Keep }
        } else if before == Some(after) {
            Verdict::Keep
        } else {
            Verdict::Put(after)
        }
    }

    /// Takes in rows of other nodes. What was changed, in their order; if it fails, nothing.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn merge(&self, rows: Vec<(Key, Session)>) -> Result<Vec<Change>, StorageError> {
        for (_, row) in &rows {
            self.learn(PeerId { node: NodeId(row.node), incarnation: row.incarnation });
        }
        self.alter_all(rows, |standing, before, row| {
            let row = standing.normal(row);
            let known = before.map(|before| standing.normal(before));
            let known = known.filter(|known| rank(known) >= rank(&row));
            self.settle(before, known.unwrap_or(row))
        })
    }

    /// Writes a row as this node's, whosever it was.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn claim(
        &self,
        key: Key,
        change: impl FnOnce(&mut Session),
    ) -> Result<Option<Change>, StorageError> {
        self.alter(key, |standing, before| {
            let before = before.map(|row| standing.normal(row)).unwrap_or_default();
            Verdict::Put(standing.normal(self.stamped(before, change)))
        })
    }

    /// Writes a row if it is this incarnation's; no change if it is not.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn write(
        &self,
        key: Key,
        change: impl FnOnce(&mut Session),
    ) -> Result<Option<Change>, StorageError> {
        self.alter(key, |standing, before| match before {
            Some(row) if standing.is_ours(&row) && !row.gone => {
                Verdict::Put(standing.normal(self.stamped(row, change)))
            }
            Some(_) | None => Verdict::Keep,
        })
    }

    /// Puts a tombstone in the place of a row; no change if there is no row.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn bury(&self, key: Key, now_ms: u64) -> Result<Option<Change>, StorageError> {
        let last_seen_ms = now_ms.max(self.cutoff_ms.load(Relaxed));
        self.alter(key, |_, before| match before {
            Some(row) if !row.gone => Verdict::Put(self.stamped(row, |row| {
                *row = Session { last_seen_ms, gone: true, ..Session::default() };
            })),
            Some(_) | None => Verdict::Keep,
        })
    }

    /// Says again that a session lives here, if the row that says otherwise is one of nobody.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn assert_again(&self, key: Key, ours: Session) -> Result<Option<Change>, StorageError> {
        self.alter(key, |standing, before| match before {
            Some(row) if !row.online && !row.gone && !standing.is_ours(&row) => {
                Verdict::Put(self.stamped(row, |row| {
                    let last_seen_ms = row.last_seen_ms.max(ours.last_seen_ms);
                    *row = Session { last_seen_ms, ..ours };
                }))
            }
            Some(_) | None => Verdict::Keep,
        })
    }

    fn stamped(&self, before: Session, change: impl FnOnce(&mut Session)) -> Session {
        let mut row = Session { gone: false, ..before };
        change(&mut row);
        let (node, incarnation) = (self.me.node.0, self.me.incarnation);
        Session { node, incarnation, version: before.version.saturating_add(1), ..row }
    }

    /// The row as it is stored, tombstones as well.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn get(&self, key: Key) -> Result<Option<Session>, StorageError> {
        self.rows.get(key)
    }

    /// Brings a piece of the table into normal form. What was changed.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read or not written.
    pub fn purge(&self, from: Key, rows_max: usize) -> Result<Piece<Change>, StorageError> {
        let cutoff_ms = self.cutoff_ms.load(Relaxed);
        let standing = self.standing();
        let piece = self.piece(from, rows_max, |key, row| {
            let is_due = is_spent(&row, cutoff_ms) || standing.normal(row) != row;
            is_due.then_some(key)
        })?;
        drop(standing);
        let mut found = Vec::with_capacity(piece.found.len());
        for keys in piece.found.chunks(BATCH_ROWS) {
            let due = keys.iter().map(|key| (*key, ())).collect();
            found.extend(self.alter_all(due, |standing, before, ()| match before {
                Some(row) => self.settle(before, standing.normal(row)),
                None => Verdict::Keep,
            })?);
        }
        Ok(Piece { found, next: piece.next })
    }

    /// The sessions of a node in a piece of the table, but for those that are certainly dead.
    pub(super) fn sessions_of(
        &self,
        node: NodeId,
        from: Key,
        rows_max: usize,
    ) -> Result<Piece<Change>, StorageError> {
        let standing = self.standing();
        self.piece(from, rows_max, |key, row| {
            let is_theirs = row.node == node.0 && row.online && !standing.is_dead(&row);
            let (before, after) = (Some(row), Some(put_offline(row)));
            is_theirs.then_some(Change { key, before, after })
        })
    }

    fn piece<T>(
        &self,
        from: Key,
        rows_max: usize,
        mut find: impl FnMut(Key, Session) -> Option<T>,
    ) -> Result<Piece<T>, StorageError> {
        let (mut piece, mut seen) = (Piece { found: Vec::new(), next: None }, 0);
        self.rows.visit(from, &mut |key, row| {
            if seen == rows_max {
                piece.next = Some(key);
                return ControlFlow::Break(());
            }
            seen += 1;
            piece.found.extend(find(key, row));
            ControlFlow::Continue(())
        })?;
        Ok(piece)
    }

    /// The digest, to read.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Rows, tombstones among them.
    pub(super) fn rows(&self) -> u64 {
        self.counts.rows.load(Relaxed)
    }

    /// Tombstones.
    pub(super) fn tombstones(&self) -> u64 {
        self.counts.tombstones.load(Relaxed)
    }

    /// Rows that read as online.
    pub(super) fn online(&self) -> u64 {
        let standing = self.standing();
        let online = self.counts.online();
        online.iter().filter(|(id, _)| standing.shows(**id)).map(|(_, number)| number).sum()
    }

    /// Whether a node has sessions according to the table.
    pub(super) fn has_sessions(&self, node: NodeId) -> bool {
        self.counts.online().keys().any(|id| id.node == node)
    }

    /// Makes all writes durable. Blocking.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.rows.flush()
    }
}

/// A row as it travels.
pub(super) fn wire_row((user, device): Key, session: Session) -> cluster::SessionRow {
    cluster::SessionRow { user: user.0, device: device.0, session: Some(session) }
}

/// Bytes of a row as it travels, with its tag and length.
pub(super) fn wire_bytes(row: &cluster::SessionRow) -> usize {
    prost::Message::encoded_len(row) + 3
}
