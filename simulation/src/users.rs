//! The users' side of a node: runs the core of each user's actor, and the sessions table in the place of
//! `sessions/`.

use crate::device::{FromNode, ToNode};
use crate::stage::{Event, NodeEvent, Question, Row, Stage, by};
use actors::connection::ConnectionId;
use actors::rates::TooFast;
use actors::shard::{AccountView, Answered, Ask, Attached, Command, Entry, Fault, Outcome, Page};
use actors::unanswered::{Standing, Unanswered};
use actors::user::{Action, Awaited, Delivered, Item, Now, Rejected, SendAnswer, Sent, UserCore};
use proto::wire::{self, ClientFrame, client_frame::Kind, send::To};
use proto::{Code, DeviceId, Seq, ShardId, UserId, stored};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Wait before something that failed is tried again, in ms.
const AGAIN_MS: u64 = 500;

/// The longest time to live of a message, in seconds.
const TTL_MAX_S: u32 = 30 * 24 * 3_600;

/// A connection to this node.
struct Socket {
    user: UserId,
    device: DeviceId,
    /// What the device said at login that it has, until the login is answered.
    login: Option<Seq>,
    unanswered: Unanswered,
}

pub(crate) struct Users {
    me: usize,
    life: u64,
    cores: BTreeMap<UserId, UserCore>,
    sockets: BTreeMap<u64, Socket>,
    /// The sessions table as this node knows it. It is on the disk.
    pub(crate) known: BTreeMap<Key, Row>,
    fault: Option<Fault>,
    /// The last moment at which something was said on a connection: what is said later comes later.
    said_at: BTreeMap<u64, u64>,
    /// Rows that other nodes must be told of.
    told: Vec<Told>,
}

