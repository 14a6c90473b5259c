//! A user as their shard knows them: names, devices, contacts, blocks and privacy.

use super::privacy::Privacy;
use proto::limits::{BLOCKS_MAX, CONTACTS_MAX, DEVICES_MAX};
use proto::{Alias, Code, DeviceId, UserId, stored, wire};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One user's account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub(super) aliases: Vec<Alias>,
    pub(super) devices: BTreeMap<DeviceId, stored::Device>,
    pub(super) blocked: BTreeSet<UserId>,
    /// Shared with views, for there may be many and they change seldom.
    pub(super) contacts: Arc<BTreeSet<UserId>>,
    pub(super) privacy: Privacy,
    last_device: DeviceId,
    created_ms: u64,
    /// Deleted; its rows go when the senders of what it held have been told.
    pub(super) closing: bool,
}

/// A copy of an account for those who read it: user actors and logins.
#[derive(Clone, Debug)]
pub struct AccountView {
    /// Whose it is.
    pub user: UserId,
    /// The names it is found under.
    pub aliases: Vec<Alias>,
    /// Linked devices.
    pub devices: BTreeMap<DeviceId, stored::Device>,
    /// Users it takes nothing from.
    pub blocked: BTreeSet<UserId>,
    /// Users it knows.
    pub contacts: Arc<BTreeSet<UserId>>,
    /// Who is shown what.
    pub privacy: Privacy,
}

impl Account {
    /// A new account.
    pub fn new(now_ms: u64) -> Self {
        Self { created_ms: now_ms, ..Self::default() }
    }

    /// A copy to read.
    pub fn view(&self, user: UserId) -> Arc<AccountView> {
        Arc::new(AccountView {
            user,
            aliases: self.aliases.clone(),
            devices: self.devices.clone(),
            blocked: self.blocked.clone(),
            contacts: self.contacts.clone(),
            privacy: self.privacy,
        })
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
        self.devices.insert(self.last_device, device);
        Ok(self.last_device)
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
        self.privacy.read_receipts.admits(other, &self.contacts)
    }

    /// The row of table `accounts`; devices have rows of their own.
    pub fn to_row(&self) -> stored::Account {
        stored::Account {
            aliases: self.aliases.iter().map(|alias| alias.as_str().to_owned()).collect(),
            blocked: self.blocked.iter().map(|user| user.0).collect(),
            contacts: self.contacts.iter().map(|user| user.0).collect(),
            privacy: Some(self.privacy.to_stored()),
            last_device: self.last_device.0,
            created_ms: self.created_ms,
            closing: self.closing,
        }
    }

    /// Reads the row of table `accounts` into an account whose devices may be there already.
    pub fn load_row(&mut self, row: &stored::Account) {
        self.aliases = row.aliases.iter().filter_map(|alias| Alias::parse(alias).ok()).collect();
        self.blocked = row.blocked.iter().map(|user| UserId(*user)).collect();
        self.contacts = Arc::new(row.contacts.iter().map(|user| UserId(*user)).collect());
        self.privacy = Privacy::from_stored(row.privacy);
        self.last_device = DeviceId(row.last_device);
        self.created_ms = row.created_ms;
        self.closing = row.closing;
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
