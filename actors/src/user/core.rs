//! What a user actor decides: which sessions there are, what each device is sent, what its shard is told,
//! and in which order sends leave. A pure core: the actor carries its actions out, and so does the simulator.
//!
//! # Invariants
//! 1. One item gives the same actions in the same state: it knows no clock, disk, socket or chance.
//! 2. Actions are carried out in their order. What answers one comes back as an item.

use super::items::{Action, Awaited, Delivered, Item, Now};
use super::sends::{Sends, WaitingSend};
use super::window::{News, Offer, Weight, Window};
use crate::actions::Actions;
use crate::connection::{ConnectionId, Refusal, is_for, refusal};
use crate::shard::{AccountView, Attached, Fault, Page};
use crate::unanswered::Standing;
use proto::limits::UNANSWERED_MAX;
use proto::stored::envelope::Content;
use proto::wire::{ClientFrame, client_frame::Kind as Ask};
use proto::{Code, DeviceId, Seq, UserId, stored};
use std::sync::Arc;

/// One device, logged in.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) device: DeviceId,
    pub(super) connection: ConnectionId,
    window: Window,
    changed: bool,
}

/// A device of which the shard was asked where it stands, with the frames that came meanwhile.
#[derive(Debug)]
struct Attaching {
    connection: ConnectionId,
    device: DeviceId,
    /// Frames that are no requests, and so not in the connection's own list.
    frames: Vec<ClientFrame>,
    missed: bool,
}

/// The state of one connected user's actor.
#[derive(Debug)]
pub struct UserCore {
    pub(super) user: UserId,
    pub(super) account: Option<Arc<AccountView>>,
    pub(super) sessions: Vec<Session>,
    attaching: Vec<Attaching>,
    pub(super) sends: Sends,
    pub(super) actions: Actions<Action>,
    fault: Option<Fault>,
}

impl UserCore {
    /// A user whose first device comes.
    pub fn new(user: UserId) -> Self {
        Self {
            user,
            account: None,
            sessions: Vec::new(),
            attaching: Vec::new(),
            sends: Sends::default(),
            actions: Actions::default(),
            fault: None,
        }
    }

    /// Builds a fault in, to see whether a simulation finds it. Nothing but tests calls this.
    #[must_use]
    pub fn with_fault(self, fault: Option<Fault>) -> Self {
        Self { fault, ..self }
    }

    /// Takes an item. [`Self::next_action`] says what must be done.
    pub fn step(&mut self, item: Item, now: Now) {
        let before = self.actions.len();
        match item {
            Item::Attach { connection, device } => self.attach(connection, device),
            Item::Attached(connection, attached, standing) => {
                self.attached(connection, attached, standing);
            }
            Item::Detach(connection, device) => self.detach(connection, device),
            Item::Frame(connection, frame) => self.frame(connection, *frame, now),
            Item::SendChecked(checking, verdict) => self.send_checked(*checking, verdict, now),
            Item::Resolved(alias, owner) => self.resolved(alias, owner, now),
            Item::AliasStale(connection, id, send) => {
                self.alias_stale(
                    WaitingSend { connection, id, send: *send, asks_again: true },
                    now,
                );
            }
            Item::Push(seq, envelope) => self.push(seq, &envelope),
            Item::GrownTo(seq) => self.grow_windows(|window| window.grown_to(seq)),
            Item::ReadAgain => {
                self.grow_windows(Window::more_waits);
                self.actions.push(Action::ReadAccount);
            }
            Item::DeviceLinked => self.sends.has_linked = true,
            Item::Displaced(device) => self.displaced(device),
            Item::Page(connection, page) => self.page(connection, &page),
            Item::Account(account) => self.account_changed(account),
            Item::RetryDue(connection) => self.try_again(connection),
            Item::Settle { missed } => self.settle(missed),
        }
        self.actions.put_first(before);
    }

