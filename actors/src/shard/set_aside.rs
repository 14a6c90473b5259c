//! The part of the machine that ceases to wait for devices which stay away or fall far behind.
//!
//! Such a device is *set aside*: it stays linked, but holds the mailbox no longer, and the others'
//! acknowledgments suffice. When it comes back it is readmitted at the end of the mailbox and told to
//! fetch the history from another device. A device is set aside only if another one, which is not away
//! itself, has or gets everything that waits for it, so nothing is lost and the last device stays.

use super::account::Account;
use super::command::Outcome;
use super::machine::Machine;
use proto::stored::{self, envelope::Content};
use proto::wire::device_notice::Kind as NoticeKind;
use proto::{Code, DeviceId, UserId};

impl Machine {
    /// A device has been away for long, the leader says.
    pub(super) fn set_aside(&mut self, set: &stored::SetAside) -> Result<Outcome, Code> {
        let (user_id, device) = (UserId(set.user), DeviceId(set.device));
        let user = self.users.get(&user_id).ok_or(Code::UnknownUser)?;
        let (cursors, last) = (user.mailbox.cursors(), user.mailbox.last());
        if cursors.may_set_aside(device, last, set.idle_ms, self.now_ms) {
            self.wait_no_longer_for(user_id, &[device]);
        }
        Ok(Outcome::Done)
    }

    /// Sets aside the devices that alone fill mailboxes which were found crowded.
    pub(super) fn relieve_crowded(&mut self) {
        while let Some(user_id) = self.crowded.pop_first() {
            let Some(user) = self.users.get(&user_id) else { continue };
            let laggards = user.mailbox.cursors().laggards(user.mailbox.last());
            self.wait_no_longer_for(user_id, &laggards);
        }
    }

    fn wait_no_longer_for(&mut self, user_id: UserId, devices: &[DeviceId]) {
        let now_ms = self.now_ms;
        let Some(user) = self.users.get_mut(&user_id).filter(|_| !devices.is_empty()) else {
            return;
        };
        for device in devices {
            user.mailbox.remove(*device);
            if let Some(row) = user.account.devices_mut().get_mut(device) {
                row.set_aside_ms = now_ms;
            }
        }
        let released = user.mailbox.release();
        self.dirty.mailboxes.insert(user_id);
        self.let_go(user_id, &released);
        for device in devices {
            self.notify_others(user_id, *device, NoticeKind::SetAside);
        }
        self.account_changed(user_id);
    }

    /// A device that was set aside has come back.
    pub(super) fn readmit(&mut self, readmit: &stored::Readmit) -> Result<Outcome, Code> {
        let (user_id, device) = (UserId(readmit.user), DeviceId(readmit.device));
        let now_ms = self.now_ms;
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        let row = user.account.devices_mut().get_mut(&device).ok_or(Code::Unlinked)?;
        if std::mem::take(&mut row.set_aside_ms) == 0 {
            return Ok(Outcome::Done);
        }
        user.mailbox.admit(device, false, now_ms);
        self.dirty.mailboxes.insert(user_id);
        self.notify_others(user_id, device, NoticeKind::Back);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    fn notify_others(&mut self, user: UserId, device: DeviceId, kind: NoticeKind) {
        let (kind, device) = (kind as u32, device.0);
        let notice = stored::DeviceNotice { kind, device, by_device: 0 };
        self.take_envelope(user, Content::DeviceNotice(notice));
    }

    /// Tells the devices that have no part in it what one device did to another.
    pub(super) fn notify_third(
        &mut self,
        user: UserId,
        (device, by_device): (DeviceId, u32),
        kind: NoticeKind,
    ) {
        let is_third = |id: &DeviceId| *id != device && id.0 != by_device;
        let has_third = |account: &Account| account.devices().keys().any(is_third);
        if self.account(user).is_some_and(has_third) {
            let (kind, device) = (kind as u32, device.0);
            let notice = stored::DeviceNotice { kind, device, by_device };
            self.take_envelope(user, Content::DeviceNotice(notice));
        }
    }

    /// Devices that have been away for `idle_ms`, among `count` users after this one; and where to go
    /// on. A leader looks at a few users each second.
    pub fn idle_devices(
        &self,
        after: UserId,
        count: usize,
        idle_ms: u64,
        now_ms: u64,
    ) -> (Vec<(UserId, DeviceId)>, Option<UserId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut idle = Vec::new();
        let mut seen = None;
        for (id, user) in self.users.range((Excluded(after), Unbounded)).take(count) {
            let (cursors, last) = (user.mailbox.cursors(), user.mailbox.last());
            idle.extend(cursors.idle(last, idle_ms, now_ms).into_iter().map(|d| (*id, d)));
            seen = Some(*id);
        }
        (idle, seen)
    }
}
