//! Sends that a leader refuses before it writes them into the log: to nobody, from a blocked sender,
//! into a full mailbox, by a sender who stores too much, or for want of space on the disk.
//!
//! When the disk of the leader grows scarce, mail is refused in stages: first what strangers write to
//! people who are away, then what strangers write at all, then what contacts write to people who are
//! away, and at last everything.

use super::buckets::ByteRates;
use super::command::Outcome;
use super::core::Surroundings;
use super::machine::Machine;
use proto::{Code, UserId, stored};

/// A send may be refused for want of space only below this, in hundredths of the least free space.
pub(super) const PLENTY_PERCENT: u64 = 200;

/// Whether a send is refused while so much is free, in hundredths of the least free space.
fn is_too_scarce(free_percent: u64, stranger: bool, away: bool) -> bool {
    let needed = match (stranger, away) {
        (true, true) => PLENTY_PERCENT,
        (true, false) => 175,
        (false, true) => 150,
        (false, false) => 100,
    };
    free_percent < needed
}

/// A leader's look at what is to be proposed.
pub(super) struct Admission<'a> {
    machine: &'a Machine,
    around: &'a Surroundings,
    byte_rates: &'a mut ByteRates,
    now_ms: u64,
}

impl<'a> Admission<'a> {
    pub(super) fn new(
        machine: &'a Machine,
        around: &'a Surroundings,
        byte_rates: &'a mut ByteRates,
        now_ms: u64,
    ) -> Self {
        Self { machine, around, byte_rates, now_ms }
    }

    /// Why a send is not proposed.
    pub(super) fn refuses(&mut self, append: &stored::Append) -> Option<Outcome> {
        if let Some(code) = self.machine.would_refuse(append) {
            return Some(Outcome::Refused(code));
        }
        if self.around.free_percent < PLENTY_PERCENT {
            let stranger = self.machine.is_from_stranger(append);
            let away = self.around.away.contains(&UserId(append.to));
            if is_too_scarce(self.around.free_percent, stranger, away) {
                return Some(Outcome::Refused(Code::StorageFull));
            }
        }
        let (from, bytes) = (UserId(append.from), append.body.len() as u64);
        let rate = self.around.settings.stored_bytes_per_second;
        let admitted = self.byte_rates.admit(from, bytes, rate, self.now_ms);
        admitted.err().map(|after_ms| Outcome::wait(Code::TooFast, after_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::is_too_scarce;

    #[test]
    fn strangers_mail_is_refused_first_and_that_of_people_who_are_there_last() {
        let refused = |free_percent| {
            let all = [(true, true), (true, false), (false, true), (false, false)];
            all.map(|(stranger, away)| is_too_scarce(free_percent, stranger, away))
        };
        assert_eq!(refused(200), [false, false, false, false]);
        assert_eq!(refused(199), [true, false, false, false]);
        assert_eq!(refused(174), [true, true, false, false]);
        assert_eq!(refused(149), [true, true, true, false]);
        assert_eq!(refused(99), [true, true, true, true]);
    }
}
