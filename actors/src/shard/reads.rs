//! What a shard is asked and how it is answered: from memory at once, from the tables on a thread
//! that may block.

use super::account::AccountView;
use super::machine::{Machine, origin_row};
use super::mailbox::Entry;
use super::usage::bytes_of;
use super::{Answer, Query};
use proto::{Seq, UserId, stored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use storage::{Storage, StorageError};

/// Rows read at once when a whole range is read.
const CHUNK: usize = 1_024;

/// Bytes read at once.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

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
    pub(super) storage: &'a Storage,
}

/// Where a mailbox stands when a page is read.
#[derive(Clone, Copy)]
struct Ends {
    last: Seq,
    released: Seq,
}

/// A page that has to be begun in the tables.
struct TablePart {
    user: UserId,
    after: Seq,
    up_to: Seq,
    expired: Vec<Seq>,
}

impl Reader<'_> {
    pub(super) fn answer(&self, query: Query) {
        match query {
            Query::Account { user, answer } => {
                answer(Ok(self.machine.account(user).map(|account| account.view(user))));
            }
            Query::Owner { alias, answer } => answer(Ok(self.machine.owner(&alias))),
            Query::Attach { user, device, answer } => {
                let account = self.machine.account(user);
                let mailbox = self.machine.mailbox(user);
                answer(Ok(account.zip(mailbox).and_then(|(account, mailbox)| {
                    account.devices().get(&device)?;
                    let cursor = mailbox.cursors().get(device);
                    Some(Attached {
                        acknowledged: cursor.map_or(mailbox.last(), |cursor| cursor.acknowledged),
                        start: cursor.map_or(mailbox.last(), |cursor| cursor.start),
                        set_aside: cursor.is_none(),
                        last: mailbox.last(),
                        account: account.view(user),
                    })
                })));
            }
            Query::Page { user, after, limit, bytes_max, answer } => {
                self.page(user, after, (limit, bytes_max), answer);
            }
        }
    }

    fn page(&self, user: UserId, after: Seq, limits: (usize, usize), answer: Answer<Page>) {
        let Some(mailbox) = self.machine.mailbox(user) else {
            let entries = Vec::new();
            let released = Seq::default();
            answer(Page { entries, up_to: after, last: after, released, failed: false });
            return;
        };
        let ends = Ends { last: mailbox.last(), released: mailbox.released() };
        let overlay = self.overlay.entries.get(&user);
        let in_overlay = overlay.into_iter().flatten().filter(|entry| entry.seq > after);
        let in_overlay = in_overlay.filter(|entry| !mailbox.is_expired(entry.seq));
        let in_memory: Vec<Entry> =
            in_overlay.chain(mailbox.tail_after(after)).take(limits.0).cloned().collect();
        let table_to = overlay
            .and_then(|entries| entries.front())
            .map_or(mailbox.stored_to, |entry| Seq(entry.seq.0 - 1));
        let after_released = after.max(Seq(mailbox.stored_first.0.saturating_sub(1)));
        if after_released >= table_to {
            answer(Page::of(in_memory, ends, limits));
            return;
        }
        let expired = (after_released.0 + 1..=table_to.0).map(Seq);
        let expired = expired.take(CHUNK).filter(|seq| self.is_expired(user, *seq)).collect();
        let part = TablePart { user, after: after_released, up_to: table_to, expired };
        let storage = self.storage.clone();
        tokio::task::spawn_blocking(move || answer(part.page(&storage, in_memory, ends, limits)));
    }

    /// Whether an entry has expired that may still be a row.
    fn is_expired(&self, user: UserId, seq: Seq) -> bool {
        let mailbox = self.machine.mailbox(user);
        mailbox.is_some_and(|mailbox| mailbox.is_expired(seq))
            || self.overlay.gone.contains(&(user, seq))
    }

    /// Reads who sent the rows of a range that was released, on a thread that may block.
    pub(super) fn read_origins(
        &self,
        user: UserId,
        range: (Seq, Seq),
        answer: Answer<Result<stored::Release, String>>,
    ) {
        let (first, up_to) = range;
        let overlay = self.overlay.entries.get(&user).cloned().unwrap_or_default();
        let expired = (first.0..=up_to.0).map(Seq).filter(|seq| self.is_expired(user, *seq));
        let expired: BTreeSet<u64> = expired.map(|seq| seq.0).collect();
        let storage = self.storage.clone();
        tokio::task::spawn_blocking(move || {
            let in_overlay =
                overlay.iter().filter(|entry| entry.seq >= first && entry.seq <= up_to);
            let in_overlay = in_overlay.map(|entry| origin_row(entry.seq, &entry.envelope));
            let table_to = overlay.front().map_or(up_to, |entry| up_to.min(Seq(entry.seq.0 - 1)));
            let release = read_range(&storage, user, first, table_to).map(|mut origins| {
                origins.extend(in_overlay);
                origins.retain(|origin| !expired.contains(&origin.seq));
                stored::Release { user: user.0, up_to: up_to.0, origins }
            });
            answer(release.map_err(|error| error.to_string()));
        });
    }
}

fn read_range(
    storage: &Storage,
    user: UserId,
    first: Seq,
    last: Seq,
) -> Result<Vec<stored::Origin>, StorageError> {
    let mut origins = Vec::new();
    let mut after = Seq(first.0.saturating_sub(1));
    while after < last {
        let rows = storage.messages(user, after, last, CHUNK, CHUNK_BYTES)?;
        let Some((seq, _)) = rows.last() else { break };
        after = *seq;
        origins.extend(rows.iter().map(|(seq, envelope)| origin_row(*seq, envelope)));
    }
    Ok(origins)
}

impl TablePart {
    fn page(
        self,
        storage: &Storage,
        in_memory: Vec<Entry>,
        ends: Ends,
        limits: (usize, usize),
    ) -> Page {
        let Ends { last, released } = ends;
        let rows = match storage.messages(self.user, self.after, self.up_to, limits.0, limits.1) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(user = %self.user, %error, "mailbox not read");
                let entries = Vec::new();
                return Page { entries, up_to: self.after, last, released, failed: true };
            }
        };
        let read_to = rows.last().map_or(self.up_to, |(seq, _)| *seq);
        let whole = read_to == self.up_to;
        let entries = rows.into_iter().filter(|(seq, _)| !self.expired.contains(seq));
        let entries = entries.map(|(seq, envelope)| Entry { seq, envelope: Arc::new(envelope) });
        if whole {
            Page::of(entries.chain(in_memory).collect(), ends, limits)
        } else {
            Page { entries: entries.collect(), up_to: read_to, last, released, failed: false }
        }
    }
}

impl Page {
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
