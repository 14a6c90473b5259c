//! Aliases of this shard: who owns each, and what the registrations of each count.

use super::super::digest::Sum;
use super::super::pins::is_over;
use super::{Kind, Machine, Spill};
use proto::UserId;
use proto::stored::notice::What;
use storage::Row;

/// Aliases.
pub(super) struct Aliases;

impl Kind for Aliases {
    fn checkpoint(&self, machine: &mut Machine, spill: &mut Spill) {
        for alias in std::mem::take(&mut machine.dirty.aliases) {
            let owner = machine.aliases.get(&alias).copied();
            spill.rows.push(Row::Alias(alias, owner));
        }
        let now_ms = machine.now_ms;
        let gone = machine.pins.extract_if(.., |_, pins| is_over(pins, now_ms));
        spill.rows.extend(gone.map(|(alias, _)| Row::Pin(alias, None)));
        for alias in std::mem::take(&mut machine.dirty.pins) {
            let pin = machine.pins.get(&alias).cloned();
            spill.rows.push(Row::Pin(alias, pin));
        }
    }

    fn load(&self, machine: &mut Machine, row: Row) -> Option<Row> {
        match row {
            Row::Alias(alias, Some(owner)) => {
                machine.aliases.insert(alias, owner);
            }
            Row::Pin(alias, Some(pin)) => {
                machine.pins.insert(alias, pin);
            }
            Row::Alias(_, None) | Row::Pin(_, None) => {}
            other @ (Row::Account(..)
            | Row::Device(..)
            | Row::Cursors(..)
            | Row::Recent { .. }
            | Row::Message(..)
            | Row::MessagesGone { .. }
            | Row::Stream(..)
            | Row::Notice { .. }
            | Row::Meta(_)) => return Some(other),
        }
        None
    }

    fn digest(&self, machine: &Machine, sum: &mut Sum) {
        for (alias, owner) in &machine.aliases {
            sum.bytes(alias.as_str().as_bytes());
            sum.row(owner);
        }
        for (alias, pin) in &machine.pins {
            sum.bytes(alias.as_str().as_bytes());
            sum.row(pin);
        }
        sum.number(machine.pins_paid_to_us);
    }

    fn take(&self, machine: &mut Machine, user: UserId, what: What) -> Option<What> {
        match what {
            What::FreeAlias(_) | What::LoseAlias(_) | What::OpenAccount(_) => {
                machine.take_claim(user, what);
                None
            }
            What::Envelope(_) => Some(what),
        }
    }
}
