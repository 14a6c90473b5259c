//! The tables of one shard on one node: what a checkpoint has written, whole or not at all.

use actors::shard::{Loaded, Machine, MachineLimits, bytes_of};
use proto::{Alias, DeviceId, Seq, ShardId, UserId, stored};
use std::collections::BTreeMap;
use storage::Row;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// A place, from an entry's.
pub(crate) fn place(id: &stored::LogId) -> Place {
    Place { term: id.term, index: id.index }
}

/// Up to which place something has applied the log.
pub(crate) fn place_of(applied: &stored::Applied) -> Place {
    applied.id.as_ref().map(place).unwrap_or_default()
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) applied: stored::Applied,
    accounts: BTreeMap<UserId, stored::Account>,
    devices: BTreeMap<(UserId, DeviceId), stored::Device>,
    cursors: BTreeMap<UserId, stored::Cursors>,
    recent: BTreeMap<(UserId, UserId, DeviceId), stored::RecentIds>,
    aliases: BTreeMap<Alias, stored::AliasOwner>,
    pins: BTreeMap<Alias, stored::AliasPins>,
    streams: BTreeMap<ShardId, stored::Stream>,
    notices: BTreeMap<(ShardId, u64), stored::Notice>,
    messages: BTreeMap<(UserId, Seq), stored::Envelope>,
}

fn set<K: Ord, V>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(table.insert(key, value)),
        None => drop(table.remove(&key)),
    }
}

impl Table {
    /// Writes a checkpoint.
    pub(crate) fn write(&mut self, applied: stored::Applied, rows: Vec<Row>) {
        for row in rows {
            match row {
                Row::Account(user, row) => set(&mut self.accounts, user, row),
                Row::Device(user, device, row) => set(&mut self.devices, (user, device), row),
                Row::Cursors(user, row) => set(&mut self.cursors, user, row),
                Row::Recent { to, from, device, ids } => {
                    set(&mut self.recent, (to, from, device), ids);
                }
                Row::Alias(alias, row) => set(&mut self.aliases, alias, row),
                Row::Pin(alias, row) => set(&mut self.pins, alias, row),
                Row::Stream(to, row) => set(&mut self.streams, to, Some(row)),
                Row::Notice { to, number, notice } => {
                    set(&mut self.notices, (to, number), notice);
                }
                Row::Message(user, seq, row) => set(&mut self.messages, (user, seq), row),
                Row::Meta(_) => panic!("a shard writes no row of `meta`"),
                Row::MessagesGone { user, first, last } => {
                    self.messages.retain(|(u, seq), _| *u != user || *seq < first || *seq > last);
                }
            }
        }
        self.applied = applied;
    }

    /// The machine as of the last checkpoint, read as `storage` reads it: table by table.
    pub(crate) fn load(&self, shard: ShardId, limits: MachineLimits) -> Loaded {
        let mut machine = Machine::new(shard, limits);
        let some =
            |(user, row): (&UserId, &stored::Account)| Row::Account(*user, Some(row.clone()));
        self.accounts.iter().map(some).for_each(|row| machine.load(row));
        for ((user, device), row) in &self.devices {
            machine.load(Row::Device(*user, *device, Some(row.clone())));
        }
        for (user, row) in &self.cursors {
            machine.load(Row::Cursors(*user, Some(row.clone())));
        }
        for ((to, from, device), ids) in &self.recent {
            let (to, from, device, ids) = (*to, *from, *device, Some(ids.clone()));
            machine.load(Row::Recent { to, from, device, ids });
        }
        for (alias, row) in &self.aliases {
            machine.load(Row::Alias(alias.clone(), Some(*row)));
        }
        for (alias, row) in &self.pins {
            machine.load(Row::Pin(alias.clone(), Some(row.clone())));
        }
        for (to, row) in &self.streams {
            machine.load(Row::Stream(*to, *row));
        }
        for ((to, number), row) in &self.notices {
            machine.load(Row::Notice { to: *to, number: *number, notice: Some(row.clone()) });
        }
        let applied = self.applied.id.map(|_| self.applied.clone());
        if let Some(applied) = &applied {
            machine.set_clock(applied);
        }
        Loaded { machine, applied }
    }

    /// The first entries of a range, so many and so many bytes of bodies at most, as storage reads them.
    pub(crate) fn first_messages(
        &self,
        (user, after, up_to): (UserId, Seq, Seq),
        (limit, bytes_max): (usize, usize),
    ) -> Vec<(Seq, stored::Envelope)> {
        let mut bytes = 0;
        let fits = self.messages(user, after, up_to).take(limit).take_while(|(_, envelope)| {
            let first = bytes == 0;
            bytes += bytes_of(envelope);
            first || bytes <= bytes_max
        });
        fits.map(|(seq, envelope)| (seq, envelope.clone())).collect()
    }

    /// Entries of a mailbox with `after < seq <= up_to`, oldest first.
    pub(crate) fn messages(
        &self,
        user: UserId,
        after: Seq,
        up_to: Seq,
    ) -> impl Iterator<Item = (Seq, &stored::Envelope)> {
        let from = (user, after.next());
        let rows = self
            .messages
            .range(from..)
            .take_while(move |((u, seq), _)| *u == user && *seq <= up_to);
        rows.map(|((_, seq), envelope)| (*seq, envelope))
    }

    /// Entries whose time to live had ended at `now_ms`.
    pub(crate) fn due(
        &self,
        now_ms: u64,
    ) -> impl Iterator<Item = (UserId, Seq, &stored::Envelope)> {
        let due = self
            .messages
            .iter()
            .filter(move |(_, row)| row.expires_ms != 0 && row.expires_ms <= now_ms);
        due.map(|((user, seq), row)| (*user, *seq, row))
    }

    /// Bodies that are kept.
    pub(crate) fn bodies(&self) -> usize {
        self.messages.len()
    }
}
