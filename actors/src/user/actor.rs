//! The user process: hands items to its core and carries out what the core decides.

use super::core::UserCore;
use super::directory::Entry;
use super::items::{Action, Awaited, Checking, Delivered, Item, Now, Rejected};
use super::sends::{SendAnswer, Sent};
use super::{Login, UserContext, UserItem};
use crate::connection::{Connection, ConnectionId, Ending};
use crate::hooks::Verdict;
use crate::rates::{self, Rate, TooFast, Who};
use crate::shard::{Command, Outcome, Query};
use proto::wire::{self, ClientFrame, server_frame::Kind};
use proto::{Alias, Code, UserId, stored};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use supervision::{Flow, Inbox, Process, ProcessError, timer};
use tokio::time::Instant;
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

/// A connection of this user: attached, or about to be.
pub(super) struct Attached {
    pub(super) connection: Arc<Connection>,
    /// The login that waits for its answer.
    pub(super) login: Option<Login>,
    /// What a device that logs in said that it has.
    pub(super) claimed: proto::Seq,
    pub(super) device: proto::DeviceId,
    /// Only the device is there, not its person.
    pub(super) away: bool,
}

/// A connected user.
pub struct UserActor {
    pub(super) user: UserId,
    pub(super) context: Arc<UserContext>,
    pub(super) entry: Arc<Entry>,
    pub(super) inbox: Arc<Inbox<UserItem>>,
    pub(super) core: UserCore,
    pub(super) connections: Vec<Attached>,
    /// The moment of this turn, if something asked for it: what came together came at the same time.
    now: Option<Now>,
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
            let mut poison = entry.poison.lock();
            *poison.entry(tag).or_default() += 1;
        }
        if entry.started.swap(true, Ordering::AcqRel) {
            context.metrics.user_restarts.increment(1);
            entry.connections().iter().for_each(|connection| connection.request_attach());
        }
        let (core, connections) = (UserCore::new(user), Vec::new());
        Ok(Self { user, context, entry, inbox, core, connections, now: None })
    }

    fn handle(&mut self, item: UserItem) -> Result<Flow, ProcessError> {
        match item {
            UserItem::Attach(attach) => self.attach(*attach),
            UserItem::Attached(connection, attached) => self.attached(connection, attached),
            UserItem::Detach(connection, device) => return Ok(self.detach(connection, device)),
            UserItem::Frame(connection, frame) => {
                self.frame(connection, frame);
                self.act();
            }
            UserItem::Push(seq, envelope) => self.step(Item::Push(seq, envelope)),
            UserItem::GrownTo(seq) => self.step(Item::GrownTo(seq)),
            UserItem::ReadAgain => self.step(Item::ReadAgain),
            UserItem::DeviceLinked => self.step(Item::DeviceLinked),
            UserItem::AccountNotRead => self.read_account(),
            UserItem::Displaced(device) => self.step(Item::Displaced(device)),
            UserItem::Page(connection, page) => self.step(Item::Page(connection, page)),
            UserItem::Account(account) | UserItem::AccountRead(account) => {
                self.account_changed(account);
            }
            UserItem::Resolved(alias, owner) => self.step(Item::Resolved(alias, owner)),
            UserItem::AliasStale(connection, id, send) => {
                self.step(Item::AliasStale(connection, id, send));
            }
            UserItem::RetryDue(connection) => self.step(Item::RetryDue(connection)),
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
        let missed = self.entry.missed.swap(false, Ordering::AcqRel);
        self.step(Item::Settle { missed });
        self.core.rest();
        self.now = None;
        Ok(Flow::Continue)
    }
}

/// Names a request; 0 for what is no request.
fn poison_tag(connection: ConnectionId, id: u64) -> u64 {
    if id == 0 { 0 } else { connection.0.rotate_left(32) ^ id }
}

impl UserActor {
    /// Hands an item to the core, and carries out what it decides, in order.
    pub(super) fn step(&mut self, item: Item) {
        self.decide(item);
        self.act();
    }

    fn decide(&mut self, item: Item) {
        let now = self.now();
        self.core.step(item, now);
    }

    fn act(&mut self) {
        while let Some(action) = self.core.next_action() {
            self.carry_out(action);
        }
        self.entry.in_hand.store(0, Ordering::Release);
    }

