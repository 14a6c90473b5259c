//! Rows as the shards know them, and their form in the tables.

use crate::StorageError;
use crate::engine::{Batch, Engine, Scan};
use crate::messages::{Entry, minute_of};
use crate::schema::{self, Parts, Table};
use prost::Message;
use proto::{Alias, DeviceId, Seq, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

/// A row of a shard. `None` removes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// An account.
    Account(UserId, Option<stored::Account>),
    /// A device of an account.
    Device(UserId, DeviceId, Option<stored::Device>),
    /// Where a mailbox stands.
    Cursors(UserId, Option<stored::Cursors>),
    /// The send ids last seen from a device.
    Recent {
        /// Whose mailbox.
        to: UserId,
        /// Who sent.
        from: UserId,
        /// With which device.
        device: DeviceId,
        /// The ids.
        ids: Option<stored::RecentIds>,
    },
    /// Who owns an alias.
    Alias(Alias, Option<stored::AliasOwner>),
    /// A registration that waits for its PIN.
    Pin(Alias, Option<stored::PendingPin>),
    /// How far the exchange with another shard is.
    Stream(ShardId, stored::Stream),
    /// What another shard is owed.
    Notice {
        /// That shard.
        to: ShardId,
        /// Number of the notice.
        number: u64,
        /// The notice.
        notice: Option<stored::Notice>,
    },
    /// An entry of a mailbox that leaves memory.
    Message(UserId, Seq, Option<stored::Envelope>),
    /// Removes entries of a mailbox.
    MessagesGone {
        /// Whose mailbox.
        user: UserId,
        /// The first entry that is gone.
        first: Seq,
        /// The last one.
        last: Seq,
    },
}

/// Log index up to which a shard's records are in the tables.
pub(crate) fn applied(
    engine: &dyn Engine,
    dir: &Path,
    shard: ShardId,
) -> Result<u64, StorageError> {
    match engine.get(Table::Applied, &schema::shard_begin(shard))? {
        None => Ok(0),
        Some(value) => Parts(&value).u64().ok_or_else(|| unreadable(dir, Table::Applied)),
    }
}

pub(crate) fn unreadable(dir: &Path, table: Table) -> StorageError {
    StorageError::corrupt(dir, 0, format!("a row of {} is not understood", table.name()))
}

/// The tables that [`load`] reads.
const LOADED: [Table; 8] = [
    Table::Accounts,
    Table::Devices,
    Table::Cursors,
    Table::Recent,
    Table::Aliases,
    Table::Pins,
    Table::Streams,
    Table::Notices,
];

/// Calls `row` with all rows of a shard but its messages.
pub(crate) fn load(
    engine: &dyn Engine,
    dir: &Path,
    shard: ShardId,
    row: &mut dyn FnMut(Row),
) -> Result<(), StorageError> {
    let (from, to) = (schema::shard_begin(shard), schema::shard_end(shard));
    for table in LOADED {
        let mut bad = false;
        engine.scan(Scan { table, from: &from, to: &to }, &mut |key, value| {
            if let Some(found) = decode(table, key, value) {
                row(found);
                ControlFlow::Continue(())
            } else {
                bad = true;
                ControlFlow::Break(())
            }
        })?;
        if bad {
            return Err(unreadable(dir, table));
        }
    }
    Ok(())
}

fn decode(table: Table, key: &[u8], value: &[u8]) -> Option<Row> {
    fn row<M: Message + Default>(value: &[u8]) -> Option<M> {
        M::decode(value).ok()
    }
    let mut key = Parts(key);
    key.u16()?;
    Some(match table {
        Table::Accounts => Row::Account(key.user()?, Some(row(value)?)),
        Table::Devices => Row::Device(key.user()?, key.device()?, Some(row(value)?)),
        Table::Cursors => Row::Cursors(key.user()?, Some(row(value)?)),
        Table::Recent => Row::Recent {
            to: key.user()?,
            from: key.user()?,
            device: key.device()?,
            ids: Some(row(value)?),
        },
        Table::Aliases => Row::Alias(key.alias()?, Some(row(value)?)),
        Table::Pins => Row::Pin(key.alias()?, Some(row(value)?)),
        Table::Streams => Row::Stream(ShardId(key.u16()?), row(value)?),
        Table::Notices => {
            Row::Notice { to: ShardId(key.u16()?), number: key.u64()?, notice: Some(row(value)?) }
        }
        Table::Applied | Table::Messages | Table::Expiries | Table::Sessions => return None,
    })
}

