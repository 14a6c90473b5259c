//! The life of a node: everything opened, the supervision tree as one list, a signal, an orderly
//! end.
//!
//! # Invariants
//! 1. What can be wrong with settings, disk, certificate and ports is found before anything runs.
//! 2. Children start in the order of [`tree`] and stop in the reverse.
//! 3. A node that cannot go on ends with an error; whoever runs it starts it again. So does one whose
//!    replica of a group has died: it would be missed by others, and nobody would know.

use parking_lot::RwLock;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actors::hooks::Handler;
use actors::presence::PresenceActor;
use actors::shard::{Seat, ShardActor, ShardArgs, ShardItem, Shards, TICK_MS};
use anyhow::Context as _;
use consensus::Group;
use membership::clocks::Clocks;
use membership::{Cluster, Place};
use proto::ShardId;
use proto::ids::SHARDS;
use serde::Serialize;
use sessions::{Sessions, SessionsActor, SessionsTiming};
use storage::{Storage, StorageOptions};
use supervision::{ChildSpec, Clock, Intensity, StopSource, Stopping, Strategy, Supervisor, timer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval};
use tracing::{error, info, warn};

use crate::client::client_limits::ClientLimits;
use crate::client::reception::Reception;
use crate::client::registration::Registration;
use crate::config::NodeConfig;
use crate::doors::{Doors, Reserved, open_doors};
use crate::keys::identity::Identity;
use crate::keys::secrets::NodeSecrets;
use crate::links::Links;
use crate::listener::Gate;
use crate::member::{self, Membership};
use crate::observe::http::Readiness;
use crate::observe::notices::{Readied, ReadyNews, UseOfNode, clock_trouble};
use crate::observe::telemetry;
use crate::parts::{Node, Opened, Parts};
use crate::pins::PinSender;
use crate::reload::{HangUp, Reload};
use crate::tls::Certificates;
use crate::{admin, clock, data_dir, files, manifest, upkeep};

/// Failures of a part of the tree after which the whole is started again, and finally given up.
const INTENSITY: Intensity = Intensity { restarts: 3, within: Duration::from_secs(30) };

/// Longest wait for clients to take their leave.
const LEAVE: Duration = Duration::from_secs(5);

/// How often it is asked whether clients are better off elsewhere.
const LOOK: Duration = Duration::from_secs(1);

/// A fault may meet each shard of a node once, and some of them again.
const SHARDS_INTENSITY: Intensity =
    Intensity { restarts: SHARDS as u32 + INTENSITY.restarts, within: INTENSITY.within };

/// How often shards look after their chores.
const TICK: Duration = Duration::from_millis(TICK_MS);

/// Where a node listens, as written to `addresses.json` in its data directory once it is ready.
#[derive(Debug, Default, Serialize)]
pub struct Addresses {
    /// TLS.
    pub client: Option<String>,
    /// WebSocket over TLS.
    pub websocket: Option<String>,
    /// Plain TCP.
    pub plain: Option<String>,
    /// Health and metrics.
    pub http: Option<String>,
    /// Other nodes.
    pub cluster: Option<String>,
    /// The admin socket.
    pub admin: Option<String>,
}

impl Addresses {
    fn say(&self) {
        let Self { client, websocket, plain, http, cluster, admin: _ } = self;
        info!(
            client = client.as_deref(),
            websocket = websocket.as_deref(),
            plain = plain.as_deref(),
            http = http.as_deref(),
            cluster = cluster.as_deref(),
            "listening"
        );
    }
}

/// What sees each send of a user before the recipient's shard does, in this order.
pub type Handlers = Vec<Arc<dyn Handler>>;

/// What a node is started with.
#[derive(Debug)]
pub struct Start {
    /// All settings.
    pub config: NodeConfig,
    /// The file they came from, which SIGHUP reads again.
    pub file: Option<PathBuf>,
    /// What was found wrong with the machine, said once there is a log.
    pub warnings: Vec<String>,
    /// How many files may be open.
    pub files: u64,
}

