//! The Rust client of a natter cluster: registers, stays logged in, sends, receives.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use natter_sdk::{Client, ClientOptions, Event, FileStore, Tls};
//!
//! let options = ClientOptions::tls("chat.example.org:7400", Tls::from_ca_file("ca.pem")?);
//! let store = FileStore::open("/var/lib/bot")?;
//! let identity = store.identity()?.ok_or("register first")?;
//! let (client, mut events) = Client::login(options, identity, store)?;
//! while let Some(event) = events.next().await {
//!     if let Event::Message(message) = &event {
//!         client.send(message.from, message.body.clone())?;
//!     }
//!     event.ack();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//! 1. A send id is never used twice, not even after a crash: ids are reserved in the [`Store`]
//!    before they are used.
//! 2. A send is retried with its id until the node answers it; sends to one conversation are put
//!    on a connection in the order in which they were made.
//! 3. An entry of the mailbox is shown once by one running client, in order; a hole ends the
//!    connection, and the entry comes on the next one.
//! 4. An entry is acknowledged only after the application said so.
//! 5. Every queue has a limit; an application that takes no events slows its own socket.
//!
//! This crate knows the protocol crate and nothing of the server.

mod addresses;
mod backoff;
mod client;
mod driver;
mod error;
mod event;
mod inbox;
mod key;
mod link;
mod login;
mod options;
mod outbox;
mod register;
mod requests;
mod session;
mod shared;
mod store;
mod transport;
mod words;

pub use bytes::Bytes;
pub use client::{Accepted, Client, Outgoing, Recipient, SendHandle};
pub use error::{ConnectError, KeyError, Refusal, RequestError, SendError, StoreError};
pub use event::{
    Ack, DeviceNotice, DeviceNoticeKind, DisconnectReason, Event, Events, LinkRequest, Message,
    Presence, ReadCopy, Receipt, ReceiptKind, SentCopy, Signal,
};
pub use key::{DeviceKey, Identity};
pub use link::{LinkCode, NoLinkCode, request_link};
pub use options::{ClientOptions, Tls, Transport};
pub use proto::limits::{LOCK_BYTES_MAX, LOCK_BYTES_MIN};
pub use proto::{Alias, AliasError, Code, DeviceId, Fault, Retry, SendId, Seq, UserId};
pub use register::{PinSent, Proof, register_prove, register_start};
pub use requests::{
    Account, Audience, Device, DeviceOwner, Privacy, SIGNAL_STOPPED, SIGNAL_TYPING,
};
pub use shared::Status;
pub use store::{Change, FileStore, MemoryStore, Saved, Store, Unsent};
pub use words::{explain, remedy};
