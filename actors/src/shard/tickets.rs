//! The part of the machine that lets devices in: the number of each device's good ticket.

use super::command::Outcome;
use super::machine::Machine;
use proto::stored;
use proto::{Code, DeviceId, UserId};

impl Machine {
    /// A session opens. With a ticket it may be asked for twice by one login: the second finds the next
    /// ticket in place, and changes nothing.
    pub(super) fn open_session(&mut self, open: &stored::OpenSession) -> Result<Outcome, Code> {
        let device = self.linked(open.user, open.device)?;
        if open.ticket != 0 && device.ticket != open.next && device.ticket != open.ticket {
            return Err(Code::BadTicket);
        }
        device.ticket = open.next;
        let (user_id, now_ms) = (UserId(open.user), self.now_ms);
        if self.users.get_mut(&user_id).is_some_and(|user| user.account.note_active(now_ms)) {
            self.dirty.accounts.insert(user_id);
        }
        self.dirty.devices.insert((user_id, DeviceId(open.device)));
        Ok(Outcome::Done)
    }

    /// A device logs out.
    pub(super) fn close_session(&mut self, close: &stored::CloseSession) -> Result<Outcome, Code> {
        self.linked(close.user, close.device)?.ticket = close.next;
        self.dirty.devices.insert((UserId(close.user), DeviceId(close.device)));
        Ok(Outcome::Done)
    }

    fn linked(&mut self, user: u64, device: u32) -> Result<&mut stored::Device, Code> {
        let user = self.users.get_mut(&UserId(user)).filter(|user| !user.account.closing);
        let device = user.and_then(|user| user.account.devices_mut().get_mut(&DeviceId(device)));
        device.ok_or(Code::Unlinked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Command, MachineLimits};
    use proto::stored::command::Kind;
    use storage::Row;

    const NOW_MS: u64 = 1_000_000;
    const ADA: UserId = UserId(7);

    /// A machine with a user who has one device.
    fn machine() -> Machine {
        let mut machine = Machine::new(ADA.shard(), MachineLimits::default());
        let device = stored::Device { key: vec![1; 32].into(), ..Default::default() };
        machine.load(Row::Account(ADA, Some(stored::Account::default())));
        machine.load(Row::Device(ADA, DeviceId(1), Some(device)));
        machine
    }

    fn open(machine: &mut Machine, ticket: u64, next: u64) -> Outcome {
        let open = stored::OpenSession { user: ADA.0, device: 1, ticket, next };
        machine.apply(NOW_MS, Kind::OpenSession(open))
    }

    #[test]
    fn a_ticket_opens_once_however_many_come_with_it() {
        let mut machine = machine();
        let used = Outcome::Refused(Code::BadTicket);
        assert_eq!(open(&mut machine, 5, 6), used, "nobody was given it");
        assert_eq!(open(&mut machine, 0, 10), Outcome::Done, "the key needs none");
        assert_eq!(open(&mut machine, 10, 11), Outcome::Done);
        assert_eq!(open(&mut machine, 10, 12), used);
        assert_eq!(open(&mut machine, 10, 11), Outcome::Done, "the same login, proposed again");
        assert_eq!(open(&mut machine, 11, 13), Outcome::Done);
        assert_eq!(open(&mut machine, 10, 11), used, "the same login, too late");
        assert_eq!(open(&mut machine, 0, 14), Outcome::Done);
        assert_eq!(open(&mut machine, 13, 15), used, "a login by key voids it");
    }

    #[test]
    fn a_logout_and_an_unlinked_device_leave_no_good_ticket() {
        let mut machine = machine();
        open(&mut machine, 0, 10);
        let close = stored::CloseSession { user: ADA.0, device: 1, next: 99 };
        assert_eq!(machine.apply(NOW_MS, Kind::CloseSession(close)), Outcome::Done);
        assert_eq!(open(&mut machine, 10, 11), Outcome::Refused(Code::BadTicket));
        let nobody = stored::OpenSession { user: ADA.0, device: 2, ticket: 0, next: 1 };
        let unlinked = Outcome::Refused(Code::Unlinked);
        assert_eq!(machine.apply(NOW_MS, Command::OpenSession(nobody)), unlinked);
        let nobody = stored::OpenSession { user: 8, device: 1, ticket: 0, next: 1 };
        assert_eq!(machine.apply(NOW_MS, Command::OpenSession(nobody)), unlinked);
    }

    #[test]
    fn a_checkpoint_keeps_the_good_ticket() {
        let mut before = machine();
        open(&mut before, 0, 10);
        let mut after = machine();
        before.spill().rows.into_iter().for_each(|row| after.load(row));
        assert_eq!(after.digest(), before.digest());
        assert_eq!(open(&mut after, 10, 11), Outcome::Done);
    }
}
