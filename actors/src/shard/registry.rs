//! The part of the machine that knows who is who: devices, blocks, privacy.

use super::command::{Effect, Outcome};
use super::machine::{Machine, named_origin};
use super::privacy::Privacy;
use super::receipts::is_over;
use crate::shard::mailbox::usage::Counted;
use proto::stored;
use proto::wire::device_notice::Kind as NoticeKind;
use proto::wire::receipt::Kind as ReceiptKind;
use proto::{Code, DeviceId, Seq, UserId};
use std::collections::BTreeSet;
use storage::Row;

impl Machine {
    /// Refuses what a device asks for that is not linked at this place of the log.
    ///
    /// # Errors
    /// [`Code::Unlinked`].
    pub(super) fn check_asker(&self, user: u64, device: u32) -> Result<(), Code> {
        let account = self.account(UserId(user)).ok_or(Code::Unlinked)?;
        let linked = account.devices().contains_key(&DeviceId(device));
        if linked { Ok(()) } else { Err(Code::Unlinked) }
    }

    /// Links a device that another one has seen.
    pub(super) fn admit_device(&mut self, admit: stored::AdmitDevice) -> Result<Outcome, Code> {
        self.check_asker(admit.user, admit.by_device)?;
        let (user_id, now_ms) = (UserId(admit.user), self.now_ms);
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        if let Some(device) = user.account.device_with_key(&admit.key) {
            return Ok(Outcome::Admitted(device));
        }
        let device = stored::Device {
            key: admit.key,
            name: admit.name,
            linked_at_ms: now_ms,
            set_aside_ms: 0,
            ticket: 0,
        };
        let id = user.account.admit(device)?;
        user.mailbox.admit(id, false, now_ms);
        self.dirty.mailboxes.insert(user_id);
        self.notify_third(user_id, (id, admit.by_device), NoticeKind::Linked);
        self.account_changed(user_id);
        Ok(Outcome::Admitted(id))
    }

