//! The sender of a snapshot: reads the rows of a group in order, one piece at a time.

use super::format::Encoder;
use crate::engine::{Read, Scan};
use crate::schema::{self, Home, Table};
use crate::{Storage, StorageError, rows};
use bytes::Bytes;
use proto::{ShardId, stored};
use std::ops::ControlFlow;

/// Bytes of a key that are its home.
const HOME_BYTES: usize = 2;

/// All rows of a group at one moment. While this value exists, the disk keeps them.
#[derive(Debug)]
pub struct Export {
    view: Box<dyn Read>,
    home: Home,
    applied: stored::Applied,
    stream: Encoder,
    /// Tables that are done.
    tables: usize,
    /// Next key in the current table.
    from: Vec<u8>,
}

impl Export {
    /// The last log entry that the rows include; the default if there is none.
    pub fn applied(&self) -> &stored::Applied {
        &self.applied
    }

    /// The next piece, at most `bytes_max` bytes (but at least one), or `None` at the end. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`]; then start again with a new export.
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StorageError> {
        let bytes_max = bytes_max.max(1);
        while self.stream.waiting() < bytes_max && self.tables < Table::STATE.len() {
            self.read(bytes_max)?;
        }
        Ok(Some(self.stream.take(bytes_max)).filter(|piece| !piece.is_empty()))
    }

    fn read(&mut self, bytes_max: usize) -> Result<(), StorageError> {
        let Some((number, table)) = Table::STATE.get(self.tables).copied() else { return Ok(()) };
        let (stream, mut last) = (&mut self.stream, None);
        let scan = Scan { table, from: &self.from, to: &self.home.end() };
        self.view.scan(scan, &mut |key, value| {
            stream.row(number, &key[HOME_BYTES..], value);
            if stream.waiting() < bytes_max {
                return ControlFlow::Continue(());
            }
            last = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        if let Some(last) = last {
            self.from = schema::after(last);
            return Ok(());
        }
        self.from = self.home.begin();
        self.tables += 1;
        if self.tables == Table::STATE.len() {
            self.stream.end();
        }
        Ok(())
    }
}

impl Storage {
    /// All rows of a group as of now, to send to another node.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`], [`StorageError::NoSuchGroup`].
    pub fn export(&self, group: ShardId) -> Result<Export, StorageError> {
        let slot = self.slot(group)?;
        let changing = slot.change();
        let (view, home) = (self.0.engines.tables.view()?, slot.home());
        drop(changing);
        let applied = rows::applied(view.as_ref(), &self.0.tables_dir, home)?.unwrap_or_default();
        let stream = Encoder::new(group, &applied);
        Ok(Export { view, home, applied, stream, tables: 0, from: home.begin() })
    }
}
