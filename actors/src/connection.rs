//! The door to one socket: what the node wants to say there, and the requests that wait for their
//! answer. It outlives the user actor, so a restart of that actor loses neither.
//!
//! # Invariants
//! 1. A request stays in [`Unanswered`] until its one answer is queued.
//! 2. What is queued is bounded in number and encoded bytes: answers by their number,
//!    their bytes and [`QUEUED_BYTES`], deliveries by the device's window, signals by
//!    [`SIGNALS_MAX`] and [`SIGNALS_BYTES`].

use crate::rates::TooFast;
use crate::unanswered::{Standing, Unanswered};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::stored::{self, envelope::Content};
use proto::wire::{self, ClientFrame, ServerFrame, server_frame::Kind};
use proto::{Code, DeviceId, Seq, frame};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Frames waiting to be written beyond which signals and presence are dropped.
const SIGNALS_MAX: usize = 64;

/// Bytes of queued signals and other frames beyond which signals and presence are dropped.
const SIGNALS_BYTES: usize = 64 * 1024;

/// Bytes of frames that wait to be written, beyond which no more requests are read: a full window and
/// some answers.
const QUEUED_BYTES: usize = 1024 * 1024;

/// Bytes encoded at once.
const DRAIN_BYTES: usize = 64 * 1024;

/// Identifies a connection within a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// The door to one socket.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    source: IpAddr,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    unanswered: Unanswered,
    attach_due: bool,
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Outgoing {
    Frame(Box<ServerFrame>),
    Accepted { id: u64, at_ms: u64, user: u64 },
    Deliver { seq: Seq, after: Option<Seq>, envelope: Arc<stored::Envelope> },
}

/// How a connection ends, after what is queued was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client asked for it.
    Quiet,
    /// The client is told why.
    Told(Code),
    /// The client is told why, and when to come back.
    ComeBack {
        /// Why.
        code: Code,
        /// In ms.
        after_ms: u32,
    },
}

/// What a socket's task finds when it looks.
#[derive(Debug)]
pub struct Drained {
    /// The user actor is a new one: attach to it again.
    pub attach_due: bool,
    /// Close when everything was written.
    pub ending: Option<Ending>,
    /// More is queued than fitted.
    pub more: bool,
}