/// A checkpoint on its way into a batch.
pub(crate) struct Changes<'a> {
    engine: &'a dyn Engine,
    shard: ShardId,
    batch: Batch,
    /// First and last entry put for each user and expiry minute.
    expiries: BTreeMap<(UserId, u64), (Seq, Seq)>,
    /// Rows with bodies that the batch removes.
    pub(crate) removed: u64,
    /// Their bytes.
    pub(crate) removed_bytes: u64,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(engine: &'a dyn Engine, shard: ShardId) -> Self {
        let (batch, expiries) = (Batch::default(), BTreeMap::new());
        Self { engine, shard, batch, expiries, removed: 0, removed_bytes: 0 }
    }

    pub(crate) fn add(&mut self, row: Row) -> Result<(), StorageError> {
        let shard = self.shard;
        match row {
            Row::Account(user, row) => {
                self.set(Table::Accounts, schema::user_key(shard, user), row.as_ref());
            }
            Row::Device(user, device, row) => {
                self.set(Table::Devices, schema::device_key(shard, user, device), row.as_ref());
            }
            Row::Cursors(user, row) => {
                self.set(Table::Cursors, schema::user_key(shard, user), row.as_ref());
            }
            Row::Recent { to, from, device, ids } => {
                let key = schema::recent_key(shard, to, from, device);
                self.set(Table::Recent, key, ids.as_ref());
            }
            Row::Alias(alias, row) => {
                self.set(Table::Aliases, schema::alias_key(shard, &alias), row.as_ref());
            }
            Row::Pin(alias, row) => {
                self.set(Table::Pins, schema::alias_key(shard, &alias), row.as_ref());
            }
            Row::Stream(other, row) => {
                self.set(Table::Streams, schema::stream_key(shard, other), Some(&row));
            }
            Row::Notice { to, number, notice } => {
                self.removed += u64::from(notice.is_none());
                self.set(Table::Notices, schema::notice_key(shard, to, number), notice.as_ref());
            }
            Row::Message(user, seq, Some(envelope)) => self.put_message(user, seq, &envelope),
            Row::Message(user, seq, None) => self.remove_messages(user, seq, seq)?,
            Row::MessagesGone { user, first, last } => self.remove_messages(user, first, last)?,
        }
        Ok(())
    }

    fn set<M: Message>(&mut self, table: Table, key: Vec<u8>, row: Option<&M>) {
        match row {
            Some(row) => self.batch.put(table, key, row.encode_to_vec()),
            None => self.batch.remove(table, key),
        }
    }

    fn put_message(&mut self, user: UserId, seq: Seq, envelope: &stored::Envelope) {
        self.batch.put(Table::Messages, schema::message_key(user, seq), Entry::encode(envelope));
        if envelope.expires_ms != 0 {
            let at = (user, minute_of(envelope.expires_ms));
            let range = self.expiries.entry(at).or_insert((seq, seq));
            *range = (range.0.min(seq), range.1.max(seq));
        }
    }

    /// Removes what the tables hold of a range. The scan meets live rows only: what was removed
    /// before lies below `first`.
    fn remove_messages(&mut self, user: UserId, first: Seq, last: Seq) -> Result<(), StorageError> {
        let from = schema::message_key(user, first);
        let to = schema::after(schema::message_key(user, last));
        if from >= to {
            return Ok(());
        }
        for key in self.batch.puts(Table::Messages, from.clone(), to.clone()) {
            self.batch.remove(Table::Messages, key);
        }
        let (batch, mut minutes) = (&mut self.batch, BTreeSet::new());
        let (mut removed, mut removed_bytes) = (0, 0);
        let scan = Scan { table: Table::Messages, from: &from, to: &to };
        self.engine.scan(scan, &mut |key, value| {
            batch.remove(Table::Messages, key.to_vec());
            removed += 1;
            removed_bytes += value.len() as u64;
            minutes.extend(Entry(value).expires_ms().filter(|at| *at != 0).map(minute_of));
            ControlFlow::Continue(())
        })?;
        self.removed += removed;
        self.removed_bytes += removed_bytes;
        minutes.into_iter().try_for_each(|minute| self.remove_expiry(user, minute, (first, last)))
    }

    /// Removes the rows of an expiry minute that speak of nothing but `gone`.
    fn remove_expiry(
        &mut self,
        user: UserId,
        minute: u64,
        gone: (Seq, Seq),
    ) -> Result<(), StorageError> {
        let from = schema::expiry_key(user, minute, gone.0);
        let to = schema::after(schema::expiry_key(user, minute, gone.1));
        let batch = &mut self.batch;
        self.engine.scan(
            Scan { table: Table::Expiries, from: &from, to: &to },
            &mut |key, value| {
                if Parts(value).u64().is_some_and(|last| Seq(last) <= gone.1) {
                    batch.remove(Table::Expiries, key.to_vec());
                }
                ControlFlow::Continue(())
            },
        )
    }

    pub(crate) fn finish(mut self, applied: u64) -> Batch {
        for ((user, minute), (first, last)) in self.expiries {
            let key = schema::expiry_key(user, minute, first);
            self.batch.put(Table::Expiries, key, last.0.to_be_bytes().to_vec());
        }
        let key = schema::shard_begin(self.shard);
        self.batch.put(Table::Applied, key, applied.to_be_bytes().to_vec());
        self.batch
    }
}
