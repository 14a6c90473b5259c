//! What a connection keeps for its user's next actor: requests without an answer, and how far its device is.
//! A pure core.
//!
//! # Invariants
//! 1. A request stays until its one answer is given.
//! 2. A device has acknowledged at most what it was sent.

use prost::Message as _;
use proto::Seq;
use proto::limits::UNANSWERED_MAX;
use proto::wire::{ClientFrame, client_frame::Kind};
use std::collections::VecDeque;

/// Bytes of unanswered requests beyond which no more are read.
const UNANSWERED_BYTES: usize = 512 * 1024;

/// What a connection stands for when its device is attached.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It logs in: the device said that it has everything up to here.
    Login(Seq),
    /// It was attached to an earlier actor of this user.
    Known {
        /// The highest seq that the device has acknowledged.
        acknowledged: Seq,
        /// The highest seq that was queued for it.
        delivered: Seq,
        /// Its unanswered requests, in their order.
        unanswered: Vec<ClientFrame>,
    },
}

/// Requests without an answer, and how far the device of a connection is.
#[derive(Debug, Default)]
pub struct Unanswered {
    /// With the bytes that each takes.
    requests: VecDeque<(ClientFrame, usize)>,
    bytes: usize,
    acknowledged: Seq,
    delivered: Seq,
}

impl Unanswered {
    /// A request has come.
    pub fn remember(&mut self, frame: ClientFrame) {
        let bytes = request_bytes(&frame);
        self.bytes += bytes;
        self.requests.push_back((frame, bytes));
    }

    /// A request is answered. False: it was answered before.
    pub fn answer(&mut self, id: u64) -> bool {
        let place = self.requests.iter().position(|(frame, _)| frame.id == id);
        let Some((frame, bytes)) = place.and_then(|place| self.requests.remove(place)) else {
            return false;
        };
        self.bytes -= bytes;
        if self.requests.is_empty() {
            // An idle connection keeps no room; one that has sent keeps some, or each send allocates.
            self.requests.shrink_to(if frame.kind.is_none() { 0 } else { 4 });
        }
        true
    }

    /// A session begins whose device has everything up to `seq`.
    pub fn begin_at(&mut self, seq: Seq) {
        (self.acknowledged, self.delivered) = (seq, seq);
    }

    /// An entry was queued for the device.
    pub fn deliver(&mut self, seq: Seq) {
        self.delivered = seq;
    }

    /// The device says that it has everything up to `seq`. False if that is nothing new.
    pub fn acknowledge(&mut self, seq: Seq) -> bool {
        let before = self.acknowledged;
        self.acknowledged = before.max(seq.min(self.delivered));
        self.acknowledged > before
    }

    /// Whether so many requests wait that no more should be read.
    pub fn is_full(&self) -> bool {
        self.requests.len() >= UNANSWERED_MAX || self.bytes >= UNANSWERED_BYTES
    }

    /// Whether the login was not answered yet: it is the one request without content.
    pub fn is_opening(&self) -> bool {
        self.requests.iter().any(|(frame, _)| frame.kind.is_none())
    }

    /// What a new user actor must know.
    pub fn standing(&self) -> Standing {
        let frames = self.requests.iter().map(|(frame, _)| frame);
        Standing::Known {
            acknowledged: self.acknowledged,
            delivered: self.delivered,
            unanswered: frames.filter(|frame| frame.kind.is_some()).cloned().collect(),
        }
    }
}

/// Bytes that a request takes: on the wire, in memory beside it, and a list of ids once more, which takes
/// eight times what it took in its frame.
fn request_bytes(frame: &ClientFrame) -> usize {
    let list = match &frame.kind {
        Some(Kind::MarkRead(read)) => size_of_val(read.send_ids.as_slice()),
        Some(_) | None => 0,
    };
    frame.encoded_len() + size_of::<ClientFrame>() + list
}
