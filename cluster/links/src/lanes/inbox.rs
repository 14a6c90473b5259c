//! Puts parcels together from the pieces of one peer's packets.
//!
//! Pure: no clock, no IO; a time is handed in. Driven by `switchboard.rs`.
//!
//! # Invariants
//! 1. A parcel comes out whole and once, or not at all: pieces have their place, overlaps and strange
//!    places end the parcel, a packet is taken once.
//! 2. What is incomplete is bounded in number and bytes in each lane; the oldest goes first.
//! 3. Without loss and reordering parcels of a lane come out in the order in which they were sent.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proto::cluster::Piece;

use crate::door::Lane;
use crate::lanes::parcel::{Kind, Parcel, lane_index, lane_of};
use crate::limits::{
    INCOMPLETE_BYTES_MAX, INCOMPLETE_MAX, OVERHEAD_BYTES, PARCEL_BYTES_MAX, REORDER_PACKETS,
};

const WORDS: usize = REORDER_PACKETS / 64;
const REORDER: u64 = REORDER_PACKETS as u64;

/// The packets that were taken, as far back as duplicates are known.
#[derive(Debug)]
struct Taken {
    newest: u64,
    bits: [u64; WORDS],
}

impl Taken {
    fn place(number: u64) -> (usize, u64) {
        let bit = number % REORDER;
        (usize::try_from(bit / 64).unwrap_or_default(), 1 << (bit % 64))
    }

    /// Whether this packet is taken now, for the first time.
    fn take(&mut self, number: u64) -> bool {
        if number == 0 || number.saturating_add(REORDER) <= self.newest {
            return false;
        }
        if number > self.newest {
            if number - self.newest >= REORDER {
                self.bits = [0; WORDS];
            } else {
                for skipped in self.newest + 1..=number {
                    let (word, bit) = Self::place(skipped);
                    self.bits[word] &= !bit;
                }
            }
            self.newest = number;
        }
        let (word, bit) = Self::place(number);
        let fresh = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        fresh
    }
}

#[derive(Debug, Default)]
struct Incomplete {
    kind: Option<Kind>,
    pieces: BTreeMap<usize, Bytes>,
    have: usize,
    length: Option<usize>,
    cost: usize,
}

/// What became of a piece.
enum Put {
    Added,
    Complete,
    Broken,
}

impl Incomplete {
    fn put(&mut self, piece: Piece, now_ms: u64) -> Put {
        let Ok(offset) = usize::try_from(piece.offset) else { return Put::Broken };
        let end = offset + piece.bytes.len();
        let before = self.pieces.range(..offset).next_back();
        let after = self.pieces.range(offset..).next();
        let overlaps = before.is_some_and(|(at, bytes)| at + bytes.len() > offset)
            || after.is_some_and(|(at, _)| *at < end || *at == offset);
        let too_long = self.length.is_some_and(|length| end > length)
            || (piece.last && (self.length.is_some() || self.reaches() > end));
        if end > PARCEL_BYTES_MAX || overlaps || too_long {
            return Put::Broken;
        }
        if offset == 0 {
            self.kind = Kind::from_wire(piece.kind, piece.call, piece.deadline_ms, now_ms);
            if self.kind.is_none() {
                return Put::Broken;
            }
        }
        if piece.last {
            self.length = Some(end);
        }
        self.have += piece.bytes.len();
        self.cost += piece.bytes.len() + OVERHEAD_BYTES;
        self.pieces.insert(offset, piece.bytes);
        let complete = self.kind.is_some() && self.length == Some(self.have);
        if complete { Put::Complete } else { Put::Added }
    }

    fn reaches(&self) -> usize {
        self.pieces.last_key_value().map_or(0, |(at, bytes)| at + bytes.len())
    }

    /// Its bytes, of which none is missing.
    fn join(self) -> Bytes {
        let mut pieces = self.pieces.into_values();
        match (pieces.next(), pieces.len()) {
            (None, _) => Bytes::new(),
            // A copy, so that a small parcel does not keep the whole packet in memory.
            (Some(only), 0) => Bytes::copy_from_slice(&only),
            (Some(first), _) => {
                let mut whole = BytesMut::with_capacity(self.have);
                whole.extend_from_slice(&first);
                pieces.for_each(|piece| whole.extend_from_slice(&piece));
                whole.freeze()
            }
        }
    }
}

#[derive(Debug, Default)]
struct Assembly {
    incomplete: BTreeMap<u64, Incomplete>,
    bytes: usize,
    given_up: u64,
}

impl Assembly {
    fn put(&mut self, piece: Piece, now_ms: u64) -> Option<Parcel> {
        let number = piece.parcel;
        if piece.last && piece.offset == 0 && !self.incomplete.contains_key(&number) {
            // The usual case: a parcel in one piece.
            let kind = Kind::from_wire(piece.kind, piece.call, piece.deadline_ms, now_ms);
            let whole = kind.filter(|_| piece.bytes.len() <= PARCEL_BYTES_MAX);
            self.given_up += u64::from(whole.is_none());
            return Some(Parcel { kind: whole?, bytes: Bytes::copy_from_slice(&piece.bytes) });
        }
        let incomplete = self.incomplete.entry(number).or_default();
        self.bytes -= incomplete.cost;
        let put = incomplete.put(piece, now_ms);
        self.bytes += incomplete.cost;
        match put {
            Put::Added => {
                self.keep_bounds();
                None
            }
            Put::Broken => {
                self.give_up(number);
                None
            }
            Put::Complete => {
                let complete = self.incomplete.remove(&number)?;
                self.bytes -= complete.cost;
                Some(Parcel { kind: complete.kind?, bytes: complete.join() })
            }
        }
    }

    fn keep_bounds(&mut self) {
        while self.incomplete.len() > INCOMPLETE_MAX || self.bytes > INCOMPLETE_BYTES_MAX {
            let Some(oldest) = self.incomplete.keys().next().copied() else { return };
            self.give_up(oldest);
        }
    }

    fn give_up(&mut self, number: u64) {
        if let Some(incomplete) = self.incomplete.remove(&number) {
            self.bytes -= incomplete.cost;
            self.given_up += 1;
        }
    }
}

/// What came from one peer on one link.
#[derive(Debug)]
pub struct Inbox {
    taken: Taken,
    lanes: [Assembly; 3],
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    /// Nothing has come yet.
    pub fn new() -> Self {
        let taken = Taken { newest: 0, bits: [0; WORDS] };
        Self { taken, lanes: [(); 3].map(|()| Assembly::default()) }
    }

    /// Takes a packet's pieces and passes on what is complete with them. Returns what the packet
    /// cost the sender in credit.
    pub fn take(
        &mut self,
        number: u64,
        pieces: Vec<Piece>,
        now_ms: u64,
        mut on_parcel: impl FnMut(Lane, Parcel),
    ) -> usize {
        if !self.taken.take(number) {
            return 0;
        }
        let mut cost = 0;
        for piece in pieces {
            cost += piece.bytes.len() + OVERHEAD_BYTES;
            let Some(lane) = lane_of(piece.lane) else { continue };
            if let Some(parcel) = self.lanes[lane_index(lane)].put(piece, now_ms) {
                on_parcel(lane, parcel);
            }
        }
        cost
    }

    /// The newest packet that was taken: the acknowledgement.
    pub fn newest(&self) -> u64 {
        self.taken.newest
    }

    /// Parcels that were given up: pieces missing, or strange.
    pub fn given_up(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.given_up).sum()
    }

    /// Bytes of incomplete parcels.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }
}
