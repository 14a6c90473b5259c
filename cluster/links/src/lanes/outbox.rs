//! What waits for one peer: three lanes, cut into pieces, packed into packets, held back by credit.
//!
//! Pure: no clock, no IO; a time is handed in. Driven by `route.rs`.
//!
//! ```text
//! push -> | Urgent | -> goes first ----------------+
//!         | Normal | -> four shares \              +-> packet of <= 64 KiB -> under way -> acknowledged
//!         | Bulk   | -> one share   / by bytes ----+                          <= 1 MiB
//! ```
//!
//! # Invariants
//! 1. Each lane is bounded in bytes, and so is what is under way: a peer that hangs costs no more.
//! 2. An acknowledgement of a packet gives back the credit of all up to it, lost ones too: one packet
//!    that comes through heals the window.
//! 3. Within a lane parcels are sent one after the other, in order.

use std::collections::VecDeque;

use proto::cluster::{Packet, Piece};

use crate::door::Lane;
use crate::lanes::parcel::{Kind, LANES, Parcel, lane_index};
use crate::limits::{
    BULK_BYTES_MAX, BULK_WINDOW_BYTES, NORMAL_BYTES_MAX, NORMAL_SHARE, OVERHEAD_BYTES,
    PACKET_BYTES_MAX, PARCEL_BYTES_MAX, PIECE_BYTES_MAX, URGENT_BYTES_MAX, URGENT_EXTRA_BYTES,
    WINDOW_BYTES,
};

/// Room in a packet for its own fields.
const HEAD_BYTES: usize = 64;

/// A piece of less than this is not worth cutting: it waits for the next packet.
const CUT_BYTES_MIN: usize = 4 << 10;

/// Why a parcel is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too much waits in its lane.
    Full,
    /// It is larger than any parcel may be.
    TooLarge,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    parcel: Parcel,
    sent: usize,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.parcel.bytes.len() + OVERHEAD_BYTES
    }

    fn left(&self) -> usize {
        self.parcel.bytes.len() - self.sent
    }
}

#[derive(Debug, Default)]
struct Queue {
    parcels: VecDeque<Waiting>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    bytes: usize,
    bulk_bytes: usize,
}

/// What waits for one peer and what is under way to it.
#[derive(Debug, Default)]
pub struct Outbox {
    lanes: [Queue; 3],
    flights: VecDeque<Flight>,
    flying: usize,
    flying_bulk: usize,
    packets: u64,
    /// Bytes sent of Normal, by its share, and of Bulk, since both began to wait.
    turns: (u64, u64),
}

impl Outbox {
    /// Takes a parcel.
    ///
    /// # Errors
    /// [`Refused`]: it is lost.
    pub fn push(&mut self, lane: Lane, parcel: Parcel) -> Result<(), Refused> {
        if parcel.bytes.len() > PARCEL_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        let cost = parcel.bytes.len() + OVERHEAD_BYTES;
        let queue = &mut self.lanes[lane_index(lane)];
        let bound = match lane {
            Lane::Urgent => URGENT_BYTES_MAX,
            Lane::Normal => NORMAL_BYTES_MAX,
            Lane::Bulk => BULK_BYTES_MAX,
        };
        if queue.bytes > 0 && queue.bytes + cost > bound {
            return Err(Refused::Full);
        }
        queue.next += 1;
        queue.bytes += cost;
        queue.parcels.push_back(Waiting { number: queue.next, parcel, sent: 0 });
        Ok(())
    }

