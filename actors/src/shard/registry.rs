//! The part of the machine that knows who is who: PINs, aliases, devices, accounts.

use super::account::Account;
use super::command::{Effect, Outcome};
use super::machine::{Machine, User, named_origin};
use super::privacy::Privacy;
use super::usage::Counted;
use proto::stored::{self, notice::What};
use proto::wire::receipt::Kind as ReceiptKind;
use proto::{Alias, Code, DeviceId, Seq, UserId};
use std::collections::BTreeSet;
use storage::Row;

/// Requests for a PIN are counted over this time, in ms.
const HOUR_MS: u64 = 3_600_000;

impl Machine {
    pub(super) fn start_registration(
        &mut self,
        start: stored::StartRegistration,
    ) -> Result<Outcome, Code> {
        let alias = Alias::parse(&start.alias).map_err(|_| Code::BadRequest)?;
        let now_ms = self.now_ms;
        let pin = self.pins.entry(alias.clone()).or_default();
        if now_ms.saturating_sub(pin.since_ms) >= HOUR_MS {
            pin.since_ms = now_ms;
            pin.requests = 0;
        }
        if pin.requests >= start.requests_max {
            return Err(Code::TooFast);
        }
        pin.requests += 1;
        pin.attempts = 0;
        pin.digest = start.digest;
        pin.expires_ms = now_ms + u64::from(start.ttl_s) * 1000;
        self.dirty.pins.insert(alias);
        Ok(Outcome::Done)
    }

    pub(super) fn prove_pin(&mut self, proof: &stored::ProvePin) -> Result<Outcome, Code> {
        let alias = Alias::parse(&proof.alias).map_err(|_| Code::BadRequest)?;
        let pin = self.pins.get_mut(&alias).ok_or(Code::NoPin)?;
        if pin.digest.is_empty() || pin.expires_ms <= self.now_ms {
            return Err(Code::NoPin);
        }
        self.dirty.pins.insert(alias.clone());
        pin.attempts += 1;
        let right = pin.digest == proof.digest;
        if right || pin.attempts >= proof.attempts_max {
            pin.digest.clear();
        }
        if !right {
            return Err(Code::WrongPin);
        }
        let owner = *self.aliases.entry(alias.clone()).or_insert(UserId(proof.user_if_new));
        self.dirty.aliases.insert(alias);
        Ok(Outcome::Proven(owner))
    }

    pub(super) fn admit_device(&mut self, admit: stored::AdmitDevice) -> Result<Outcome, Code> {
        let user_id = UserId(admit.user);
        let now_ms = self.now_ms;
        if admit.registration {
            self.users.entry(user_id).or_insert_with(|| {
                Box::new(User { account: Account::new(now_ms), ..User::default() })
            });
        }
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        if user.account.closing {
            return Err(Code::Unavailable);
        }
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
        let lost: Vec<DeviceId> = if admit.registration {
            user.account.devices.keys().copied().collect()
        } else {
            Vec::new()
        };
        for lost in &lost {
            user.account.devices.remove(lost);
            self.dirty.gone.push(Row::Device(user_id, *lost, None));
        }
        let id = user.account.admit(device)?;
        user.mailbox.admit(id, admit.registration, now_ms);
        for lost in lost {
            user.mailbox.remove(lost);
        }
        if let Ok(alias) = Alias::parse(&admit.alias)
            && admit.registration
            && !user.account.aliases.contains(&alias)
        {
            user.account.aliases.push(alias);
        }
        self.dirty.mailboxes.insert(user_id);
        self.account_changed(user_id);
        Ok(Outcome::Admitted(id))
    }

    pub(super) fn remove_device(&mut self, remove: stored::RemoveDevice) -> Result<Outcome, Code> {
        let (user_id, device) = (UserId(remove.user), DeviceId(remove.device));
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        user.account.devices.remove(&device).ok_or(Code::UnknownDevice)?;
        user.mailbox.remove(device);
        let released = user.mailbox.release();
        self.dirty.gone.push(Row::Device(user_id, device, None));
        self.dirty.mailboxes.insert(user_id);
        self.let_go(user_id, &released);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn delete_account(&mut self, user_id: UserId) -> Result<Outcome, Code> {
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        user.account.closing = true;
        let aliases = std::mem::take(&mut user.account.aliases);
        let devices = std::mem::take(&mut user.account.devices);
        let everything = user.mailbox.last();
        let released = user.mailbox.release_to(everything);
        let gone = devices.into_keys().map(|device| Row::Device(user_id, device, None));
        self.dirty.gone.extend(gone);
        self.dirty.accounts.insert(user_id);
        self.dirty.mailboxes.insert(user_id);
        for alias in aliases {
            if alias.shard() == self.shard {
                self.free_alias(user_id, alias.as_str());
            } else {
                let what = What::FreeAlias(alias.as_str().to_owned());
                self.streams.owe(alias.shard(), user_id, what);
            }
        }
        self.let_go(user_id, &released);
        self.effects.push(Effect::AccountChanged { user: user_id, account: None });
        self.forget_if_closed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn free_alias(&mut self, user: UserId, alias: &str) {
        let Ok(alias) = Alias::parse(alias) else { return };
        if self.aliases.get(&alias) == Some(&user) {
            self.aliases.remove(&alias);
            self.dirty.aliases.insert(alias);
        }
    }

    pub(super) fn set_block(&mut self, block: &stored::SetBlock) -> Result<Outcome, Code> {
        let user_id = UserId(block.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        user.account.set_block(UserId(block.other), block.blocked)?;
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn set_privacy(&mut self, set: &stored::SetPrivacy) -> Result<Outcome, Code> {
        let user_id = UserId(set.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        user.account.privacy = Privacy::from_stored(set.privacy);
        self.account_changed(user_id);
        Ok(Outcome::Done)
    }

    pub(super) fn set_contact(&mut self, set: &stored::SetContact) -> Result<Outcome, Code> {
        let user_id = UserId(set.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
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
            .filter_map(|o| named_origin(o).map(|origin| (origin, self.fate(user_id, Seq(o.seq)))))
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

    /// Lets go of what has outlived its time: entries in memory that are due, and the stored ones
    /// that the command names.
    pub(super) fn expire(&mut self, expire: &stored::Expire) -> Outcome {
        while let Some((at_ms, user_id, seq)) = self.expiring.first().copied() {
            if at_ms > self.now_ms {
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
    fn forget_if_closed(&mut self, user_id: UserId) {
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
