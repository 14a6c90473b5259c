//! What happens to a user actor, and what it decides to do: the vocabulary of its core.

use super::sends::Sent;
use crate::connection::ConnectionId;
use crate::rates::TooFast;
use crate::shard::{AccountView, Attached, Page};
use crate::unanswered::Standing;
use proto::wire::{self, ClientFrame};
use proto::{Alias, Code, DeviceId, Seq, UserId, stored};
use std::sync::Arc;

/// The moment of a step, and what counts then.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Unix time in ms.
    pub ms: u64,
    /// The longest time to live of a message, in seconds.
    pub message_ttl_max_s: u32,
}

/// A send that has the right form. It goes on if rates and handlers let it.
#[derive(Clone, Debug)]
pub struct Checking {
    /// Where it came.
    pub connection: ConnectionId,
    /// Its device.
    pub device: DeviceId,
    /// Its id.
    pub id: u64,
    /// What is sent.
    pub send: wire::Send,
    /// Its recipient is an alias whose owner must be looked up.
    pub looks_up: bool,
}

/// Why a send does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Its user sends too fast: later sends of the device wait for its retry.
    TooFast(TooFast),
    /// A handler says so.
    ByHandler(Code),
}

/// What happens to a user actor.
#[derive(Clone, Debug)]
pub enum Item {
    /// A device proved who it is.
    Attach {
        /// Its socket.
        connection: ConnectionId,
        /// Which device.
        device: DeviceId,
    },
    /// The shard tells where the device of a connection stands; `None`: it is not linked any longer.
    Attached(ConnectionId, Result<Option<Box<Attached>>, Code>, Standing),
    /// A socket is gone.
    Detach(ConnectionId, DeviceId),
    /// A client says something.
    Frame(ConnectionId, Box<ClientFrame>),
    /// Answers [`Action::CheckSend`].
    SendChecked(Box<Checking>, Result<(), Rejected>),
    /// Answers [`Action::Resolve`].
    Resolved(Alias, Result<UserId, Code>),
    /// A send by alias found that the owner is no user any longer.
    AliasStale(ConnectionId, u64, Box<wire::Send>),
    /// The mailbox has a new entry.
    Push(Seq, Arc<stored::Envelope>),
    /// The mailbox has grown to here.
    GrownTo(Seq),
    /// The shard has a new leader: pushes and news of the account may have been lost.
    ReadAgain,
    /// A device of this user, connected here, has linked another.
    DeviceLinked,
    /// The device is connected elsewhere now.
    Displaced(DeviceId),
    /// Answers [`Action::ReadPage`].
    Page(ConnectionId, Page),
    /// The account is so now; `None`: deleted.
    Account(Option<Arc<AccountView>>),
    /// Some time has passed since something of this connection failed.
    RetryDue(ConnectionId),
    /// The items that waited are through.
    Settle {
        /// Pushes were lost since the last time.
        missed: bool,
    },
}

/// What must be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Ask the shard where a device stands: [`Item::Attached`].
    AskWhere(ConnectionId, DeviceId),
    /// Propose that the mailbox waits for the device again, then ask where it stands.
    Readmit(ConnectionId, DeviceId),
    /// The shard was not reached. Refuse a login; attach a connection that was logged in again, later.
    NotAttached(ConnectionId),
    /// Record the session that a login begins, and answer the login.
    Begin {
        /// Its socket.
        connection: ConnectionId,
        /// What the device is told that it has acknowledged.
        acknowledged: Seq,
        /// Entries up to here count as delivered.
        from: Seq,
        /// It must fetch the history elsewhere.
        resync: bool,
    },
    /// End a connection, with this reason.
    End(ConnectionId, Code),
    /// The device has no session here any longer: record that.
    Gone(DeviceId),
    /// The device has its session elsewhere.
    NotHere(DeviceId),
    /// The device is not linked any longer: remove its session's row.
    RemoveSession(DeviceId),
    /// Take a frame that waited, as if it came now: [`Item::Frame`].
    Frame(ConnectionId, Box<ClientFrame>),
    /// Do what a client asks for, other than sending and acknowledging.
    Request(ConnectionId, DeviceId, Box<ClientFrame>),
    /// Ask rates and handlers about a send: [`Item::SendChecked`], before anything else.
    CheckSend(Box<Checking>),
    /// Refuse a request.
    Refuse(ConnectionId, u64, wire::Refused),
    /// Ask whose alias this is: [`Item::Resolved`].
    Resolve(Alias),
    /// Propose a send to this user's shard; [`Sent::answer`] says what its outcome means.
    Propose(UserId, Box<stored::Append>, Sent),
    /// Propose an acknowledgement, at once if somebody waits to hear of it. If it is refused, later:
    /// [`Item::RetryDue`].
    Acknowledge(ConnectionId, stored::Ack, Awaited),
    /// Read entries of the mailbox: [`Item::Page`].
    ReadPage {
        /// For whom.
        connection: ConnectionId,
        /// Entries after this place.
        after: Seq,
        /// So many at most.
        limit: usize,
        /// So many bytes of bodies, but at least one entry.
        bytes_max: usize,
    },
    /// Something failed: [`Item::RetryDue`], later.
    RetryLater(ConnectionId),
    /// Send an entry to a device.
    Deliver(ConnectionId, Delivered),
    /// Tell a device that it was sent everything up to here.
    CaughtUp(ConnectionId, Seq),
    /// Read the account: [`Item::Account`].
    ReadAccount,
}

/// Whether somebody waits to hear of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Somebody does.
    Yes,
    /// Nobody does: it travels with others.
    No,
}

/// An entry for a device.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Its place.
    pub seq: Seq,
    /// Set if the entry before it, for this device, is not its neighbor.
    pub after: Option<Seq>,
    /// What it is.
    pub envelope: Arc<stored::Envelope>,
}
