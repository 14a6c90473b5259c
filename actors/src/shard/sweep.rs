//! Session rows of devices that are linked no longer.
//!
//! A leader removes the rows of unlinked devices with its next checkpoint. That can be lost: another leads by
//! then, the disk refuses, a node that was away for long brings the row back. So each leader also goes through
//! the sessions table, over and over, and removes the rows that no account of its shard has.

use super::actor::ShardActor;
use super::core::{Hint, Item, ReplicaCore};
use proto::{DeviceId, UserId};
use tracing::error;

/// Rows of the sessions table that a leader reads in one tick, those of other shards among them: 16 shards
/// read 1,600 a second, and a table of a million rows takes three hours.
const ROWS_PER_TICK: usize = 100;

impl ReplicaCore {
    /// These devices have session rows.
    pub(super) fn sessions_read(&mut self, found: Vec<(UserId, DeviceId)>) {
        for (user, device) in found {
            let account = self.machine.account(user);
            let linked = account.is_some_and(|account| account.devices().contains_key(&device));
            if self.is_ready() && !linked {
                self.hint(Hint::RemoveSession(user, device));
            }
        }
    }
}

impl ShardActor {
    /// Reads some rows of the sessions table, all of them in turn.
    pub(super) fn read_sessions(&mut self) {
        let mut found = Vec::new();
        let table = self.context.storage.sessions();
        let read = table.scan_from(self.swept_to, ROWS_PER_TICK, &mut |user, device, row| {
            if user.shard() == self.shard && !row.gone {
                found.push((user, device));
            }
        });
        match read {
            Ok(more) => self.swept_to = more,
            Err(error) => error!(shard = %self.shard, %error, "session rows not read"),
        }
        if !found.is_empty() {
            self.decide(Item::SessionsRead(found));
        }
    }
}
