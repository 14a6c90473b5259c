//! What the door and the process share: own rows on their way out, rows of others on their way in,
//! and what follows from a row that was won or lost.

use super::row::{self, Key};
use super::table::{self, BATCH_ROWS, Change};
use super::{OUTBOX_ROWS_MAX, SessionsItem, Shared, Watch, Wired};
use parking_lot::MutexGuard;
use proto::cluster;
use proto::stored::Session;
use proto::{DeviceId, UserId};
use std::sync::atomic::Ordering::Relaxed;
use storage::StorageError;
use tracing::warn;

impl Shared {
    /// An own row was written: the peers will hear of it.
    pub(super) fn wrote(&self, change: Option<Change>) -> Option<Session> {
        let Change { key, after, .. } = change?;
        let row = after?;
        if let Some(Wired { watch, .. }) = self.wired.get() {
            watch.touched(key.0);
        }
        if self.wired.get().is_some() && self.table.standing().any_up() {
            let mut outbox = self.outbox();
            let is_first = outbox.is_empty();
            if outbox.len() < OUTBOX_ROWS_MAX {
                outbox.push(table::wire_row(key, row));
            } else {
                self.counters.shed.fetch_add(1, Relaxed);
            }
            drop(outbox);
            if is_first {
                self.inbox.force(SessionsItem::Send);
            }
        }
        Some(row)
    }

    pub(super) fn outbox(&self) -> MutexGuard<'_, Vec<cluster::SessionRow>> {
        self.outbox.lock()
    }

    /// Takes in rows of other nodes. How many changed the table.
    pub(super) fn merge(&self, rows: Vec<cluster::SessionRow>) -> u64 {
        let row = |row: cluster::SessionRow| {
            Some(((UserId(row.user), DeviceId(row.device)), row.session?))
        };
        let mut rows = rows.into_iter().filter_map(row);
        let mut merged = 0;
        loop {
            let batch: Vec<_> = rows.by_ref().take(BATCH_ROWS).collect();
            if batch.is_empty() {
                break;
            }
            let count = batch.len();
            match self.table.merge(batch) {
                Ok(changes) => {
                    merged += changes.len() as u64;
                    for change in &changes {
                        self.react(change);
                    }
                }
                Err(error) => warn!(rows = count, %error, "session rows not taken in"),
            }
        }
        self.counters.merged.fetch_add(merged, Relaxed);
        merged
    }

    /// A row that came took the place of what was here.
    fn react(&self, change: &Change) {
        let Some(Wired { watch, .. }) = self.wired.get() else { return };
        let (user, device) = change.key;
        watch.touched(user);
        let is_ours = |row: &Session| self.table.standing().is_ours(row);
        let was_ours = change.before.filter(|row| row.online && is_ours(row));
        match (was_ours, change.after) {
            // This node's own row, forgotten here and remembered elsewhere.
            (_, Some(after)) if after.online && is_ours(&after) => {
                if !watch.still_here(user, device) {
                    noting(change.key, self.end(change.key));
                }
            }
            (Some(ours), Some(after)) if !after.online && !after.gone && !is_ours(&after) => {
                if watch.still_here(user, device) {
                    noting(change.key, self.assert_again(watch.as_ref(), change.key, ours));
                    return;
                }
            }
            (Some(_), _) => watch.displaced(user, device),
            (None, _) => {}
        }
        self.tell(change);
    }

    /// Nobody is there, says the row that won; but someone is, here.
    fn assert_again(&self, watch: &dyn Watch, key: Key, ours: Session) -> Result<(), StorageError> {
        self.wrote(self.table.assert_again(key, ours)?);
        // It may have ended meanwhile, when the row was not ours to change.
        if watch.still_here(key.0, key.1) { Ok(()) } else { self.end(key) }
    }

    /// A session that this node's row speaks of is not here.
    fn end(&self, key: Key) -> Result<(), StorageError> {
        let last_seen_ms = self.clock.now_ms();
        let end = |row: &mut Session| {
            let last_seen_ms = if row.away { row.last_seen_ms } else { last_seen_ms };
            *row = Session { last_seen_ms, ..row::put_offline(*row) };
        };
        self.wrote(self.table.write(key, end)?);
        Ok(())
    }

    /// Tells of a change if others can see it, or if what is for the device goes to another node now.
    fn tell(&self, change: &Change) {
        let Some(Wired { watch, .. }) = self.wired.get() else { return };
        let seen = |row: Option<Session>| {
            let row = row.filter(|row| !row.gone)?;
            Some(self.table.standing().view(row))
        };
        let (before, after) = (seen(change.before), seen(change.after));
        let state = |row: &Option<Session>| {
            row.map(|row| (row.away, row.online.then_some((row.node, row.incarnation))))
        };
        if state(&before) != state(&after) {
            watch.changed(change.key.0, change.key.1, before.as_ref(), after.as_ref());
        }
    }
}

fn noting((user, device): Key, outcome: Result<(), StorageError>) {
    if let Err(error) = outcome {
        warn!(%user, %device, %error, "session not recorded");
    }
}
