//! What a client tells its application.

use crate::{
    client::Accepted,
    error::{ConnectError, SendError},
    shared::Shared,
    words::explain,
};
use bytes::Bytes;
use proto::{Code, DeviceId, SendId, Seq, UserId, wire};
use std::{
    fmt,
    sync::{Arc, Weak},
};
use tokio::sync::mpsc;

/// The right to say that an entry of the mailbox is kept. Acknowledging one acknowledges all before
/// it, so keep entries in the order in which they come.
#[derive(Clone)]
pub struct Ack {
    seq: Seq,
    shared: Weak<Shared>,
}

impl Ack {
    pub(crate) fn new(seq: Seq, shared: &Arc<Shared>) -> Self {
        Self { seq, shared: Arc::downgrade(shared) }
    }

    /// The entry's place in the mailbox.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// This entry and all before it are kept: the node may delete them.
    pub fn ack(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.acknowledge(self.seq);
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ack").field(&self.seq).finish()
    }
}

/// A message to this user.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: UserId,
    /// From which of their devices.
    pub from_device: DeviceId,
    /// Its id, unique for that device.
    pub send_id: SendId,
    /// The bytes that were sent.
    pub body: Bytes,
    /// When it was accepted, Unix time in ms by the node's clock.
    pub at_ms: u64,
    /// Acknowledges it.
    pub ack: Ack,
}

/// What became of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceiptKind {
    /// Every device of the recipient has them: two ticks.
    Delivered,
    /// The recipient has read them: three.
    Read,
    /// Their time to live ended first.
    Expired,
    /// The recipient's account was deleted first.
    Undeliverable,
    /// A kind of a newer node.
    Unknown,
}

/// News about messages that this user's devices sent.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// What became of them.
    pub kind: ReceiptKind,
    /// Their recipient.
    pub to: UserId,
    /// Which of this user's devices sent them.
    pub device: DeviceId,
    /// Which messages.
    pub send_ids: Vec<SendId>,
    /// When, Unix time in ms by the node's clock.
    pub at_ms: u64,
    /// Acknowledges this entry.
    pub ack: Ack,
}

/// Another device of this user sent a message.
#[derive(Clone, Debug)]
pub struct SentCopy {
    /// Its recipient.
    pub to: UserId,
    /// Which device sent it.
    pub from_device: DeviceId,
    /// Its id, unique for that device.
    pub send_id: SendId,
    /// The bytes that were sent.
    pub body: Bytes,
    /// When, Unix time in ms by the node's clock.
    pub at_ms: u64,
    /// Acknowledges this entry.
    pub ack: Ack,
}

/// What became of another device of this user, or what it did to the account.
#[derive(Clone, Debug)]
pub struct DeviceNotice {
    /// What.
    pub kind: DeviceNoticeKind,
    /// Which device.
    pub device: DeviceId,
    /// Which device did it, if one did.
    pub by_device: Option<DeviceId>,
    /// Acknowledges the entry.
    pub ack: Ack,
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceNoticeKind {
    /// It was away for too long, or far behind: the mailbox no longer waits for it.
    SetAside,
    /// It is back, and lacks the history.
    Back,
    /// It is new.
    Linked,
    /// It was unlinked.
    Unlinked,
    /// It has set or removed the registration lock.
    RegistrationLock,
}

/// Another device of this user has read messages.
#[derive(Clone, Debug)]
pub struct ReadCopy {
    /// Whose messages.
    pub from: UserId,
    /// Which of their devices sent them.
    pub from_device: DeviceId,
    /// Which messages.
    pub send_ids: Vec<SendId>,
    /// Acknowledges this entry.
    pub ack: Ack,
}

/// A signal: not stored, not acknowledged, lost if nobody is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Who sent it.
    pub from: UserId,
    /// From which device.
    pub from_device: DeviceId,
    /// [`crate::SIGNAL_TYPING`], [`crate::SIGNAL_STOPPED`], or what the clients agreed on.
    pub kind: u32,
    /// At most 1 KiB.
    pub body: Bytes,
}

