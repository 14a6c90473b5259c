//! What the application's handles and the client's task both touch, under one lock.
//!
//! The lock is held for short pure steps and for [`Store::record`], never across an await.

use crate::{
    client::{Accepted, Outgoing},
    error::{Refusal, SendError},
    inbox::Inbox,
    outbox::{self, Outbox, Refused},
    store::{Change, Saved, SendIds, Store, Unsent},
};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use proto::{Code, SendId, Seq, UserId, limits};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};
use tracing::warn;

/// How a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No connection; one is being tried or waited for.
    Connecting,
    /// Logged in.
    Online,
    /// Over for good.
    Ended(Code),
    /// Closed by the application.
    Closed,
}

pub(crate) type Answer = oneshot::Sender<Result<Accepted, SendError>>;

#[derive(Debug)]
pub(crate) struct Shared {
    desk: Mutex<Desk>,
    outbox_max: usize,
    pub(crate) changed: Notify,
    pub(crate) status: watch::Sender<Status>,
}

/// The state under the lock.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) outbox: Outbox<Answer>,
    pub(crate) inbox: Inbox,
    /// `host:port` of the node that serves this client; `None` without a session.
    pub(crate) node: Option<String>,
    ids: SendIds,
    store: Box<dyn Store>,
    ticket: Bytes,
}

impl Shared {
    pub(crate) fn new(saved: Saved, store: Box<dyn Store>, outbox_max: usize) -> Self {
        let mut outbox = Outbox::new(limits::UNANSWERED_MAX);
        let ids = SendIds::after(&saved);
        for (id, send) in saved.unsent {
            if let Some(to) = Outgoing::recipient_of(&send) {
                outbox.push(id, to, send, None);
            }
        }
        let inbox = Inbox::new(saved.acknowledged);
        let desk = Desk { outbox, inbox, node: None, ids, store, ticket: saved.ticket };
        let (status, _) = watch::channel(Status::Connecting);
        Self { desk: Mutex::new(desk), outbox_max, changed: Notify::new(), status }
    }

    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }

    /// Gives `outgoing` an id, keeps it, and queues it.
    pub(crate) fn queue(&self, outgoing: Outgoing, answer: Answer) -> Result<SendId, SendError> {
        match *self.status.borrow() {
            Status::Ended(code) => return Err(SendError::Ended(code)),
            Status::Closed => return Err(SendError::Closed),
            Status::Connecting | Status::Online => {}
        }
        let (to, send) = outgoing.into_wire()?;
        let mut desk = self.desk();
        let waiting = desk.outbox.len();
        if waiting >= self.outbox_max {
            return Err(SendError::QueueFull { waiting });
        }
        let (id, reserve) = desk.ids.peek();
        let queued = Change::Queued(Unsent { id, send: send.clone() });
        let changes: Vec<Change> = reserve.into_iter().chain([queued]).collect();
        desk.store.record(&changes)?;
        desk.ids.advance();
        desk.outbox.push(id.0, to, send, Some(answer));
        drop(desk);
        self.changed.notify_one();
        Ok(id)
    }

    pub(crate) fn acknowledge(&self, seq: Seq) {
        let mut desk = self.desk();
        if desk.inbox.acknowledge(seq) {
            desk.record(&[Change::Acknowledged(seq)]);
            drop(desk);
            self.changed.notify_one();
        }
    }

    pub(crate) fn ended(&self) -> Option<Code> {
        match *self.status.borrow() {
            Status::Ended(code) => Some(code),
            Status::Connecting | Status::Online | Status::Closed => None,
        }
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.status.send_replace(status);
    }

    /// The session is over: whoever waits for a send is told, the sends stay in the store.
    pub(crate) fn finish(&self, status: Status) {
        self.set_status(status);
        let mut desk = self.desk();
        desk.node = None;
        let exact = desk.ids.exact();
        desk.record(&[exact]);
        for (id, answer) in desk.outbox.abandon() {
            let error = match status {
                Status::Ended(code) => SendError::Ended(code),
                Status::Connecting | Status::Online | Status::Closed => SendError::Closed,
            };
            if answer.send(Err(error)).is_err() {
                tracing::trace!(send_id = id, "nobody waits for this send");
            }
        }
    }
}

impl Desk {
    /// For changes that may be lost: the client goes on, with the older state after a restart.
    fn record(&mut self, changes: &[Change]) {
        if let Err(error) = self.store.record(changes) {
            warn!(%error, "state not kept");
        }
    }

    pub(crate) fn ticket(&self) -> Bytes {
        self.ticket.clone()
    }

    pub(crate) fn set_ticket(&mut self, ticket: Bytes) {
        self.record(&[Change::Ticket(ticket.clone())]);
        self.ticket = ticket;
    }

    /// The mailbox never held what this device has: everything after `base` is new to it.
    pub(crate) fn begin_anew(&mut self, base: Seq) {
        self.inbox = Inbox::new(base);
        self.record(&[Change::Acknowledged(base)]);
    }

    pub(crate) fn connected(&mut self, base: Seq) {
        let before = self.inbox.acknowledged();
        self.inbox.connected(base);
        if self.inbox.acknowledged() > before {
            let change = Change::Acknowledged(self.inbox.acknowledged());
            self.record(&[change]);
        }
    }

    pub(crate) fn disconnected(&mut self) {
        self.node = None;
        self.outbox.disconnected();
    }

    pub(crate) fn accepted(&mut self, id: u64, user: UserId) -> outbox::Accepted<Answer> {
        let outcome = self.outbox.accepted(id, user);
        if matches!(outcome, outbox::Accepted::Settled { .. }) {
            self.record(&[Change::Answered(SendId(id))]);
        }
        outcome
    }

    pub(crate) fn refused(
        &mut self,
        id: u64,
        refusal: &Refusal,
        now: Instant,
        chance: f64,
    ) -> Refused<Answer> {
        let outcome = self.outbox.refused(id, refusal, now, chance);
        if matches!(outcome, Refused::GivenUp { .. }) {
            self.record(&[Change::Answered(SendId(id))]);
        }
        outcome
    }
}
