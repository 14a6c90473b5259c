//! An engine in memory, for tests. It can simulate a crash: a seed chooses a point, and all unflushed
//! writes from that point on are lost.

use super::{Batch, Durability, Engine, Read, Reclaim, Scan, Views, Visit};
use crate::StorageError;
use crate::schema::Table;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Tables in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    flushed: Rows,
    unflushed: Vec<Batch>,
    now: Rows,
}

impl Memory {
    /// The state after a power cut: all flushed batches, and a number of unflushed ones that `seed`
    /// chooses.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.state();
        let kept = seed % (state.unflushed.len() as u64 + 1);
        let mut flushed = state.flushed.clone();
        for batch in state.unflushed.iter().take(usize::try_from(kept).unwrap_or(0)) {
            apply(&mut flushed, batch.clone());
        }
        Self(Mutex::new(State { now: flushed.clone(), flushed, unflushed: Vec::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

fn apply(rows: &mut Rows, batch: Batch) {
    for (table, key, value) in batch.into_rows() {
        match value {
            Some(value) => rows.insert((table, key), value),
            None => rows.remove(&(table, key)),
        };
    }
}

fn scan(rows: &Rows, scan: Scan<'_>, visit: &mut Visit<'_>) {
    let range = (scan.table, scan.from.to_vec())..(scan.table, scan.to.to_vec());
    if range.is_empty() {
        return;
    }
    for ((_, key), value) in rows.range(range) {
        if visit(key, value).is_break() {
            break;
        }
    }
}

/// A copy of all rows.
#[derive(Debug)]
struct Copied(Rows);

impl Read for Copied {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, range: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        scan(&self.0, range, visit);
        Ok(())
    }
}

impl Views for Memory {
    fn view(&self) -> Result<Box<dyn Read>, StorageError> {
        Ok(Box::new(Copied(self.state().now.clone())))
    }
}

impl Read for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.state().now.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, range: Scan<'_>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        scan(&self.state().now, range, visit);
        Ok(())
    }
}

impl Engine for Memory {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StorageError> {
        let mut state = self.state();
        apply(&mut state.now, batch.clone());
        state.unflushed.push(batch);
        drop(state);
        match durability {
            Durability::Flushed => self.flush(),
            Durability::Lazy => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut state = self.state();
        state.unflushed.clear();
        state.flushed = state.now.clone();
        Ok(())
    }

    fn reclaim(&self, _reclaim: Reclaim) -> Result<(), StorageError> {
        Ok(())
    }

    fn table_bytes(&self, table: Table) -> u64 {
        let state = self.state();
        let rows = state.now.iter().filter(|((owner, _), _)| *owner == table);
        rows.map(|((_, key), value)| key.len() + value.len()).sum::<usize>() as u64
    }
}
