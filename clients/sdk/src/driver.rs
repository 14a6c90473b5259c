//! The client's task: connects, runs a session, waits, connects again, until told to end.

use crate::{
    addresses::Addresses,
    backoff::Backoff,
    client::Command,
    error::{ConnectError, RequestError},
    event::{DisconnectReason, Event},
    key::Identity,
    login::{self, Opened},
    options::ClientOptions,
    shared::{Shared, Status},
    transport::Link,
};
use proto::{
    Code,
    wire::{self, client_frame, server_frame},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tracing::{debug, info};

/// Requests that wait for their answer; beyond it no further one is taken from the handles.
pub(crate) const REQUESTS_MAX: usize = 64;

/// A session that lasted so long begins the next back-off anew.
const STABLE: Duration = Duration::from_secs(5);

/// How often a client without a connection looks whether those who asked have stopped waiting, once
/// as many have asked as may.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why a session is over.
#[derive(Debug)]
pub(crate) enum End {
    /// The application closed the client.
    Closed { done: Option<oneshot::Sender<()>> },
    /// The node ended it for good.
    Ended(Code),
    /// Connect again, not before `wait`; try `addresses` first.
    Lost { reason: DisconnectReason, wait: Duration, addresses: Vec<String> },
}

impl End {
    pub(crate) fn lost(reason: DisconnectReason) -> Self {
        Self::Lost { reason, wait: Duration::ZERO, addresses: Vec::new() }
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) kind: client_frame::Kind,
    pub(crate) repeat: bool,
    pub(crate) written: bool,
    pub(crate) reply: Option<oneshot::Sender<Result<server_frame::Kind, RequestError>>>,
}

/// The task's own state.
#[derive(Debug)]
pub(crate) struct Driver {
    options: ClientOptions,
    identity: Identity,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: mpsc::Sender<Event>,
    /// Events for which the queue had no room; while there are any, the socket is not read.
    pub(crate) backlog: VecDeque<Event>,
    pub(crate) requests: BTreeMap<u64, Pending>,
    pub(crate) casts: Vec<client_frame::Kind>,
    pub(crate) next_request: u64,
    subscriptions: BTreeSet<u64>,
    away: bool,
    backoff: Backoff,
}

impl Driver {
    pub(crate) fn new(
        options: ClientOptions,
        identity: Identity,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let backoff = Backoff::new(options.backoff_min, options.backoff_max);
        let away = options.away;
        Self {
            options,
            identity,
            shared,
            commands,
            events,
            backlog: VecDeque::new(),
            requests: BTreeMap::new(),
            casts: Vec::new(),
            next_request: crate::requests::REQUEST_IDS,
            subscriptions: BTreeSet::new(),
            away,
            backoff,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut addresses = Addresses::new(self.options.addresses.clone());
        let (status, done) = loop {
            match self.once(&mut addresses).await {
                End::Closed { done } => break (Status::Closed, done),
                End::Ended(code) => break (Status::Ended(code), None),
                End::Lost { reason, wait, addresses: others } => {
                    debug!(%reason, "disconnected");
                    self.disconnected(reason);
                    addresses.leave(&others);
                    let wait = wait.max(self.backoff.next(rand::random()));
                    if let Some(done) = self.attend(sleep(wait)).await.err() {
                        break (Status::Closed, done);
                    }
                }
            }
        };
        info!(?status, "client ended");
        self.shared.finish(status);
        for pending in std::mem::take(&mut self.requests).into_values() {
            let error = self.shared.ended().map_or(RequestError::Closed, RequestError::Ended);
            answer(pending, Err(error));
        }
        if let Some(done) = done {
            // Whoever asked may have stopped waiting.
            done.send(()).ok();
        }
    }

    /// One attempt: connect to any node, log in, run until the session is over.
    async fn once(&mut self, addresses: &mut Addresses) -> End {
        let (options, order) = (self.options.clone(), addresses.in_order());
        let opening = async { Link::open_first(&options, &order).await };
        let (link, address) = match self.attend(opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return login_failed(error),
            Err(done) => return End::Closed { done },
        };
        addresses.using(&address);
        let (ticket, acknowledged) = {
            let desk = self.shared.desk();
            (desk.ticket(), desk.inbox.acknowledged())
        };
        let identity = self.identity.clone();
        let wait = options.connect_timeout;
        let returning = login::Returning { ticket, acknowledged, away: self.away };
        let opening = login::open(link, identity, returning, wait);
        let opened = match self.attend(opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return login_failed(error),
            Err(done) => return End::Closed { done },
        };
        let since = Instant::now();
        self.connected(&opened, address);
        let end = self.session(opened.link).await;
        if since.elapsed() >= STABLE {
            self.backoff.reset();
        }
        end
    }

    fn connected(&mut self, opened: &Opened, address: String) {
        {
            let mut desk = self.shared.desk();
            desk.node = Some(address);
            desk.set_ticket(opened.ticket.clone());
            if opened.anew {
                desk.begin_anew(opened.base);
            }
            desk.connected(opened.base);
            let window = usize::try_from(opened.link.welcome.unanswered_max).unwrap_or(0);
            let most = proto::limits::UNANSWERED_MAX;
            desk.outbox.set_window(if window == 0 { most } else { window.min(most) });
        }
        self.shared.set_status(Status::Online);
        self.notify(Event::Connected);
        if opened.resync {
            self.notify(Event::HistoryMissing);
        }
        self.restore_subscriptions();
    }

    /// What the node forgets with a session is asked again, ahead of everything else.
    fn restore_subscriptions(&mut self) {
        let wanted = self.subscriptions.iter().map(|user| {
            client_frame::Kind::Subscribe(wire::Subscribe { user: *user, unsubscribe: false })
        });
        for kind in wanted.collect::<Vec<_>>() {
            self.enqueue(kind, false, None);
        }
    }

    fn disconnected(&mut self, reason: DisconnectReason) {
        self.shared.desk().disconnected();
        if self.shared.status.send_if_modified(|status| {
            std::mem::replace(status, Status::Connecting) != Status::Connecting
        }) {
            debug!("offline");
        }
        self.casts.clear();
        for (id, mut pending) in std::mem::take(&mut self.requests) {
            if pending.reply.is_none() {
                continue;
            }
            if pending.written && !pending.repeat {
                answer(pending, Err(RequestError::Disconnected));
            } else {
                pending.written = false;
                self.requests.insert(id, pending);
            }
        }
        self.notify(Event::Disconnected { reason });
    }

    /// Waits for `work` and serves the handles meanwhile. `Err`: the client is to close.
    async fn attend<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Option<oneshot::Sender<()>>> {
        let mut work = std::pin::pin!(work);
        loop {
            self.forget_abandoned();
            let room = self.requests.len() < REQUESTS_MAX;
            tokio::select! {
                () = sleep(LOOK_AGAIN), if !room => {}
                result = &mut work => return Ok(result),
                () = room_for(&self.events), if !self.backlog.is_empty() => self.drain(),
                command = self.commands.recv(), if room => match command {
                    Some(Command::Cast(_)) => {}
                    Some(Command::Request { kind, repeat, reply }) => {
                        self.enqueue(kind, repeat, Some(reply));
                    }
                    Some(Command::Close { done }) => return Err(Some(done)),
                    None => return Err(None),
                },
            }
        }
    }

    /// Whoever asked has stopped waiting: no answer is needed, and the place is free.
    fn forget_abandoned(&mut self) {
        self.requests.retain(|_, pending| {
            pending.written || pending.reply.as_ref().is_none_or(|reply| !reply.is_closed())
        });
    }

    pub(crate) fn enqueue(
        &mut self,
        kind: client_frame::Kind,
        repeat: bool,
        reply: Option<oneshot::Sender<Result<server_frame::Kind, RequestError>>>,
    ) {
        if let client_frame::Kind::Subscribe(wanted) = &kind {
            if wanted.unsubscribe {
                self.subscriptions.remove(&wanted.user);
            } else if self.subscriptions.len() < proto::limits::SUBSCRIPTIONS_MAX {
                self.subscriptions.insert(wanted.user);
            }
        }
        if let client_frame::Kind::SetPresence(presence) = &kind {
            self.away = presence.away;
        }
        self.forget_abandoned();
        let pending = Pending { kind, repeat, written: false, reply };
        self.requests.insert(self.next_request, pending);
        self.next_request += 1;
    }

    /// Hands over what waits, as far as there is room; drops it if nobody takes events any more.
    pub(crate) fn drain(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
    }

    /// For entries and answers, which must not be lost: waits in the backlog if there is no room.
    pub(crate) fn emit(&mut self, event: Event) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(event);
        } else if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.backlog.push_back(event);
        }
    }

    /// For what is shed when there is no room.
    pub(crate) fn notify(&mut self, event: Event) {
        if self.backlog.is_empty() && self.events.try_send(event).is_err() {
            debug!("an event was shed: the application takes none");
        }
    }
}

/// Returns when the queue has room, or will never have any.
pub(crate) async fn room_for(events: &mpsc::Sender<Event>) {
    drop(events.reserve().await);
}

/// Answers a request, if somebody still waits.
pub(crate) fn answer(pending: Pending, result: Result<server_frame::Kind, RequestError>) {
    if let Some(reply) = pending.reply {
        drop(reply.send(result));
    }
}

/// Codes after which connecting again would only fail again.
pub(crate) fn is_final(code: Code) -> bool {
    matches!(code, Code::BadCredentials | Code::Replaced | Code::Unlinked)
}

fn login_failed(error: ConnectError) -> End {
    let wait = match &error {
        ConnectError::Refused(refusal) if is_final(refusal.code) => {
            return End::Ended(refusal.code);
        }
        ConnectError::Refused(refusal) => refusal.retry_after,
        ConnectError::Address(_)
        | ConnectError::Io(_)
        | ConnectError::Tls(_)
        | ConnectError::Certificate { .. }
        | ConnectError::TimedOut(_)
        | ConnectError::Frame(_)
        | ConnectError::Unexpected => Duration::ZERO,
    };
    End::Lost { reason: DisconnectReason::Failed(error), wait, addresses: Vec::new() }
}