    pub(super) fn remove_device(&mut self, remove: stored::RemoveDevice) -> Result<Outcome, Code> {
        self.check_asker(remove.user, remove.by_device)?;
        let (user_id, device) = (UserId(remove.user), DeviceId(remove.device));
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        if !user.account.unlink(device) {
            // It was unlinked before: the answer may have been lost.
            let gone = user.account.was_linked(device);
            return if gone { Ok(Outcome::Done) } else { Err(Code::UnknownDevice) };
        }
        self.forget_devices(user_id, vec![device]);
        self.notify_third(user_id, (device, remove.by_device), NoticeKind::Unlinked);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    /// Lets go of what only waited for devices that were unlinked.
    pub(super) fn forget_devices(&mut self, user_id: UserId, devices: Vec<DeviceId>) {
        let Some(user) = self.users.get_mut(&user_id) else { return };
        for device in &devices {
            user.mailbox.remove(*device);
        }
        let released = user.mailbox.release();
        let gone = devices.into_iter().map(|device| Row::Device(user_id, device, None));
        self.dirty.gone.extend(gone);
        self.dirty.mailboxes.insert(user_id);
        self.let_go(user_id, &released);
    }

    pub(super) fn set_registration_lock(
        &mut self,
        set: stored::SetRegistrationLock,
    ) -> Result<Outcome, Code> {
        self.check_asker(set.user, set.by_device)?;
        let (user_id, now_ms) = (UserId(set.user), self.now_ms);
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        self.dirty.accounts.insert(user_id);
        let by = DeviceId(set.by_device);
        match user.account.lock.set((set.current, set.lock), by, now_ms) {
            Ok(true) => {}
            Ok(false) => return Ok(Outcome::Done),
            Err(locked) => return Ok(locked.outcome()),
        }
        self.notify_third(user_id, (by, by.0), NoticeKind::RegistrationLock);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn set_block(&mut self, block: &stored::SetBlock) -> Result<Outcome, Code> {
        self.check_asker(block.user, block.by_device)?;
        let user_id = UserId(block.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        user.account.set_block(UserId(block.other), block.blocked)?;
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn set_privacy(&mut self, set: &stored::SetPrivacy) -> Result<Outcome, Code> {
        self.check_asker(set.user, set.by_device)?;
        let user_id = UserId(set.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        user.account.privacy = Privacy::from_stored(set.privacy);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn set_contact(&mut self, set: &stored::SetContact) -> Result<Outcome, Code> {
        self.check_asker(set.user, set.by_device)?;
        let user_id = UserId(set.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::Unlinked)?;
        if user.account.set_contact(UserId(set.other), set.contact)? {
            let other = UserId(set.other);
            user.mailbox.set_stranger(other, user.account.is_stranger(user_id, other));
            self.dirty.mailboxes.insert(user_id);
            self.account_changed(user_id);
        }
        Ok(Outcome::Done)
    }

    /// The origins of released rows were read: tell the senders and let the rows go.
    pub(super) fn release_stored(&mut self, release: &stored::Release) -> Result<Outcome, Code> {
        let user_id = UserId(release.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        let held = release.origins.iter().filter(|origin| origin.seq <= release.up_to);
        let held: BTreeSet<u64> = held
            .filter(|o| user.mailbox.release_stored(Seq(o.seq), Counted::named(o)))
            .map(|origin| origin.seq)
            .collect();
        let origins = release.origins.iter().filter(|origin| held.contains(&origin.seq));
        let told: Vec<_> = origins
            .filter_map(|o| {
                let is_over = is_over(o.expires_ms, release.ended_by_ms);
                named_origin(o).map(|origin| (origin, self.fate(user_id, Seq(o.seq), is_over)))
            })
            .collect();
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        if let Some((first, last)) = user.mailbox.stored_gone(Seq(release.up_to)) {
            self.dirty.gone.push(Row::MessagesGone { user: user_id, first, last });
        }
        user.mailbox.senders_told();
        self.dirty.mailboxes.insert(user_id);
        self.tell_origins(user_id, told);
        self.forget_if_closed(user_id);
        Ok(Outcome::Done)
    }

    /// Lets go of what has outlived its time: entries in memory that were due then, and the stored ones
    /// that the command names.
    pub(super) fn expire(&mut self, expire: &stored::Expire) -> Outcome {
        while let Some((at_ms, user_id, seq)) = self.expiring.first().copied() {
            if at_ms > expire.until_ms {
                break;
            }
            self.expiring.pop_first();
            let Some(user) = self.users.get_mut(&user_id) else { continue };
            let entry = user.mailbox.expire(seq);
            self.dirty.mailboxes.insert(user_id);
            let origin = entry.and_then(|entry| super::mailbox::origin_of(&entry.envelope));
            let origin = origin.map(|origin| (origin, ReceiptKind::Expired));
            self.tell_origins(user_id, origin);
        }
        for entry in &expire.entries {
            let (user_id, Some(origin)) = (UserId(entry.user), &entry.origin) else { continue };
            let Some(user) = self.users.get_mut(&user_id) else { continue };
            if user.mailbox.expire_stored(Seq(origin.seq), Counted::named(origin)) {
                self.dirty.mailboxes.insert(user_id);
                let origin = named_origin(origin).map(|origin| (origin, ReceiptKind::Expired));
                self.tell_origins(user_id, origin);
            }
        }
        Outcome::Done
    }

    pub(super) fn account_changed(&mut self, user: UserId) {
        self.dirty.accounts.insert(user);
        let account = self.account(user).map(|account| account.view(user));
        self.effects.push(Effect::AccountChanged { user, account });
    }

    /// A deleted account's last row goes when nothing is owed for it any longer.
    pub(super) fn forget_if_closed(&mut self, user_id: UserId) {
        let closed = self
            .users
            .get(&user_id)
            .is_some_and(|user| user.account.closing && user.mailbox.origins_owed().is_none());
        if closed && let Some(user) = self.users.remove(&user_id) {
            self.dirty.accounts.insert(user_id);
            self.dirty.mailboxes.insert(user_id);
            let senders = user.mailbox.recent_senders();
            self.dirty.recent.extend(senders.map(|(from, device)| (user_id, from, device)));
        }
    }
}
