//! Mailbox entries in the tables: read in order, and found when they expire.

use crate::engine::{Batch, Durability, Scan};
use crate::rows::unreadable;
use crate::schema::{self, EXPIRY_BUCKET_MS, Home, Parts, Table};
use crate::{Storage, StorageError};
use prost::Message as _;
use proto::{Seq, ShardId, UserId, stored};
use std::ops::ControlFlow;

/// A value of the table `messages`. The expiry comes first, so that it can be read alone.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a>(pub(crate) &'a [u8]);

impl Entry<'_> {
    pub(crate) fn encode(envelope: &stored::Envelope) -> Vec<u8> {
        let mut value = Vec::with_capacity(8 + envelope.encoded_len());
        value.extend_from_slice(&envelope.expires_ms.to_be_bytes());
        value.extend_from_slice(&envelope.encode_to_vec());
        value
    }

    pub(crate) fn expires_ms(self) -> Option<u64> {
        Parts(self.0).u64()
    }

    fn envelope(self) -> Option<stored::Envelope> {
        let mut value = Parts(self.0);
        value.u64()?;
        stored::Envelope::decode(value.rest()).ok()
    }
}

pub(crate) fn minute_of(ms: u64) -> u64 {
    ms / EXPIRY_BUCKET_MS
}

fn seq_of(key: &[u8]) -> Option<Seq> {
    let mut key = Parts(key);
    key.u16()?;
    key.u64()?;
    key.u64().map(Seq)
}

/// A row of the table `expiries`: entries of a user that may expire in one minute.
struct Due {
    key: Vec<u8>,
    minute: u64,
    user: UserId,
    first: Seq,
    last: Seq,
}

impl Due {
    fn decode(row: &[u8], value: &[u8]) -> Option<Self> {
        let mut key = Parts(row);
        key.u16()?;
        let (minute, user, first) = (key.u64()?, key.user()?, Seq(key.u64()?));
        Some(Self { key: row.to_vec(), minute, user, first, last: Seq(Parts(value).u64()?) })
    }
}

impl Storage {
    /// Entries of a mailbox in the tables with `after < seq <= up_to`, in order: at most `limit`, and at
    /// most `bytes_max` bytes of rows, but at least one. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for a row that cannot be decoded, [`StorageError::Io`].
    #[allow(clippy::too_many_arguments, reason = "a range and two limits belong to it")]
    pub fn messages(
        &self,
        user: UserId,
        after: Seq,
        up_to: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Seq, stored::Envelope)>, StorageError> {
        let home = self.slot(user.shard())?.home();
        let mut bytes = 0;
        let mut entries = Vec::new();
        let mut bad = false;
        let range = (Seq(after.0.saturating_add(1)), up_to);
        self.scan_messages(home, user, range, &mut |seq, entry| {
            bytes += entry.0.len();
            if entries.len() >= limit || (bytes > bytes_max && !entries.is_empty()) {
                return ControlFlow::Break(());
            }
            match entry.envelope() {
                Some(envelope) => entries.push((seq, envelope)),
                None => bad = true,
            }
            if bad { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if bad { Err(unreadable(&self.0.tables_dir, Table::Messages)) } else { Ok(entries) }
    }

    /// At most `limit` entries of the shard in the tables that had expired at `now_ms`. Returns them again
    /// until a checkpoint removes them. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for a row that cannot be decoded, [`StorageError::Io`].
    pub fn due(
        &self,
        shard: ShardId,
        now_ms: u64,
        limit: usize,
    ) -> Result<Vec<(UserId, Seq, stored::Envelope)>, StorageError> {
        let slot = self.slot(shard)?;
        let _changing = slot.change();
        let home = slot.home();
        let mut ended = Vec::new();
        let mut stale = Batch::default();
        let from = home.begin();
        let to = schema::expiry_end(home, minute_of(now_ms));
        for row in self.expiries(&from, &to, limit)? {
            if ended.len() >= limit {
                break;
            }
            if !self.ended(home, &row, (now_ms, limit), &mut ended)? {
                stale.remove(Table::Expiries, row.key);
            }
        }
        if !stale.is_empty() {
            self.0.engines.tables.write(stale, Durability::Lazy)?;
        }
        Ok(ended)
    }

    /// Adds the expired entries of `row` to `ended`. Returns true if the row has entries of its minute.
    fn ended(
        &self,
        home: Home,
        row: &Due,
        (now_ms, limit): (u64, usize),
        ended: &mut Vec<(UserId, Seq, stored::Envelope)>,
    ) -> Result<bool, StorageError> {
        let mut held = false;
        let mut bad = false;
        self.scan_messages(home, row.user, (row.first, row.last), &mut |seq, entry| {
            let expires_ms = entry.expires_ms().unwrap_or(0);
            if expires_ms == 0 || minute_of(expires_ms) != row.minute {
                return ControlFlow::Continue(());
            }
            held = true;
            if expires_ms <= now_ms {
                match entry.envelope() {
                    Some(envelope) => ended.push((row.user, seq, envelope)),
                    None => bad = true,
                }
            }
            let enough = bad || ended.len() >= limit;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if bad { Err(unreadable(&self.0.tables_dir, Table::Messages)) } else { Ok(held) }
    }

    /// One page of rows of `expiries`. One is enough: each row has an expired entry, or is removed.
    fn expiries(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Due>, StorageError> {
        let mut rows = Vec::new();
        let mut bad = false;
        let scan = Scan { table: Table::Expiries, from, to };
        self.0.engines.tables.scan(scan, &mut |key, value| {
            match Due::decode(key, value) {
                Some(row) => rows.push(row),
                None => bad = true,
            }
            let enough = rows.len() > limit || bad;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if bad { Err(unreadable(&self.0.tables_dir, Table::Expiries)) } else { Ok(rows) }
    }

    fn scan_messages(
        &self,
        home: Home,
        user: UserId,
        range: (Seq, Seq),
        visit: &mut dyn FnMut(Seq, Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let from = schema::message_key(home, user, range.0);
        let to = schema::after(schema::message_key(home, user, range.1));
        if from >= to {
            return Ok(());
        }
        let mut bad = false;
        let scan = Scan { table: Table::Messages, from: &from, to: &to };
        self.0.engines.tables.scan(scan, &mut |key, value| {
            if let Some(seq) = seq_of(key) {
                visit(seq, Entry(value))
            } else {
                bad = true;
                ControlFlow::Break(())
            }
        })?;
        if bad { Err(unreadable(&self.0.tables_dir, Table::Messages)) } else { Ok(()) }
    }
}