impl Connection {
    /// A door to a new socket. `source`: the address that its requests count for.
    pub fn new(source: IpAddr) -> Arc<Self> {
        let id = ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed));
        Arc::new(Self { id, source, state: Mutex::default(), wake: Notify::new() })
    }

    /// The address that its requests count for; for IPv6 the network of one subscriber.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Which connection this is.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Queues something the node says by itself.
    pub fn say(&self, kind: Kind) {
        self.queue(Outgoing::Frame(Box::new(ServerFrame { id: 0, kind: Some(kind) })));
    }

    /// Queues something that may be dropped when the socket is slow. False if it was.
    pub fn hint(&self, kind: Kind) -> bool {
        let state = self.state();
        if state.queue.len() >= SIGNALS_MAX || state.queued_bytes >= SIGNALS_BYTES {
            return false;
        }
        drop(state);
        self.say(kind);
        true
    }

    /// Answers a request, unless it was answered before.
    pub fn answer(&self, id: u64, kind: Kind) {
        let answer = || Outgoing::Frame(Box::new(ServerFrame { id, kind: Some(kind) }));
        self.answer_with(id, answer);
    }

    /// Answers a send that was stored, unless it was answered before.
    pub fn accepted(&self, id: u64, at_ms: u64, user: u64) {
        self.answer_with(id, || Outgoing::Accepted { id, at_ms, user });
    }

    fn answer_with(&self, id: u64, answer: impl FnOnce() -> Outgoing) {
        let mut state = self.state();
        if state.unanswered.answer(id) {
            self.queue_and_wake(state, answer());
        }
    }

    /// Refuses a request.
    pub fn refuse(&self, id: u64, refused: impl Into<Refusal>) {
        self.answer(id, Kind::Refused(refusal(refused)));
    }

    /// Queues an entry of the mailbox.
    pub fn deliver(&self, seq: Seq, after: Option<Seq>, envelope: Arc<stored::Envelope>) {
        let mut state = self.state();
        if state.ending.is_some() {
            return;
        }
        state.unanswered.deliver(seq);
        self.queue_and_wake(state, Outgoing::Deliver { seq, after, envelope });
    }

    /// Ends the connection once everything queued was written.
    pub fn end(&self, ending: Ending) {
        self.state().ending.get_or_insert(ending);
        self.wake.notify_one();
    }

    /// Asks the socket's task to attach to the user actor again.
    pub fn request_attach(&self) {
        self.state().attach_due = true;
        self.wake.notify_one();
    }

    /// Counts a request as unanswered, so that a new user actor gets it too.
    pub fn remember(&self, frame: ClientFrame) {
        self.state().unanswered.remember(frame);
    }

    /// Notes what the device says it has; only what it was sent counts. False if that is nothing new.
    pub fn acknowledge(&self, seq: Seq) -> bool {
        self.state().unanswered.acknowledge(seq)
    }

    /// A session begins whose device has everything up to `seq`.
    pub fn begins_at(&self, seq: Seq) {
        self.state().unanswered.begin_at(seq);
    }

    /// Whether so many requests wait for their answer that no more should be read.
    pub fn is_full(&self) -> bool {
        let state = self.state();
        state.unanswered.is_full() || state.queued_bytes >= QUEUED_BYTES
    }

    /// Whether the login was not answered yet: it is the one request without content.
    pub fn is_opening(&self) -> bool {
        self.state().unanswered.is_opening()
    }

    /// What a new user actor must know.
    pub fn standing(&self) -> Standing {
        self.state().unanswered.standing()
    }

    /// Appends queued frames to `out`, up to about 64 KiB.
    pub fn drain(&self, out: &mut Vec<u8>) -> Drained {
        let mut state = self.state();
        let start = out.len();
        out.reserve(state.queued_bytes.min(DRAIN_BYTES));
        while out.len() - start < DRAIN_BYTES {
            let Some(outgoing) = state.queue.pop_front() else { break };
            state.queued_bytes -= outgoing.bytes();
            frame::encode(&outgoing.into_frame(), out);
        }
        if state.queue.is_empty() && state.queue.capacity() > 16 {
            state.queue.shrink_to(4);
        }
        Drained {
            attach_due: std::mem::take(&mut state.attach_due) && state.ending.is_none(),
            ending: state.ending,
            more: !state.queue.is_empty(),
        }
    }

    /// Returns when something may have been queued since the last [`Self::drain`].
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    fn queue(&self, outgoing: Outgoing) {
        self.queue_and_wake(self.state(), outgoing);
    }

    fn queue_and_wake(&self, mut state: MutexGuard<'_, State>, outgoing: Outgoing) {
        state.queued_bytes += outgoing.bytes();
        state.queue.push_back(outgoing);
        drop(state);
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For developers. It repeats nothing of what the client sent, for that may be secret.
    pub text: String,
    /// When the same may pass, in ms; 0 if waiting does not help.
    pub after_ms: u32,
}

/// The wait in a refusal that ends at a time that nobody knows, in ms: when a disk has space, a cluster a
/// majority, a gateway an answer.
const UNKNOWN_WAIT_MS: u32 = 1_000;

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self::saying(code, code.name())
    }
}

impl From<TooFast> for Refusal {
    fn from(TooFast { after_ms }: TooFast) -> Self {
        Self::wait(Code::TooFast, after_ms)
    }
}

impl Refusal {
    /// A refusal with more than its name for developers.
    pub fn saying(code: Code, text: impl Into<String>) -> Self {
        let waits = code.retry() == proto::Retry::After;
        Self { code, text: text.into(), after_ms: if waits { UNKNOWN_WAIT_MS } else { 0 } }
    }

    /// A refusal of what may pass after so many ms.
    pub fn wait(code: Code, after_ms: u32) -> Self {
        Self { after_ms, ..Self::from(code) }
    }

    /// A [`Code::BadRequest`] because of one field: `reason` says what is wrong with it.
    pub fn field(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::saying(Code::BadRequest, format!("field `{name}`: {reason}"))
    }
}

/// A refusal as a client hears it.
pub fn refusal(refused: impl Into<Refusal>) -> wire::Refused {
    let Refusal { code, text, after_ms } = refused.into();
    wire::Refused { code: code.number(), text, retry_after_ms: after_ms }
}

