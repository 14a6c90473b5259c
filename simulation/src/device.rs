//! A person's device: sends and tries again under the same id, acknowledges, loses its connection
//! and comes back, here or on another node. It follows the rules of `PROTOCOL.md` as the SDK does.

use crate::judge::{Judge, Name, Who};
use crate::stage::{DeviceEvent, Event, Stage};
use actors::shard::bytes_of;
use bytes::Bytes;
use proto::limits::{WINDOW_BYTES, WINDOW_MESSAGES};
use proto::{Code, DeviceId, Retry, Seq, UserId, stored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What a device says to a node.
#[derive(Clone, Debug)]
pub(crate) enum ToNode {
    Login { user: UserId, device: DeviceId, acknowledged: Seq },
    Send { id: u64, to: UserId, ttl_s: u32, body: Bytes },
    Ack(Seq),
}

/// What a node says to a device.
#[derive(Clone, Debug)]
pub(crate) enum FromNode {
    Welcome { acknowledged: Seq },
    Accepted(u64),
    Refused(u64, Code),
    Deliver { seq: Seq, after: Option<Seq>, envelope: Arc<stored::Envelope> },
    Closed,
}

#[derive(Clone, Debug)]
struct Send {
    to: UserId,
    ttl_s: u32,
    body: Bytes,
    unanswered: bool,
    /// How often it has left.
    times: u32,
}

/// A connection, as the device sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    pub(crate) id: u64,
    pub(crate) node: usize,
    pub(crate) life: u64,
    welcome: bool,
    /// What is said later comes later.
    said_at: u64,
}

#[allow(clippy::struct_excessive_bools, reason = "what a person does is many small choices")]
pub(crate) struct Device {
    pub(crate) number: usize,
    pub(crate) user: UserId,
    pub(crate) id: DeviceId,
    pub(crate) peers: Vec<UserId>,
    pub(crate) socket: Option<Socket>,
    /// Gives up what is refused for now, and writes something else.
    pub(crate) impatient: bool,
    /// It was unlinked, and does not come again.
    pub(crate) retired: bool,
    /// When a send was refused last, in ms.
    pub(crate) refused_at: u64,
    window: usize,
    ids: u64,
    sends: BTreeMap<u64, Send>,
    held_until: BTreeMap<UserId, u64>,
    seen: Seq,
    acknowledged: Seq,
    position: Seq,
    told: Seq,
    ack_planned: bool,
    /// Entries that it was sent on this connection and has not said that it has, with their bytes.
    in_flight: VecDeque<(Seq, usize)>,
}

impl Device {
    pub(crate) fn new(number: usize, user: UserId, id: DeviceId) -> Self {
        Self {
            number,
            user,
            id,
            peers: Vec::new(),
            socket: None,
            impatient: false,
            retired: false,
            refused_at: 0,
            window: 8,
            ids: 0,
            sends: BTreeMap::new(),
            held_until: BTreeMap::new(),
            seen: Seq(0),
            acknowledged: Seq(0),
            position: Seq(0),
            told: Seq(0),
            ack_planned: false,
            in_flight: VecDeque::new(),
        }
    }

    /// So many sends may be unanswered.
    pub(crate) fn set_window(&mut self, window: usize) {
        self.window = window;
    }

    /// Sends that were not accepted yet.
    pub(crate) fn waiting(&self) -> usize {
        self.sends.len()
    }

    pub(crate) fn who(&self) -> Who {
        Who { user: self.user.0, device: self.id.0 }
    }

    fn plan(&self, ms: u64, what: DeviceEvent, stage: &mut Stage) {
        stage.after(ms, Event::Device { device: self.number, what });
    }

    fn say(&mut self, frame: ToNode, stage: &mut Stage) {
        let late = stage.chance.between(1, stage.weather.delay_ms + 1);
        let Some(socket) = &mut self.socket else { return };
        socket.said_at = (stage.now + late).max(socket.said_at);
        let (connection, late) = (socket.id, socket.said_at - stage.now);
        stage.after(late, Event::Frame { connection, frame });
    }

    // ---- The connection ----------------------------------------------------------------------

