//! The sessions table: who is connected where. Lazy: peers have every row as well.

use crate::StorageError;
use crate::engine::{Batch, Durability, Engine, Scan};
use crate::schema::{Parts, Table, session_key};
use prost::Message as _;
use proto::{DeviceId, UserId, stored};
use std::ops::ControlFlow;
use std::sync::Arc;
use tracing::warn;

/// The table `sessions` of this node. Cheap to clone.
///
/// A write is flushed within a second, not before it returns.
#[derive(Clone, Debug)]
pub struct SessionTable {
    engine: Arc<dyn Engine>,
}

impl SessionTable {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }

    /// Writes the row of a session.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn put(
        &self,
        user: UserId,
        device: DeviceId,
        session: &stored::Session,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.put(Table::Sessions, session_key(user, device), session.encode_to_vec());
        self.engine.write(batch, Durability::Lazy)
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

    /// Removes the row of a session.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn remove(&self, user: UserId, device: DeviceId) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.remove(Table::Sessions, session_key(user, device));
        self.engine.write(batch, Durability::Lazy)
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
        let scan = Scan { table: Table::Sessions, from: &[], to: &[0xff; 16] };
        self.engine.scan(scan, &mut |key, value| {
            let mut parts = Parts(key);
            let ids = parts.user().zip(parts.device());
            let session = stored::Session::decode(value).ok();
            if let Some(((user, device), session)) = ids.zip(session) {
                row(user, device, session);
            } else {
                warn!("session row not understood and left out");
            }
            ControlFlow::Continue(())
        })
    }

    /// Makes all writes durable. Blocking.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn flush(&self) -> Result<(), StorageError> {
        self.engine.flush()
    }
}
