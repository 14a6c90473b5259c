//! A mailbox: everything sent to a user, kept until each of their devices has it. A pure core.
//!
//! ```text
//!   seq:   1 ........ released ...... stored_to ........ next
//!          |  everyone  |   in table    |    in memory   |
//!          |  has it    |  `mailboxes`  |    (`tail`)    |
//! ```
//!
//! # Invariants
//! 1. `tail` holds ascending places above `stored_to`; a missing place has expired.
//! 2. Rows of table `mailboxes` lie in `stored_first ..= stored_to`.
//! 3. `released` is what every device has acknowledged, and never goes back.
//! 4. The same (device, send id) gets one place as long as it is remembered.

pub(in crate::shard) mod cursors;
pub(in crate::shard) mod read_ids;
pub(in crate::shard) mod recent;
pub(in crate::shard) mod usage;

use crate::retry_order::RetryOrder;
use crate::shard::mailbox::cursors::Cursors;
use crate::shard::mailbox::recent::{RecentIds, Sent};
use crate::shard::mailbox::usage::{Counted, Usage};
use proto::limits::{DEVICES_MAX, TTL_S_MAX};
use proto::stored::{self, envelope::Content};
use proto::{Code, DeviceId, SendId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A mailbox forgets the ids of a device that has been silent for this long: as long as messages
/// wait at most, so that what is read late can still be told. No client retries longer than that.
const RECENT_KEPT_MS: u64 = TTL_S_MAX as u64 * 1000;

/// Devices of one sender whose ids are remembered: twice as many as can be linked at once. One more,
/// and the ids of the device that was silent longest are forgotten; whoever links and unlinks in a
/// circle forgets only their own.
const RECENT_DEVICES_MAX: usize = 2 * DEVICES_MAX;

/// Senders that one mailbox holds back at once: so many write to a full one between two checkpoints.
const HOLDS_MAX: usize = 1_000;

/// Senders above which a mailbox looks for silent ones to forget.
const RECENT_SENDERS: usize = 64;

/// An entry in memory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place.
    pub seq: Seq,
    /// What it is.
    pub envelope: Arc<stored::Envelope>,
}

/// Which send an entry came from, for the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The sender.
    pub from: UserId,
    /// The sender's device.
    pub device: DeviceId,
    /// The device's name for the send.
    pub send_id: SendId,
}

/// The undelivered messages of one user.
#[derive(Clone, Debug)]
pub struct Mailbox {
    pub(super) stored_first: Seq,
    pub(super) stored_to: Seq,
    pub(super) released: Seq,
    last: Seq,
    tail: VecDeque<Entry>,
    usage: Usage,
    cursors: Cursors,
    recent: BTreeMap<(UserId, DeviceId), RecentIds>,
    /// Sends that were refused and may come again. Forgotten by each checkpoint.
    holds: RetryOrder<(UserId, DeviceId)>,
    /// Stored entries that expired and whose rows the next checkpoint deletes.
    expired: BTreeSet<Seq>,
}

/// What an advance of `released` set free.
#[derive(Debug, Default)]
pub struct Released {
    /// Entries that were in memory.
    pub entries: Vec<Entry>,
    /// Whether rows were released whose origins must be read: `stored_first ..= this`.
    pub read_origins_to: Option<Seq>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            stored_first: Seq::default(),
            stored_to: Seq::default(),
            released: Seq::default(),
            last: Seq::default(),
            tail: VecDeque::new(),
            usage: Usage::default(),
            cursors: Cursors::default(),
            recent: BTreeMap::new(),
            holds: RetryOrder::new(HOLDS_MAX),
            expired: BTreeSet::new(),
        }
    }
}

impl Mailbox {
    /// The place of the newest entry there ever was; 0 if none.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// What it holds.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// What each device has acknowledged.
    pub fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    /// A sender has become a contact, or is none any longer.
    pub fn set_stranger(&mut self, from: UserId, stranger: bool) {
        self.usage.set_stranger(from, stranger);
    }

    /// What every device has.
    pub fn released(&self) -> Seq {
        self.released
    }

    /// Whether this send is known already, and is so for some more time.
    pub fn recognize(&mut self, origin: Origin, now_ms: u64) -> bool {
        self.recent
            .get_mut(&(origin.from, origin.device))
            .is_some_and(|recent| recent.recognize(origin.send_id.0, now_ms))
    }

    /// Whether this send is known already; makes nothing young again.
    pub fn knows(&self, origin: Origin) -> bool {
        let recent = self.recent.get(&(origin.from, origin.device));
        recent.is_some_and(|recent| recent.sent(origin.send_id.0) == Sent::Yes)
    }

