//! Sends that a leader refuses before it writes them into the log: to nobody, from a blocked sender,
//! into a full mailbox, or for want of space on a disk.
//!
//! When the scarcest disk among the replicas fills, mail is refused in stages: first what strangers write
//! to people who are away, then what strangers write at all, then what contacts write to people who are
//! away, and at last everything.

use super::command::Judgment;
use super::machine::Machine;
use super::surroundings::Surroundings;
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
}

impl<'a> Admission<'a> {
    pub(super) fn new(machine: &'a Machine, around: &'a Surroundings) -> Self {
        Self { machine, around }
    }

    /// The leader's judgment of a send.
    pub(super) fn judge(&self, append: &stored::Append) -> Judgment {
        let judgment = self.machine.judge(append);
        if judgment == Judgment::New && self.around.free_percent < PLENTY_PERCENT {
            let stranger = self.machine.is_from_stranger(append);
            let away = self.around.away.contains(&UserId(append.to));
            if is_too_scarce(self.around.free_percent, stranger, away) {
                return Judgment::Refused(Code::StorageFull);
            }
        }
        judgment
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
