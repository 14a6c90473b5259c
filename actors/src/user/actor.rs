//! The user process: sessions come and go, entries are delivered, acknowledgements recorded.

use super::directory::Entry;
use super::sends::Sends;
use super::window::{News, Offer, Weight, Window};
use super::{Attach, UserContext, UserItem};
use crate::connection::{Connection, ConnectionId, Ending, is_for};
use crate::shard::{AccountView, Command, Outcome, Page, Query};
use proto::limits::UNANSWERED_MAX;
use proto::stored::envelope::Content;
use proto::wire::{self, ClientFrame, server_frame::Kind};
use proto::{Code, DeviceId, Seq, UserId, stored};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use supervision::{Flow, Inbox, Process, ProcessError, timer};
use tracing::{debug, warn};

/// Crashes over one frame after which it is refused instead of handed on again.
const POISON: u8 = 2;

/// Wait before what failed for want of an answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What a user actor is started with.
#[derive(Clone, Debug)]
pub struct UserArgs {
    pub(super) user: UserId,
    pub(super) context: Arc<UserContext>,
    pub(super) entry: Arc<Entry>,
}

impl UserArgs {
    /// The actor crashed too often: its connections are closed and can come back.
    pub(super) fn give_up(&self) {
        warn!(user = %self.user, "user actor crashed too often, its connections are closed");
        self.context.users.forget(self.user);
        for connection in self.entry.connections().iter() {
            connection.end(Ending::Told(Code::Internal));
        }
    }
}

/// One device, logged in.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) device: DeviceId,
    pub(super) connection: Arc<Connection>,
    pub(super) window: Window,
    pub(super) away: bool,
    pub(super) changed: bool,
}

/// A device whose standing was asked for, with the frames that came meanwhile.
pub(super) struct Attaching {
    pub(super) attach: Box<Attach>,
    /// What is not a request, and so not in the connection's own list.
    pub(super) frames: Vec<ClientFrame>,
    pub(super) missed: bool,
}

/// A connected user.
pub struct UserActor {
    pub(super) user: UserId,
    pub(super) context: Arc<UserContext>,
    pub(super) entry: Arc<Entry>,
    pub(super) inbox: Arc<Inbox<UserItem>>,
    pub(super) account: Option<Arc<AccountView>>,
    pub(super) sessions: Vec<Session>,
    pub(super) attaching: Vec<Attaching>,
    pub(super) sends: Sends,
}

impl std::fmt::Debug for UserActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserActor").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Process for UserActor {
    type Item = UserItem;
    type Args = UserArgs;

    async fn start(args: UserArgs, inbox: Arc<Inbox<UserItem>>) -> Result<Self, ProcessError> {
        let UserArgs { user, context, entry } = args;
        let tag = entry.in_hand.swap(0, Ordering::AcqRel);
        if tag != 0 {
            let mut poison = entry.poison.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *poison.entry(tag).or_default() += 1;
        }
        if entry.started.swap(true, Ordering::AcqRel) {
            context.metrics.user_restarts.increment(1);
            entry.connections().iter().for_each(|connection| connection.request_attach());
        }
        Ok(Self {
            user,
            context,
            entry,
            inbox,
            account: None,
            sessions: Vec::new(),
            attaching: Vec::new(),
            sends: Sends::default(),
        })
    }

    fn handle(&mut self, item: UserItem) -> Result<Flow, ProcessError> {
        match item {
            UserItem::Attach(attach) => self.attach(attach),
            UserItem::Attached(connection, attached) => self.attached(connection, attached),
            UserItem::Detach(connection, device) => return Ok(self.detach(connection, device)),
            UserItem::Frame(connection, frame) => self.frame(connection, *frame),
            UserItem::Push(seq, envelope) => self.push(seq, &envelope),
            UserItem::GrownTo(seq) => self.grown_to(seq),
            UserItem::ReadAgain => self.read_again(),
            UserItem::AccountNotRead => self.read_account(),
            UserItem::Displaced(device) => self.displaced(device),
            UserItem::Page(connection, page) => self.page(connection, &page),
            UserItem::Account(account) | UserItem::AccountRead(account) => {
                self.account_changed(account);
            }
            UserItem::Resolved(alias, owner) => self.resolved(alias, owner),
            UserItem::AliasStale(connection, id, send) => self.ask_again(connection, id, *send),
            UserItem::RetryDue(connection) => self.try_again(connection),
            UserItem::Signal(signal) => self.signal(&signal),
            UserItem::LinkRequested(asked) => drop(self.hint_all(&Kind::LinkRequested(asked))),
            UserItem::Presence(presence) => {
                if !self.hint_all(&Kind::Presence(presence)) {
                    self.context.presence.lost(self.user, UserId(presence.user));
                }
            }
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        if self.entry.missed.swap(false, Ordering::AcqRel) {
            for session in &mut self.sessions {
                session.window.more_waits();
                session.changed = true;
            }
            self.missed_while_attaching();
        }
        for place in 0..self.sessions.len() {
            if std::mem::take(&mut self.sessions[place].changed) {
                self.follow(place);
            }
        }
        Ok(Flow::Continue)
    }
}

/// Names a request; 0 for what is no request.
fn poison_tag(connection: ConnectionId, id: u64) -> u64 {
    if id == 0 { 0 } else { connection.0.rotate_left(32) ^ id }
}

