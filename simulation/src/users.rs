//! The users' side of a node: sessions with their windows, as `user/actor.rs` and `user/attach.rs`
//! run them. The window is the real one.

use crate::ask::{Answered, Ask, What};
use crate::device::{FromNode, ToNode};
use crate::stage::{Event, NodeEvent, Row, Stage, by};
use actors::connection::is_for;
use actors::shard::{Command, Entry, Outcome, bytes_of};
use actors::user::{News, Offer, Weight, Window};
use proto::stored::{self, envelope::Content};
use proto::{DeviceId, Seq, ShardId, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A device that has come to this node.
struct Session {
    user: UserId,
    device: DeviceId,
    claimed: Seq,
    /// `None`: its shard has not answered yet.
    window: Option<Window>,
    frames: VecDeque<ToNode>,
    /// Something happened to the mailbox while the shard was asked.
    missed: bool,
}

pub(crate) struct Users {
    me: usize,
    life: u64,
    sessions: BTreeMap<u64, Session>,
    /// The sessions table as this node knows it. It is on the disk.
    pub(crate) known: BTreeMap<Key, Row>,
    asks: u64,
    /// The last moment at which something was said on a connection: what is said later comes later.
    said_at: BTreeMap<u64, u64>,
}

impl Users {
    /// The users of a node that starts for the `life`th time, with the table that it knew.
    pub(crate) fn new(me: usize, life: u64, known: BTreeMap<Key, Row>) -> Self {
        Self {
            me,
            life,
            sessions: BTreeMap::new(),
            known,
            // What was asked in an earlier life is not answered in this one.
            asks: life << 32,
            said_at: BTreeMap::new(),
        }
    }

    fn tell(&mut self, connection: u64, frame: FromNode, stage: &mut Stage) {
        let late = stage.chance.between(1, stage.weather.delay_ms + 1);
        let at = self.said_at.entry(connection).or_default();
        *at = (stage.now + late).max(*at);
        let late = *at - stage.now;
        stage.after(late, Event::Told { connection, frame });
    }

    fn ask(&mut self, connection: u64, user: UserId, what: What, stage: &mut Stage) {
        self.asks += 1;
        let ask = Ask { number: self.asks, node: self.me, connection, user, since: 0, what };
        stage.local(self.me, 0, NodeEvent::AskAgain(user.shard(), ask));
    }

    // ---- What clients say --------------------------------------------------------------------

    pub(crate) fn frame(&mut self, connection: u64, frame: ToNode, stage: &mut Stage) {
        if let ToNode::Login { user, device, acknowledged } = frame {
            let session = Session {
                user,
                device,
                claimed: acknowledged,
                window: None,
                frames: VecDeque::new(),
                missed: false,
            };
            self.sessions.insert(connection, session);
            self.ask(connection, user, What::Attach(device), stage);
            return;
        }
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        if session.window.is_none() {
            session.frames.push_back(frame);
            return;
        }
        self.request(connection, frame, stage);
        self.follow(connection, stage);
    }

    fn request(&mut self, connection: u64, frame: ToNode, stage: &mut Stage) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        match frame {
            ToNode::Login { .. } => {}
            ToNode::Ack(seq) => {
                if let Some(window) = &mut session.window {
                    window.acknowledge(seq);
                }
            }
            ToNode::Send { id, to, ttl_s, copy, body } => {
                let append = stored::Append {
                    to: to.0,
                    from: session.user.0,
                    from_device: session.device.0,
                    send_id: id,
                    ttl_s,
                    body,
                    copy,
                };
                let voice = stage.voice(self.me);
                let reply = Box::new(move |outcome| {
                    voice.say(NodeEvent::Outcome { connection, id, outcome });
                });
                let propose = NodeEvent::Propose(to.shard(), Command::Append(append), reply);
                stage.local(self.me, 0, propose);
            }
        }
    }

    /// A socket has gone.
    pub(crate) fn gone(&mut self, connection: u64, stage: &mut Stage) -> Option<Told> {
        let session = self.sessions.remove(&connection)?;
        session.window.as_ref()?;
        let key = (session.user, session.device);
        let again = self.is_here(key);
        let row = self.known.get(&key).copied()?;
        stage.note(|| by(self.me, format_args!("connection {connection} has gone")));
        (!again && (row.node, row.life) == (self.me, self.life)).then(|| self.write(key, false))
    }

    fn is_here(&self, key: Key) -> bool {
        self.sessions.values().any(|s| (s.user, s.device) == key && s.window.is_some())
    }

    fn write(&mut self, key: Key, online: bool) -> Told {
        let version = self.known.get(&key).map_or(0, |row| row.version) + 1;
        let row = Row { version, life: self.life, node: self.me, online };
        self.known.insert(key, row);
        (key, row)
    }

    // ---- What shards say ---------------------------------------------------------------------

    pub(crate) fn outcome(
        &mut self,
        connection: u64,
        id: u64,
        outcome: &Outcome,
        stage: &mut Stage,
    ) {
        let frame = match outcome {
            Outcome::Accepted { .. } => FromNode::Accepted(id),
            Outcome::Refused(code) => FromNode::Refused(id, *code),
            other => panic!("a send is answered with {other:?}"),
        };
        self.tell(connection, frame, stage);
    }

    /// Where a device stands. What to tell other nodes if it has come.
    pub(crate) fn answered(
        &mut self,
        ask: Ask,
        answer: Option<Answered>,
        stage: &mut Stage,
    ) -> Option<Told> {
        let connection = ask.connection;
        let session = self.sessions.get_mut(&connection)?;
        match answer {
            Some(Answered::Attached(Some((acknowledged, last)))) => {
                if session.window.is_some() {
                    return None;
                }
                let base = session.claimed.min(last).max(acknowledged);
                let mut window = Window::new(acknowledged, base, base, last);
                if session.missed {
                    window.more_waits();
                }
                session.window = Some(window);
                let (key, frames) =
                    ((session.user, session.device), std::mem::take(&mut session.frames));
                let shown = (base, acknowledged, last);
                stage.note(|| by(self.me, format_args!("connection {connection}: {shown:?}")));
                self.tell(connection, FromNode::Welcome { acknowledged: base }, stage);
                self.replace(key, connection, stage);
                for frame in frames {
                    self.request(connection, frame, stage);
                }
                self.follow(connection, stage);
                Some(self.write(key, true))
            }
            Some(Answered::Page { entries, up_to, last }) => {
                let mut whole = true;
                for entry in &entries {
                    if self.deliver(connection, entry, true, stage) == Some(Offer::Later) {
                        whole = false;
                        break;
                    }
                }
                let session = self.sessions.get_mut(&connection)?;
                session.window.as_mut()?.page_ended(up_to, last, whole);
                self.follow(connection, stage);
                None
            }
            Some(Answered::Attached(None)) | None => {
                if let Some(window) = &mut session.window {
                    window.page_failed();
                    let late = crate::chores::AGAIN_MS;
                    stage.local(self.me, late, NodeEvent::AckRefused(connection));
                } else {
                    self.sessions.remove(&connection);
                    self.tell(connection, FromNode::Closed, stage);
                }
                None
            }
        }
    }

    /// Ends the other connections of a device.
    fn replace(&mut self, key: Key, connection: u64, stage: &mut Stage) {
        let other = |(id, s): (&u64, &Session)| {
            (*id != connection && (s.user, s.device) == key && s.window.is_some()).then_some(*id)
        };
        let others: Vec<u64> = self.sessions.iter().filter_map(other).collect();
        for other in others {
            self.sessions.remove(&other);
            self.tell(other, FromNode::Closed, stage);
        }
    }

    pub(crate) fn push(&mut self, user: UserId, entry: &Entry, stage: &mut Stage) {
        for connection in self.sessions_of(user) {
            self.deliver(connection, entry, false, stage);
            self.follow(connection, stage);
        }
    }

    pub(crate) fn grown_to(&mut self, user: UserId, seq: Seq, stage: &mut Stage) {
        for connection in self.sessions_of(user) {
            if let Some(session) = self.sessions.get_mut(&connection) {
                match &mut session.window {
                    Some(window) => window.grown_to(seq),
                    None => session.missed = true,
                }
            }
            self.follow(connection, stage);
        }
    }

    fn sessions_of(&self, user: UserId) -> Vec<u64> {
        self.sessions.iter().filter(|(_, s)| s.user == user).map(|(id, _)| *id).collect()
    }

    pub(crate) fn read_again(&mut self, shard: ShardId, stage: &mut Stage) {
        let of_shard = |(id, s): (&u64, &Session)| (s.user.shard() == shard).then_some(*id);
        let all: Vec<u64> = self.sessions.iter().filter_map(of_shard).collect();
        for connection in all {
            if let Some(session) = self.sessions.get_mut(&connection) {
                match &mut session.window {
                    Some(window) => window.more_waits(),
                    None => session.missed = true,
                }
            }
            self.follow(connection, stage);
        }
    }

    pub(crate) fn try_again(&mut self, connection: u64, stage: &mut Stage) {
        if let Some(window) = self.window(connection) {
            window.try_again();
        }
        self.follow(connection, stage);
    }

    fn window(&mut self, connection: u64) -> Option<&mut Window> {
        self.sessions.get_mut(&connection)?.window.as_mut()
    }

    fn deliver(
        &mut self,
        connection: u64,
        entry: &Entry,
        from_page: bool,
        stage: &mut Stage,
    ) -> Option<Offer> {
        let Entry { seq, envelope } = entry;
        let seq = *seq;
        let session = self.sessions.get_mut(&connection)?;
        let window = session.window.as_mut()?;
        let content = envelope.content.as_ref();
        let visible = content.is_some_and(|c| is_for(c, session.user, session.device));
        let awaited = matches!(content, Some(Content::Message(_)));
        let weight = Weight { visible, awaited, bytes: bytes_of(envelope) };
        let offer =
            if from_page { window.offer_from_page(seq, weight) } else { window.offer(seq, weight) };
        if let Offer::Deliver { after } = offer {
            let envelope = envelope.clone();
            self.tell(connection, FromNode::Deliver { seq, after, envelope }, stage);
        }
        Some(offer)
    }

    /// Does what a window asks for.
    fn follow(&mut self, connection: u64, stage: &mut Stage) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let (user, device) = (session.user, session.device);
        let Some(window) = session.window.as_mut() else { return };
        if let Some(News { seq, awaited }) = window.take_news() {
            let ack = Command::Ack(stored::Ack { user: user.0, device: device.0, seq: seq.0 });
            let voice = stage.voice(self.me);
            let reply = Box::new(move |outcome| {
                if matches!(outcome, Outcome::Refused(_)) {
                    voice.say(NodeEvent::AckRefused(connection));
                }
            });
            let event = if awaited {
                NodeEvent::Propose(user.shard(), ack, reply)
            } else {
                NodeEvent::ProposeLazily(user.shard(), ack)
            };
            stage.local(self.me, 0, event);
        }
        if let Some((after, limit, bytes_max)) = window.wants_page() {
            self.ask(connection, user, What::Page { after, limit, bytes_max }, stage);
        }
    }

    // ---- The sessions table ------------------------------------------------------------------

    /// Takes in rows of another node. Devices that have gone elsewhere are sent away; of those that
    /// are here after all it is said again. Who has come where, and what to tell other nodes.
    pub(crate) fn merge(&mut self, rows: Vec<Told>, stage: &mut Stage) -> Merged {
        let mut merged = Merged::default();
        for (key, row) in rows {
            if self.known.get(&key).is_some_and(|before| *before >= row) {
                continue;
            }
            self.known.insert(key, row);
            if row.is_there(stage) && row.node != self.me {
                self.replace(key, 0, stage);
                merged.opened.push((key.0, row.node));
            } else if self.is_here(key) {
                merged.told.push(self.write(key, true));
            }
        }
        merged
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

/// What came of rows that were taken in.
#[derive(Default)]
pub(crate) struct Merged {
    pub(crate) opened: Vec<(UserId, usize)>,
    pub(crate) told: Vec<Told>,
}
