//! Everything a client can ask besides sending.

use crate::{
    client::{Client, Command, Recipient},
    error::RequestError,
};
use bytes::Bytes;
use proto::{
    Code, DeviceId, SendId, UserId, limits,
    wire::{self, client_frame::Kind, server_frame},
};
use tokio::{sync::oneshot, time::timeout};

/// The kind of a signal: the person is typing.
pub const SIGNAL_TYPING: u32 = 1;

/// The kind of a signal: the person stopped typing.
pub const SIGNAL_STOPPED: u32 = 2;

/// Ids of requests that are no sends begin here, far above send ids, and stay exact in JavaScript.
pub(crate) const REQUEST_IDS: u64 = 1 << 52;

/// One linked device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its Ed25519 public key.
    pub key: Bytes,
    /// Its name; empty for other people's devices.
    pub name: String,
    /// When it was linked, Unix time in ms; 0 if not told.
    pub linked_at_ms: u64,
    /// The mailbox does not wait for it: it was away for too long, or far behind. Only told of one's
    /// own devices.
    pub set_aside: bool,
}

/// A user and their devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOwner {
    /// The user.
    pub user: UserId,
    /// Their devices.
    pub devices: Vec<Device>,
}

/// Who is shown something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody but blocked users.
    Everybody,
    /// The users of [`Client::add_contact`], but for blocked ones.
    Contacts,
    /// Nobody.
    Nobody,
}

/// Who is shown what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privacy {
    /// When this user was last there. Default: contacts.
    pub last_seen: Audience,
    /// Whether this user is there. Default: contacts.
    pub online: Audience,
    /// That this user has read something. Default: everybody.
    pub read_receipts: Audience,
}

impl Default for Privacy {
    fn default() -> Self {
        use Audience::{Contacts, Everybody};
        Self { last_seen: Contacts, online: Contacts, read_receipts: Everybody }
    }
}

impl Audience {
    fn to_wire(self) -> i32 {
        match self {
            Self::Everybody => wire::Audience::Everybody,
            Self::Contacts => wire::Audience::Contacts,
            Self::Nobody => wire::Audience::Nobody,
        }
        .into()
    }

    /// An audience of a later version is taken for the narrowest.
    fn from_wire(number: i32, default: Self) -> Self {
        match wire::Audience::try_from(number) {
            Ok(wire::Audience::Unspecified) => default,
            Ok(wire::Audience::Everybody) => Self::Everybody,
            Ok(wire::Audience::Contacts) => Self::Contacts,
            Ok(wire::Audience::Nobody) | Err(_) => Self::Nobody,
        }
    }
}

impl Privacy {
    fn from_wire(privacy: wire::Privacy) -> Self {
        let default = Self::default();
        Self {
            last_seen: Audience::from_wire(privacy.last_seen, default.last_seen),
            online: Audience::from_wire(privacy.online, default.online),
            read_receipts: Audience::from_wire(privacy.read_receipts, default.read_receipts),
        }
    }
}

/// One's own account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub user: UserId,
    /// Names under which the user is found.
    pub aliases: Vec<String>,
    /// Linked devices.
    pub devices: Vec<Device>,
    /// Blocked users.
    pub blocked: Vec<UserId>,
    /// Users this user knows.
    pub contacts: Vec<UserId>,
    /// Who is shown what.
    pub privacy: Privacy,
    /// Whether there is a registration lock.
    pub registration_lock: bool,
}

