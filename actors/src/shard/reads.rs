//! How a shard reads its state: from memory at once; what lies in the tables is an order to read, and a way to
//! finish the answer with the rows. Pure.

use super::account::AccountView;
use super::fault::Fault;
use super::machine::{Machine, origin_row};
use super::mailbox::Entry;
use super::receipts::is_over;
use crate::shard::mailbox::usage::bytes_of;
use proto::{DeviceId, Seq, UserId, stored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Rows of a page that may have expired and are looked at.
const CHUNK: usize = 1_024;

/// Where a device stands.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its user's account.
    pub account: Arc<AccountView>,
    /// What the device has acknowledged.
    pub acknowledged: Seq,
    /// The device is given what comes after this.
    pub start: Seq,
    /// The mailbox does not wait for the device: it must be readmitted.
    pub set_aside: bool,
    /// The newest entry of the mailbox.
    pub last: Seq,
}

/// Entries of a mailbox.
#[derive(Clone, Debug)]
pub struct Page {
    /// In order. Places that are missing have expired.
    pub entries: Vec<Entry>,
    /// The page is complete up to here.
    pub up_to: Seq,
    /// The newest entry of the mailbox when the page was read.
    pub last: Seq,
    /// Every device that the mailbox waits for has everything up to here.
    pub released: Seq,
    /// Whether the tables could not be read: ask again later.
    pub failed: bool,
}

/// What a checkpoint has let go of, until the tables have it.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// Entries that are not in the tables yet.
    pub(super) entries: BTreeMap<UserId, VecDeque<Entry>>,
    /// Expired entries that are in the tables still.
    pub(super) gone: BTreeSet<(UserId, Seq)>,
}

/// Everything a read looks at.
pub(super) struct Reader<'a> {
    pub(super) machine: &'a Machine,
    pub(super) overlay: &'a Overlay,
    pub(super) fault: Option<Fault>,
}

/// Where a mailbox stands when a page is read.
#[derive(Clone, Copy, Debug)]
struct Ends {
    last: Seq,
    released: Seq,
}

/// A page, or how to get it.
pub(super) enum PageOf {
    /// All of it was in memory.
    Memory(Page),
    /// It begins in the tables.
    Tables(Box<PageRead>),
}

/// A page that begins in the tables: the entries with `after < seq <= up_to` are rows.
#[derive(Debug)]
pub struct PageRead {
    /// Whose mailbox.
    pub user: UserId,
    /// Rows after this place.
    pub after: Seq,
    /// Rows up to this place.
    pub up_to: Seq,
    /// So many rows at most, and so many bytes of bodies.
    pub limits: (usize, usize),
    expired: Vec<Seq>,
    ends_by_ms: u64,
    in_memory: Vec<Entry>,
    ends: Ends,
}

/// A range of rows that was released: the entries with `after < seq <= up_to` are rows.
#[derive(Debug)]
pub struct OriginsRead {
    /// Whose mailbox.
    pub user: UserId,
    /// Rows after this place.
    pub after: Seq,
    /// Rows up to this place.
    pub up_to: Seq,
    released_to: Seq,
    expired: BTreeSet<u64>,
    ended_by_ms: u64,
    in_overlay: Vec<stored::Origin>,
}