/// Runs a node until SIGTERM or SIGINT, then ends it in order.
///
/// # Errors
/// Whatever keeps it from starting, with the cure; or why it cannot go on.
pub async fn run(start: Start, handlers: Handlers) -> anyhow::Result<()> {
    let Start { mut config, file, warnings, files } = start;
    let metrics = telemetry::start(&config.log)?;
    files::fit(&mut config, files);
    let written = config.clone();
    // From here on: a signal that comes while the storage opens must not end the process.
    let hang_up = HangUp::catch()?;
    for warning in &warnings {
        warn!("{warning}");
    }
    let dir = PathBuf::from(&config.node.data_dir);
    // What is wrong is found before anything is made: a start that fails leaves nothing behind.
    manifest::check(&dir, !config.cluster.cookie.is_empty())?;
    config.cluster.find_cookie(&dir, admin::joins(&dir, &config.cluster.seeds))?;
    Certificates::check(&config.tls, &dir, None)?;
    let sender = PinSender::new(&config.registration)?;
    let ports = Reserved::take(&config)?;
    data_dir::prepare(&dir)?;
    config.cluster.seeds = seeds(&config, &dir).await?;
    let node = build(&config, &dir, (metrics, sender), handlers).await?;
    // Only now: until the storage was locked they may have been another process's.
    std::fs::remove_file(addresses_file(&dir)).ok();
    let doors = open_doors(&config, ports, &node)?;
    let mut addresses = doors.addresses();
    let clients = (addresses.client.as_deref(), addresses.websocket.as_deref());
    let member = Membership::new(&config, &node, clients);
    addresses.cluster = node.links.address();
    addresses.admin = Some(admin::socket_path(&dir).display().to_string());
    let root = tree(&config, &node, &member, doors)?;
    let mut signals = Signals::catch()?;
    let started = Supervisor::start("node", Strategy::RestForOne, INTENSITY, root);
    let mut root = tokio::select! {
        biased;
        // A group waits at its start for space on the disk, for as long as that takes.
        signal = signals.next() => {
            info!(signal, "stopped before it was ready");
            return Ok(());
        }
        root = started => root?,
    };
    timer_for_shards(&node.parts.shards.shards);
    let failed = tokio::select! {
        biased;
        signal = signals.next() => { info!(signal, "stopping"); None }
        (group, reason) = member::group_failed(&node.parts.groups) => {
            error!(%group, reason, "a group of this node has ended; only a new start brings it back");
            Some(format!("group {group} has ended: {reason}"))
        }
        reason = root.failed() => {
            error!(reason, "the supervision tree gave up");
            Some(reason)
        }
        Err(error) = let_in(&node, &member.cluster, &addresses, &dir) => Some(format!("{error:#}")),
        never = Reload::new(hang_up, written, file, files).run(&node, &member.cluster) => match never {},
    };
    std::fs::remove_file(addresses_file(&dir)).ok();
    stop(node, root).await;
    match failed {
        None => Ok(()),
        Some(reason) => anyhow::bail!("the node cannot go on: {reason}"),
    }
}

fn addresses_file(dir: &Path) -> PathBuf {
    dir.join("addresses.json")
}

