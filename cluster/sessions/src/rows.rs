//! Where the rows lie: the table of the storage, behind a small trait; in memory for tests.

use super::row::Key;
use proto::stored::Session;
use proto::{DeviceId, UserId};
use std::fmt;
use std::ops::ControlFlow;
use storage::{SessionTable, StorageError};

/// Rows that are read at once: most visits are of a bucket, which has some thousand at most.
const SCAN_ROWS: usize = 256;

/// What is called with each row of a visit.
pub type Visit<'a> = dyn FnMut(Key, Session) -> ControlFlow<()> + 'a;

/// Rows in the order of their keys.
pub trait Rows: fmt::Debug + Send + Sync {
    /// A row, if there is one.
    ///
    /// # Errors
    /// [`StorageError`]: the engine failed.
    fn get(&self, key: Key) -> Result<Option<Session>, StorageError>;
    /// Writes rows, and takes out those that are `None`.
    ///
    /// # Errors
    /// [`StorageError`]: the engine failed.
    fn write(&self, rows: &[(Key, Option<Session>)]) -> Result<(), StorageError>;
    /// Visits the rows from `from` on until `visit` breaks off; it must not write.
    ///
    /// # Errors
    /// [`StorageError`]: the engine failed.
    fn visit(&self, from: Key, visit: &mut Visit<'_>) -> Result<(), StorageError>;
    /// Makes all writes durable.
    ///
    /// # Errors
    /// [`StorageError`]: the engine failed.
    fn flush(&self) -> Result<(), StorageError>;
}

impl Rows for SessionTable {
    fn get(&self, (user, device): Key) -> Result<Option<Session>, StorageError> {
        self.get(user, device)
    }

    fn write(&self, rows: &[(Key, Option<Session>)]) -> Result<(), StorageError> {
        self.write(rows)
    }

    fn visit(&self, from: Key, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        let (mut after, mut ended) = (before(from), false);
        loop {
            after = self.scan_from(after, SCAN_ROWS, &mut |user, device, row| {
                ended = ended || visit((user, device), row).is_break();
            })?;
            if ended || after.is_none() {
                return Ok(());
            }
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.flush()
    }
}

/// The key before this one, whether there is such a row or not.
fn before((user, device): Key) -> Option<Key> {
    match (user.0.checked_sub(1), device.0.checked_sub(1)) {
        (_, Some(device)) => Some((user, DeviceId(device))),
        (Some(user), None) => Some((UserId(user), DeviceId(u32::MAX))),
        (None, None) => None,
    }
}