/// Every call waits for [`crate::ClientOptions::request_timeout`] at most and, where its doc does
/// not say otherwise, is repeated by itself after a reconnect.
impl Client {
    /// Tells the sender that messages were read, and one's other devices too.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn mark_read(
        &self,
        from: UserId,
        from_device: DeviceId,
        send_ids: &[SendId],
    ) -> Result<(), RequestError> {
        for part in send_ids.chunks(limits::READ_IDS_MAX) {
            let send_ids = part.iter().map(|id| id.0).collect();
            let read = wire::MarkRead { from: from.0, from_device: from_device.0, send_ids };
            self.done(Kind::MarkRead(read), true).await?;
        }
        Ok(())
    }

    /// Sends what is not stored; lost without a connection. At most 1 KiB of body.
    pub fn signal(&self, to: UserId, kind: u32, body: impl Into<Bytes>) {
        let body = body.into();
        if body.len() <= limits::SIGNAL_BYTES_MAX {
            let signal = wire::Signal { to: to.0, kind, body };
            // A full queue sheds signals first.
            drop(self.commands.try_send(Command::Cast(Kind::Signal(signal))));
        }
    }

    /// Tells `to` that the person is typing, or has stopped.
    pub fn typing(&self, to: UserId, typing: bool) {
        let kind = if typing { SIGNAL_TYPING } else { SIGNAL_STOPPED };
        self.signal(to, kind, Bytes::new());
    }

    /// Who an alias belongs to, and with which devices.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `UnknownUser` if there is nobody.
    pub async fn lookup(&self, who: impl Into<Recipient>) -> Result<DeviceOwner, RequestError> {
        let who = match who.into() {
            Recipient::User(user) => wire::lookup::Who::User(user.0),
            Recipient::Alias(alias) => wire::lookup::Who::Alias(alias.as_str().to_owned()),
        };
        let answer = self.request(Kind::Lookup(wire::Lookup { who: Some(who) }), true).await?;
        let server_frame::Kind::Found(found) = answer else {
            return Err(RequestError::Unexpected);
        };
        let devices = found.devices.into_iter().map(device).collect();
        Ok(DeviceOwner { user: UserId(found.user), devices })
    }

    /// Takes no more messages from `user`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn block(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::Block(wire::Block { user: user.0, unblock: false }), true).await
    }

    /// Takes messages from `user` again.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn unblock(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::Block(wire::Block { user: user.0, unblock: true }), true).await
    }

    /// Adds `user` to the contacts, who by default are shown whether this user is there, and when
    /// this user was last there. At most 2,000.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn add_contact(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::SetContact(wire::SetContact { user: user.0, remove: false }), true).await
    }

    /// Takes `user` out of the contacts.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn remove_contact(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::SetContact(wire::SetContact { user: user.0, remove: true }), true).await
    }

    /// Sets who is shown what.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn set_privacy(&self, privacy: Privacy) -> Result<(), RequestError> {
        let privacy = wire::Privacy {
            last_seen: privacy.last_seen.to_wire(),
            online: privacy.online.to_wire(),
            read_receipts: privacy.read_receipts.to_wire(),
        };
        self.done(Kind::SetPrivacy(wire::SetPrivacy { privacy: Some(privacy) }), true).await
    }

    /// Asks for [`crate::Event::Presence`] of `user`, from now on and after every reconnect.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn subscribe(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::Subscribe(wire::Subscribe { user: user.0, unsubscribe: false }), true).await
    }

    /// Asks for no more [`crate::Event::Presence`] of `user`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn unsubscribe(&self, user: UserId) -> Result<(), RequestError> {
        self.done(Kind::Subscribe(wire::Subscribe { user: user.0, unsubscribe: true }), true).await
    }

    /// Whether the person is there, from now on and after every reconnect; until then
    /// [`crate::ClientOptions::away`] says.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn set_presence(&self, away: bool) -> Result<(), RequestError> {
        self.done(Kind::SetPresence(wire::SetPresence { away }), true).await
    }

    /// Admits a new device by its public key (32 bytes). Give the result to that device: with its
    /// key it is an [`crate::Identity`].
    ///
    /// # Errors
    /// [`RequestError::BadArgument`] for a key of another length.
    pub async fn link_device(
        &self,
        device_key: &[u8],
        name: &str,
    ) -> Result<(UserId, DeviceId), RequestError> {
        if device_key.len() != 32 {
            return Err(RequestError::BadArgument("a device key has 32 bytes"));
        }
        let device_key = Bytes::copy_from_slice(device_key);
        let link = wire::LinkDevice { device_key, device_name: name.to_owned() };
        let answer = self.request(Kind::LinkDevice(link), true).await?;
        let server_frame::Kind::Linked(who) = answer else {
            return Err(RequestError::Unexpected);
        };
        Ok((UserId(who.user), DeviceId(who.device)))
    }

    /// Removes a device; its session ends.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn unlink_device(&self, device: DeviceId) -> Result<(), RequestError> {
        self.done(Kind::UnlinkDevice(wire::UnlinkDevice { device: device.0 }), true).await
    }

    /// One's own account.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn account(&self) -> Result<Account, RequestError> {
        let answer = self.request(Kind::GetAccount(wire::GetAccount {}), true).await?;
        let server_frame::Kind::Account(account) = answer else {
            return Err(RequestError::Unexpected);
        };
        let privacy = account.privacy.unwrap_or_default();
        Ok(Account {
            user: UserId(account.user),
            aliases: account.aliases,
            devices: account.devices.into_iter().map(device).collect(),
            blocked: account.blocked.into_iter().map(UserId).collect(),
            contacts: account.contacts.into_iter().map(UserId).collect(),
            privacy: Privacy::from_wire(privacy),
            registration_lock: account.registration_lock,
        })
    }

    /// Sets the registration lock, a second PIN of 4 to 64 bytes without which nobody takes this
    /// account's aliases over while a device of it comes; empty removes it. `current` is the one there
    /// is, if there is one.
    ///
    /// # Errors
    /// [`RequestError`]; `WrongLock` if `current` is wrong.
    pub async fn set_registration_lock(
        &self,
        lock: &str,
        current: &str,
    ) -> Result<(), RequestError> {
        let (lock, current) = (lock.to_owned(), current.to_owned());
        let set = wire::SetRegistrationLock { lock, current };
        self.done(Kind::SetRegistrationLock(set), true).await
    }

    /// Ends the session, forgets the ticket, and closes this client. The device stays linked. Not
    /// repeated after a reconnect.
    ///
    /// # Errors
    /// [`RequestError`]; the client runs on.
    pub async fn logout(&self) -> Result<(), RequestError> {
        self.done(Kind::Logout(wire::Logout {}), false).await?;
        self.shared.desk().set_ticket(Bytes::new());
        self.close().await;
        Ok(())
    }

    /// Deletes the account with everything in it, and closes this client. If the answer is lost, the end of
    /// the session is one.
    ///
    /// # Errors
    /// [`RequestError`]; the client runs on.
    pub async fn delete_account(&self) -> Result<(), RequestError> {
        match self.done(Kind::DeleteAccount(wire::DeleteAccount {}), true).await {
            Ok(()) | Err(RequestError::Ended(Code::Unlinked | Code::BadCredentials)) => {}
            Err(error) => return Err(error),
        }
        self.close().await;
        Ok(())
    }

    async fn done(&self, kind: Kind, repeat: bool) -> Result<(), RequestError> {
        let answer = self.request(kind, repeat).await?;
        let server_frame::Kind::Done(_) = answer else { return Err(RequestError::Unexpected) };
        Ok(())
    }

    async fn request(&self, kind: Kind, repeat: bool) -> Result<server_frame::Kind, RequestError> {
        let gone = || self.shared.ended().map_or(RequestError::Closed, RequestError::Ended);
        let (reply, answer) = oneshot::channel();
        let ask = async {
            let command = Command::Request { kind, repeat, reply };
            self.commands.send(command).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let wait = self.request_timeout;
        timeout(wait, ask).await.unwrap_or(Err(RequestError::TimedOut(wait)))
    }
}

fn device(device: wire::Device) -> Device {
    Device {
        id: DeviceId(device.device),
        key: device.key,
        name: device.name,
        linked_at_ms: device.linked_at_ms,
        set_aside: device.set_aside,
    }
}
