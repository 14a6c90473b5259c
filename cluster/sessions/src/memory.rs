//! Rows in memory, for tests and simulations.

use crate::row::Key;
use crate::rows::{Rows, Visit};
use parking_lot::{Mutex, MutexGuard};
use proto::stored::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use storage::StorageError;

/// Rows in memory. A clone shares them, as a restarted node does its disk.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<Key, Session>>>);

impl Memory {
    /// All rows.
    pub fn rows(&self) -> BTreeMap<Key, Session> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Session>> {
        self.0.lock()
    }
}

impl Rows for Memory {
    fn get(&self, key: Key) -> Result<Option<Session>, StorageError> {
        Ok(self.lock().get(&key).copied())
    }

    fn write(&self, rows: &[(Key, Option<Session>)]) -> Result<(), StorageError> {
        let mut all = self.lock();
        for (key, row) in rows {
            match row {
                Some(row) => all.insert(*key, *row),
                None => all.remove(key),
            };
        }
        Ok(())
    }

    fn visit(&self, from: Key, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        for (key, row) in self.lock().range(from..) {
            if visit(*key, *row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