impl Reader<'_> {
    pub(super) fn attach(&self, user: UserId, device: DeviceId) -> Option<Attached> {
        let (account, mailbox) = (self.machine.account(user)?, self.machine.mailbox(user)?);
        account.devices().get(&device)?;
        let cursor = mailbox.cursors().get(device);
        Some(Attached {
            acknowledged: cursor.map_or(mailbox.last(), |cursor| cursor.acknowledged),
            start: cursor.map_or(mailbox.last(), |cursor| cursor.start),
            set_aside: cursor.is_none(),
            last: mailbox.last(),
            account: account.view(user),
        })
    }

    pub(super) fn page(&self, user: UserId, after: Seq, limits: (usize, usize)) -> PageOf {
        let Some(mailbox) = self.machine.mailbox(user) else {
            let ends = Ends { last: after, released: Seq::default() };
            return PageOf::Memory(Page { up_to: after, ..Page::of(Vec::new(), ends, limits) });
        };
        let ends = Ends { last: mailbox.last(), released: mailbox.released() };
        let overlay = self.overlay.entries.get(&user);
        let overlay = overlay.filter(|_| self.fault != Some(Fault::StalePage));
        let in_overlay = overlay.into_iter().flatten().filter(|entry| entry.seq > after);
        let in_overlay = in_overlay.filter(|entry| !mailbox.is_expired(entry.seq));
        let ends_by_ms = self.machine.ends_by_ms;
        let lasts = |entry: &&Entry| !is_over(entry.envelope.expires_ms, ends_by_ms);
        let in_memory = in_overlay.chain(mailbox.tail_after(after)).filter(lasts);
        let in_memory: Vec<Entry> = in_memory.take(limits.0).cloned().collect();
        let table_to = overlay
            .and_then(|entries| entries.front())
            .map_or(mailbox.stored_to, |entry| Seq(entry.seq.0 - 1));
        let after_released = after.max(Seq(mailbox.stored_first.0.saturating_sub(1)));
        if after_released >= table_to {
            return PageOf::Memory(Page::of(in_memory, ends, limits));
        }
        let expired = (after_released.0 + 1..=table_to.0).map(Seq);
        let expired = expired.take(CHUNK).filter(|seq| self.is_expired(user, *seq)).collect();
        let (after, up_to) = (after_released, table_to);
        PageOf::Tables(Box::new(PageRead {
            user,
            after,
            up_to,
            limits,
            expired,
            ends_by_ms,
            in_memory,
            ends,
        }))
    }

    /// Whether an entry has expired that may still be a row.
    fn is_expired(&self, user: UserId, seq: Seq) -> bool {
        let mailbox = self.machine.mailbox(user);
        mailbox.is_some_and(|mailbox| mailbox.is_expired(seq))
            || self.overlay.gone.contains(&(user, seq))
    }

    /// How to find out who sent the rows of a range that was released.
    pub(super) fn read_origins(&self, user: UserId, first: Seq, released_to: Seq) -> OriginsRead {
        let overlay = self.overlay.entries.get(&user);
        let inside = |entry: &&Entry| entry.seq >= first && entry.seq <= released_to;
        let in_overlay = overlay.into_iter().flatten().filter(inside);
        let in_overlay = in_overlay.map(|entry| origin_row(entry.seq, &entry.envelope)).collect();
        let begins = overlay.and_then(|entries| entries.front()).map(|entry| Seq(entry.seq.0 - 1));
        let up_to = begins.map_or(released_to, |before| released_to.min(before));
        let range = (first.0..=released_to.0).map(Seq);
        let expired = range.filter(|seq| self.is_expired(user, *seq)).map(|seq| seq.0).collect();
        let after = Seq(first.0.saturating_sub(1));
        let ended_by_ms = self.machine.ends_by_ms;
        OriginsRead { user, after, up_to, released_to, expired, ended_by_ms, in_overlay }
    }
}

impl OriginsRead {
    /// What to release, when the rows of the range name these origins ([`origin_row`]).
    pub fn finish(self, rows: Vec<stored::Origin>) -> stored::Release {
        let origins = rows.into_iter().chain(self.in_overlay);
        let origins = origins.filter(|origin| !self.expired.contains(&origin.seq)).collect();
        let (up_to, ended_by_ms) = (self.released_to.0, self.ended_by_ms);
        stored::Release { user: self.user.0, up_to, origins, ended_by_ms }
    }
}

impl PageRead {
    /// The page, when these rows were read: the first ones of the range, within the limits.
    pub fn finish(self, rows: Vec<(Seq, stored::Envelope)>) -> Page {
        let Ends { last, released } = self.ends;
        let read_to = rows.last().map_or(self.up_to, |(seq, _)| *seq);
        let whole = read_to == self.up_to;
        let entries = rows.into_iter().filter(|(seq, envelope)| {
            !self.expired.contains(seq) && !is_over(envelope.expires_ms, self.ends_by_ms)
        });
        let entries = entries.map(|(seq, envelope)| Entry { seq, envelope: Arc::new(envelope) });
        if whole {
            Page::of(entries.chain(self.in_memory).collect(), self.ends, self.limits)
        } else {
            Page { entries: entries.collect(), up_to: read_to, last, released, failed: false }
        }
    }
}

impl Page {
    /// A page that could not be read.
    pub fn not_read() -> Self {
        let (up_to, last, released) = (Seq::default(), Seq::default(), Seq::default());
        Self { entries: Vec::new(), up_to, last, released, failed: true }
    }

    /// The beginning of `entries`, which are all there are up to `last`, within the limits.
    fn of(mut entries: Vec<Entry>, ends: Ends, (limit, bytes_max): (usize, usize)) -> Self {
        let Ends { last, released } = ends;
        let mut bytes = 0;
        let fits = entries.iter().take(limit).take_while(|entry| {
            let first = bytes == 0;
            bytes += bytes_of(&entry.envelope);
            first || bytes <= bytes_max
        });
        let count = fits.count();
        let whole = count == entries.len() && count < limit;
        entries.truncate(count);
        let up_to = if whole { last } else { entries.last().map_or(last, |entry| entry.seq) };
        Self { entries, up_to, last, released, failed: false }
    }
}
