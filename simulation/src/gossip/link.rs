//! The links of the second simulation: the real outbox on one side, the real inbox on the other, and
//! between them packets that are lost, doubled and late.
//!
//! # Invariants (checked)
//! 1. A parcel comes out whole and once, or not at all.
//! 2. Nothing of an earlier link comes out of a later one.

use crate::chance::Chance;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use links::Lane;
use links::cores::{Inbox, Kind, Outbox, Parcel};
use proto::cluster::Packet;
use std::collections::BTreeSet;

/// One end's half of a link: what it sends, and what has come from the other end.
#[derive(Debug, Default)]
pub(super) struct Half {
    outbox: Outbox,
    inbox: Inbox,
    /// Marks of the parcels that have come out.
    seen: BTreeSet<u64>,
    owing: bool,
}

/// What the network does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rough {
    pub(super) loss_percent: u64,
    pub(super) double_percent: u64,
    pub(super) delay_ms: u64,
}

impl Rough {
    /// After how long a packet arrives, for each time that it does.
    pub(super) fn arrivals(self, chance: &mut Chance) -> Vec<u64> {
        let copies = if chance.percent(self.double_percent) { 2 } else { 1 };
        let mut arrivals = Vec::new();
        for _ in 0..copies {
            if !chance.percent(self.loss_percent) {
                arrivals.push(chance.between(1, self.delay_ms + 1));
            }
        }
        arrivals
    }
}

impl Half {
    /// Sends something; false if too much waits.
    pub(super) fn push(&mut self, lane: Lane, kind: Kind, body: &[u8], mark: u64) -> bool {
        let mut bytes = mark.to_be_bytes().to_vec();
        bytes.extend_from_slice(digest(&SHA256, body).as_ref());
        bytes.extend_from_slice(body);
        self.outbox.push(lane, Parcel { kind, bytes: bytes.into() }).is_ok()
    }

    /// The packets that can go now.
    pub(super) fn packets(&mut self, now_ms: u64) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(packet) = self.outbox.next_packet(now_ms) {
            packets.push(packet);
        }
        if std::mem::take(&mut self.owing) && packets.is_empty() {
            packets.push(self.outbox.empty_packet());
        }
        for packet in &mut packets {
            packet.acknowledged = self.inbox.newest();
        }
        packets
    }

    /// Nothing was sent for a while.
    pub(super) fn heartbeat(&mut self) {
        self.owing = true;
    }

    /// A packet came: what is complete with it.
    pub(super) fn take(&mut self, packet: Packet, now_ms: u64) -> Vec<(Kind, Vec<u8>)> {
        self.outbox.acknowledge(packet.acknowledged);
        let mut whole = Vec::new();
        let cost = self.inbox.take(packet.number, packet.pieces, now_ms, |lane, parcel| {
            whole.push((lane, parcel));
        });
        self.owing |= cost > 0;
        whole.into_iter().map(|(_, parcel)| self.check(&parcel)).collect()
    }

    fn check(&mut self, parcel: &Parcel) -> (Kind, Vec<u8>) {
        let (mark, rest) = parcel.bytes.split_first_chunk::<8>().expect("a mark");
        let (sum, body) = rest.split_at(SHA256_OUTPUT_LEN);
        let mark = u64::from_be_bytes(*mark);
        assert_eq!(sum, digest(&SHA256, body).as_ref(), "a parcel came out damaged");
        assert!(self.seen.insert(mark), "a parcel came out twice");
        (parcel.kind, body.to_vec())
    }
}
