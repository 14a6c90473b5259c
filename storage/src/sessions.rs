//! The sessions table: who is connected where. Lazy: peers have every row as well.

use crate::StorageError;
use crate::engine::{Batch, Durability, Engine, Scan};
use crate::schema::{self, Parts, Table, session_key};
use prost::Message as _;
use proto::{DeviceId, UserId, stored};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::warn;

/// What names a row.
type Key = (UserId, DeviceId);

/// The rows of one user.
type OfUser = Arc<[(DeviceId, stored::Session)]>;

/// Users whose rows are remembered, at most: 15 MB with two devices each.
const REMEMBERED_MAX: usize = 65_536;

/// The table `sessions` of this node. Cheap to clone.
///
/// A write is flushed within a second, not before it returns.
#[derive(Clone, Debug)]
pub struct SessionTable {
    engine: Arc<dyn Engine>,
    remembered: Arc<Mutex<Remembered>>,
}

/// Rows that were read of late. A message needs those of whom it is for, and a scan of the engine
/// copies a page.
///
/// # Invariant
/// What is remembered of a user was read after the last write of their rows had ended.
#[derive(Debug, Default)]
struct Remembered {
    rows: HashMap<UserId, OfUser>,
    /// How often rows were written.
    writes: u64,
}

impl Remembered {
    fn written(&mut self, users: impl Iterator<Item = UserId>) {
        self.writes += 1;
        for user in users {
            self.rows.remove(&user);
        }
    }

    /// Remembers what was read when there had been `writes` writes.
    fn read(&mut self, user: UserId, rows: &OfUser, writes: u64) {
        if self.writes != writes {
            return;
        }
        if self.rows.len() >= REMEMBERED_MAX {
            self.rows.clear();
        }
        self.rows.insert(user, Arc::clone(rows));
    }
}

impl SessionTable {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, remembered: Arc::default() }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes rows of sessions together, and takes out those that are `None`. Of two with one key the
    /// later counts.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn write(&self, rows: &[(Key, Option<stored::Session>)]) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        for ((user, device), session) in rows {
            let key = session_key(*user, *device);
            match session {
                Some(session) => batch.put(Table::Sessions, key, session.encode_to_vec()),
                None => batch.remove(Table::Sessions, key),
            }
        }
        let written = self.engine.write(batch, Durability::Lazy);
        self.remembered().written(rows.iter().map(|((user, _), _)| *user));
        written
    }

    /// Reads the row of a session. A row that cannot be read counts as absent.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn get(
        &self,
        user: UserId,
        device: DeviceId,
    ) -> Result<Option<stored::Session>, StorageError> {
        let row = self.engine.get(Table::Sessions, &session_key(user, device))?;
        Ok(row.and_then(|bytes| stored::Session::decode(bytes.as_slice()).ok()))
    }

    /// Visits all rows in the order of user and device. Rows that cannot be read are left out, with
    /// a warning.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn scan(
        &self,
        row: &mut dyn FnMut(UserId, DeviceId, stored::Session),
    ) -> Result<(), StorageError> {
        self.scan_from(None, usize::MAX, row).map(|_| ())
    }

    /// Visits `limit` rows behind `after`, or from the beginning, like [`SessionTable::scan`].
    /// Returns where to go on: the last row that was looked at, or `None` after the last of all.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn scan_from(
        &self,
        after: Option<(UserId, DeviceId)>,
        limit: usize,
        row: &mut dyn FnMut(UserId, DeviceId, stored::Session),
    ) -> Result<Option<(UserId, DeviceId)>, StorageError> {
        let from = after.map(|(user, device)| schema::after(session_key(user, device)));
        let from = from.unwrap_or_default();
        let (mut seen, mut last) = (0, after);
        let scan = Scan { table: Table::Sessions, from: &from, to: &[0xff; 16] };
        let mut more = false;
        self.engine.scan(scan, &mut |key, value| {
            if seen == limit {
                more = true;
                return ControlFlow::Break(());
            }
            seen += 1;
            let mut parts = Parts(key);
            let ids = parts.user().zip(parts.device());
            last = ids.or(last);
            let session = stored::Session::decode(value).ok();
            if let Some(((user, device), session)) = ids.zip(session) {
                row(user, device, session);
            } else {
                warn!("session row not understood and left out");
            }
            ControlFlow::Continue(())
        })?;
        Ok(last.filter(|_| more))
    }

    /// The rows of one user, from memory if they were asked for of late. Rows that cannot be read are
    /// left out.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn of(&self, user: UserId) -> Result<OfUser, StorageError> {
        let writes = {
            let remembered = self.remembered();
            if let Some(rows) = remembered.rows.get(&user) {
                return Ok(Arc::clone(rows));
            }
            remembered.writes
        };
        let rows = self.read(user)?;
        self.remembered().read(user, &rows, writes);
        Ok(rows)
    }

    fn read(&self, user: UserId) -> Result<OfUser, StorageError> {
        let (from, to) = (session_key(user, DeviceId(0)), session_key(user, DeviceId(u32::MAX)));
        let scan = Scan { table: Table::Sessions, from: &from, to: &to };
        let mut rows = Vec::new();
        self.engine.scan(scan, &mut |key, value| {
            let mut parts = Parts(key);
            let device = parts.user().and_then(|_| parts.device());
            rows.extend(device.zip(stored::Session::decode(value).ok()));
            ControlFlow::Continue(())
        })?;
        Ok(rows.into())
    }

    /// Makes all writes durable. Blocking.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn flush(&self) -> Result<(), StorageError> {
        self.engine.flush()
    }
}
