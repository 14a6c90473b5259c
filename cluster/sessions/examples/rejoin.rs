//! Measures the sessions table with a million rows on two nodes of one process. `cargo run --profile dist
//! -p sessions --example rejoin [ROWS]`.
#![allow(clippy::print_stdout, reason = "it is there to print figures")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use bytes::Bytes;
use links::memory::Network;
use links::{Answered, Lane, Links, PeerId, PeerInfo, Peers, Respond, Service};
use prost::Message as _;
use proto::stored::Session;
use proto::{DeviceId, NodeId, UserId, cluster};
use sessions::{Sessions, SessionsActor, SessionsTiming, Watch};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use storage::{Storage, StorageOptions};
use supervision::{ChildSpec, Clock, Intensity, Strategy, Supervisor};

type Outcome<T> = Result<T, Box<dyn Error>>;

const OFTEN: Intensity = Intensity { restarts: 5, within: Duration::from_secs(10) };
const DEVICE: DeviceId = DeviceId(1);

/// Nobody.
struct Nobody;

impl Watch for Nobody {
    fn displaced(&self, _: UserId, _: DeviceId) {}
    fn changed(&self, _: UserId, _: DeviceId, _: Option<&Session>, _: Option<&Session>) {}
    fn touched(&self, _: UserId) {}
    fn still_here(&self, _: UserId, _: DeviceId) -> bool {
        true
    }
}

/// What arrives from the other node.
struct Port(Sessions);

impl Service for Port {
    fn up(&self, peer: PeerInfo) {
        self.0.peer_up(peer.id);
    }
    fn down(&self, peer: PeerId) {
        self.0.peer_down(peer);
    }
    fn cast(&self, from: PeerId, parcel: Bytes) {
        let cast = cluster::Cast::decode(parcel).ok().and_then(|cast| cast.kind);
        if let Some(cluster::cast::Kind::Sessions(rows)) = cast {
            self.0.received(from, rows);
        }
    }
    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        let kind = cluster::Request::decode(parcel).ok().and_then(|request| request.kind);
        let kind = kind.and_then(|kind| self.0.serve(&kind));
        respond(cluster::Response { kind }.encode_to_vec().into());
    }
}

/// Counts what is asked and answered.
#[derive(Debug)]
struct Meter(Peers, Arc<AtomicU64>);

impl Links for Meter {
    fn me(&self) -> PeerId {
        self.0.me()
    }
    fn cast(&self, to: NodeId, lane: Lane, parcel: Bytes) -> bool {
        self.1.fetch_add(parcel.len() as u64, Relaxed);
        self.0.cast(to, lane, parcel)
    }
    fn call(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        let bytes = self.1.clone();
        bytes.fetch_add(parcel.len() as u64, Relaxed);
        let answer = self.0.call(to, lane, parcel, within);
        Box::pin(async move {
            let answer = answer.await?;
            bytes.fetch_add(answer.len() as u64, Relaxed);
            Ok(answer)
        })
    }
    fn up(&self) -> Vec<PeerInfo> {
        self.0.up()
    }
    fn learn(&self, _addresses: Vec<(NodeId, String)>) {}
}

struct Node {
    sessions: Sessions,
    storage: Storage,
    bytes: Arc<AtomicU64>,
    _tree: Supervisor,
}

async fn start(network: &Network, node: u64, dir: &Path) -> Outcome<Node> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let me = PeerId { node: NodeId(node), incarnation: 1 };
    let clock = Clock::new(|| 1_700_000_000_000);
    let (begun, before) = (Instant::now(), resident_mib());
    let table = storage.sessions().clone();
    let sessions = Sessions::open(table, me, clock, SessionsTiming::default())?;
    println!(
        "node {node}: {} rows opened in {:?}; memory {before:.0} -> {:.0} MiB",
        sessions.figures().rows,
        begun.elapsed(),
        resident_mib()
    );
    let (peers, attach) = network.node(me.node, me.incarnation);
    let bytes = Arc::new(AtomicU64::new(0));
    sessions.wire(Arc::new(Meter(peers, bytes.clone())), Arc::new(Nobody));
    let (args, inbox) = (sessions.clone(), sessions.inbox().clone());
    let child = ChildSpec::process::<SessionsActor>("sessions", args, inbox);
    let tree = Supervisor::start("tables", Strategy::OneForOne, OFTEN, vec![child]).await?;
    attach.attach(Arc::new(Port(sessions.clone())));
    Ok(Node { sessions, storage, bytes, _tree: tree })
}