impl Users {
    /// The users of a node that starts for the `life`th time, with the table that it knew.
    pub(crate) fn new(
        me: usize,
        life: u64,
        known: BTreeMap<Key, Row>,
        fault: Option<Fault>,
    ) -> Self {
        Self {
            me,
            life,
            cores: BTreeMap::new(),
            sockets: BTreeMap::new(),
            known,
            fault,
            said_at: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Rows that were written since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    fn tell(&mut self, connection: u64, frame: FromNode, stage: &mut Stage) {
        let late = stage.chance.between(1, stage.weather.delay_ms + 1);
        let at = self.said_at.entry(connection).or_default();
        *at = (stage.now + late).max(*at);
        let late = *at - stage.now;
        stage.after(late, Event::Told { connection, frame });
    }

    /// Answers a request, unless it was answered before.
    fn answer(
        &mut self,
        ConnectionId(connection): ConnectionId,
        frame: FromNode,
        id: u64,
        stage: &mut Stage,
    ) {
        let socket = self.sockets.get_mut(&connection);
        if socket.is_some_and(|socket| socket.unanswered.answer(id)) {
            self.tell(connection, frame, stage);
        }
    }

    fn ask(&self, connection: ConnectionId, user: UserId, ask: Ask, stage: &mut Stage) {
        let question = Question { connection: connection.0, user, ask };
        stage.local(self.me, 0, NodeEvent::Ask(user.shard(), question));
    }

    // ---- The core ----------------------------------------------------------------------------

    /// Hands an item to a user's core, as the actor does, and carries out what it decides.
    fn step(&mut self, user: UserId, item: Item, stage: &mut Stage) {
        for item in [item, Item::Settle { missed: false }] {
            self.decide(user, item, stage);
            while let Some(action) = self.cores.get_mut(&user).and_then(UserCore::next_action) {
                self.carry_out(user, action, stage);
            }
        }
        self.cores.retain(|_, core| !core.is_empty());
    }

    fn decide(&mut self, user: UserId, item: Item, stage: &Stage) {
        let fault = self.fault;
        let now = Now { ms: stage.clock(self.me), message_ttl_max_s: TTL_MAX_S };
        self.cores
            .entry(user)
            .or_insert_with(|| UserCore::new(user).with_fault(fault))
            .step(item, now);
    }

    fn carry_out(&mut self, user: UserId, action: Action, stage: &mut Stage) {
        match action {
            Action::AskWhere(connection, device) => {
                self.ask(connection, user, Ask::Attach(user, device), stage);
            }
            Action::Readmit(connection, device) => self.readmit(user, connection, device, stage),
            Action::NotAttached(connection) => self.attach_failed(user, connection, stage),
            Action::Begin { connection, from, .. } => self.begin(connection, from, stage),
            Action::End(connection, _) => self.end(connection, stage),
            Action::Gone(device) => {
                let key = (user, device);
                let row = self.known.get(&key).copied();
                if row.is_some_and(|row| (row.node, row.life) == (self.me, self.life)) {
                    self.write(key, false);
                }
            }
            Action::Frame(connection, frame) => {
                self.decide(user, Item::Frame(connection, frame), stage);
            }
            Action::CheckSend(checking) => {
                let too_fast = stage.chance.percent(stage.weather.too_fast_percent);
                let after_ms = 20;
                let verdict =
                    if too_fast { Err(Rejected::TooFast(TooFast { after_ms })) } else { Ok(()) };
                self.decide(user, Item::SendChecked(checking, verdict), stage);
            }
            Action::Refuse(connection, id, refused) => {
                let code = Code::from_number(refused.code);
                self.answer(connection, FromNode::Refused(id, code), id, stage);
            }
            Action::Propose(to, append, sent) => {
                let voice = stage.voice(self.me);
                let reply =
                    Box::new(move |outcome| voice.say(NodeEvent::Outcome { sent, outcome }));
                let propose = NodeEvent::Propose(to.shard(), Command::Append(*append), reply);
                stage.local(self.me, 0, propose);
            }
            Action::Acknowledge(connection, ack, awaited) => {
                self.acknowledge(connection, ack, awaited, stage);
            }
            Action::ReadPage { connection, after, limit, bytes_max } => {
                self.ask(connection, user, Ask::Page { user, after, limit, bytes_max }, stage);
            }
            Action::RetryLater(ConnectionId(connection)) => {
                stage.local(self.me, AGAIN_MS, NodeEvent::TryAgain(connection));
            }
            Action::Deliver(ConnectionId(connection), Delivered { seq, after, envelope }) => {
                if let Some(socket) = self.sockets.get_mut(&connection) {
                    socket.unanswered.deliver(seq);
                    self.tell(connection, FromNode::Deliver { seq, after, envelope }, stage);
                }
            }
            Action::NotHere(_)
            | Action::RemoveSession(_)
            | Action::Request(..)
            | Action::Resolve(_)
            | Action::CaughtUp(..) => {}
            Action::ReadAccount => self.read_account(user, stage),
        }
    }

    fn acknowledge(
        &self,
        ConnectionId(connection): ConnectionId,
        ack: stored::Ack,
        awaited: Awaited,
        stage: &mut Stage,
    ) {
        let voice = stage.voice(self.me);
        let reply = Box::new(move |outcome| {
            if matches!(outcome, Outcome::Refused(_)) {
                voice.say(NodeEvent::AckRefused(connection));
            }
        });
        let (shard, ack) = (UserId(ack.user).shard(), Command::Ack(ack));
        let event = match awaited {
            Awaited::Yes => NodeEvent::Propose(shard, ack, reply),
            Awaited::No => NodeEvent::ProposeLazily(shard, ack),
        };
        stage.local(self.me, 0, event);
    }

    fn readmit(&self, user: UserId, of: ConnectionId, device: DeviceId, stage: &mut Stage) {
        let voice = stage.voice(self.me);
        let reply = Box::new(move |outcome| {
            let done = outcome == Outcome::Done;
            voice.say(NodeEvent::Readmitted { connection: of.0, done });
        });
        let readmit = stored::Readmit { user: user.0, device: device.0 };
        let propose = NodeEvent::Propose(user.shard(), Command::Readmit(readmit), reply);
        stage.local(self.me, 0, propose);
    }

    pub(crate) fn readmitted(&mut self, connection: u64, done: bool, stage: &mut Stage) {
        let Some(Socket { user, device, .. }) = self.sockets.get(&connection) else { return };
        let (user, what) = (*user, Ask::Attach(*user, *device));
        if done {
            self.ask(ConnectionId(connection), user, what, stage);
        } else {
            self.attached(connection, Err(Code::Unavailable), stage);
        }
    }

    fn begin(&mut self, ConnectionId(connection): ConnectionId, from: Seq, stage: &mut Stage) {
        let Some(socket) = self.sockets.get_mut(&connection) else { return };
        socket.login = None;
        socket.unanswered.begin_at(from);
        let key = (socket.user, socket.device);
        stage.note(|| by(self.me, format_args!("connection {connection}: from {from}")));
        self.tell(connection, FromNode::Welcome { acknowledged: from }, stage);
        self.write(key, true);
    }

    fn end(&mut self, ConnectionId(connection): ConnectionId, stage: &mut Stage) {
        if self.sockets.remove(&connection).is_some() {
            self.tell(connection, FromNode::Closed, stage);
        }
    }

    fn attach_failed(&mut self, user: UserId, of: ConnectionId, stage: &mut Stage) {
        match self.sockets.get(&of.0) {
            Some(Socket { login: None, device, .. }) => {
                let event = NodeEvent::AttachAgain(user, *device, of.0);
                stage.local(self.me, AGAIN_MS, event);
            }
            Some(_) | None => self.end(of, stage),
        }
    }

    // ---- What clients say --------------------------------------------------------------------

    pub(crate) fn frame(&mut self, connection: u64, frame: ToNode, stage: &mut Stage) {
        if let ToNode::Login { user, device, acknowledged } = frame {
            let (login, unanswered) = (Some(acknowledged), Unanswered::default());
            self.sockets.insert(connection, Socket { user, device, login, unanswered });
            self.attach(user, device, connection, stage);
            return;
        }
        let Some(socket) = self.sockets.get_mut(&connection) else { return };
        let (id, kind) = match frame {
            ToNode::Login { .. } => return,
            ToNode::Ack(seq) => {
                socket.unanswered.acknowledge(seq);
                (0, Kind::Ack(wire::Ack { seq: seq.0 }))
            }
            ToNode::Send { id, to, ttl_s, body } => {
                let to = Some(To::User(to.0));
                (id, Kind::Send(wire::Send { to, ttl_s, body }))
            }
        };
        let frame = ClientFrame { id, kind: Some(kind) };
        if id != 0 {
            socket.unanswered.remember(frame.clone());
        }
        let user = socket.user;
        self.step(user, Item::Frame(ConnectionId(connection), Box::new(frame)), stage);
    }

    /// A device is to be attached to its user's actor, which may be a new one.
    pub(crate) fn attach(&mut self, user: UserId, device: DeviceId, of: u64, stage: &mut Stage) {
        if self.sockets.contains_key(&of) {
            let connection = ConnectionId(of);
            self.step(user, Item::Attach { connection, device }, stage);
        }
    }

    /// A user's actor crashes: its connections attach to the next one.
    pub(crate) fn crash(&mut self, user: UserId, stage: &mut Stage) {
        if self.cores.remove(&user).is_none() {
            return;
        }
        stage.crashed.insert(user);
        stage.note(|| by(self.me, format_args!("the actor of {} crashes", user.0 % 1000)));
        let of_user = self.sockets.iter().filter(|(_, socket)| socket.user == user);
        let all: Vec<_> = of_user.map(|(id, socket)| (*id, socket.device)).collect();
        for (connection, device) in all {
            self.attach(user, device, connection, stage);
        }
    }

    /// A socket has gone.
    pub(crate) fn gone(&mut self, connection: u64, stage: &mut Stage) {
        if let Some(Socket { user, device, .. }) = self.sockets.remove(&connection) {
            stage.note(|| by(self.me, format_args!("connection {connection} has gone")));
            self.step(user, Item::Detach(ConnectionId(connection), device), stage);
        }
    }

    // ---- What shards say ---------------------------------------------------------------------

    pub(crate) fn outcome(&mut self, sent: Sent, outcome: &Outcome, stage: &mut Stage) {
        let (connection, id) = (sent.connection, sent.id);
        let frame = match sent.answer(outcome) {
            SendAnswer::Accepted { .. } => FromNode::Accepted(id),
            SendAnswer::Refused(refusal) => FromNode::Refused(id, refusal.code),
            SendAnswer::AliasStale(_) => panic!("nobody sends to an alias"),
        };
        self.answer(connection, frame, id, stage);
    }

    /// Reads an account, for all connections of its user.
    pub(crate) fn read_account(&self, user: UserId, stage: &mut Stage) {
        self.ask(ConnectionId(0), user, Ask::Account(user), stage);
    }

    /// A question was answered, or `None`.
    pub(crate) fn answered(
        &mut self,
        Question { connection, user, ask }: Question,
        answered: Option<Answered>,
        stage: &mut Stage,
    ) {
        match (ask, answered) {
            (Ask::Attach(..), Some(Answered::Attached(attached))) => {
                self.attached(connection, Ok(attached.map(Box::new)), stage);
            }
            (Ask::Attach(..), _) => self.attached(connection, Err(Code::Unavailable), stage),
            (Ask::Page { .. }, answered) => {
                let page = match answered {
                    Some(Answered::Page(page)) => page,
                    _ => Page::not_read(),
                };
                self.if_here(user, Item::Page(ConnectionId(connection), page), stage);
            }
            (Ask::Account(_), Some(Answered::Account(account))) => {
                self.account(user, account, stage);
            }
            (Ask::Account(_), _) => {
                stage.local(self.me, AGAIN_MS, NodeEvent::AccountNotRead(user));
            }
            (Ask::Owner(_), _) => {}
        }
    }

    /// The account of a user has changed, or was read.
    pub(crate) fn account(
        &mut self,
        user: UserId,
        account: Option<Arc<AccountView>>,
        stage: &mut Stage,
    ) {
        self.if_here(user, Item::Account(account), stage);
    }

    fn if_here(&mut self, user: UserId, item: Item, stage: &mut Stage) {
        if self.cores.contains_key(&user) {
            self.step(user, item, stage);
        }
    }

    fn attached(
        &mut self,
        connection: u64,
        attached: Result<Option<Box<Attached>>, Code>,
        stage: &mut Stage,
    ) {
        let Some(socket) = self.sockets.get(&connection) else { return };
        let standing = match socket.login {
            Some(claimed) => Standing::Login(claimed),
            None => socket.unanswered.standing(),
        };
        let item = Item::Attached(ConnectionId(connection), attached, standing);
        self.step(socket.user, item, stage);
    }

    pub(crate) fn push(&mut self, user: UserId, Entry { seq, envelope }: Entry, stage: &mut Stage) {
        self.if_here(user, Item::Push(seq, envelope), stage);
    }

    pub(crate) fn grown_to(&mut self, user: UserId, seq: Seq, stage: &mut Stage) {
        self.if_here(user, Item::GrownTo(seq), stage);
    }

    pub(crate) fn read_again(&mut self, shard: ShardId, stage: &mut Stage) {
        let of_shard = self.cores.keys().filter(|user| user.shard() == shard);
        for user in of_shard.copied().collect::<Vec<_>>() {
            self.step(user, Item::ReadAgain, stage);
        }
    }

    pub(crate) fn try_again(&mut self, connection: u64, stage: &mut Stage) {
        if let Some(socket) = self.sockets.get(&connection) {
            self.step(socket.user, Item::RetryDue(ConnectionId(connection)), stage);
        }
    }

    // ---- The sessions table ------------------------------------------------------------------

    fn write(&mut self, key: Key, online: bool) {
        let version = self.known.get(&key).map_or(0, |row| row.version) + 1;
        let row = Row { version, life: self.life, node: self.me, online };
        self.known.insert(key, row);
        self.told.push((key, row));
    }

    fn is_here(&self, key: Key) -> bool {
        let logged_in = |s: &Socket| (s.user, s.device) == key && s.login.is_none();
        self.sockets.values().any(logged_in)
    }

    /// Takes in rows of another node. Devices that have gone elsewhere are sent away; of those that
    /// are here after all it is said again. Who has come where.
    pub(crate) fn merge(&mut self, rows: Vec<Told>, stage: &mut Stage) -> Vec<(UserId, usize)> {
        let mut opened = Vec::new();
        for (key, row) in rows {
            if self.known.get(&key).is_some_and(|before| *before >= row) {
                continue;
            }
            self.known.insert(key, row);
            if row.is_there(stage) && row.node != self.me {
                if self.cores.contains_key(&key.0) {
                    self.step(key.0, Item::Displaced(key.1), stage);
                }
                opened.push((key.0, row.node));
            } else if self.is_here(key) {
                self.write(key, true);
            }
        }
        opened
    }

    /// Other nodes on which a user has sessions.
    pub(crate) fn elsewhere(&self, user: UserId, stage: &Stage) -> BTreeSet<usize> {
        let of_user = self.known.iter().filter(|((u, _), row)| *u == user && row.is_there(stage));
        of_user.map(|(_, row)| row.node).filter(|node| *node != self.me).collect()
    }
}

impl Row {
    /// Whether somebody is there. That a node has died is known at once here: what was said to it
    /// would be lost anyway.
    fn is_there(&self, stage: &Stage) -> bool {
        self.online && stage.lives[self.node] == self.life
    }
}

/// What names a row.
type Key = (UserId, DeviceId);

/// A row as nodes tell it to each other.
pub(crate) type Told = (Key, Row);
