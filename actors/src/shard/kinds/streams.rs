//! What this shard owes others, and how far it has taken what they owe it.

use super::super::digest::Sum;
use super::{Kind, Machine, Spill};
use proto::UserId;
use proto::stored::notice::What;
use storage::Row;

/// The streams between this shard and the others.
pub(super) struct Owed;

impl Kind for Owed {
    fn checkpoint(&self, machine: &mut Machine, spill: &mut Spill) {
        machine.streams.spill(&mut spill.rows);
    }

    fn load(&self, machine: &mut Machine, row: Row) -> Option<Row> {
        match row {
            Row::Stream(to, row) => machine.streams.load_stream(to, &row),
            Row::Notice { to, notice: Some(notice), .. } => machine.streams.load_notice(to, notice),
            Row::Notice { notice: None, .. } => {}
            other @ (Row::Account(..)
            | Row::Device(..)
            | Row::Cursors(..)
            | Row::Recent { .. }
            | Row::Message(..)
            | Row::MessagesGone { .. }
            | Row::Alias(..)
            | Row::Pin(..)
            | Row::Meta(_)) => return Some(other),
        }
        None
    }

    fn digest(&self, machine: &Machine, sum: &mut Sum) {
        machine.streams.digest(&mut |number| sum.number(number));
    }

    fn take(&self, _machine: &mut Machine, _user: UserId, what: What) -> Option<What> {
        Some(what)
    }
}
