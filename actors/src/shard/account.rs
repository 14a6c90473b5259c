//! A user as their shard knows them: names, devices, contacts, blocks and privacy.

use super::few::FewMap;
use super::lock::{Lock, Locked};
use super::privacy::Privacy;
use proto::limits::{BLOCKS_MAX, CONTACTS_MAX, DEVICES_MAX};
use proto::{Alias, Code, DeviceId, UserId, stored, wire};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A day, in ms.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// For so long after a device was last there nobody takes a locked account's alias without the lock,
/// in ms: 7 days. A number that was given to somebody else is free after it.
const LOCK_HOLDS_MS: u64 = 7 * DAY_MS;

/// Unlinked devices that are remembered, so that they hear of it. More are rare: a user has 8 at once.
const UNLINKED_MAX: usize = 8;

/// How exactly it is known when a device was last there, in ms: an hour.
const ACTIVE_STEP_MS: u64 = 3_600_000;

/// One user's account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Each with the number of its claim.
    pub(super) aliases: FewMap<Alias, u64>,
    /// Devices and contacts are shared with views, for those are many and change seldom.
    devices: Arc<FewMap<DeviceId, stored::Device>>,
    pub(super) blocked: BTreeSet<UserId>,
    pub(super) contacts: Arc<BTreeSet<UserId>>,
    pub(super) privacy: Privacy,
    last_device: DeviceId,
    created_ms: u64,
    /// Deleted; its rows go when the senders of what it held have been told.
    pub(super) closing: bool,
    /// The devices that were unlinked last, oldest first.
    unlinked: Vec<stored::UnlinkedDevice>,
    pub(super) lock: Lock,
    active_ms: u64,
}

/// What became of an attempt to open an account's registration lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// The lock was right.
    Opened,
    /// There is none, or no device has come for so long that it does not count.
    NoLock,
}

/// A copy of an account for those who read it: user actors and logins.
#[derive(Clone, Debug)]
pub struct AccountView {
    /// Whose it is.
    pub user: UserId,
    /// The names it is found under.
    pub aliases: Vec<Alias>,
    /// Linked devices.
    pub devices: Arc<FewMap<DeviceId, stored::Device>>,
    /// Users it takes nothing from.
    pub blocked: BTreeSet<UserId>,
    /// Users it knows.
    pub contacts: Arc<BTreeSet<UserId>>,
    /// Who is shown what.
    pub privacy: Privacy,
    /// Devices that were unlinked, the last ones.
    pub unlinked: Vec<stored::UnlinkedDevice>,
    /// Whether there is a registration lock.
    pub has_lock: bool,
}

impl Account {
    /// A new account.
    pub fn new(now_ms: u64) -> Self {
        Self { created_ms: now_ms, active_ms: now_ms, ..Self::default() }
    }

    /// A copy to read.
    pub fn view(&self, user: UserId) -> Arc<AccountView> {
        Arc::new(AccountView {
            user,
            aliases: self.aliases.keys().cloned().collect(),
            devices: self.devices.clone(),
            blocked: self.blocked.clone(),
            contacts: self.contacts.clone(),
            privacy: self.privacy,
            unlinked: self.unlinked.clone(),
            has_lock: self.lock.is_set(),
        })
    }

    /// Linked devices.
    pub(super) fn devices(&self) -> &FewMap<DeviceId, stored::Device> {
        &self.devices
    }

    /// Linked devices, to change them.
    pub(super) fn devices_mut(&mut self) -> &mut FewMap<DeviceId, stored::Device> {
        Arc::make_mut(&mut self.devices)
    }

    /// The device that has this key.
    pub fn device_with_key(&self, key: &[u8]) -> Option<DeviceId> {
        self.devices.iter().find(|(_, device)| device.key == key).map(|(id, _)| *id)
    }

    /// Adds a device and returns its id.
    ///
    /// # Errors
    /// [`Code::TooMany`] if the user has as many as allowed.
    pub fn admit(&mut self, device: stored::Device) -> Result<DeviceId, Code> {
        if self.devices.len() >= DEVICES_MAX {
            return Err(Code::TooMany);
        }
        self.last_device = DeviceId(self.last_device.0 + 1);
        let id = self.last_device;
        self.devices_mut().insert(id, device);
        Ok(self.last_device)
    }

    /// Unlinks a device; false if it is not linked.
    pub fn unlink(&mut self, device: DeviceId) -> bool {
        let Some(row) = self.devices_mut().remove(&device) else { return false };
        if self.unlinked.len() >= UNLINKED_MAX {
            self.unlinked.remove(0);
        }
        self.unlinked.push(stored::UnlinkedDevice { device: device.0, key: row.key });
        true
    }

    /// True if a device was ever linked. No number is given twice.
    pub fn was_linked(&self, device: DeviceId) -> bool {
        (1..=self.last_device.0).contains(&device.0)
    }

    /// Notes that a device is there; whether that is worth a row.
    pub fn note_active(&mut self, now_ms: u64) -> bool {
        let news = now_ms >= self.active_ms + ACTIVE_STEP_MS;
        if news {
            self.active_ms = now_ms;
        }
        news
    }

    /// Whether the account has an alias by this claim.
    pub fn holds(&self, claim: &stored::AliasClaim) -> bool {
        Alias::parse(&claim.alias).is_ok_and(|alias| self.aliases.get(&alias) == Some(&claim.claim))
    }