impl Outgoing {
    /// Bytes that it takes: on the wire, and in memory beside it.
    fn bytes(&self) -> usize {
        let content = match self {
            Self::Frame(frame) => size_of::<ServerFrame>() + frame.encoded_len(),
            Self::Accepted { .. } => 0,
            Self::Deliver { envelope, .. } => crate::shard::bytes_of(envelope),
        };
        size_of::<Self>() + content
    }

    fn into_frame(self) -> ServerFrame {
        match self {
            Self::Frame(frame) => *frame,
            Self::Accepted { id, at_ms, user } => {
                ServerFrame { id, kind: Some(Kind::Accepted(wire::Accepted { at_ms, user })) }
            }
            Self::Deliver { seq, after, envelope } => {
                let content = envelope.content.as_ref().map(to_wire);
                let after = after.map(|seq| seq.0);
                let deliver = wire::Deliver { seq: seq.0, after, at_ms: envelope.at_ms, content };
                ServerFrame { id: 0, kind: Some(Kind::Deliver(deliver)) }
            }
        }
    }
}

/// What a device is shown of an entry.
fn to_wire(content: &Content) -> wire::deliver::Content {
    use wire::deliver::Content as Wire;
    match content {
        Content::Message(message) => Wire::Message(wire::Message {
            from: message.from,
            from_device: message.from_device,
            send_id: message.send_id,
            body: message.body.clone(),
        }),
        Content::Receipt(receipt) => Wire::Receipt(wire::Receipt {
            kind: receipt.kind.cast_signed(),
            user: receipt.user,
            device: receipt.device,
            send_ids: receipt.send_ids.clone(),
        }),
        Content::SentCopy(copy) => Wire::SentCopy(wire::SentCopy {
            to: copy.to,
            from_device: copy.from_device,
            send_id: copy.send_id,
            body: copy.body.clone(),
        }),
        Content::ReadCopy(copy) => Wire::ReadCopy(wire::ReadCopy {
            from: copy.from,
            from_device: copy.from_device,
            send_ids: copy.send_ids.clone(),
        }),
        Content::DeviceNotice(notice) => Wire::DeviceNotice(wire::DeviceNotice {
            kind: notice.kind.cast_signed(),
            device: notice.device,
            by_device: notice.by_device,
        }),
    }
}

/// Whether an entry is for this device: not what it did itself.
pub fn is_for(content: &Content, user: proto::UserId, device: DeviceId) -> bool {
    match content {
        Content::Message(message) => message.from != user.0 || message.from_device != device.0,
        Content::Receipt(_) => true,
        Content::SentCopy(copy) => copy.from_device != device.0,
        Content::ReadCopy(copy) => copy.by_device != device.0,
        Content::DeviceNotice(notice) => ![notice.device, notice.by_device].contains(&device.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::client_frame::Kind as Ask;

    #[test]
    fn only_what_was_delivered_and_not_yet_acknowledged_is_news() {
        let connection = Connection::new([127, 0, 0, 1].into());
        connection.begins_at(Seq(5));
        assert!(!connection.acknowledge(Seq(5)));
        assert!(!connection.acknowledge(Seq(u64::MAX)), "nothing was delivered");
        connection.deliver(Seq(8), None, Arc::default());
        assert!(connection.acknowledge(Seq(6)));
        assert!(connection.acknowledge(Seq(u64::MAX)), "up to what was delivered");
        assert!(!connection.acknowledge(Seq(8)));
    }

    #[test]
    fn requests_count_with_all_their_bytes_and_signals_are_dropped_by_bytes() {
        let connection = Connection::new([127, 0, 0, 1].into());
        let alias = "a".repeat(200_000);
        for id in 1..=3 {
            assert!(!connection.is_full(), "{id}");
            let ask = Ask::RegisterStart(wire::RegisterStart { alias: alias.clone() });
            connection.remember(ClientFrame { id, kind: Some(ask) });
        }
        assert!(connection.is_full(), "600 KB of requests");
        (1..=3).for_each(|id| connection.refuse(id, Code::AlreadyLoggedIn));
        assert!(!connection.is_full());

        let signal = wire::Signaled { body: vec![0; 30_000].into(), ..wire::Signaled::default() };
        let passed = (0..10).filter(|_| connection.hint(Kind::Signaled(signal.clone()))).count();
        assert_eq!(passed, 3, "then 64 KiB wait");
        let mut out = Vec::new();
        while connection.drain(&mut out).more {}
        assert!(connection.hint(Kind::Signaled(signal)), "what is written waits no longer");
    }
}
