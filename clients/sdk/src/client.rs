//! The application's handle: log in, send, close.

use crate::{
    driver::Driver,
    error::{RequestError, SendError, StoreError},
    event::Events,
    key::Identity,
    options::ClientOptions,
    shared::{Shared, Status},
    store::Store,
};
use bytes::Bytes;
use proto::{Alias, Code, SendId, UserId, limits, wire};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for the client's task.
const COMMANDS_MAX: usize = 64;

/// Who a message is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// A user.
    User(UserId),
    /// Whoever the alias belongs to; [`Accepted::user`] tells.
    Alias(Alias),
}

impl From<UserId> for Recipient {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

impl From<Alias> for Recipient {
    fn from(alias: Alias) -> Self {
        Self::Alias(alias)
    }
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    to: Recipient,
    body: Bytes,
    ttl: Option<Duration>,
}

impl Outgoing {
    /// The body goes to every device of the recipient, and to the sender's own others.
    pub fn new(to: impl Into<Recipient>, body: impl Into<Bytes>) -> Self {
        Self { to: to.into(), body: body.into(), ttl: None }
    }

    /// How long the node keeps it for a device that is away: whole seconds, 1 s to 30 days. Without
    /// it, 30 days.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    pub(crate) fn into_wire(self) -> Result<(Recipient, wire::Send), SendError> {
        let bytes = self.body.len();
        let limit = limits::BODY_BYTES_MAX;
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let to = match &self.to {
            Recipient::User(user) => wire::send::To::User(user.0),
            Recipient::Alias(alias) => wire::send::To::Alias(alias.as_str().to_owned()),
        };
        let ttl_s = self.ttl.map_or(0, |ttl| {
            u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).clamp(1, limits::TTL_S_MAX)
        });
        Ok((self.to, wire::Send { to: Some(to), body: self.body, ttl_s }))
    }

    pub(crate) fn recipient_of(send: &wire::Send) -> Option<Recipient> {
        match send.to.as_ref()? {
            wire::send::To::User(user) => Some(Recipient::User(UserId(*user))),
            wire::send::To::Alias(alias) => Alias::parse(alias).ok().map(Recipient::Alias),
        }
    }
}

/// One tick: the message is on disk and will not be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When, Unix time in ms by the node's clock.
    pub at_ms: u64,
    /// Who the alias belongs to; `None` if the send named a user.
    pub user: Option<UserId>,
}

/// A message on its way. Await it for the node's answer, however long that takes (with
/// `tokio::time::timeout` for a limit: the message is sent all the same). Dropping it cancels
/// nothing: the answer then comes as [`crate::Event::Answered`].
#[derive(Debug)]
pub struct SendHandle {
    id: SendId,
    answer: oneshot::Receiver<Result<Accepted, SendError>>,
}

impl SendHandle {
    /// The send id, which receipts will name.
    pub fn id(&self) -> SendId {
        self.id
    }
}

impl Future for SendHandle {
    type Output = Result<Accepted, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        answer.map(|answer| answer.unwrap_or(Err(SendError::Closed)))
    }
}

/// What the handles ask of the client's task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send this and bring back the answer; `repeat` if that is safe on a new connection.
    Request {
        kind: wire::client_frame::Kind,
        repeat: bool,
        reply: oneshot::Sender<Result<wire::server_frame::Kind, RequestError>>,
    },
    /// Send this if there is a connection; there is no answer.
    Cast(wire::client_frame::Kind),
    /// End in order.
    Close { done: oneshot::Sender<()> },
}

/// A logged-in device. Cheap to clone; runs until closed, ended by the node, or all handles and the
/// [`Events`] are dropped.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) request_timeout: Duration,
    identity: Identity,
}

impl Client {
    /// Starts a client: it connects by itself, now and after every loss, and sends what the store
    /// still holds. Returns at once; [`Client::ready`] waits for the first login.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub fn login(
        options: ClientOptions,
        identity: Identity,
        mut store: impl Store,
    ) -> Result<(Self, Events), StoreError> {
        let saved = store.load()?;
        let shared = Arc::new(Shared::new(saved, Box::new(store), options.outbox_max));
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (event_queue, queue) = mpsc::channel(options.events_max.max(1));
        let client = Self {
            shared: shared.clone(),
            commands,
            request_timeout: options.request_timeout,
            identity: identity.clone(),
        };
        let events = Events {
            queue,
            shared: shared.clone(),
            _running: client.clone(),
            auto_ack: options.auto_ack,
            taken: None,
            ended: false,
        };
        let driver = Driver::new(options, identity, shared, command_queue, event_queue);
        #[allow(
            clippy::disallowed_methods,
            reason = "a library has no supervisor: the task ends with its handles, and a panic in \
                      it shows as closed channels"
        )]
        tokio::spawn(driver.run());
        Ok((client, events))
    }

    /// Who is logged in.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How the client stands now.
    pub fn status(&self) -> Status {
        *self.shared.status.borrow()
    }

    /// The address (`host:port`) of the node that serves this client now; `None` while there is
    /// none.
    pub fn node(&self) -> Option<String> {
        self.shared.desk().node.clone()
    }

    /// Waits until the client is logged in.
    ///
    /// # Errors
    /// The code with which the session ended for good; `GoingAway` if the client was closed.
    pub async fn ready(&self) -> Result<(), Code> {
        let mut status = self.shared.status.subscribe();
        loop {
            match *status.borrow_and_update() {
                Status::Online => return Ok(()),
                Status::Ended(code) => return Err(code),
                Status::Closed => return Err(Code::GoingAway),
                Status::Connecting => {}
            }
            if status.changed().await.is_err() {
                return Err(Code::GoingAway);
            }
        }
    }

    /// Queues a message; it is kept in the store and sent until the node answers, across
    /// reconnects and restarts.
    ///
    /// # Errors
    /// [`SendError::QueueFull`], [`SendError::TooLarge`], [`SendError::Store`],
    /// [`SendError::Ended`], [`SendError::Closed`]: nothing was queued. What the node answers comes
    /// from the handle.
    pub fn send(
        &self,
        to: impl Into<Recipient>,
        body: impl Into<Bytes>,
    ) -> Result<SendHandle, SendError> {
        self.post(Outgoing::new(to, body))
    }

    /// Queues a message with all its options.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn post(&self, outgoing: Outgoing) -> Result<SendHandle, SendError> {
        let (sender, answer) = oneshot::channel();
        let id = self.shared.queue(outgoing, sender)?;
        Ok(SendHandle { id, answer })
    }

    /// Messages that wait to be sent or answered.
    pub fn waiting(&self) -> usize {
        self.shared.desk().outbox.len()
    }

    /// Ends in order: acknowledgements are written, the rest stays in the store. The device stays
    /// linked.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_ok() {
            // An error means that the task is gone already, which is what was asked for.
            drop(closed.await);
        }
    }
}