    /// Remembers a send that [`Self::recognize`] does not know. Returns a device of the same sender
    /// that is forgotten for it.
    pub fn remember(&mut self, origin: Origin, now_ms: u64) -> Option<DeviceId> {
        let key = (origin.from, origin.device);
        if let Some(recent) = self.recent.get_mut(&key) {
            recent.add(origin.send_id.0, now_ms);
            return None;
        }
        self.recent.entry(key).or_default().add(origin.send_id.0, now_ms);
        let all = (origin.from, DeviceId(0))..=(origin.from, DeviceId(u32::MAX));
        let devices = self.recent.range(all).filter(|(other, _)| **other != key);
        if devices.clone().count() < RECENT_DEVICES_MAX {
            return None;
        }
        let silent = devices.min_by_key(|(_, recent)| recent.used_ms).map(|(key, _)| *key)?;
        self.recent.remove(&silent);
        Some(silent.1)
    }

    /// The user has read sends of a device. Which of them are news, and whether each was surely sent:
    /// what was never sent and what was read before is left out.
    pub fn mark_read(&mut self, from: UserId, device: DeviceId, ids: &[u64]) -> Vec<(u64, Sent)> {
        let Some(recent) = self.recent.get_mut(&(from, device)) else { return Vec::new() };
        let sent = ids.iter().map(|id| (*id, recent.sent(*id)));
        let sent: Vec<_> = sent.filter(|(_, sent)| *sent != Sent::No).collect();
        sent.into_iter().filter(|(id, _)| recent.mark_read(*id)).collect()
    }

    /// Notes that a send was refused with this code, and may come again.
    pub fn refuse(&mut self, origin: Origin, code: Code, now_ms: u64) {
        let sender = (origin.from, origin.device);
        self.holds.refused(sender, origin.send_id.0, code, now_ms);
    }

    /// The code with which a send must be refused, because an earlier one of its device was refused
    /// and has not come again.
    pub fn holds_back(&mut self, origin: Origin, now_ms: u64) -> Option<Code> {
        self.holds.holds_back(&(origin.from, origin.device), origin.send_id.0, now_ms)
    }

    /// Appends and returns the place. `stranger`: the sender is no contact.
    pub fn append(&mut self, envelope: Arc<stored::Envelope>, stranger: bool, now_ms: u64) -> Seq {
        self.cursors.grows(self.last, now_ms);
        self.last = self.last.next();
        self.usage.add(Counted::of(&envelope), stranger);
        self.tail.push_back(Entry { seq: self.last, envelope });
        self.last
    }

    /// Records that `device` has everything up to `seq`; false if that is no news.
    pub fn acknowledge(&mut self, device: DeviceId, seq: Seq, now_ms: u64) -> bool {
        self.cursors.acknowledge(device, seq.min(self.last), now_ms)
    }

    /// A device is given what comes from now on; the heir of lost devices, and the first after none,
    /// also what none of them had yet to get.
    pub fn admit(&mut self, device: DeviceId, is_heir: bool, now_ms: u64) {
        let inherits = is_heir || self.cursors.is_empty();
        let start = if inherits { self.released } else { self.last };
        self.cursors.admit(device, start, now_ms);
    }

    /// No longer waits for a device.
    pub fn remove(&mut self, device: DeviceId) {
        self.cursors.remove(device);
    }

    /// Lets go of everything that all devices have. Without devices nothing is released.
    pub fn release(&mut self) -> Released {
        let everyone_has = self.cursors.everyone_has().unwrap_or(self.released);
        self.release_to(everyone_has)
    }

    /// Lets go of everything up to `up_to`.
    pub fn release_to(&mut self, up_to: Seq) -> Released {
        let mut released = Released::default();
        if up_to <= self.released {
            return released;
        }
        self.released = up_to;
        let stored = up_to.min(self.stored_to);
        if stored >= self.stored_first.max(Seq(1)) {
            released.read_origins_to = Some(stored);
        }
        while let Some(entry) = self.tail.pop_front_if(|entry| entry.seq <= up_to) {
            self.usage.take(Counted::of(&entry.envelope));
            released.entries.push(entry);
        }
        if self.tail.is_empty() {
            self.tail.shrink_to(8);
        }
        released
    }

    /// Stored entries up to `up_to` were read and are let go; false for an entry that is gone
    /// already. Call [`Self::stored_gone`] after the last.
    pub fn release_stored(&mut self, seq: Seq, entry: Counted) -> bool {
        let held = seq >= self.stored_first && seq <= self.released && !self.expired.contains(&seq);
        if held {
            self.usage.take(entry);
        }
        held
    }

    /// What all devices have and whose senders were told needs no cursors any longer. Call it after
    /// each release, once its senders were told.
    pub fn senders_told(&mut self) {
        let owed_from = self.origins_owed().map(|_| Seq(self.stored_first.0.saturating_sub(1)));
        self.cursors.forget(owed_from.unwrap_or(self.released));
    }

