//! What a client must not forget: ticket, acknowledged place, reserved send ids, unsent messages.
//!
//! The client calls [`Store::record`] before it acts on a change. Calls are made one at a time and
//! should be short: they run on the client's task.

mod file;
mod journal;
mod memory;

pub use file::FileStore;
pub use memory::MemoryStore;

use crate::error::StoreError;
use bytes::Bytes;
use proto::{SendId, Seq, wire};
use std::{collections::BTreeMap, fmt};

/// Send ids reserved at a time: so many are skipped after a crash, and one write to the disk is
/// paid for so many sends.
pub(crate) const RESERVE: u64 = 256;

/// A message that waits to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsent {
    /// Its id.
    pub id: SendId,
    /// What is sent.
    pub send: wire::Send,
}

/// Everything a store holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// For the next resume; empty if there is none.
    pub ticket: Bytes,
    /// Highest acknowledged entry of the mailbox.
    pub acknowledged: Seq,
    /// Send ids below it may have been used.
    pub send_ids_used: u64,
    /// Messages without an answer, by send id.
    pub unsent: BTreeMap<u64, wire::Send>,
}

/// One change of what is held.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The ticket for the next resume; empty: none.
    Ticket(Bytes),
    /// Everything up to this entry is acknowledged.
    Acknowledged(Seq),
    /// Send ids below this may be used from now on. Must be on disk when `record` returns.
    SendIdsUsed(u64),
    /// A message waits.
    Queued(Unsent),
    /// It waits no longer.
    Answered(SendId),
}

impl Saved {
    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Ticket(ticket) => self.ticket = ticket.clone(),
            Change::Acknowledged(seq) => self.acknowledged = *seq,
            Change::SendIdsUsed(below) => self.send_ids_used = *below,
            Change::Queued(unsent) => {
                self.unsent.insert(unsent.id.0, unsent.send.clone());
            }
            Change::Answered(id) => {
                self.unsent.remove(&id.0);
            }
        }
    }
}

/// Keeps the state of one device.
pub trait Store: fmt::Debug + Send + 'static {
    /// What was recorded so far.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    fn load(&mut self) -> Result<Saved, StoreError>;

    /// Keeps `changes`, all or none.
    ///
    /// # Errors
    /// [`StoreError`] if they could not be kept.
    fn record(&mut self, changes: &[Change]) -> Result<(), StoreError>;
}

/// Gives out send ids: they grow by one, and none is given that is not recorded as used.
#[derive(Debug)]
pub(crate) struct SendIds {
    next: u64,
    reserved: u64,
}

impl SendIds {
    pub(crate) fn after(saved: &Saved) -> Self {
        let highest = saved.unsent.last_key_value().map_or(0, |(id, _)| id + 1);
        let next = saved.send_ids_used.max(highest).max(1);
        Self { next, reserved: next }
    }

    /// The next id, and the change to record before it is used.
    pub(crate) fn peek(&self) -> (SendId, Option<Change>) {
        let reserve = self.next >= self.reserved;
        (SendId(self.next), reserve.then(|| Change::SendIdsUsed(self.next + RESERVE)))
    }

    /// The id of `peek` is used and its change recorded.
    pub(crate) fn advance(&mut self) {
        if self.next >= self.reserved {
            self.reserved = self.next + RESERVE;
        }
        self.next += 1;
    }

    /// What to record at an orderly end, so that no id is skipped.
    pub(crate) fn exact(&self) -> Change {
        Change::SendIdsUsed(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_by_one_and_none_is_given_before_it_is_recorded() {
        let mut saved = Saved::default();
        let mut ids = SendIds::after(&saved);
        for expected in 1..=1000 {
            let (id, change) = ids.peek();
            if let Some(change) = change {
                saved.apply(&change);
            }
            ids.advance();
            assert_eq!(id.0, expected);
            assert!(saved.send_ids_used > id.0);
        }
        let after_crash = SendIds::after(&saved).peek().0;
        assert!(after_crash.0 > 1000 && after_crash.0 <= 1000 + RESERVE);
        saved.apply(&ids.exact());
        assert_eq!(SendIds::after(&saved).peek().0, SendId(1001));
    }
}
