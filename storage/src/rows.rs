//! The rows of shards, and their encoding in the tables.

use crate::StorageError;
use crate::engine::{Batch, Engine, Read, Scan};
use crate::messages::{Entry, minute_of};
use crate::schema::{self, Home, Parts, Table};
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
    /// The cursors of a mailbox.
    Cursors(UserId, Option<stored::Cursors>),
    /// Recent send ids of a device.
    Recent {
        /// The owner of the mailbox.
        to: UserId,
        /// The sender.
        from: UserId,
        /// The sender's device.
        device: DeviceId,
        /// The ids.
        ids: Option<stored::RecentIds>,
    },
    /// The owner of an alias.
    Alias(Alias, Option<stored::AliasOwner>),
    /// Counters of an alias's registrations.
    Pin(Alias, Option<stored::AliasPins>),
    /// The state of the stream to and from another shard.
    Stream(ShardId, stored::Stream),
    /// A notice to another shard.
    Notice {
        /// That shard.
        to: ShardId,
        /// Number of the notice.
        number: u64,
        /// The notice.
        notice: Option<stored::Notice>,
    },
    /// A mailbox entry.
    Message(UserId, Seq, Option<stored::Envelope>),
    /// Removes entries of a mailbox.
    MessagesGone {
        /// The owner of the mailbox.
        user: UserId,
        /// The first entry to remove.
        first: Seq,
        /// The last one.
        last: Seq,
    },
    /// The whole state of the group [`ShardId::META`].
    Meta(Option<stored::Meta>),
}

/// The last log entry of a group that the tables include; `None` if there is none.
pub(crate) fn applied(
    tables: &dyn Read,
    dir: &Path,
    home: Home,
) -> Result<Option<stored::Applied>, StorageError> {
    let row = tables.get(Table::Applied, &home.begin())?;
    let row = row.map(|row| stored::Applied::decode(row.as_slice()));
    row.transpose().map_err(|_| unreadable(dir, Table::Applied))
}

/// Index of the first record that is not in the tables.
pub(crate) fn height(applied: &stored::Applied) -> u64 {
    applied.id.map_or(0, |id| id.index.saturating_add(1))
}

pub(crate) fn unreadable(dir: &Path, table: Table) -> StorageError {
    StorageError::corrupt(dir, 0, format!("a row of {} is not understood", table.name()))
}

/// The tables that [`load`] reads.
const LOADED: [Table; 9] = [
    Table::Accounts,
    Table::Devices,
    Table::Cursors,
    Table::Recent,
    Table::Aliases,
    Table::Pins,
    Table::Streams,
    Table::Notices,
    Table::Meta,
];

/// Calls `row` with all rows of a group except its messages.
pub(crate) fn load(
    tables: &dyn Read,
    dir: &Path,
    home: Home,
    row: &mut dyn FnMut(Row),
) -> Result<(), StorageError> {
    let (from, to) = (home.begin(), home.end());
    for table in LOADED {
        let mut bad = false;
        tables.scan(Scan { table, from: &from, to: &to }, &mut |key, value| {
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
        Table::Meta => Row::Meta(Some(row(value)?)),
        Table::Groups | Table::Applied | Table::Messages | Table::Expiries | Table::Sessions => {
            return None;
        }
    })
}

/// A checkpoint that is encoded into a batch.
pub(crate) struct Changes<'a> {
    engine: &'a dyn Engine,
    home: Home,
    batch: Batch,
    /// First and last entry written for each user and expiry minute.
    expiries: BTreeMap<(UserId, u64), (Seq, Seq)>,
    /// Number of rows with bodies that the batch removes.
    pub(crate) removed: u64,
    /// Their bytes.
    pub(crate) removed_bytes: u64,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(engine: &'a dyn Engine, home: Home) -> Self {
        let (batch, expiries) = (Batch::default(), BTreeMap::new());
        Self { engine, home, batch, expiries, removed: 0, removed_bytes: 0 }
    }

    pub(crate) fn add(&mut self, row: Row) -> Result<(), StorageError> {
        let home = self.home;
        match row {
            Row::Account(user, row) => {
                self.set(Table::Accounts, schema::user_key(home, user), row.as_ref());
            }
            Row::Device(user, device, row) => {
                self.set(Table::Devices, schema::device_key(home, user, device), row.as_ref());
            }
            Row::Cursors(user, row) => {
                self.set(Table::Cursors, schema::user_key(home, user), row.as_ref());
            }
            Row::Recent { to, from, device, ids } => {
                let key = schema::recent_key(home, to, from, device);
                self.set(Table::Recent, key, ids.as_ref());
            }
            Row::Alias(alias, row) => {
                self.set(Table::Aliases, schema::alias_key(home, &alias), row.as_ref());
            }
            Row::Pin(alias, row) => {
                self.set(Table::Pins, schema::alias_key(home, &alias), row.as_ref());
            }
            Row::Stream(other, row) => {
                self.set(Table::Streams, schema::stream_key(home, other), Some(&row));
            }
            Row::Notice { to, number, notice } => {
                self.removed += u64::from(notice.is_none());
                self.set(Table::Notices, schema::notice_key(home, to, number), notice.as_ref());
            }
            Row::Message(user, seq, Some(envelope)) => self.put_message(user, seq, &envelope),
            Row::Message(user, seq, None) => self.remove_messages(user, seq, seq)?,
            Row::MessagesGone { user, first, last } => self.remove_messages(user, first, last)?,
            Row::Meta(row) => self.set(Table::Meta, home.begin(), row.as_ref()),
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
        let key = schema::message_key(self.home, user, seq);
        self.batch.put(Table::Messages, key, Entry::encode(envelope));
        if envelope.expires_ms != 0 {
            let at = (user, minute_of(envelope.expires_ms));
            let range = self.expiries.entry(at).or_insert((seq, seq));
            *range = (range.0.min(seq), range.1.max(seq));
        }
    }

    /// Removes the rows of a range. The scan meets no removed rows: those lie below `first`.
    fn remove_messages(&mut self, user: UserId, first: Seq, last: Seq) -> Result<(), StorageError> {
        let from = schema::message_key(self.home, user, first);
        let to = schema::after(schema::message_key(self.home, user, last));
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

    /// Removes the rows of an expiry minute that cover nothing but `gone`.
    fn remove_expiry(
        &mut self,
        user: UserId,
        minute: u64,
        gone: (Seq, Seq),
    ) -> Result<(), StorageError> {
        let from = schema::expiry_key(self.home, user, minute, gone.0);
        let to = schema::after(schema::expiry_key(self.home, user, minute, gone.1));
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

    pub(crate) fn finish(mut self, applied: &stored::Applied) -> Batch {
        for ((user, minute), (first, last)) in self.expiries {
            let key = schema::expiry_key(self.home, user, minute, first);
            self.batch.put(Table::Expiries, key, last.0.to_be_bytes().to_vec());
        }
        self.batch.put(Table::Applied, self.home.begin(), applied.encode_to_vec());
        self.batch
    }
}
