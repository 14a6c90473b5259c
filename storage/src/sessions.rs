//! The sessions table: who is connected where. Flushed lazily, since every node has all rows.

use crate::StorageError;
use crate::engine::{Batch, Durability, Engine, Scan};
use crate::schema::{self, Parts, Table, session_key};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::{DeviceId, UserId, stored};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use tracing::warn;

/// The key of a row.
type Key = (UserId, DeviceId);

/// The rows of one user.
type OfUser = Arc<[(DeviceId, stored::Session)]>;

/// Most users in the cache: 15 MB with two devices each.
const REMEMBERED_MAX: usize = 65_536;

/// The table `sessions` of this node. Cheap to clone.
///
/// A write is flushed within a second, not before it returns.
#[derive(Clone, Debug)]
pub struct SessionTable {
    engine: Arc<dyn Engine>,
    remembered: Arc<Mutex<Remembered>>,
}

/// A cache of rows by user. Each message needs its recipient's rows, and a scan of the engine copies a
/// page.
///
/// # Invariant
/// A cached entry was read after the last write of that user's rows had ended.
#[derive(Debug, Default)]
struct Remembered {
    rows: HashMap<UserId, OfUser>,
    /// Number of writes.
    writes: u64,
}

impl Remembered {
    fn written(&mut self, users: impl Iterator<Item = UserId>) {
        self.writes += 1;
        for user in users {
            self.rows.remove(&user);
        }
    }

    /// Caches rows that were read when `writes` was the number of writes.
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
        self.remembered.lock()
    }

    /// Writes rows atomically; `None` removes a row. Of two with one key the later one wins.
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

    /// Visits all rows in the order of user and device. Skips rows that cannot be decoded, with a warning.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn scan(
        &self,
        row: &mut dyn FnMut(UserId, DeviceId, stored::Session),
    ) -> Result<(), StorageError> {
        self.scan_from(None, usize::MAX, row).map(|_| ())
    }

    /// Visits `limit` rows after `after`, or from the start, like [`SessionTable::scan`]. Returns the key
    /// of the last visited row, or `None` at the end of the table.
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
                warn!("session row cannot be decoded, skipped");
            }
            ControlFlow::Continue(())
        })?;
        Ok(last.filter(|_| more))
    }

    /// The rows of one user, from the cache if possible. Skips rows that cannot be decoded.
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