/// Waits for leaders, then lets clients in; from then on says whether they are better off elsewhere.
/// Returns only if that fails.
async fn let_in(
    node: &Node,
    cluster: &Cluster,
    addresses: &Addresses,
    dir: &Path,
) -> anyhow::Result<Infallible> {
    member::wait_for_leaders(&node.parts.groups).await;
    member::wait_for_place(cluster).await;
    data_dir::write_private(&addresses_file(dir), &serde_json::to_vec(addresses)?)?;
    addresses.say();
    let (mut use_of_it, mut ticks) = (UseOfNode::default(), interval(LOOK));
    let mut place = cluster.watch_place();
    let mut told = Readied::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            told = place.changed() => told?,
        }
        if *place.borrow_and_update() == Place::Member {
            manifest::note(dir, node.parts.node, cluster.meta().cluster)?;
        }
        let now = Instant::now();
        let groups = node.parts.groups.all().map(|(_, group)| group.status());
        let clock = clock_trouble(&node.parts.clocks.report());
        let reason = use_of_it.none_because(cluster.place(), groups, now);
        match (reason, &clock) {
            (None, None) => node.readiness.ready(),
            (Some(reason), _) => node.readiness.not_ready(reason),
            (None, Some(clock)) => node.readiness.not_ready(clock),
        }
        let astray = clock.is_some().then_some("its clock differs from the others");
        match told.news(reason.or(astray)) {
            None => {}
            Some(ReadyNews::Ready) => info!(data_dir = %dir.display(), "node ready"),
            Some(ReadyNews::ReadyAgain) => info!("node ready again"),
            Some(ReadyNews::NotReady(reason)) => {
                warn!(reason, "node not ready; clients should go elsewhere");
            }
        }
    }
}

fn storage_options(config: &NodeConfig) -> StorageOptions {
    StorageOptions {
        segment_bytes: config.storage.segment_bytes.0,
        free_bytes_min: config.storage.free_bytes_min.0,
    }
}

async fn seeds(config: &NodeConfig, dir: &Path) -> anyhow::Result<Vec<String>> {
    let (configured, options) = (config.cluster.seeds.clone(), storage_options(config));
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || admin::seeds(&dir, &configured, options)).await?
}

async fn open_storage(
    config: &NodeConfig,
    dir: &Path,
) -> anyhow::Result<(Storage, storage::Recovered)> {
    let (dir, options) = (dir.to_owned(), storage_options(config));
    let open = move || {
        let (storage, recovered) = Storage::open(&dir.join("store"), options)?;
        manifest::check_store(&dir, &storage, &recovered)?;
        anyhow::Ok((storage, recovered))
    };
    tokio::task::spawn_blocking(open).await?
}

fn reception(
    config: &NodeConfig,
    sender: PinSender,
    parts: &Parts,
    closing: Stopping,
) -> Reception {
    Reception {
        context: parts.users.clone(),
        peers: parts.peers.clone(),
        registration: Registration::new(sender, config.registration.requests_per_address_per_hour),
        limits: RwLock::new(Arc::new(ClientLimits::of(config))),
        closing,
    }
}

async fn build(
    config: &NodeConfig,
    dir: &Path,
    (metrics, sender): (telemetry::Metrics, PinSender),
    handlers: Handlers,
) -> anyhow::Result<Node> {
    upkeep::describe();
    let joins = !config.cluster.seeds.is_empty();
    let cookie = config.cluster.open_cookie(dir, joins)?;
    let cookie = cookie.reveal();
    let identity = Identity::open(dir, cookie)?;
    manifest::check_owner(dir, links::Identity::new(identity.node_key(), cookie)?.node())?;
    let certificates = Arc::new(Certificates::open(&config.tls, dir, cookie)?);
    let (storage, recovered) = open_storage(config, dir).await?;
    let founds = !joins && !member::belongs(&storage).await?;
    let incarnation = next_incarnation(dir)?;
    let (links, peers) = Links::open(&config.cluster, &identity, cookie, incarnation)?;
    let me = peers.me();
    manifest::note(dir, me.node, 0)
        .with_context(|| format!("cannot write in {}", dir.display()))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %me.node,
        incarnation,
        "node starts"
    );
    let recorded_ms = member::recorded_ms(&storage).await?;
    let difference_max = config.cluster.clock_difference_max;
    let clocks = Clocks::new(Clock::new(clock::now_ms), difference_max, recorded_ms);
    let (table, sessions_clock) = (storage.sessions().clone(), clocks.clock());
    let open = move || Sessions::open(table, me, sessions_clock, SessionsTiming::default());
    let sessions = tokio::task::spawn_blocking(open).await??;
    let opened = Opened {
        incarnation,
        peers,
        clocks,
        storage,
        recovered: recovered.records,
        sessions,
        secrets: Arc::new(NodeSecrets(identity)),
        handlers,
        bootstrap: founds,
    };
    let parts = Parts::new(config, opened);
    let (close, closing) = StopSource::new();
    let reception = Arc::new(reception(config, sender, &parts, closing));
    let connections = parts.connections.clone();
    let readiness = Readiness::new();
    let gate = Gate::new(&config.limits);
    Ok(Node { parts, reception, close, connections, gate, readiness, metrics, certificates, links })
}

