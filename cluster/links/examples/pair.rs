//! Measures links between two processes: `cargo run --profile dist -p links --example pair`.
//!
//! It starts itself a second time as the other node, which answers calls and counts casts.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "it measures real time and says what it sees"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use links::{
    CallError, Config, Identity, Lane, Me, Opened, PeerId, PeerInfo, Peers, Respond, Service,
};
use proto::NodeId;
use supervision::{StopSource, TaskGroup};

const MINUTE: Duration = Duration::from_mins(1);
const COOKIE: &str = "the cookie of the pair that measures";

/// Answers an empty call with how many casts came, and any other one with its first 16 bytes.
#[derive(Default)]
struct Echo(AtomicU64);

impl Service for Echo {
    fn up(&self, _peer: PeerInfo) {}
    fn down(&self, _peer: PeerId) {}
    fn cast(&self, _from: PeerId, _parcel: Bytes) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        if parcel.is_empty() {
            respond(Bytes::copy_from_slice(&self.0.load(Ordering::Relaxed).to_be_bytes()));
        } else {
            respond(parcel.slice(..parcel.len().min(16)));
        }
    }
}

fn open(number: u8, seeds: Vec<String>) -> Opened {
    let identity = Identity::new(&[number; 32], COOKIE).unwrap();
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let config = Config { listen, seeds, ..Config::default() };
    links::open(config, identity, Me { incarnation: 1, ..Me::default() }).unwrap()
}

#[tokio::main]
async fn main() {
    if let Some(seed) = std::env::args().nth(1) {
        let opened = open(2, vec![seed]);
        let (source, stopping) = StopSource::new();
        std::thread::spawn(move || {
            drop(std::io::stdin().read(&mut [0])); // Its end is ours.
            source.fire();
        });
        return opened.runner.run(Arc::new(Echo::default()), stopping).await.unwrap();
    }
    let Opened { peers, port, runner } = open(1, Vec::new());
    let tasks = TaskGroup::new();
    let stopping = tasks.stopping();
    tasks.spawn("links", async move {
        runner.run(Arc::new(Echo::default()), stopping).await.unwrap();
    });
    let mut other = Command::new(std::env::current_exe().unwrap())
        .arg(port.address())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    while peers.is_alone() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let node = peers.up()[0].id.node;
    measure(&peers, node, &tasks).await;
    println!("{:#?}", port.counts());
    let status = std::fs::File::open("/proc/self/status").unwrap();
    let lines = BufReader::new(status).lines().map_while(Result::ok);
    lines.filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    drop(other.stdin.take());
    other.wait().unwrap();
    tasks.finish(Duration::from_secs(3)).await;
}

async fn measure(peers: &Peers, node: NodeId, tasks: &TaskGroup) {
    let mut waits = Vec::new();
    for _ in 0..20_000 {
        waits.push(call(peers, node, Lane::Urgent, 100).await);
    }
    report("calls, one at a time", &mut waits[2_000..]);

    let begun = Instant::now();
    let callers = TaskGroup::new();
    for _ in 0..256 {
        let peers = Arc::clone(peers);
        callers.spawn("caller", async move {
            for _ in 0..400 {
                call(&peers, node, Lane::Normal, 100).await;
            }
        });
    }
    callers.finish(MINUTE).await;
    println!("calls, 256 in flight: {:.0}/s", 256.0 * 400.0 / begun.elapsed().as_secs_f64());

    let (begun, parcel, count) = (Instant::now(), Bytes::from(vec![7; 200]), 1_000_000);
    for _ in 0..count {
        while !peers.cast(node, Lane::Normal, parcel.clone()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let enqueued = begun.elapsed();
    loop {
        let arrived = peers.call(node, Lane::Normal, Bytes::new(), MINUTE).await.unwrap();
        if arrived == Bytes::copy_from_slice(&u64::to_be_bytes(count)) {
            break;
        }
    }
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!("casts of 200 bytes: {:.0}/s ({:.0}/s taken)", rate(begun.elapsed()), rate(enqueued));

    let begun = Instant::now();
    bulk(peers, node, 1_000).await;
    println!(
        "bulk, calls of 256 KiB, 4 in flight: {:.0} MB/s",
        262.144 / begun.elapsed().as_secs_f64()
    );

    let loader = Arc::clone(peers);
    tasks.spawn("bulk", async move { bulk(&loader, node, 4_000).await });
    let mut waits = Vec::new();
    for _ in 0..500 {
        waits.push(call(peers, node, Lane::Urgent, 100).await);
    }
    report("urgent calls beside bulk", &mut waits);
}

async fn call(peers: &Peers, node: NodeId, lane: Lane, size: usize) -> Duration {
    let begun = Instant::now();
    peers.call(node, lane, Bytes::from(vec![7; size]), MINUTE).await.unwrap();
    begun.elapsed()
}

async fn bulk(peers: &Peers, node: NodeId, count: usize) {
    let callers = TaskGroup::new();
    for _ in 0..4 {
        let peers = Arc::clone(peers);
        callers.spawn("bulk", async move {
            for _ in 0..count / 4 {
                let parcel = Bytes::from(vec![7; 256 << 10]);
                let answer = peers.call(node, Lane::Bulk, parcel, MINUTE).await;
                assert!(
                    matches!(answer, Ok(_) | Err(CallError::Broken | CallError::NotUp)),
                    "{answer:?}"
                );
            }
        });
    }
    callers.finish(MINUTE).await;
}

fn report(what: &str, waits: &mut [Duration]) {
    waits.sort_unstable();
    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
}