    /// Whether something waits.
    pub fn has_some(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.parcels.is_empty())
    }

    /// The next packet with pieces in it, if something waits and there is credit for it. Requests
    /// whose time is over are left out.
    pub fn next_packet(&mut self, now_ms: u64) -> Option<Packet> {
        let mut room = PACKET_BYTES_MAX - HEAD_BYTES;
        let mut pieces = Vec::new();
        let mut flight = Flight { number: 0, bytes: 0, bulk_bytes: 0 };
        while let Some(lane) = self.pick(&flight, now_ms) {
            let Some(piece) = self.cut(lane, room, now_ms) else { break };
            let cost = piece.bytes.len() + OVERHEAD_BYTES;
            room -= cost;
            flight.bytes += cost;
            match lane {
                Lane::Urgent => {}
                Lane::Normal => self.turns.0 += cost as u64 / NORMAL_SHARE,
                Lane::Bulk => {
                    self.turns.1 += cost as u64;
                    flight.bulk_bytes += cost;
                }
            }
            pieces.push(piece);
        }
        if pieces.is_empty() {
            return None;
        }
        let mut packet = self.empty_packet();
        packet.pieces = pieces;
        flight.number = packet.number;
        self.flying += flight.bytes;
        self.flying_bulk += flight.bulk_bytes;
        self.flights.push_back(flight);
        Some(packet)
    }

    /// The next packet without pieces: a heartbeat, an acknowledgement, a hello. Needs no credit.
    pub fn empty_packet(&mut self) -> Packet {
        self.packets += 1;
        Packet { number: self.packets, ..Packet::default() }
    }

    /// The peer took packets up to `number`: they, and those lost before, give their credit back.
    pub fn acknowledge(&mut self, number: u64) {
        while let Some(flight) = self.flights.front().filter(|flight| flight.number <= number) {
            self.flying -= flight.bytes;
            self.flying_bulk -= flight.bulk_bytes;
            self.flights.pop_front();
        }
    }

    /// Bytes that wait or are under way.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.flying + self.lanes.iter().map(|lane| lane.bytes).sum::<usize>()
    }

    /// The lane whose turn it is, if it has credit beside what `flight` takes.
    fn pick(&mut self, flight: &Flight, now_ms: u64) -> Option<Lane> {
        for lane in LANES {
            self.drop_expired(lane, now_ms);
        }
        let flying = self.flying + flight.bytes;
        let has = |lane: Lane| !self.lanes[lane_index(lane)].parcels.is_empty();
        if has(Lane::Urgent) && flying < WINDOW_BYTES + URGENT_EXTRA_BYTES {
            return Some(Lane::Urgent);
        }
        if flying >= WINDOW_BYTES {
            return None;
        }
        let (normal, bulk) = (has(Lane::Normal), has(Lane::Bulk));
        let bulk_credit = self.flying_bulk + flight.bulk_bytes < BULK_WINDOW_BYTES;
        if !(normal && bulk) {
            self.turns = (0, 0);
        }
        match (normal, bulk && bulk_credit) {
            (true, true) if self.turns.1 < self.turns.0 => Some(Lane::Bulk),
            (true, _) => Some(Lane::Normal),
            (false, true) => Some(Lane::Bulk),
            (false, false) => None,
        }
    }

    fn drop_expired(&mut self, lane: Lane, now_ms: u64) {
        let queue = &mut self.lanes[lane_index(lane)];
        while let Some(first) = queue.parcels.front() {
            match first.parcel.kind {
                Kind::Request { deadline_ms, .. } if first.sent == 0 && deadline_ms <= now_ms => {
                    queue.bytes -= first.cost();
                    queue.parcels.pop_front();
                }
                Kind::Cast | Kind::Request { .. } | Kind::Response { .. } => return,
            }
        }
    }

    /// Cuts the next piece of a lane, if it fits into `room`.
    fn cut(&mut self, lane: Lane, room: usize, now_ms: u64) -> Option<Piece> {
        let index = lane_index(lane);
        let queue = &mut self.lanes[index];
        let waiting = queue.parcels.front_mut()?;
        let room = room.checked_sub(OVERHEAD_BYTES)?;
        let length = waiting.left().min(PIECE_BYTES_MAX).min(room);
        if length < waiting.left().min(CUT_BYTES_MIN) {
            return None;
        }
        let mut piece = Piece {
            parcel: waiting.number,
            lane: u32::try_from(index).unwrap_or_default(),
            last: length == waiting.left(),
            bytes: waiting.parcel.bytes.slice(waiting.sent..waiting.sent + length),
            offset: u32::try_from(waiting.sent).unwrap_or(u32::MAX),
            ..Piece::default()
        };
        if waiting.sent == 0 {
            let (kind, call, left_ms) = waiting.parcel.kind.to_wire(now_ms);
            piece.set_kind(kind);
            piece.call = call;
            piece.deadline_ms = left_ms;
        }
        waiting.sent += length;
        if piece.last {
            // Counted whole until here.
            queue.bytes -= waiting.cost();
            queue.parcels.pop_front();
        }
        Some(piece)
    }
}
