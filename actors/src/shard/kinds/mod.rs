//! The kinds of object that a shard holds. Each registers in one place: which rows are its own, what a
//! checkpoint writes, what the digest covers, which notices of other shards it takes.
//!
//! A further kind (conversations, the state of a module) is a file with an impl of [`Kind`] and a line in
//! [`KINDS`]. The other kinds do not build until they say that its rows and notices are not theirs.
//!
//! A checkpoint is a command like any other ([`Command::Spill`](super::Command)), so every replica
//! lets go of the same entries at the same place in the log. Its rows hold the state as of exactly
//! that place.

mod aliases;
mod streams;
mod users;

use super::Machine;
use super::command::Spill;
use super::digest::Sum;
use aliases::Aliases;
use proto::UserId;
use proto::stored::notice::What;
use storage::Row;
use streams::Owed;
use users::Users;

/// A kind of object.
trait Kind: Sync {
    /// Adds the rows that bring the tables of this kind up to date, and moves out of memory what need not
    /// stay there.
    fn checkpoint(&self, machine: &mut Machine, spill: &mut Spill);
    /// Puts back a row, of a start or of a snapshot. Returns it if it is of another kind.
    fn load(&self, machine: &mut Machine, row: Row) -> Option<Row>;
    /// Feeds a digest with what is the same on all replicas.
    fn digest(&self, machine: &Machine, sum: &mut Sum);
    /// Takes what another shard owes `user`. Returns it if it is of another kind.
    fn take(&self, machine: &mut Machine, user: UserId, what: What) -> Option<What>;
}

/// All kinds. Checkpoints write them in this order.
const KINDS: [&dyn Kind; 3] = [&Users, &Aliases, &Owed];

impl Machine {
    /// Moves all entries out of memory and returns the rows that bring the tables up to date.
    pub(super) fn spill(&mut self) -> Spill {
        let mut spill = Spill { rows: std::mem::take(&mut self.dirty.gone), ..Spill::default() };
        for kind in KINDS {
            kind.checkpoint(self, &mut spill);
        }
        spill
    }

    /// Puts back one row. Rows of one shard may come in any order but that of notices.
    pub fn load(&mut self, row: Row) {
        let mut row = Some(row);
        for kind in KINDS {
            row = row.and_then(|row| kind.load(self, row));
        }
    }

    /// A digest of all that replicas share. What bodies in the tables say is not part of it, only where
    /// they are.
    pub fn digest(&self) -> u64 {
        let mut sum = Sum::default();
        for kind in KINDS {
            kind.digest(self, &mut sum);
        }
        sum.finish()
    }

    /// Takes what another shard owes `user`.
    pub(super) fn take_notice(&mut self, user: UserId, what: What) {
        let mut what = Some(what);
        for kind in KINDS {
            what = what.and_then(|what| kind.take(self, user, what));
        }
    }
}