    fn now(&mut self) -> Now {
        let context = &self.context;
        *self.now.get_or_insert_with(|| Now {
            ms: context.clock.now_ms(),
            message_ttl_max_s: context.settings().message_ttl_max_s,
        })
    }

    /// Carries an action out. If its answer is known at once, the core hears it before its next action.
    fn carry_out(&mut self, action: Action) {
        match action {
            Action::AskWhere(connection, device) => self.ask_where(connection, device),
            Action::Readmit(connection, device) => self.readmit(connection, device),
            Action::NotAttached(connection) => self.attach_failed(connection),
            Action::Begin { connection, acknowledged, from, resync } => {
                self.begin_session(connection, acknowledged, from, resync);
            }
            Action::End(connection, code) => self.end(connection, code),
            Action::Gone(device) => self.write_session(device, false, false),
            Action::NotHere(device) => self.entry.set_here(device, false),
            Action::RemoveSession(device) => self.remove_session(device),
            Action::Frame(connection, frame) => self.frame(connection, frame),
            Action::Request(connection, device, frame) => self.request(connection, device, *frame),
            Action::CheckSend(checking) => {
                let verdict = self.check_send(&checking);
                self.decide(Item::SendChecked(checking, verdict));
            }
            Action::Refuse(connection, id, refused) => {
                if let Some(connection) = self.connection(connection) {
                    connection.answer(id, Kind::Refused(refused));
                }
            }
            Action::Resolve(alias) => self.resolve(alias),
            Action::Propose(to, append, sent) => self.propose_send(to, *append, sent),
            Action::Acknowledge(connection, ack, awaited) => {
                self.acknowledge(connection, ack, awaited);
            }
            Action::ReadPage { connection, after, limit, bytes_max } => {
                let (inbox, user) = (self.inbox.clone(), self.user);
                let answer = Box::new(move |page| inbox.force(UserItem::Page(connection, page)));
                let query = Query::Page { user, after, limit, bytes_max, answer };
                self.context.shards.query(user.shard(), query);
            }
            Action::RetryLater(connection) => {
                timer::push_after(&self.inbox, RETRY, UserItem::RetryDue(connection));
            }
            Action::Deliver(connection, Delivered { seq, after, envelope }) => {
                if let Some(connection) = self.connection(connection) {
                    connection.deliver(seq, after, envelope);
                    self.context.metrics.delivered.increment(1);
                }
            }
            Action::CaughtUp(connection, seq) => {
                if let Some(connection) = self.connection(connection) {
                    connection.say(Kind::CaughtUp(wire::CaughtUp { seq: seq.0 }));
                }
            }
            Action::ReadAccount => self.read_account(),
        }
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Option<&Arc<Connection>> {
        let all = self.connections.iter().map(|attached| &attached.connection);
        all.into_iter().find(|connection| connection.id() == id)
    }

    fn end(&mut self, id: ConnectionId, code: Code) {
        for ended in self.connections.extract_if(.., |attached| attached.connection.id() == id) {
            ended.connection.end(Ending::Told(code));
        }
    }

    /// Hands a frame to the core. Until all that follows from it is done, a crash counts against it.
    fn frame(&mut self, id: ConnectionId, frame: Box<ClientFrame>) {
        if self.core.has_session(id) && self.is_poison(id, &frame) {
            warn!(user = %self.user, id = frame.id, "frame refused: it crashed this actor before");
            if let Some(connection) = self.connection(id) {
                connection.refuse(frame.id, Code::Internal);
            }
            return;
        }
        self.entry.in_hand.store(poison_tag(id, frame.id), Ordering::Release);
        self.decide(Item::Frame(id, frame));
    }

    fn is_poison(&self, connection: ConnectionId, frame: &ClientFrame) -> bool {
        let poison = self.entry.poison.lock();
        !poison.is_empty()
            && poison.get(&poison_tag(connection, frame.id)).is_some_and(|count| *count >= POISON)
    }

    // ---- Sends and acknowledgements ----------------------------------------------------------

    fn check_send(&mut self, checking: &Checking) -> Result<(), Rejected> {
        let now_ms = self.now().ms;
        let (context, who) = (&self.context, Who::User(self.user));
        let looks_up = checking.looks_up.then_some([rates::Kind::Lookup, rates::Kind::LookupDaily]);
        for kind in [rates::Kind::Send].into_iter().chain(looks_up.into_iter().flatten()) {
            if let Err(too_fast) = context.rates.take(who, kind, now_ms) {
                context.metrics.too_fast.increment(1);
                return Err(Rejected::TooFast(too_fast));
            }
        }
        if let Err(too_fast) = self.take_bytes(checking, now_ms) {
            context.metrics.too_fast.increment(1);
            return Err(Rejected::TooFast(too_fast));
        }
        for handler in &context.handlers {
            match handler.user_send(self.user, checking.device, &checking.send) {
                Verdict::Continue => {}
                Verdict::Drop(code) => return Err(Rejected::ByHandler(code)),
            }
        }
        Ok(())
    }

    /// Counts the bytes of a send for its user and for the address that it comes from.
    fn take_bytes(&self, checking: &Checking, now_ms: u64) -> Result<(), TooFast> {
        let (rates, settings) = (&self.context.rates, self.context.settings());
        let bytes = checking.send.body.len() as u64;
        let take =
            |who, per_second| rates.take_bytes(who, Rate::of_bytes(per_second), bytes, now_ms);
        take(Who::User(self.user), settings.stored_bytes_per_second)?;
        let Some(connection) = self.connection(checking.connection) else { return Ok(()) };
        let address = Who::Address(connection.source());
        take(address, settings.stored_bytes_per_second_per_address)
    }

    fn resolve(&self, alias: Alias) {
        let (inbox, asked) = (self.inbox.clone(), alias.clone());
        let answer = Box::new(move |owner: Result<Option<UserId>, Code>| {
            let owner = owner.and_then(|owner| owner.ok_or(Code::UnknownUser));
            inbox.force(UserItem::Resolved(asked, owner));
        });
        self.context.shards.query(alias.shard(), Query::Owner { alias, answer });
    }

    fn propose_send(&self, to: UserId, append: stored::Append, sent: Sent) {
        let (id, asker) = (sent.id, sent.connection);
        let Some(connection) = self.connection(asker).cloned() else { return };
        let (inbox, metrics) = (self.inbox.clone(), &self.context.metrics);
        let (begun, took) = (Instant::now(), metrics.send_seconds.clone());
        let refused = metrics.sends_refused.clone();
        metrics.sends.increment(1);
        let reply = Box::new(move |outcome| match sent.answer(&outcome) {
            SendAnswer::Accepted { at_ms, named } => {
                took.record(begun.elapsed());
                connection.accepted(id, at_ms, named);
            }
            SendAnswer::Refused(refusal) => {
                refused.increment(1);
                connection.refuse(id, refusal);
            }
            SendAnswer::AliasStale(again) => inbox.force(UserItem::AliasStale(asker, id, again)),
        });
        self.context.shards.propose(to.shard(), Command::Append(append), reply);
    }

    fn acknowledge(&self, connection: ConnectionId, ack: stored::Ack, awaited: Awaited) {
        let (shard, ack) = (self.user.shard(), Command::Ack(ack));
        let inbox = self.inbox.clone();
        let reply = move |outcome: Outcome| {
            if let Some(code) = outcome.refusal() {
                debug!(?code, "acknowledgement not recorded");
                timer::push_after(&inbox, RETRY, UserItem::RetryDue(connection));
            }
        };
        match awaited {
            Awaited::Yes => self.context.shards.propose(shard, ack, Box::new(reply)),
            Awaited::No => self.context.shards.propose_lazily(shard, ack),
        }
    }

    // ---- Hints -------------------------------------------------------------------------------

    fn signal(&self, signal: &wire::Signaled) {
        let from = UserId(signal.from);
        if self.core.account().is_some_and(|account| !account.blocked.contains(&from)) {
            self.hint_all(&Kind::Signaled(signal.clone()));
        }
    }

    /// False if a device was too slow to be told.
    fn hint_all(&self, kind: &Kind) -> bool {
        let mut told = true;
        for Attached { connection, .. } in &self.connections {
            if self.core.has_session(connection.id()) && !connection.hint(kind.clone()) {
                self.context.metrics.hints_dropped.increment(1);
                told = false;
            }
        }
        told
    }
}