/// The supervision tree, in start order.
fn tree(
    config: &NodeConfig,
    node: &Node,
    member: &Membership,
    doors: Doors,
) -> anyhow::Result<Vec<ChildSpec>> {
    let parts = &node.parts;
    let shard = |shard| {
        let inbox = parts.shards.shards.inbox(shard).clone();
        let seat = Arc::new(Seat::new(inbox.clone()));
        let args = ShardArgs { shard, context: parts.shards.clone(), seat };
        ChildSpec::process::<ShardActor>("shard", args, inbox)
    };
    let shards = (0..SHARDS).map(ShardId).map(shard).collect();
    let users = parts.users.users.partitions().iter();
    let users = users.map(|door| ChildSpec::dynamic("user partition", door)).collect();
    let presence = parts.presence.presence.inbox().clone();
    let links = vec![node.links.child(member.service.clone())];
    let sessions = parts.sessions.inbox().clone();
    Ok(vec![
        upkeep::telemetry(config, node, &member.cluster),
        upkeep::storage(node),
        ChildSpec::supervisor("links", Strategy::OneForOne, INTENSITY, links),
        ChildSpec::process::<SessionsActor>("sessions", parts.sessions.clone(), sessions),
        ChildSpec::supervisor("cluster", Strategy::OneForOne, INTENSITY, member.cluster.children()),
        parts.clocks.child(member.cluster.clone(), parts.peers.clone()),
        member.settings(parts),
        ChildSpec::supervisor("shards", Strategy::OneForOne, SHARDS_INTENSITY, shards),
        ChildSpec::process::<PresenceActor>("presence", parts.presence.clone(), presence),
        ChildSpec::supervisor("users", Strategy::OneForOne, INTENSITY, users),
        member.admin(config, node)?,
        ChildSpec::supervisor("listeners", Strategy::OneForOne, INTENSITY, doors.into_children()),
    ])
}

fn timer_for_shards(shards: &Shards) {
    for shard in (0..SHARDS).map(ShardId) {
        timer::push_every(shards.inbox(shard), TICK, || ShardItem::TickDue);
    }
}

async fn stop(node: Node, root: Supervisor) {
    node.readiness.not_ready("stopping");
    member::hand_over(&node.parts).await;
    node.parts.users.users.send_away();
    node.close.fire();
    let late = node.connections.finish(LEAVE).await;
    if late > 0 {
        warn!(late, "connections did not take their leave in time");
    }
    root.stop().await;
    let groups: Vec<_> = node.parts.groups.all().map(|(_, group)| group.clone()).collect();
    futures_util::future::join_all(groups.iter().map(Group::stop)).await;
    node.parts.tasks.finish(Duration::ZERO).await;
    let storage = node.parts.storage.clone();
    if tokio::task::spawn_blocking(move || storage.close()).await.is_err() {
        warn!("storage was not closed in order; nothing accepted is lost");
    }
    info!("stopped");
}

/// The signals that end a node in order. From when they are caught they end nothing by themselves.
struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        let (term, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { term: signal(term)?, interrupt: signal(interrupt)? })
    }

    /// The next one, also if it came before this was called. Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The number of this start: higher than any before, also when the clock went back.
fn next_incarnation(dir: &Path) -> anyhow::Result<u64> {
    let file = dir.join("incarnation");
    let before = match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let incarnation = clock::now_ms().max(before + 1);
    std::fs::write(&file, incarnation.to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(incarnation)
}
