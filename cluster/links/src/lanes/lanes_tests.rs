//! Tests of outbox and inbox together, over a link that loses, repeats and reorders.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use proto::cluster::{Packet, Piece};

use crate::door::Lane;
use crate::lanes::inbox::Inbox;
use crate::lanes::outbox::{Outbox, Refused};
use crate::lanes::parcel::{Kind, LANES, Parcel};
use crate::limits::{
    BULK_BYTES_MAX, INCOMPLETE_BYTES_MAX, NORMAL_BYTES_MAX, PACKET_BYTES_MAX, PARCEL_BYTES_MAX,
    URGENT_BYTES_MAX, URGENT_EXTRA_BYTES, WINDOW_BYTES,
};

/// The parcel of a number: its bytes say which it is and follow from that.
fn parcel(number: usize, size: usize) -> Parcel {
    let bytes = (0..size).map(|at| u8::try_from((number * 31 + at) % 251).unwrap()).collect();
    let call = number as u64;
    let kind = match number % 3 {
        0 => Kind::Cast,
        1 => Kind::Request { call, deadline_ms: 1_000_000 },
        _ => Kind::Response { call },
    };
    Parcel { kind, bytes }
}

fn lane(number: u8) -> Lane {
    LANES[usize::from(number) % 3]
}

fn parcels() -> impl Strategy<Value = Vec<(u8, usize)>> {
    let size = prop_oneof![5 => 0..300_usize, 2 => 300..60_000_usize, 1 => 60_000..400_000_usize];
    vec((any::<u8>(), size), 1..40)
}

/// Encodes and decodes, as the link does.
fn travel(packet: &Packet) -> Packet {
    let encoded = packet.encode_to_vec();
    assert!(encoded.len() <= PACKET_BYTES_MAX, "{} bytes", encoded.len());
    Packet::decode(Bytes::from(encoded)).unwrap()
}

fn arrivals(inbox: &mut Inbox, packet: &Packet) -> Vec<(Lane, Parcel)> {
    let mut arrived = Vec::new();
    let packet = travel(packet);
    inbox.take(packet.number, packet.pieces, 0, |lane, parcel| arrived.push((lane, parcel)));
    arrived
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn without_loss_everything_arrives_in_order_within_its_lane(sizes in parcels()) {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::new());
        let mut sent: BTreeMap<Lane, Vec<Parcel>> = BTreeMap::new();
        for (number, (in_lane, size)) in sizes.iter().enumerate() {
            let parcel = parcel(number, *size);
            if outbox.push(lane(*in_lane), parcel.clone()).is_ok() {
                sent.entry(lane(*in_lane)).or_default().push(parcel);
            }
        }
        let mut arrived: BTreeMap<Lane, Vec<Parcel>> = BTreeMap::new();
        while let Some(packet) = outbox.next_packet(0) {
            for (lane, parcel) in arrivals(&mut inbox, &packet) {
                arrived.entry(lane).or_default().push(parcel);
            }
            outbox.acknowledge(inbox.newest());
        }
        prop_assert_eq!(arrived, sent);
        prop_assert_eq!((outbox.bytes(), inbox.bytes(), inbox.given_up()), (0, 0, 0));
    }

    #[test]
    fn whatever_the_link_does_a_parcel_arrives_whole_and_once_or_not_at_all(
        sizes in parcels(),
        fates in vec((0..10_u8, 0..6_usize), 1..300),
    ) {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::new());
        for (number, (in_lane, size)) in sizes.iter().enumerate() {
            drop(outbox.push(lane(*in_lane), parcel(number, *size)));
        }
        // Every packet meets its fate: lost, repeated, or overtaken by up to five others.
        let mut under_way: Vec<(usize, Packet)> = Vec::new();
        let mut arrived = Vec::new();
        for (place, (fate, late)) in fates.iter().enumerate() {
            let packet = outbox.next_packet(0).unwrap_or_else(|| outbox.empty_packet());
            match fate {
                0 | 1 => {}
                2 => under_way.extend([(place, packet.clone()), (place + late, packet)]),
                _ => under_way.push((place + late, packet)),
            }
            let (now, later): (Vec<_>, _) = under_way.into_iter().partition(|(at, _)| *at <= place);
            under_way = later;
            for (_, packet) in now {
                arrived.extend(arrivals(&mut inbox, &packet));
            }
            outbox.acknowledge(inbox.newest());
        }
        // Then the link is well: lost credit heals with the first packet that comes through.
        let mut healed = Some(outbox.empty_packet());
        while let Some(packet) = healed {
            arrived.extend(arrivals(&mut inbox, &packet));
            outbox.acknowledge(inbox.newest());
            healed = outbox.next_packet(0);
        }
        prop_assert_eq!(outbox.bytes(), 0);
        let mut left: Vec<_> =
            sizes.iter().enumerate().map(|(n, (l, size))| (lane(*l), parcel(n, *size))).collect();
        for parcel in arrived {
            let place = left.iter().position(|sent| *sent == parcel);
            prop_assert!(place.is_some(), "garbage, or twice");
            left.swap_remove(place.unwrap());
        }
    }

    #[test]
    fn strange_pieces_are_bounded_and_harm_nothing(
        pieces in vec((0..4_u64, 0..4_u32, any::<bool>(), 0..9_u32, 0..3_usize, 0..5_i32), 1..200),
        far in any::<u32>(),
    ) {
        let mut inbox = Inbox::new();
        for (number, (parcel, lane, last, at, size, kind)) in pieces.into_iter().enumerate() {
            let offset = if at == 8 { far } else { at };
            let bytes = Bytes::from(vec![1; size]);
            let piece = Piece { parcel, lane, last, bytes, kind, offset, ..Piece::default() };
            let mut longest = 0;
            inbox.take(number as u64 + 1, vec![piece], 0, |_, p| longest = longest.max(p.bytes.len()));
            prop_assert!(longest <= PARCEL_BYTES_MAX);
            prop_assert!(inbox.bytes() <= 3 * INCOMPLETE_BYTES_MAX);
        }
    }
}

