//! Who has an alias: claims, takeovers, and what becomes of the account that loses its last one.
//!
//! An alias and its user may live in two shards. Each claim has a number of its own, and what one shard
//! tells the other names it, so news of an old claim changes nothing of a new one.
//!
//! ```text
//!   alias's shard                          owner's shard            new user's shard
//!     ProvePin: owner and claim              |                        |
//!     |         KeepAccount: key or lock? -->|  yes: the account stays |
//!     |                                      |  no, or no account:     |
//!     ClaimAlias, if the owner is the same   |                        |
//!     | -- LoseAlias (notice) -------------->|  the last one: closed   |
//!     | -- OpenAccount (notice) ---------------------------------------->  account, device 1
//! ```
//!
//! `ClaimAlias` changes the owner and owes both notices in one step, and a stream of notices is taken
//! in its order. So an alias has one owner, and an account that lost its alias is not opened later.

use super::account::{Account, Unlocked};
use super::command::{Effect, Outcome};
use super::machine::{Machine, User};
use proto::stored::{self, AliasClaim, AliasOwner, notice::What};
use proto::{Alias, Code, DeviceId, UserId};
use storage::Row;

impl Machine {
    /// A registration by a device of the account, or with its lock: the account stays, and all other
    /// devices are unlinked.
    ///
    /// Refused with [`Code::WrongLock`]; with [`Code::TooFast`] and a wait after too many wrong locks.
    ///
    /// # Errors
    /// [`Code::UnknownUser`], [`Code::TooMany`].
    pub(super) fn keep_account(&mut self, keep: stored::KeepAccount) -> Result<Outcome, Code> {
        let (user_id, now_ms) = (UserId(keep.user), self.now_ms);
        let claim = keep.alias.unwrap_or_default();
        let user = self.users.get_mut(&user_id).filter(|user| !user.account.closing);
        let user = user.ok_or(Code::UnknownUser)?;
        if !user.account.holds(&claim) {
            return Ok(Outcome::NotTheirs);
        }
        let kept = user.account.device_with_key(&keep.key);
        if kept.is_none() {
            self.dirty.accounts.insert(user_id);
            match user.account.unlock(&keep.lock, keep.place, now_ms) {
                Ok(Unlocked::Opened) => {}
                Ok(Unlocked::NoLock) => return Ok(Outcome::NotTheirs),
                Err(locked) => return Ok(locked.outcome()),
            }
        }
        let others: Vec<DeviceId> =
            user.account.devices().keys().copied().filter(|id| Some(*id) != kept).collect();
        for other in &others {
            user.account.unlink(*other);
        }
        let id = if let Some(id) = kept {
            id
        } else {
            let (key, name) = (keep.key, keep.name);
            let device = stored::Device { key, name, linked_at_ms: now_ms, ..Default::default() };
            let id = user.account.admit(device)?;
            user.mailbox.admit(id, true, now_ms);
            id
        };
        user.account.note_active(now_ms);
        self.forget_devices(user_id, others);
        self.account_changed(user_id);
        Ok(Outcome::Admitted(id))
    }

    /// Gives an alias to a new user, if its owner is the one that the proof met or nobody.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if somebody else has claimed it meanwhile: prove again. [`Code::NoPin`] if
    /// the proof is not known, or was used.
    pub(super) fn claim_alias(&mut self, claim: stored::ClaimAlias) -> Result<Outcome, Code> {
        let alias = Alias::parse(&claim.alias).map_err(|_| Code::BadRequest)?;
        let to = claim.to.ok_or(Code::BadRequest)?;
        let before = self.aliases.get(&alias).copied();
        if before == Some(to) {
            return Ok(Outcome::Done);
        }
        if before.is_some() && before != claim.from {
            return Err(Code::Unavailable);
        }
        let proofs = self.pins.get_mut(&alias).map(|pins| &mut pins.proofs);
        let proof = proofs.into_iter().flatten().find(|p| (p.user, p.claim) == (to.user, to.claim));
        let proof = proof.filter(|proof| !proof.claimed).ok_or(Code::NoPin)?;
        proof.claimed = true;
        self.dirty.pins.insert(alias.clone());
        self.dirty.aliases.insert(alias.clone());
        self.aliases.insert(alias.clone(), to);
        let named = |claim| AliasClaim { alias: alias.as_str().to_owned(), claim };
        if let Some(before) = before {
            self.inform(UserId(before.user), What::LoseAlias(named(before.claim)));
        }
        let (alias, key, name) = (Some(named(to.claim)), claim.key, claim.name);
        let open = stored::OpenAccount { alias, key, name };
        self.inform(UserId(to.user), What::OpenAccount(open));
        Ok(Outcome::Done)
    }