    /// Connects to a node, if it is not connected. The connection.
    pub(crate) fn connect(&mut self, id: u64, node: usize, stage: &mut Stage) -> Option<Socket> {
        if self.socket.is_some() || self.retired {
            return None;
        }
        let life = stage.lives[node];
        if life == 0 {
            self.plan(200, DeviceEvent::Connect, stage);
            return None;
        }
        self.socket = Some(Socket { id, node, life, welcome: false, said_at: stage.now });
        self.window = stage.chance.pick(&[1, 2, 8, 64]);
        stage.note(|| format!("{}  connects to node {node} ({id})", self.who()));
        let (user, device, acknowledged) = (self.user, self.id, self.acknowledged);
        self.say(ToNode::Login { user, device, acknowledged }, stage);
        self.socket
    }

    /// The connection is no more; another is made soon.
    pub(crate) fn lose(&mut self, stage: &mut Stage) -> Option<Socket> {
        let socket = self.socket.take()?;
        self.sends.values_mut().for_each(|send| send.unanswered = false);
        stage.note(|| format!("{}  loses connection {}", self.who(), socket.id));
        let late = stage.chance.pick(&[1, 50, 500, 3_000]);
        self.plan(late, DeviceEvent::Connect, stage);
        Some(socket)
    }

    /// What the node says; a connection that must end.
    pub(crate) fn told(
        &mut self,
        frame: FromNode,
        judge: &mut Judge,
        stage: &mut Stage,
    ) -> Option<Socket> {
        match frame {
            FromNode::Welcome { acknowledged } => {
                if let Some(socket) = &mut self.socket {
                    socket.welcome = true;
                }
                self.acknowledged = self.acknowledged.max(acknowledged);
                self.seen = self.seen.max(self.acknowledged);
                (self.position, self.told) = (acknowledged, acknowledged);
                self.in_flight.clear();
                self.pump(stage);
            }
            FromNode::Accepted(id) => {
                self.sends.remove(&id);
                judge.accepted(self.name(id));
                self.pump(stage);
            }
            FromNode::Refused(id, code) => {
                stage.note(|| format!("{}  {id} is refused: {code:?}", self.who()));
                if code.retry() == Retry::Never {
                    judge.wrong(format!("refused for good: {} with {code:?}", self.name(id)));
                }
                self.refused_at = stage.now;
                let whole_truth = |send: &Send| send.times == 1 && code != Code::Unavailable;
                if self.impatient && self.sends.get(&id).is_some_and(whole_truth) {
                    self.sends.remove(&id);
                    judge.given_up(self.name(id));
                    self.plan(1_000, DeviceEvent::Pump, stage); // what waited behind it
                } else if let Some(send) = self.sends.get_mut(&id) {
                    send.unanswered = false;
                    let until = stage.now + stage.chance.between(1_000, 1_250);
                    let held = self.held_until.entry(send.to).or_default();
                    *held = until.max(*held);
                    self.plan(until - stage.now, DeviceEvent::Pump, stage);
                }
            }
            FromNode::Deliver { seq, after, envelope } => {
                if seq > self.position && after.unwrap_or(Seq(seq.0 - 1)) > self.position {
                    judge.wrong(format!("a hole before place {seq} of {}", self.who()));
                }
                self.position = self.position.max(seq);
                self.count_in_flight(seq, bytes_of(&envelope), judge, stage);
                if seq > self.seen {
                    self.seen = seq;
                    stage.note(|| format!("{}  sees {}", self.who(), describe(seq, &envelope)));
                    judge.shown(self.who(), seq.0, &envelope);
                }
                self.acknowledge_soon(stage);
            }
            FromNode::Closed => return self.lose(stage),
        }
        None
    }