impl UserActor {
    pub(super) fn frame(&mut self, connection: ConnectionId, frame: ClientFrame) {
        let waiting = |other: &&mut Attaching| other.attach.connection.id() == connection;
        if let Some(attaching) = self.attaching.iter_mut().find(waiting) {
            // Of acknowledgements the connection knows the last, and signals may be lost.
            if frame.id == 0 && attaching.frames.len() < UNANSWERED_MAX {
                attaching.frames.push(frame);
            }
            return;
        }
        // A frame without a session belongs to a connection that has gone, or that will attach
        // again and hand it over once more.
        let Some(place) = self.sessions.iter().position(|s| s.connection.id() == connection) else {
            return;
        };
        if self.is_poison(connection, &frame) {
            warn!(user = %self.user, id = frame.id, "frame refused: it crashed this actor before");
            self.sessions[place].connection.refuse(frame.id, Code::Internal);
            return;
        }
        self.entry.in_hand.store(poison_tag(connection, frame.id), Ordering::Release);
        self.request(place, frame);
        self.entry.in_hand.store(0, Ordering::Release);
    }

    fn is_poison(&self, connection: ConnectionId, frame: &ClientFrame) -> bool {
        let poison = self.entry.poison.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !poison.is_empty()
            && poison.get(&poison_tag(connection, frame.id)).is_some_and(|count| *count >= POISON)
    }

    fn push(&mut self, seq: Seq, envelope: &Arc<stored::Envelope>) {
        for place in 0..self.sessions.len() {
            self.deliver(place, seq, envelope, false);
            self.sessions[place].changed = true;
        }
        self.missed_while_attaching();
    }

    /// The mailbox has grown, and the shard may have said before where those stand who are attaching.
    pub(super) fn missed_while_attaching(&mut self) {
        self.attaching.iter_mut().for_each(|attaching| attaching.missed = true);
    }

    fn grown_to(&mut self, seq: Seq) {
        for session in &mut self.sessions {
            session.window.grown_to(seq);
            session.changed = true;
        }
        self.missed_while_attaching();
    }

    fn page(&mut self, connection: ConnectionId, page: &Page) {
        let Some(place) = self.sessions.iter().position(|s| s.connection.id() == connection) else {
            return;
        };
        if page.failed {
            self.sessions[place].window.page_failed();
            timer::push_after(&self.inbox, RETRY, UserItem::RetryDue(connection));
            return;
        }
        if self.sessions[place].window.misses(page.released) {
            // It lacks what was released: only a new login tells it so.
            let session = self.sessions.remove(place);
            session.connection.end(Ending::Told(Code::SetAside));
            return;
        }
        let mut whole = true;
        for entry in &page.entries {
            if self.deliver(place, entry.seq, &entry.envelope, true) == Offer::Later {
                whole = false;
                break;
            }
        }
        let session = &mut self.sessions[place];
        session.window.page_ended(page.up_to, page.last, whole);
        session.changed = true;
    }

    fn deliver(
        &mut self,
        place: usize,
        seq: Seq,
        envelope: &Arc<stored::Envelope>,
        from_page: bool,
    ) -> Offer {
        let session = &mut self.sessions[place];
        let content = envelope.content.as_ref();
        let visible = content.is_some_and(|content| is_for(content, self.user, session.device));
        let awaited = matches!(content, Some(Content::Message(_)));
        let weight = Weight { visible, awaited, bytes: crate::shard::bytes_of(envelope) };
        let offer = if from_page {
            session.window.offer_from_page(seq, weight)
        } else {
            session.window.offer(seq, weight)
        };
        if let Offer::Deliver { after } = offer {
            session.connection.deliver(seq, after, envelope.clone());
            self.context.metrics.delivered.increment(1);
        }
        offer
    }

    /// Does what a session's window asks for: tell the shard, read on, say that all was sent.
    fn follow(&mut self, place: usize) {
        let session = &mut self.sessions[place];
        let shard = self.user.shard();
        if let Some(News { seq, awaited }) = session.window.take_news() {
            let ack = stored::Ack { user: self.user.0, device: session.device.0, seq: seq.0 };
            let (inbox, connection) = (self.inbox.clone(), session.connection.id());
            let reply = move |outcome| {
                if let Outcome::Refused(code) = outcome {
                    debug!(?code, "acknowledgement not recorded");
                    timer::push_after(&inbox, RETRY, UserItem::RetryDue(connection));
                }
            };
            if awaited {
                self.context.shards.propose(shard, Command::Ack(ack), Box::new(reply));
            } else {
                self.context.shards.propose_lazily(shard, Command::Ack(ack));
            }
        }
        if let Some((after, limit, bytes_max)) = session.window.wants_page() {
            let (inbox, connection) = (self.inbox.clone(), session.connection.id());
            let answer = Box::new(move |page| inbox.force(UserItem::Page(connection, page)));
            let user = self.user;
            let query = Query::Page { user, after, limit, bytes_max, answer };
            self.context.shards.query(shard, query);
        }
        if let Some(seq) = session.window.caught_up() {
            session.connection.say(Kind::CaughtUp(wire::CaughtUp { seq: seq.0 }));
        }
    }

    fn try_again(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.iter_mut().find(|s| s.connection.id() == connection) {
            session.window.try_again();
            session.changed = true;
        }
    }

    pub(super) fn acknowledge(&mut self, place: usize, seq: Seq) {
        let session = &mut self.sessions[place];
        session.window.acknowledge(seq);
        session.changed = true;
    }

    fn signal(&self, signal: &wire::Signaled) {
        let from = UserId(signal.from);
        if self.account.as_ref().is_some_and(|account| !account.blocked.contains(&from)) {
            self.hint_all(&Kind::Signaled(signal.clone()));
        }
    }

    /// False if a device was too slow to be told.
    fn hint_all(&self, kind: &Kind) -> bool {
        let mut told = true;
        for session in &self.sessions {
            if !session.connection.hint(kind.clone()) {
                self.context.metrics.hints_dropped.increment(1);
                told = false;
            }
        }
        told
    }
}