/// A device that asks to be linked to this user's account. Anybody can ask in the name of any device: link
/// it only if [`crate::LinkCode::of`] is the code that the person has typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRequest {
    /// Its Ed25519 public key.
    pub key: Bytes,
    /// What it calls itself.
    pub name: String,
}

/// Whether someone this client subscribed to is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Who.
    pub user: UserId,
    /// Whether they are there now.
    pub online: bool,
    /// When they were last there, Unix time in ms; 0: unknown or hidden.
    pub last_seen_ms: u64,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum DisconnectReason {
    /// It could not be opened, or it broke.
    #[error(transparent)]
    Failed(#[from] ConnectError),
    /// The node closed it.
    #[error("the node closed the connection")]
    Closed,
    /// The node was silent for one and a half heartbeats.
    #[error("the node fell silent")]
    Silent,
    /// The node asked this client to leave.
    #[error("the node asked to reconnect: {}", explain(*.0))]
    GoAway(Code),
    /// The node refused a request in a way that asks for a new connection.
    #[error("the node asked for a new connection: {}", explain(*.0))]
    Refused(Code),
    /// An entry of the mailbox was missing; the next connection resumes before it.
    #[error("entries before {} of the mailbox are missing", .seq.0)]
    Hole {
        /// The entry that came too early.
        seq: Seq,
    },
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Logged in; what waited in the mailbox follows.
    Connected,
    /// Messages before those that follow were never meant for this device: it was linked after them, or was
    /// away for too long. Another device of this user has them. Said at each login until something is
    /// acknowledged.
    HistoryMissing,
    /// No connection; the client tries again by itself.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
    },
    /// The last event: logged in elsewhere (`Replaced`), unlinked or deleted (`Unlinked`), or the
    /// node does not know this device (`BadCredentials`).
    Ended {
        /// Which of them.
        code: Code,
    },
    /// Everything that waited in the mailbox has come.
    CaughtUp,
    /// A message to this user.
    Message(Message),
    /// News about messages this user sent.
    Receipt(Receipt),
    /// Another device of this user sent something.
    SentCopy(SentCopy),
    /// Another device of this user has read something.
    ReadCopy(ReadCopy),
    /// The mailbox no longer waits for another device of this user, or waits for it again.
    DeviceNotice(DeviceNotice),
    /// An entry of a kind this version does not know; acknowledge and forget it.
    Unsupported(Ack),
    /// Typing, or what clients agreed on. Dropped when events wait.
    Signal(Signal),
    /// Someone came or went. Dropped when events wait.
    Presence(Presence),
    /// A device asks to be linked; it asks again every few seconds. Dropped when events wait.
    LinkRequested(LinkRequest),
    /// The answer to a send whose [`crate::SendHandle`] is gone: it was dropped, or the message was
    /// queued before a restart.
    Answered {
        /// Which send.
        send_id: SendId,
        /// The answer.
        result: Result<Accepted, SendError>,
    },
}

impl Event {
    /// Acknowledges the entry this event shows, and all before it; nothing for other events.
    pub fn ack(&self) {
        if let Some(ack) = self.entry() {
            ack.ack();
        }
    }

    fn entry(&self) -> Option<&Ack> {
        match self {
            Self::Message(message) => Some(&message.ack),
            Self::Receipt(receipt) => Some(&receipt.ack),
            Self::SentCopy(copy) => Some(&copy.ack),
            Self::ReadCopy(copy) => Some(&copy.ack),
            Self::DeviceNotice(notice) => Some(&notice.ack),
            Self::Unsupported(ack) => Some(ack),
            Self::Connected
            | Self::HistoryMissing
            | Self::Disconnected { .. }
            | Self::Ended { .. }
            | Self::CaughtUp
            | Self::Signal(_)
            | Self::Presence(_)
            | Self::LinkRequested(_)
            | Self::Answered { .. } => None,
        }
    }

