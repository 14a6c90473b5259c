//! Micro benchmarks: `cargo bench -p benches`, or with `-- codec`, `-- log` or `-- machine` one part.
//!
//! What a frame costs to encode and to decode; what a flush of the log costs, alone and shared; what
//! the state machine of a shard costs for the whole life of a message.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that fails must stop")]

use std::hint::black_box;
use std::sync::mpsc;

use actors::shard::{Command, Machine, MachineLimits, Outcome};
use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use proto::frame::{decode, encode};
use proto::ids::SHARDS;
use proto::limits::FRAME_BYTES_MAX;
use proto::wire::{
    ClientFrame, Deliver, Message, Send, ServerFrame, client_frame, deliver, send, server_frame,
};
use proto::{ShardId, UserId, stored};
use storage::{Storage, StorageOptions};

/// Some moment, Unix time.
const NOW_MS: u64 = 1_795_000_000_000;

fn send_of(bytes: usize) -> ClientFrame {
    let to = Some(send::To::User(UserId::MAX.0));
    let send = Send { to, body: Bytes::from(vec![7; bytes]), ..Send::default() };
    ClientFrame { id: 123_456, kind: Some(client_frame::Kind::Send(send)) }
}

fn deliver_of(bytes: usize) -> ServerFrame {
    let body = Bytes::from(vec![7; bytes]);
    let message = Message { from: UserId::MAX.0, from_device: 1, send_id: 123_456, body };
    let content = Some(deliver::Content::Message(message));
    let deliver = Deliver { seq: 4_321, after: None, at_ms: NOW_MS, content };
    ServerFrame { id: 0, kind: Some(server_frame::Kind::Deliver(deliver)) }
}

/// Encoding and decoding of one kind of frame.
fn both_ways<M: prost::Message + Default>(c: &mut Criterion, name: &str, of: fn(usize) -> M) {
    let mut group = c.benchmark_group(name);
    for body in [100, 10_000] {
        let frame = of(body);
        let mut bytes = BytesMut::with_capacity(2 * body);
        encode(&frame, &mut bytes);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("encode/{body}"), |b| {
            let mut out = BytesMut::with_capacity(2 * body);
            b.iter(|| {
                out.clear();
                encode(black_box(&frame), &mut out);
            });
        });
        group.bench_function(format!("decode/{body}"), |b| {
            b.iter_batched(
                || bytes.clone(),
                |mut input| black_box(decode::<M>(&mut input, FRAME_BYTES_MAX)).is_ok(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn codec(c: &mut Criterion) {
    both_ways(c, "codec/send", send_of);
    both_ways(c, "codec/deliver", deliver_of);
}

/// Appends records over all shards at once and waits until all are flushed.
fn log(c: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (storage, _) = Storage::open(folder.path(), StorageOptions::default()).unwrap();
    let mut indexes = vec![0u64; usize::from(SHARDS)];
    let mut group = c.benchmark_group("log/append_and_flush");
    for records in [1usize, 16, 256] {
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(format!("{records}x160"), |b| {
            b.iter(|| {
                let (sender, flushed) = mpsc::channel();
                for record in 0..records {
                    let shard = record % usize::from(SHARDS);
                    indexes[shard] += 1;
                    let sender = sender.clone();
                    let done = Box::new(move |outcome| sender.send(outcome).unwrap());
                    let shard_id = ShardId(u16::try_from(shard).unwrap());
                    storage.log().append(shard_id, indexes[shard], vec![7; 160], done);
                }
                drop(sender);
                for outcome in flushed {
                    outcome.unwrap();
                }
            });
        });
    }
    group.finish();
    storage.close();
}

/// A shard with two users, each with one device.
fn two_people() -> (Machine, UserId, UserId) {
    let alice = UserId(1);
    let shard = alice.shard();
    let bob = (2..100).map(UserId).find(|user| user.shard() == shard).unwrap();
    let mut machine = Machine::new(shard, MachineLimits::default());
    for (number, user) in (1..).zip([alice, bob]) {
        let open = stored::OpenAccount {
            alias: Some(stored::AliasClaim { alias: format!("user{user}"), claim: 1 }),
            key: Bytes::from(user.0.to_be_bytes().repeat(4)),
            name: "bench".into(),
        };
        let what = Some(stored::notice::What::OpenAccount(open));
        let notices = vec![stored::Notice { number, user: user.0, what }];
        let from_shard = u32::from(shard.0);
        let taken = Command::TakeNotices(stored::TakeNotices { from_shard, notices });
        assert_eq!(machine.apply(NOW_MS, taken), Outcome::Done);
    }
    machine.take_effects();
    (machine, alice, bob)
}

/// A message is stored, acknowledged by its recipient, and its receipt by its sender.
fn machine(c: &mut Criterion) {
    let (mut machine, alice, bob) = two_people();
    let body = Bytes::from(vec![7; 100]);
    let mut number = 0;
    c.bench_function("machine/message_with_both_ticks", |b| {
        b.iter(|| {
            number += 1;
            let append = stored::Append {
                to: bob.0,
                from: alice.0,
                from_device: 1,
                send_id: number,
                ttl_s: 3600,
                body: body.clone(),
                ..stored::Append::default()
            };
            let stored = machine.apply(NOW_MS, Command::Append(append));
            assert!(matches!(stored, Outcome::Accepted { .. }), "{stored:?}");
            for user in [bob, alice] {
                let ack = stored::Ack { user: user.0, device: 1, seq: number };
                machine.apply(NOW_MS, Command::Ack(ack));
            }
            black_box(machine.take_effects());
        });
    });
    let held = machine.mailbox(bob).map(|mailbox| mailbox.usage().messages);
    assert_eq!(held, Some(0), "everything was delivered and let go");
}

criterion_group!(benches, codec, log, machine);
criterion_main!(benches);