    /// One more entry is in flight to the device: no more than its window.
    fn count_in_flight(&mut self, seq: Seq, bytes: usize, judge: &mut Judge, stage: &Stage) {
        self.in_flight.push_back((seq, bytes));
        let told = self.told;
        while self.in_flight.pop_front_if(|(seq, _)| *seq <= told).is_some() {}
        let bytes: usize = self.in_flight.iter().map(|(_, bytes)| bytes).sum();
        let count = self.in_flight.len();
        // A new actor of the user does not know how much is in flight already.
        let windows = if stage.crashed.contains(&self.user) { 2 } else { 1 };
        if count > windows * WINDOW_MESSAGES || (count > 1 && bytes > windows * WINDOW_BYTES) {
            judge.wrong(format!("{} has more in flight than its window", self.who()));
        }
    }

    fn acknowledge_soon(&mut self, stage: &mut Stage) {
        if !std::mem::replace(&mut self.ack_planned, true) {
            let late = stage.chance.pick(&[0, 5, 20, 400]);
            self.plan(late, DeviceEvent::Acknowledge, stage);
        }
    }

    pub(crate) fn acknowledge(&mut self, judge: &mut Judge, stage: &mut Stage) {
        self.ack_planned = false;
        // Sometimes only a part of it.
        self.acknowledged = if stage.chance.one_in(3) && self.seen > self.acknowledged {
            self.acknowledge_soon(stage);
            Seq(stage.chance.between(self.acknowledged.0, self.seen.0))
        } else {
            self.seen
        };
        judge.acknowledged(self.who(), self.acknowledged.0);
        let up_to = self.acknowledged.min(self.position);
        if self.socket.is_some_and(|socket| socket.welcome) && up_to > self.told {
            self.told = up_to;
            self.say(ToNode::Ack(up_to), stage);
        }
    }

    // ---- Sending -----------------------------------------------------------------------------

    fn name(&self, id: u64) -> Name {
        Name { from: self.who(), id }
    }

    /// The person writes to someone.
    pub(crate) fn write(&mut self, ttl_s: u32, body: Bytes, judge: &mut Judge, stage: &mut Stage) {
        let to = stage.chance.pick(&self.peers);
        self.ids += 1;
        let send = Send { to, ttl_s, body, unanswered: false, times: 0 };
        judge.sent(self.name(self.ids), to.0, ttl_s < 3_600);
        self.sends.insert(self.ids, send);
        self.pump(stage);
    }

    /// Sends what may go: in the order of each conversation, nothing after what is unanswered later.
    pub(crate) fn pump(&mut self, stage: &mut Stage) {
        if !self.socket.is_some_and(|socket| socket.welcome) {
            return;
        }
        let under_way = || self.sends.iter().filter(|(_, send)| send.unanswered);
        let mut room = self.window.saturating_sub(under_way().count());
        let newest: BTreeMap<UserId, u64> = under_way().map(|(id, send)| (send.to, *id)).collect();
        let held = self.held_until.iter().filter(|(_, until)| **until > stage.now);
        let mut barred: BTreeSet<UserId> = held.map(|(to, _)| *to).collect();
        let mut leaving = Vec::new();
        for (id, send) in &self.sends {
            if room == 0 {
                break;
            }
            if send.unanswered || barred.contains(&send.to) {
                continue;
            }
            if newest.get(&send.to).is_some_and(|newest| newest > id) {
                barred.insert(send.to);
            } else {
                room -= 1;
                leaving.push(*id);
            }
        }
        for id in leaving {
            let Some(send) = self.sends.get_mut(&id) else { continue };
            send.unanswered = true;
            send.times += 1;
            let Send { to, ttl_s, body, .. } = send.clone();
            self.say(ToNode::Send { id, to, ttl_s, body }, stage);
        }
    }
}

fn describe(seq: Seq, envelope: &stored::Envelope) -> String {
    use stored::envelope::Content;
    match &envelope.content {
        Some(Content::Message(m)) => {
            format!("{seq}: message {} of {}/{}", m.send_id, m.from % 1000, m.from_device)
        }
        Some(Content::Receipt(r)) => {
            format!("{seq}: receipt {} of {} for {:?}", r.kind, r.user % 1000, r.send_ids)
        }
        Some(Content::SentCopy(c)) => format!("{seq}: copy of {} to {}", c.send_id, c.to % 1000),
        Some(Content::ReadCopy(_) | Content::DeviceNotice(_)) | None => {
            format!("{seq}: something else")
        }
    }
}