    /// No row up to `up_to` is needed any longer. Returns the range whose rows can go.
    pub fn stored_gone(&mut self, up_to: Seq) -> Option<(Seq, Seq)> {
        let up_to = up_to.min(self.released).min(self.stored_to);
        if up_to < self.stored_first {
            return None;
        }
        let gone = (self.stored_first.max(Seq(1)), up_to);
        self.stored_first = up_to.next();
        self.expired = self.expired.split_off(&self.stored_first);
        Some(gone)
    }

    /// Rows that are released and whose origins nobody has read yet end here, if there are any.
    pub fn origins_owed(&self) -> Option<Seq> {
        let stored = self.released.min(self.stored_to);
        (stored >= self.stored_first.max(Seq(1))).then_some(stored)
    }

    /// Takes out an entry in memory whose time has ended.
    pub fn expire(&mut self, seq: Seq) -> Option<Entry> {
        let place = self.tail.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        let entry = self.tail.remove(place)?;
        self.usage.take(Counted::of(&entry.envelope));
        Some(entry)
    }

    /// Counts a stored entry out whose time has ended; false if it is gone already.
    pub fn expire_stored(&mut self, seq: Seq, entry: Counted) -> bool {
        let held = seq >= self.stored_first && seq > self.released && seq <= self.stored_to;
        let news = held && self.expired.insert(seq);
        if news {
            self.usage.take(entry);
        }
        news
    }

    /// Whether a stored entry has expired and only its row is still there.
    pub fn is_expired(&self, seq: Seq) -> bool {
        self.expired.contains(&seq)
    }

    /// Entries in memory above `after`, oldest first.
    pub fn tail_after(&self, after: Seq) -> impl Iterator<Item = &Entry> {
        let start = self.tail.partition_point(|entry| entry.seq <= after);
        self.tail.range(start..)
    }

    /// Moves all entries out of memory: from now on they are rows. Also returns the rows of
    /// expired ones, to be deleted.
    pub fn spill(&mut self) -> (VecDeque<Entry>, BTreeSet<Seq>) {
        if self.stored_first > self.stored_to || self.stored_first == Seq(0) {
            self.stored_first = self.released.max(self.stored_to).next();
        }
        self.stored_to = self.last;
        self.holds.clear();
        (std::mem::take(&mut self.tail), std::mem::take(&mut self.expired))
    }

    /// The remembered ids of one sending device.
    pub fn recent(&self, from: UserId, device: DeviceId) -> Option<&RecentIds> {
        self.recent.get(&(from, device))
    }

    /// Forgets of this device's ids what is too old or too much. Whether more will become too old.
    pub fn trim_recent(&mut self, from: UserId, device: DeviceId, now_ms: u64) -> bool {
        self.recent.get_mut(&(from, device)).is_some_and(|recent| recent.trim(now_ms))
    }

    /// Forgets the devices that have been silent for long, and returns them.
    pub fn forget_silent(&mut self, now_ms: u64) -> Vec<(UserId, DeviceId)> {
        if self.recent.len() < RECENT_SENDERS {
            return Vec::new();
        }
        let silent = |recent: &RecentIds| now_ms.saturating_sub(recent.used_ms) >= RECENT_KEPT_MS;
        self.recent.extract_if(.., |_, recent| silent(recent)).map(|(sender, _)| sender).collect()
    }

    /// Whose send ids are remembered.
    pub fn recent_senders(&self) -> impl Iterator<Item = (UserId, DeviceId)> {
        self.recent.keys().copied()
    }

    /// Puts back what table `recent` holds.
    pub fn load_recent(&mut self, from: UserId, device: DeviceId, recent: RecentIds) {
        self.recent.insert((from, device), recent);
    }

    /// The row of table `cursors`.
    pub fn to_row(&self) -> stored::Cursors {
        let mut row = stored::Cursors {
            stored_first: self.stored_first.0,
            next: self.last.0 + 1,
            released: self.released.0,
            ..stored::Cursors::default()
        };
        self.usage.to_row(&mut row);
        self.cursors.to_row(&mut row);
        row
    }

    /// Puts back what table `cursors` holds. As of a checkpoint nothing is in memory.
    pub fn load_row(&mut self, row: &stored::Cursors) {
        self.stored_first = Seq(row.stored_first);
        self.last = Seq(row.next.saturating_sub(1));
        self.stored_to = self.last;
        self.released = Seq(row.released);
        self.usage = Usage::from_row(row);
        self.cursors = Cursors::from_row(row);
    }
}

/// Which send the entry came from, if anyone waits for news of it.
pub(super) fn origin_of(envelope: &stored::Envelope) -> Option<Origin> {
    match &envelope.content {
        Some(Content::Message(message)) => Some(Origin {
            from: UserId(message.from),
            device: DeviceId(message.from_device),
            send_id: SendId(message.send_id),
        }),
        Some(
            Content::SentCopy(_)
            | Content::Receipt(_)
            | Content::ReadCopy(_)
            | Content::DeviceNotice(_),
        )
        | None => None,
    }
}
