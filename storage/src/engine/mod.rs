//! A small trait over the storage engines; the only place that names one.
//!
//! # Invariants
//! 1. A [`Batch`] is written whole or not at all, whatever happens.
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
    /// Whatever reading may bring.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Visits the rows of `scan` in order until `visit` breaks off.
    ///
    /// # Errors
    /// Whatever reading may bring.
    fn scan(&self, scan: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError>;
}

/// Tables of keys and values, in the order of their keys.
pub trait Engine: Read {
    /// Writes all of `batch` or nothing.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`] and others; then nothing was written.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError>;

    /// Makes durable what was written lazily.
    ///
    /// # Errors
    /// Whatever writing may bring.
    fn flush(&self) -> Result<(), StorageError>;

    /// Gives back space that removed rows still hold.
    ///
    /// # Errors
    /// Whatever writing may bring.
    fn reclaim(&self, reclaim: Reclaim) -> Result<(), StorageError>;

    /// Bytes of a table's files.
    fn table_bytes(&self, table: Table) -> u64;
}

/// An engine that can show all tables as of one moment.
pub trait Views: Engine {
    /// All tables as they are now, whatever is written later.
    ///
    /// # Errors
    /// Whatever reading may bring. An engine that had to be opened anew refuses to read on.
    fn view(&self) -> Result<Box<dyn Read>, StorageError>;
}

/// What is called with each key and value of a scan.
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

/// When a write must be on disk.
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

/// Rows to be written together. The last word on a key counts.
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

    /// Keys of `table` from `from` up to, not including, `to` that this batch puts.
    pub fn puts(&self, table: Table, from: Vec<u8>, to: Vec<u8>) -> Vec<Vec<u8>> {
        let range = self.rows.range((table, from)..(table, to));
        range.filter(|(_, value)| value.is_some()).map(|((_, key), _)| key.clone()).collect()
    }

    /// The greatest key, of a batch that knows one table only.
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

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in the order of table and key; `None` removes.
    pub fn into_rows(self) -> impl Iterator<Item = (Table, Vec<u8>, Option<Vec<u8>>)> {
        self.rows.into_iter().map(|((table, key), value)| (table, key, value))
    }
}