    /// Takes the first of what must be done. If it leads to another item at once, what that one leads to comes
    /// next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.next()
    }

    /// Keeps no room for actions until the next item comes.
    pub fn rest(&mut self) {
        self.actions.give_back();
    }

    /// The account as it was read last.
    pub fn account(&self) -> Option<&Arc<AccountView>> {
        self.account.as_ref()
    }

    /// Whether a connection has a session.
    pub fn has_session(&self, connection: ConnectionId) -> bool {
        self.place_of(connection).is_some()
    }

    /// Whether nobody is here or about to be.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.attaching.is_empty()
    }

    pub(super) fn place_of(&self, connection: ConnectionId) -> Option<usize> {
        self.sessions.iter().position(|session| session.connection == connection)
    }

    fn attach(&mut self, connection: ConnectionId, device: DeviceId) {
        self.attaching.retain(|other| other.connection != connection);
        self.attaching.push(Attaching { connection, device, frames: Vec::new(), missed: false });
        self.actions.push(Action::AskWhere(connection, device));
    }

    fn attached(
        &mut self,
        connection: ConnectionId,
        attached: Result<Option<Box<Attached>>, Code>,
        standing: Standing,
    ) {
        let waiting = |other: &Attaching| other.connection == connection;
        let Some(place) = self.attaching.iter().position(waiting) else { return };
        let attaching = self.attaching.remove(place);
        if self.attaching.is_empty() {
            self.attaching = Vec::new();
        }
        let is_login = matches!(standing, Standing::Login(_));
        match attached {
            Ok(Some(attached)) if attached.set_aside && is_login => {
                // A device that was set aside is back: the mailbox waits for it again, from its end on.
                self.actions.push(Action::Readmit(connection, attaching.device));
                self.attaching.push(attaching);
            }
            Ok(Some(attached)) if attached.set_aside => {
                // It is in the middle of a session: only a new login tells it what it lacks.
                self.actions.push(Action::End(connection, Code::SetAside));
            }
            Ok(Some(attached)) => self.begin_session(attaching, *attached, standing),
            Ok(None) => self.actions.push(Action::End(connection, Code::Unlinked)),
            // Acknowledgements that waited are dropped: the connection knows how far it is.
            Err(_) => self.actions.push(Action::NotAttached(connection)),
        }
    }

    fn begin_session(&mut self, attaching: Attaching, attached: Attached, standing: Standing) {
        let Attaching { connection, device, frames, missed } = attaching;
        let Attached { account, acknowledged, start, last, .. } = attached;
        self.account = Some(account);
        for other in self.sessions.extract_if(.., |other| other.device == device) {
            if other.connection != connection {
                self.actions.push(Action::End(other.connection, Code::Replaced));
            }
        }
        let (has, shown, unanswered) = match standing {
            Standing::Login(claimed) => {
                // A claim beyond the end is of another mailbox: nothing of it counts.
                let from = if claimed > last { acknowledged } else { claimed.max(acknowledged) };
                let resync = claimed < start || claimed > last;
                self.actions.push(Action::Begin { connection, acknowledged, from, resync });
                (from, from, Vec::new())
            }
            Standing::Known { acknowledged, delivered, unanswered } => {
                (acknowledged, delivered, unanswered)
            }
        };
        let mut window = Window::new(acknowledged, has, shown, last);
        if missed {
            window.more_waits();
        }
        window.build_in(self.fault);
        self.sessions.reserve_exact(1); // Most users have one device; `push` makes room for four.
        self.sessions.push(Session { device, connection, window, changed: true });
        let frames = unanswered.into_iter().chain(frames);
        self.actions.extend(frames.map(|frame| Action::Frame(connection, Box::new(frame))));
    }

    fn detach(&mut self, connection: ConnectionId, device: DeviceId) {
        self.attaching.retain(|other| other.connection != connection);
        self.sessions.retain(|session| session.connection != connection);
        let linked = self.account.as_ref().is_none_or(|a| a.devices.contains_key(&device));
        if linked && !self.sessions.iter().any(|session| session.device == device) {
            self.actions.push(Action::Gone(device));
        }
    }

    /// Another node has the newer session of this device: this one ends.
    fn displaced(&mut self, device: DeviceId) {
        self.actions.push(Action::NotHere(device));
        self.end_sessions(Code::Replaced, |session| session.device == device);
    }

    fn account_changed(&mut self, account: Option<Arc<AccountView>>) {
        let linked = |session: &Session| {
            account.as_ref().is_some_and(|a| a.devices.contains_key(&session.device))
        };
        let gone = self.sessions.iter().filter(|session| !linked(session));
        let gone: Vec<Action> = gone.map(|session| Action::RemoveSession(session.device)).collect();
        self.end_sessions(Code::Unlinked, |session| !linked(session));
        self.actions.extend(gone);
        // The mailbox waits for it no longer: only a new login makes it do so.
        self.end_sessions(Code::SetAside, |session| {
            let row = account.as_ref().and_then(|account| account.devices.get(&session.device));
            row.is_some_and(|row| row.set_aside_ms != 0)
        });
        self.account = account;
    }

    fn end_sessions(&mut self, code: Code, which: impl Fn(&Session) -> bool) {
        let ended = self.sessions.extract_if(.., |session| which(session));
        self.actions.extend(ended.map(|session| Action::End(session.connection, code)));
    }

    fn frame(&mut self, connection: ConnectionId, frame: ClientFrame, now: Now) {
        let waiting = |other: &&mut Attaching| other.connection == connection;
        if let Some(attaching) = self.attaching.iter_mut().find(waiting) {
            // Of acknowledgements the connection knows the last, and signals may be lost.
            if frame.id == 0 && attaching.frames.len() < UNANSWERED_MAX {
                attaching.frames.push(frame);
            }
            return;
        }
        // A frame without a session belongs to a connection that has gone, or that will attach
        // again and hand it over once more.
        let Some(place) = self.place_of(connection) else { return };
        match frame.kind {
            Some(Ask::Send(send)) => self.send(place, frame.id, send, now),
            Some(Ask::Ack(ack)) => {
                let session = &mut self.sessions[place];
                session.window.acknowledge(Seq(ack.seq));
                session.changed = true;
            }
            kind => {
                let (device, id) = (self.sessions[place].device, frame.id);
                let frame = Box::new(ClientFrame { id, kind });
                self.actions.push(Action::Request(connection, device, frame));
            }
        }
    }

    pub(super) fn refuse(
        &mut self,
        connection: ConnectionId,
        id: u64,
        refused: impl Into<Refusal>,
    ) {
        self.actions.push(Action::Refuse(connection, id, refusal(refused)));
    }

    fn push(&mut self, seq: Seq, envelope: &Arc<stored::Envelope>) {
        for place in 0..self.sessions.len() {
            self.deliver(place, seq, envelope, Window::offer);
            self.sessions[place].changed = true;
        }
        self.missed_while_attaching();
    }

    /// The mailbox has grown, and the shard may have said before where those stand who are attaching.
    fn missed_while_attaching(&mut self) {
        self.attaching.iter_mut().for_each(|attaching| attaching.missed = true);
    }

    fn grow_windows(&mut self, grow: impl Fn(&mut Window)) {
        for session in &mut self.sessions {
            grow(&mut session.window);
            session.changed = true;
        }
        self.missed_while_attaching();
    }

    fn page(&mut self, connection: ConnectionId, page: &Page) {
        let Some(place) = self.place_of(connection) else { return };
        if page.failed {
            self.sessions[place].window.page_failed();
            self.actions.push(Action::RetryLater(connection));
            return;
        }
        if self.sessions[place].window.misses(page.released) {
            // It lacks entries that were released: only a new login tells it so.
            self.sessions.remove(place);
            self.actions.push(Action::End(connection, Code::SetAside));
            return;
        }
        let mut whole = true;
        for entry in &page.entries {
            let offer = self.deliver(place, entry.seq, &entry.envelope, Window::offer_from_page);
            if offer == Offer::Later {
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
        offer: fn(&mut Window, Seq, Weight) -> Offer,
    ) -> Offer {
        let session = &mut self.sessions[place];
        let content = envelope.content.as_ref();
        let visible = content.is_some_and(|content| is_for(content, self.user, session.device));
        let awaited = matches!(content, Some(Content::Message(_)));
        let weight = Weight { visible, awaited, bytes: crate::shard::bytes_of(envelope) };
        let offer = offer(&mut session.window, seq, weight);
        if let Offer::Deliver { after } = offer {
            let delivered = Delivered { seq, after, envelope: envelope.clone() };
            self.actions.push(Action::Deliver(session.connection, delivered));
        }
        offer
    }

    fn try_again(&mut self, connection: ConnectionId) {
        if let Some(place) = self.place_of(connection) {
            self.sessions[place].window.try_again();
            self.sessions[place].changed = true;
        }
    }

    fn settle(&mut self, missed: bool) {
        if missed {
            self.grow_windows(Window::more_waits);
        }
        let Self { user, sessions, actions, .. } = self;
        for session in sessions.iter_mut().filter(|session| session.changed) {
            session.changed = false;
            session.follow(*user, actions);
        }
    }
}

impl Session {
    /// What its window asks for: tell the shard, read on, say that all was sent.
    fn follow(&mut self, user: UserId, actions: &mut Actions<Action>) {
        let connection = self.connection;
        if let Some(News { seq, awaited }) = self.window.take_news() {
            let ack = stored::Ack { user: user.0, device: self.device.0, seq: seq.0 };
            let awaited = if awaited { Awaited::Yes } else { Awaited::No };
            actions.push(Action::Acknowledge(connection, ack, awaited));
        }
        if let Some((after, limit, bytes_max)) = self.window.wants_page() {
            actions.push(Action::ReadPage { connection, after, limit, bytes_max });
        }
        if let Some(seq) = self.window.caught_up() {
            actions.push(Action::CaughtUp(connection, seq));
        }
    }
}
