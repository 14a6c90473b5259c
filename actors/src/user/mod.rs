//! A connected user: one actor for each, on the node where their sockets are.
//!
//! Started by the first device that logs in here, stopped when the last one has gone. It owns the
//! sessions of its devices and a window of deliveries for each. [`UserCore`] decides what happens, the actor
//! carries it out, and so does the simulator.
//!
//! # Invariants
//! 1. Nothing here is durable: a new actor learns all it must know from the connections and shards.
//! 2. A push may be lost, the mailbox is read from the last place sent.
//! 3. What one device sends is proposed in the order in which it came.

mod actor;
mod attach;
mod context;
mod core;
mod directory;
mod items;
mod link;
mod login;
mod opening;
mod register;
mod requests;
mod sends;
mod window;

pub use actor::{UserActor, UserArgs};
pub use context::{Signals, UserContext};
pub use core::UserCore;
pub use directory::Users;
pub use items::{Action, Awaited, Checking, Delivered, Item, Now, Rejected};
pub use link::request_link;
pub use login::{Admission, login, resume};
pub use opening::open_session;
pub use register::{Asked, register_not_sent, register_prove, register_start};
pub use sends::{SendAnswer, Sent};
pub use window::{News, Offer, Weight, Window};

use crate::connection::{Connection, ConnectionId};
use crate::shard::{AccountView, Attached, Page};
use proto::wire::{self, ClientFrame};
use proto::{Alias, Code, DeviceId, Seq, UserId, stored};
use std::sync::Arc;
use supervision::QueueLimits;

/// A user's message queue: beyond `high` pushes become hints and signals are dropped.
const QUEUE: QueueLimits = QueueLimits { high: 512, critical: 4_096 };

/// What a user actor's message queue holds.
#[derive(Debug)]
pub enum UserItem {
    /// A socket tells: this device proved who it is.
    Attach(Box<Attach>),
    /// The shard tells where that device stands; `None`: it is not linked any longer.
    Attached(ConnectionId, Result<Option<Box<Attached>>, Code>),
    /// A socket tells: it is gone, and whose it was.
    Detach(ConnectionId, DeviceId),
    /// A socket tells what its client said.
    Frame(ConnectionId, Box<ClientFrame>),
    /// The shard tells: the mailbox has a new entry.
    Push(Seq, Arc<stored::Envelope>),
    /// The shard tells: the mailbox has grown to here.
    GrownTo(Seq),
    /// The shard has a new leader: pushes and news of the account may have been lost.
    ReadAgain,
    /// The account as it is now; it was asked for.
    AccountRead(Option<Arc<AccountView>>),
    /// A device of this user, connected here, has linked another.
    DeviceLinked,
    /// Some time has passed since the account could not be read.
    AccountNotRead,
    /// The sessions table tells: this device is connected elsewhere now.
    Displaced(DeviceId),
    /// The shard answers a read for one connection.
    Page(ConnectionId, Page),
    /// The shard tells: the account is so now; `None`: deleted.
    Account(Option<Arc<AccountView>>),
    /// The alias of a waiting send belongs to this user, or cannot be resolved.
    Resolved(Alias, Result<UserId, Code>),
    /// A send by alias, made on this connection under this id, found that the owner is no user any
    /// longer: the alias may belong to another by now.
    AliasStale(ConnectionId, u64, Box<wire::Send>),
    /// Some time has passed since something of this connection failed.
    RetryDue(ConnectionId),
    /// Another user's device signals.
    Signal(wire::Signaled),
    /// A device asks to be linked to this user's account.
    LinkRequested(wire::LinkRequested),
    /// Someone this user watches came or went.
    Presence(wire::Presence),
}

/// A device that proved who it is, with what its connection stands for.
#[derive(Debug)]
pub struct Attach {
    /// Which device.
    pub device: DeviceId,
    /// Its socket.
    pub connection: Arc<Connection>,
    /// What it said at login that it has.
    pub acknowledged: Seq,
    /// The login to answer; `None` if it was answered before.
    pub login: Option<Login>,
}

/// A login that waits for its answer.
#[derive(Clone, Debug)]
pub struct Login {
    /// The request.
    pub id: u64,
    /// The number of the ticket that it is given.
    pub ticket: u64,
    /// Only the device comes: its person is not there.
    pub away: bool,
    /// Answer as a registration rather than as a login.
    pub registered: bool,
}