    /// Adds an alias.
    pub fn claim(&mut self, claim: &stored::AliasClaim) {
        if let Ok(alias) = Alias::parse(&claim.alias) {
            self.aliases.insert(alias, claim.claim);
        }
    }

    /// Takes an alias away if it is there by this claim.
    pub fn lose(&mut self, claim: &stored::AliasClaim) -> bool {
        let held = self.holds(claim);
        if held && let Ok(alias) = Alias::parse(&claim.alias) {
            self.aliases.remove(&alias);
        }
        held
    }

    /// All aliases with their claims.
    pub fn claims(&self) -> Vec<stored::AliasClaim> {
        let claim = |(alias, claim): (&Alias, &u64)| stored::AliasClaim {
            alias: alias.as_str().to_owned(),
            claim: *claim,
        };
        self.aliases.iter().map(claim).collect()
    }

    /// Tries to open the registration lock from a place; `lock` is a digest, empty if none came.
    ///
    /// # Errors
    /// [`Locked`].
    pub fn unlock(&mut self, lock: &[u8], place: u64, now_ms: u64) -> Result<Unlocked, Locked> {
        if !self.lock.is_set() {
            return Ok(Unlocked::NoLock);
        }
        if lock.is_empty() {
            let silent = now_ms.saturating_sub(self.active_ms) >= LOCK_HOLDS_MS;
            return if silent { Ok(Unlocked::NoLock) } else { Err(Locked::Wrong) };
        }
        self.lock.open(lock, place, now_ms).map(|()| Unlocked::Opened)
    }

    /// Blocks or unblocks.
    ///
    /// # Errors
    /// [`Code::TooMany`] if the user blocks as many as allowed.
    pub fn set_block(&mut self, other: UserId, blocked: bool) -> Result<(), Code> {
        if !blocked {
            self.blocked.remove(&other);
        } else if self.blocked.len() >= BLOCKS_MAX && !self.blocked.contains(&other) {
            return Err(Code::TooMany);
        } else {
            self.blocked.insert(other);
        }
        Ok(())
    }

    /// Adds a contact or takes one out. Whether that changed anything.
    ///
    /// # Errors
    /// [`Code::TooMany`] if the user has as many as allowed.
    pub fn set_contact(&mut self, other: UserId, contact: bool) -> Result<bool, Code> {
        if self.contacts.contains(&other) == contact {
            return Ok(false);
        }
        if contact && self.contacts.len() >= CONTACTS_MAX {
            return Err(Code::TooMany);
        }
        let contacts = Arc::make_mut(&mut self.contacts);
        if contact {
            contacts.insert(other);
        } else {
            contacts.remove(&other);
        }
        Ok(true)
    }

    /// Whether somebody who writes to this user, `me`, is no contact.
    pub fn is_stranger(&self, me: UserId, from: UserId) -> bool {
        from != me && !self.contacts.contains(&from)
    }

    /// Whether `other` is told that the user has read something.
    pub fn tells_of_reading(&self, other: UserId) -> bool {
        !self.blocked.contains(&other) && self.privacy.read_receipts.admits(other, &self.contacts)
    }

    /// The row of table `accounts`; devices have rows of their own.
    pub fn to_row(&self) -> stored::Account {
        stored::Account {
            aliases: self.claims(),
            blocked: self.blocked.iter().map(|user| user.0).collect(),
            contacts: self.contacts.iter().map(|user| user.0).collect(),
            privacy: Some(self.privacy.to_stored()),
            last_device: self.last_device.0,
            created_ms: self.created_ms,
            closing: self.closing,
            unlinked: self.unlinked.clone(),
            lock: Some(self.lock.to_row()),
            active_ms: self.active_ms,
        }
    }

    /// Reads the row of table `accounts` into an account whose devices may be there already.
    pub fn load_row(&mut self, row: &stored::Account) {
        row.aliases.iter().for_each(|claim| self.claim(claim));
        self.blocked = row.blocked.iter().map(|user| UserId(*user)).collect();
        self.contacts = Arc::new(row.contacts.iter().map(|user| UserId(*user)).collect());
        self.privacy = Privacy::from_stored(row.privacy);
        self.last_device = DeviceId(row.last_device);
        self.created_ms = row.created_ms;
        self.closing = row.closing;
        self.unlinked.clone_from(&row.unlinked);
        self.lock = Lock::from_row(row.lock.as_ref());
        self.active_ms = row.active_ms;
    }
}

impl AccountView {
    /// What the user's own devices are shown.
    pub fn to_wire(&self) -> wire::Account {
        wire::Account {
            user: self.user.0,
            aliases: self.aliases.iter().map(|alias| alias.as_str().to_owned()).collect(),
            devices: self.wire_devices(true),
            blocked: self.blocked.iter().map(|user| user.0).collect(),
            privacy: Some(self.privacy.to_wire()),
            contacts: self.contacts.iter().map(|user| user.0).collect(),
            registration_lock: self.has_lock,
        }
    }

    /// What others are shown.
    pub fn to_found(&self) -> wire::Found {
        wire::Found { user: self.user.0, devices: self.wire_devices(false) }
    }

    fn wire_devices(&self, own: bool) -> Vec<wire::Device> {
        let shown = |(id, device): (&DeviceId, &stored::Device)| wire::Device {
            device: id.0,
            key: device.key.clone(),
            name: if own { device.name.clone() } else { String::new() },
            linked_at_ms: if own { device.linked_at_ms } else { 0 },
            set_aside: own && device.set_aside_ms != 0,
        };
        self.devices.iter().map(shown).collect()
    }
}