fn push(outbox: &mut Outbox, lane: Lane, size: usize) -> Result<(), Refused> {
    outbox.push(lane, Parcel { kind: Kind::Cast, bytes: Bytes::from(vec![0; size]) })
}

fn fill(outbox: &mut Outbox, lane: Lane, size: usize) {
    while push(outbox, lane, size).is_ok() {}
}

#[test]
fn a_peer_that_hangs_costs_a_bounded_number_of_bytes() {
    let mut outbox = Outbox::default();
    for size in [PARCEL_BYTES_MAX, 100_000, 100, 0] {
        for lane in LANES {
            fill(&mut outbox, lane, size.min(URGENT_BYTES_MAX / 2));
        }
        while outbox.next_packet(0).is_some() {}
    }
    let window = WINDOW_BYTES + URGENT_EXTRA_BYTES + PACKET_BYTES_MAX;
    let lanes = URGENT_BYTES_MAX + NORMAL_BYTES_MAX + BULK_BYTES_MAX;
    assert!(outbox.bytes() <= window + lanes, "{}", outbox.bytes());
    assert_eq!(push(&mut outbox, Lane::Normal, 0), Err(Refused::Full));
    assert_eq!(push(&mut outbox, Lane::Normal, PARCEL_BYTES_MAX + 1), Err(Refused::TooLarge));
}

#[test]
fn the_largest_parcel_goes_through_any_lane_that_is_empty() {
    for lane in LANES {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::new());
        push(&mut outbox, lane, PARCEL_BYTES_MAX).unwrap();
        let mut arrived = Vec::new();
        while let Some(packet) = outbox.next_packet(0) {
            arrived.extend(arrivals(&mut inbox, &packet));
            outbox.acknowledge(inbox.newest());
        }
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].1.bytes.len(), PARCEL_BYTES_MAX);
    }
}

#[test]
fn what_is_urgent_goes_first_and_has_credit_of_its_own() {
    let mut outbox = Outbox::default();
    fill(&mut outbox, Lane::Normal, 30_000);
    fill(&mut outbox, Lane::Bulk, 30_000);
    while outbox.next_packet(0).is_some() {}
    push(&mut outbox, Lane::Urgent, 100).unwrap();
    let packet = outbox.next_packet(0).expect("credit of its own");
    assert_eq!(packet.pieces.len(), 1);
    assert_eq!((packet.pieces[0].lane, packet.pieces[0].last), (0, true));
    outbox.acknowledge(packet.number);
    push(&mut outbox, Lane::Urgent, 200).unwrap();
    assert_eq!(outbox.next_packet(0).unwrap().pieces[0].bytes.len(), 200);
}

#[test]
fn normal_gets_four_times_what_bulk_gets_and_neither_starves() {
    let mut outbox = Outbox::default();
    fill(&mut outbox, Lane::Normal, 10_000);
    fill(&mut outbox, Lane::Bulk, 10_000);
    let mut bytes = [0; 3];
    for _ in 0..100 {
        let packet = outbox.next_packet(0).unwrap();
        for piece in &packet.pieces {
            bytes[piece.lane as usize] += piece.bytes.len();
        }
        outbox.acknowledge(packet.number);
    }
    assert!((30..=50).contains(&(bytes[1] * 10 / bytes[2])), "{bytes:?}");
}

#[test]
fn a_request_whose_time_is_over_is_not_sent() {
    let mut outbox = Outbox::default();
    for (call, deadline_ms) in [(1, 50), (2, 200)] {
        let kind = Kind::Request { call, deadline_ms };
        outbox.push(Lane::Normal, Parcel { kind, bytes: Bytes::new() }).unwrap();
    }
    let packet = outbox.next_packet(100).unwrap();
    let told: Vec<_> = packet.pieces.iter().map(|p| (p.call, p.deadline_ms)).collect();
    assert_eq!(told, [(2, 100)]);
}