    /// Makes the account of a user who has claimed an alias.
    pub(super) fn open_account(&mut self, user_id: UserId, open: stored::OpenAccount) {
        let (now_ms, claim) = (self.now_ms, open.alias.unwrap_or_default());
        if self.users.contains_key(&user_id) {
            return; // A random id that is taken: its owner keeps it.
        }
        let mut user = Box::new(User { account: Account::new(now_ms), ..User::default() });
        let device = stored::Device {
            key: open.key,
            name: open.name,
            linked_at_ms: now_ms,
            ..Default::default()
        };
        let Ok(id) = user.account.admit(device) else { return };
        user.account.claim(&claim);
        user.mailbox.admit(id, true, now_ms);
        self.users.insert(user_id, user);
        self.dirty.mailboxes.insert(user_id);
        self.account_changed(user_id);
    }

    /// Somebody else has claimed an alias of this user. Without any the account ends.
    pub(super) fn lose_alias(&mut self, user_id: UserId, claim: &AliasClaim) {
        let Some(user) = self.users.get_mut(&user_id) else { return };
        if user.account.closing || !user.account.lose(claim) {
            return;
        }
        if user.account.aliases.is_empty() {
            self.close(user_id);
        } else {
            self.account_changed(user_id);
        }
    }

    /// A user has given an alias up.
    pub(super) fn free_alias(&mut self, user: UserId, claim: &AliasClaim) {
        let Ok(alias) = Alias::parse(&claim.alias) else { return };
        let theirs = AliasOwner { user: user.0, claim: claim.claim };
        if self.aliases.get(&alias) == Some(&theirs) {
            self.aliases.remove(&alias);
            self.dirty.aliases.insert(alias);
        }
    }

    pub(super) fn delete_account(
        &mut self,
        delete: stored::DeleteAccount,
    ) -> Result<Outcome, Code> {
        self.check_asker(delete.user, delete.by_device)?;
        self.close(UserId(delete.user));
        Ok(Outcome::Done)
    }

    /// Ends an account: devices and aliases go, and who sent what it held is told.
    fn close(&mut self, user_id: UserId) {
        let Some(user) = self.users.get_mut(&user_id) else { return };
        user.account.closing = true;
        let claims = user.account.claims();
        user.account.aliases.clear();
        let devices = std::mem::take(user.account.devices_mut());
        let everything = user.mailbox.last();
        let released = user.mailbox.release_to(everything);
        let gone = devices.keys().map(|device| Row::Device(user_id, *device, None));
        self.dirty.gone.extend(gone);
        self.dirty.accounts.insert(user_id);
        self.dirty.mailboxes.insert(user_id);
        for claim in claims {
            let Ok(alias) = Alias::parse(&claim.alias) else { continue };
            if alias.shard() == self.shard {
                self.free_alias(user_id, &claim);
            } else {
                self.streams.owe(alias.shard(), user_id, What::FreeAlias(claim));
            }
        }
        self.let_go(user_id, &released);
        self.effects.push(Effect::AccountChanged { user: user_id, account: None });
        self.forget_if_closed(user_id);
    }

    /// Tells a user's shard of a claim.
    fn inform(&mut self, user: UserId, what: What) {
        if user.shard() == self.shard {
            self.take_claim(user, what);
        } else {
            self.streams.owe(user.shard(), user, what);
        }
    }

    /// Takes what another shard says of a claim.
    pub(super) fn take_claim(&mut self, user: UserId, what: What) {
        match what {
            What::FreeAlias(claim) => self.free_alias(user, &claim),
            What::LoseAlias(claim) => self.lose_alias(user, &claim),
            What::OpenAccount(open) => self.open_account(user, open),
            What::Envelope(_) => {}
        }
    }
}
