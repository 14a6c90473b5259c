//! The trait of storage engines. No other folder names an engine.
//!
//! # Invariants
//! 1. A [`Batch`] is atomic.
//! 2. After `write(_, Durability::Flushed)` returned `Ok`, no crash or power cut undoes it, or any
//!    write before it.

pub(crate) mod fjall;
mod holes;
pub mod memory;
pub(crate) mod sled;

use crate::StorageError;
use crate::schema::Table;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

/// Rows that can be read.
pub trait Read: fmt::Debug + Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// Errors of reading.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Visits the rows of `scan` in order until `visit` returns `Break`.
    ///
    /// # Errors
    /// Errors of reading.
    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError>;
}

/// Tables of keys and values, in the order of their keys.
pub trait Engine: Read {
    /// Writes all of `batch` or nothing.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and others; then nothing was written.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError>;

    /// Flushes lazy writes.
    ///
    /// # Errors
    /// Errors of writing.
    fn flush(&self) -> Result<(), StorageError>;

    /// Frees the space of removed rows.
    ///
    /// # Errors
    /// Errors of writing.
    fn reclaim(&self, reclaim: Reclaim) -> Result<(), StorageError>;

    /// Bytes of a table's files.
    fn table_bytes(&self, table: Table) -> u64;
}

/// An engine that can take a view of all tables at one moment.
pub trait Views: Engine {
    /// A view of all tables as they are now.
    ///
    /// # Errors
    /// Errors of reading. A view fails once its engine was opened again.
    fn view(&self) -> Result<Box<dyn Read>, StorageError>;
}

/// Called with each key and value of a scan.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A range of a table.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// The table.
    pub table: Table,
    /// First key.
    pub from: &'a [u8],
    /// The key after the last.
    pub to: &'a [u8],
}

/// When a write must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before `write` returns.
    Flushed,
    /// Some time later.
    Lazy,
}

/// How thoroughly space is reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Removed rows leave the engine's journal.
    Journal,
    /// They leave the files of the tables with bodies as well.
    JournalAndTables,
}

/// Rows to write atomically. The last change of a key wins.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    rows: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
}

impl Batch {
    /// Adds or replaces a row.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.rows.insert((table, key), Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.rows.insert((table, key), None);
    }

    /// Keys of `table` from `from` up to, not including, `to` that this batch writes.
    pub fn puts(&self, table: Table, from: Vec<u8>, to: Vec<u8>) -> Vec<Vec<u8>> {
        let range = self.rows.range((table, from)..(table, to));
        range.filter(|(_, value)| value.is_some()).map(|((_, key), _)| key.clone()).collect()
    }

    /// The greatest key of a batch of one table.
    pub fn last_key(&self) -> Option<Vec<u8>> {
        self.rows.last_key_value().map(|((_, key), _)| key.clone())
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        let row = |((_, key), value): (&(Table, Vec<u8>), &Option<Vec<u8>>)| {
            key.len() + value.as_ref().map_or(0, Vec::len)
        };
        self.rows.iter().map(row).sum::<usize>() as u64
    }

    /// True if the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in the order of table and key; `None` removes.
    pub fn into_rows(self) -> impl Iterator<Item = (Table, Vec<u8>, Option<Vec<u8>>)> {
        self.rows.into_iter().map(|((table, key), value)| (table, key, value))
    }
}
