//! The machine and its tables: what a checkpoint writes, and how a start reads it back.
//!
//! A checkpoint is a command like any other ([`Command::Spill`](super::Command)), so every replica
//! lets go of the same entries at the same place in the log. Its rows hold the state as of exactly
//! that place.

use super::command::Spill;
use super::machine::{Machine, User};
use super::recent::RecentIds;
use proto::UserId;
use proto::stored;
use storage::Row;

impl Machine {
    /// Moves all entries out of memory and returns the rows that bring the tables up to date.
    pub(super) fn spill(&mut self) -> Spill {
        let mut spill = Spill::default();
        let dirty = std::mem::take(&mut self.dirty);
        spill.rows = dirty.gone;
        self.expiring.clear();
        for user_id in dirty.mailboxes {
            self.spill_mailbox(user_id, &mut spill);
        }
        for user_id in dirty.accounts {
            self.spill_account(user_id, &mut spill.rows);
        }
        for (user_id, id) in dirty.devices {
            let user = self.users.get(&user_id);
            let device = user.and_then(|user| user.account.devices().get(&id)).cloned();
            spill.rows.push(Row::Device(user_id, id, device));
        }
        for (to, from, device) in dirty.recent {
            let user = self.users.get_mut(&to);
            if user.is_some_and(|user| user.mailbox.trim_recent(from, device, self.steady_ms)) {
                // What is too young to be forgotten now is looked at again by the next checkpoint.
                self.dirty.recent.insert((to, from, device));
            }
            let recent = self.users.get(&to).and_then(|user| user.mailbox.recent(from, device));
            let ids = recent.map(RecentIds::to_row);
            spill.rows.push(Row::Recent { to, from, device, ids });
        }
        for alias in dirty.aliases {
            let owner = self.aliases.get(&alias).copied();
            spill.rows.push(Row::Alias(alias, owner));
        }
        self.forget_old_pins(&mut spill.rows);
        for alias in dirty.pins {
            let pin = self.pins.get(&alias).cloned();
            spill.rows.push(Row::Pin(alias, pin));
        }
        self.streams.spill(&mut spill.rows);
        spill
    }

    fn spill_mailbox(&mut self, user_id: UserId, spill: &mut Spill) {
        let Some(user) = self.users.get_mut(&user_id) else {
            spill.rows.push(Row::Cursors(user_id, None));
            return;
        };
        let (entries, expired) = user.mailbox.spill();
        let forgotten = user.mailbox.forget_silent(self.steady_ms).into_iter();
        spill.rows.extend(forgotten.map(|(from, device)| Row::Recent {
            to: user_id,
            from,
            device,
            ids: None,
        }));
        spill.gone.extend(expired.iter().map(|seq| (user_id, *seq)));
        spill.rows.extend(expired.into_iter().map(|seq| Row::Message(user_id, seq, None)));
        spill.rows.extend(entries.iter().map(|entry| {
            Row::Message(user_id, entry.seq, Some(stored::Envelope::clone(&entry.envelope)))
        }));
        spill.rows.push(Row::Cursors(user_id, Some(user.mailbox.to_row())));
        if !entries.is_empty() {
            spill.entries.push((user_id, entries));
        }
    }

    fn spill_account(&mut self, user_id: UserId, rows: &mut Vec<Row>) {
        let account = self.users.get(&user_id).map(|user| &user.account);
        rows.push(Row::Account(user_id, account.map(super::account::Account::to_row)));
        let devices = account.into_iter().flat_map(|account| account.devices().iter());
        rows.extend(devices.map(|(id, device)| Row::Device(user_id, *id, Some(device.clone()))));
    }

    fn forget_old_pins(&mut self, rows: &mut Vec<Row>) {
        let now_ms = self.now_ms;
        let gone = self.pins.extract_if(.., |_, pins| super::pins::is_over(pins, now_ms));
        rows.extend(gone.map(|(alias, _)| Row::Pin(alias, None)));
    }

    /// Puts back one row. Rows of one shard may come in any order but that of notices.
    pub fn load(&mut self, row: Row) {
        match row {
            Row::Account(id, Some(row)) => self.user(id).account.load_row(&row),
            Row::Device(id, device, Some(row)) => {
                self.user(id).account.devices_mut().insert(device, row);
            }
            Row::Cursors(id, Some(row)) => self.user(id).mailbox.load_row(&row),
            Row::Recent { to, from, device, ids: Some(ids) } => {
                self.user(to).mailbox.load_recent(from, device, RecentIds::from_row(&ids));
            }
            Row::Alias(alias, Some(owner)) => {
                self.aliases.insert(alias, owner);
            }
            Row::Pin(alias, Some(pin)) => {
                self.pins.insert(alias, pin);
            }
            Row::Stream(to, row) => self.streams.load_stream(to, &row),
            Row::Notice { to, notice: Some(notice), .. } => self.streams.load_notice(to, notice),
            Row::Account(_, None)
            | Row::Device(_, _, None)
            | Row::Cursors(_, None)
            | Row::Recent { ids: None, .. }
            | Row::Alias(_, None)
            | Row::Pin(_, None)
            | Row::Notice { notice: None, .. }
            | Row::Message(..)
            | Row::Meta(_)
            | Row::MessagesGone { .. } => {}
        }
    }

    /// Asks again for what was under way when the node stopped: released rows nobody has read.
    pub fn resume(&mut self) {
        let owed: Vec<_> = self
            .users
            .iter()
            .filter_map(|(id, user)| user.mailbox.origins_owed().map(|up_to| (*id, up_to)))
            .collect();
        for (user, up_to) in owed {
            self.read_origins(user, up_to);
        }
    }

    fn user(&mut self, id: UserId) -> &mut User {
        self.users.entry(id).or_default()
    }
}