fn user(number: u64) -> UserId {
    UserId::from_random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A third of the rows for each of three nodes.
fn fill(dir: &Path, rows: u64) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    for first in (0..rows).step_by(10_000) {
        let row = |n: u64| {
            let session = Session {
                node: 1 + n % 3,
                incarnation: 1,
                version: 1 + n % 100,
                online: true,
                last_seen_ms: 1_700_000_000_000 - n,
                since_ms: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                ..Session::default()
            };
            ((user(n), DEVICE), Some(session))
        };
        let batch: Vec<_> = (first..rows.min(first + 10_000)).map(row).collect();
        storage.sessions().write(&batch)?;
    }
    storage.close();
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let rows = args.next().map_or(Ok(1_000_000), |rows| rows.parse())?;
    if let Some(dir) = args.next() {
        return fill(Path::new(&dir), rows);
    }
    let (one_dir, two_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    // In a process of its own: its memory is not what is measured.
    let mut filling = std::process::Command::new(std::env::current_exe()?);
    let filled = filling.arg(rows.to_string()).arg(one_dir.path()).status()?;
    if !filled.success() {
        return Err("the rows were not made".into());
    }
    let network = Network::new(1);
    let one = start(&network, 1, one_dir.path()).await?;
    single(&one, rows)?;

    let (begun, before, cpu) = (Instant::now(), resident_mib(), cpu_s());
    let two = start(&network, 2, two_dir.path()).await?;
    equal(&one, &two).await;
    report("an empty node joined", begun, cpu);
    println!("    {:.0} MiB came, memory {before:.0} -> {:.0} MiB", mib(&two), resident_mib());
    println!("    {:?}", two.sessions.figures());

    network.cut(NodeId(1), NodeId(2));
    tokio::time::sleep(Duration::from_secs(3)).await;
    for n in 0..1_000 {
        one.sessions.claim(user(3 * (n * 997 % (rows / 3))), DEVICE, |row| row.online = true)?;
    }
    two.bytes.store(0, Relaxed);
    let (begun, cpu, fetched) = (Instant::now(), cpu_s(), two.sessions.figures().fetched);
    network.heal_all();
    equal(&one, &two).await;
    report("1,000 rows that differed were found and fetched", begun, cpu);
    let fetched = two.sessions.figures().fetched - fetched;
    println!("    {:.1} MiB, {fetched} rows came", mib(&two));

    let (begun, cpu) = (Instant::now(), cpu_s());
    one.sessions.set_removed(NodeId(3), true);
    while !one.sessions.is_settled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    report("a dead node's rows were purged", begun, cpu);
    println!("    {} rows", one.sessions.figures().purged);

    for node in [&one, &two] {
        node.storage.sessions().flush()?;
    }
    println!("disk: {:.0} and {:.0} MiB", disk_mib(&one_dir), disk_mib(&two_dir));
    Ok(())
}

/// What one call costs on a node that is alone, on rows that are its own.
fn single(node: &Node, rows: u64) -> Outcome<()> {
    let sessions = &node.sessions;
    for threads in [1, 2] {
        let number = 30_000;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for n in 0..number {
                        let user = user(3 * ((n * threads + thread) * 7 % (rows / 3)));
                        sessions.claim(user, DEVICE, |row| row.online = true).ok();
                    }
                });
            }
        });
        let each = begun.elapsed() / u32::try_from(number)?;
        println!("claim: {each:?} each, {threads} threads at once");
        let begun = Instant::now();
        for n in 0..number {
            sessions.places(user(3 * (n * 7 % (rows / 3))), [DEVICE]);
        }
        println!("places: {:?} each", begun.elapsed() / u32::try_from(number)?);
    }
    Ok(())
}

async fn equal(one: &Node, two: &Node) {
    let begun = Instant::now();
    while one.sessions.digest() != two.sessions.digest() && begun.elapsed().as_secs() < 600 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn report(what: &str, begun: Instant, cpu: f64) {
    println!("{what} in {:?}, {:.1} s of CPU", begun.elapsed(), cpu_s() - cpu);
}

fn mib(node: &Node) -> f64 {
    node.bytes.load(Relaxed) as f64 / f64::from(1 << 20)
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1_024.0
}

fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn disk_mib(dir: &tempfile::TempDir) -> f64 {
    let files = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders = vec![dir.path().join("sessions")];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for file in files(&folder) {
            match file.metadata() {
                Ok(data) if data.is_dir() => folders.push(file.path()),
                Ok(data) => bytes += data.len(),
                Err(_) => {}
            }
        }
    }
    bytes as f64 / f64::from(1 << 20)
}
