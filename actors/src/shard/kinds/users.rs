//! Users of this shard: accounts, devices, mailboxes with their entries, recent send ids.

use super::super::account::Account;
use super::super::digest::Sum;
use super::super::machine::User;
use super::{Kind, Machine, Spill};
use crate::shard::mailbox::recent::RecentIds;
use proto::UserId;
use proto::stored::{self, notice::What};
use storage::Row;

/// Users and their mailboxes.
pub(super) struct Users;

impl Kind for Users {
    fn checkpoint(&self, machine: &mut Machine, spill: &mut Spill) {
        let ends_ms = std::mem::take(&mut machine.expiring).into_iter().map(|(at_ms, ..)| at_ms);
        spill.ends_s = ends_ms.map(|at_ms| at_ms.div_ceil(1_000)).collect();
        for user_id in std::mem::take(&mut machine.dirty.mailboxes) {
            machine.spill_mailbox(user_id, spill);
        }
        for user_id in std::mem::take(&mut machine.dirty.accounts) {
            machine.spill_account(user_id, &mut spill.rows);
        }
        for (user_id, id) in std::mem::take(&mut machine.dirty.devices) {
            let user = machine.users.get(&user_id);
            let device = user.and_then(|user| user.account.devices().get(&id)).cloned();
            spill.rows.push(Row::Device(user_id, id, device));
        }
        for (to, from, device) in std::mem::take(&mut machine.dirty.recent) {
            let user = machine.users.get_mut(&to);
            if user.is_some_and(|user| user.mailbox.trim_recent(from, device, machine.steady_ms)) {
                // What is too young to be forgotten now is looked at again by the next checkpoint.
                machine.dirty.recent.insert((to, from, device));
            }
            let recent = machine.users.get(&to).and_then(|user| user.mailbox.recent(from, device));
            let ids = recent.map(RecentIds::to_row);
            spill.rows.push(Row::Recent { to, from, device, ids });
        }
    }

    fn load(&self, machine: &mut Machine, row: Row) -> Option<Row> {
        match row {
            Row::Account(id, Some(row)) => machine.user(id).account.load_row(&row),
            Row::Device(id, device, Some(row)) => {
                machine.user(id).account.devices_mut().insert(device, row);
            }
            Row::Cursors(id, Some(row)) => machine.user(id).mailbox.load_row(&row),
            Row::Recent { to, from, device, ids: Some(ids) } => {
                machine.user(to).mailbox.load_recent(from, device, RecentIds::from_row(&ids));
            }
            // Entries stay in the tables.
            Row::Account(_, None)
            | Row::Device(_, _, None)
            | Row::Cursors(_, None)
            | Row::Recent { ids: None, .. }
            | Row::Message(..)
            | Row::MessagesGone { .. } => {}
            other @ (Row::Alias(..)
            | Row::Pin(..)
            | Row::Stream(..)
            | Row::Notice { .. }
            | Row::Meta(_)) => return Some(other),
        }
        None
    }

    fn digest(&self, machine: &Machine, sum: &mut Sum) {
        for (id, user) in &machine.users {
            sum.number(id.0);
            sum.row(&user.account.to_row());
            for (device, row) in user.account.devices().iter() {
                sum.number(u64::from(device.0));
                sum.row(row);
            }
            sum.row(&user.mailbox.to_row());
            sum.number(user.mailbox.last().0);
            for (from, device) in user.mailbox.recent_senders() {
                sum.number(from.0);
                sum.number(u64::from(device.0));
                if let Some(recent) = user.mailbox.recent(from, device) {
                    sum.row(&RecentIds::to_row(recent));
                }
            }
            for entry in user.mailbox.tail_after(proto::Seq(0)) {
                sum.number(entry.seq.0);
                sum.row(entry.envelope.as_ref());
            }
        }
    }

    fn take(&self, machine: &mut Machine, user: UserId, what: What) -> Option<What> {
        match what {
            What::Envelope(envelope) => {
                if let Some(content) = envelope.content {
                    machine.take_envelope(user, content);
                }
                None
            }
            What::FreeAlias(_) | What::LoseAlias(_) | What::OpenAccount(_) => Some(what),
        }
    }
}

impl Machine {
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
        rows.push(Row::Account(user_id, account.map(Account::to_row)));
        let devices = account.into_iter().flat_map(|account| account.devices().iter());
        rows.extend(devices.map(|(id, device)| Row::Device(user_id, *id, Some(device.clone()))));
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