    /// The event for one entry of the mailbox.
    pub(crate) fn delivered(deliver: wire::Deliver, shared: &Arc<Shared>) -> Self {
        use wire::deliver::Content;
        let ack = Ack::new(Seq(deliver.seq), shared);
        let at_ms = deliver.at_ms;
        let ids = |ids: Vec<u64>| ids.into_iter().map(SendId).collect();
        match deliver.content {
            Some(Content::Message(message)) => Self::Message(Message {
                from: UserId(message.from),
                from_device: DeviceId(message.from_device),
                send_id: SendId(message.send_id),
                body: message.body,
                at_ms,
                ack,
            }),
            Some(Content::Receipt(receipt)) => Self::Receipt(Receipt {
                kind: receipt_kind(receipt.kind()),
                to: UserId(receipt.user),
                device: DeviceId(receipt.device),
                send_ids: ids(receipt.send_ids),
                at_ms,
                ack,
            }),
            Some(Content::SentCopy(copy)) => Self::SentCopy(SentCopy {
                to: UserId(copy.to),
                from_device: DeviceId(copy.from_device),
                send_id: SendId(copy.send_id),
                body: copy.body,
                at_ms,
                ack,
            }),
            Some(Content::ReadCopy(copy)) => Self::ReadCopy(ReadCopy {
                from: UserId(copy.from),
                from_device: DeviceId(copy.from_device),
                send_ids: ids(copy.send_ids),
                ack,
            }),
            Some(Content::DeviceNotice(notice)) => match device_notice_kind(notice.kind()) {
                None => Self::Unsupported(ack),
                Some(kind) => Self::DeviceNotice(DeviceNotice {
                    kind,
                    device: DeviceId(notice.device),
                    by_device: (notice.by_device != 0).then_some(DeviceId(notice.by_device)),
                    ack,
                }),
            },
            None => Self::Unsupported(ack),
        }
    }
}

fn device_notice_kind(kind: wire::device_notice::Kind) -> Option<DeviceNoticeKind> {
    use wire::device_notice::Kind;
    Some(match kind {
        Kind::Unspecified => return None,
        Kind::SetAside => DeviceNoticeKind::SetAside,
        Kind::Back => DeviceNoticeKind::Back,
        Kind::Linked => DeviceNoticeKind::Linked,
        Kind::Unlinked => DeviceNoticeKind::Unlinked,
        Kind::RegistrationLock => DeviceNoticeKind::RegistrationLock,
    })
}

fn receipt_kind(kind: wire::receipt::Kind) -> ReceiptKind {
    match kind {
        wire::receipt::Kind::Delivered => ReceiptKind::Delivered,
        wire::receipt::Kind::Read => ReceiptKind::Read,
        wire::receipt::Kind::Expired => ReceiptKind::Expired,
        wire::receipt::Kind::Undeliverable => ReceiptKind::Undeliverable,
        wire::receipt::Kind::Unspecified => ReceiptKind::Unknown,
    }
}

/// The events of one client, in order.
#[derive(Debug)]
pub struct Events {
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) shared: Arc<Shared>,
    /// Keeps the client running while only its events are held.
    pub(crate) _running: crate::client::Client,
    pub(crate) auto_ack: bool,
    pub(crate) taken: Option<Ack>,
    pub(crate) ended: bool,
}

impl Events {
    /// The next event, or `None` after the client was closed or [`Event::Ended`] was taken. May be
    /// dropped and called again.
    ///
    /// With [`crate::ClientOptions::auto_ack`] the call acknowledges the event before: asking for
    /// the next one says that the last one is dealt with.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(ack) = self.taken.take() {
            ack.ack();
        }
        let Some(event) = self.queue.recv().await else {
            let code = self.shared.ended().filter(|_| !self.ended)?;
            self.ended = true;
            return Some(Event::Ended { code });
        };
        if self.auto_ack {
            self.taken = event.entry().cloned();
        }
        Some(event)
    }
}
