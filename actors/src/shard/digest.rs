//! A digest of what a replica holds, to compare it with others at the same place of the log.

use super::machine::Machine;
use super::recent::RecentIds;
use prost::Message;
use std::hash::{DefaultHasher, Hasher};

/// What a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Log index up to which commands were applied.
    pub applied: u64,
    /// The same on all replicas that have applied as much.
    pub digest: u64,
    /// Accounts.
    pub accounts: u64,
}

impl Machine {
    /// A digest of accounts, mailboxes, aliases, PINs and streams. What bodies in the tables say is
    /// not part of it, only where they are.
    pub fn digest(&self) -> u64 {
        let mut sum = Sum(DefaultHasher::new());
        for (id, user) in &self.users {
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
        for (alias, owner) in &self.aliases {
            sum.0.write(alias.as_str().as_bytes());
            sum.row(owner);
        }
        for (alias, pin) in &self.pins {
            sum.0.write(alias.as_str().as_bytes());
            sum.row(pin);
        }
        sum.number(self.pins_paid_to_us);
        self.streams.digest(&mut |number| sum.number(number));
        sum.0.finish()
    }
}

struct Sum(DefaultHasher);

impl Sum {
    fn number(&mut self, number: u64) {
        self.0.write_u64(number);
    }

    fn row(&mut self, row: &impl Message) {
        self.0.write(&row.encode_to_vec());
    }
}
