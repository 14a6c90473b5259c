//! A cluster of real `natter serve` processes: formed, hurt and asked what it holds.
//!
//! Each node has a directory of its own (settings, logs, data) and a fixed address for the others.
//! The nodes are joined by plain loopback, by relays, or by a network of namespaces.
//!
//! **Invariant:** processes, namespaces, mounts and directories are gone when the [`Cluster`] is
//! dropped; directories stay, and are named, if the test fails or [`Cluster::keep`] is called.

use crate::disk::SmallDisk;
use crate::netns::{Spaces, Weather};
use crate::node::{Node, PATIENCE, Target};
use crate::relay::{Relays, Rule};
use crate::status::{DIVERGED, Status, differences};
use crate::under_test::CLOCK_FILE;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Ports for nodes are below those that the system gives to outgoing connections, so that a dead
/// node's port stays free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Longest wait for one admin command.
const ADMIN: Duration = Duration::from_secs(20);

/// How often a cluster is asked how it is.
const LOOK: Duration = Duration::from_millis(250);

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cables {
    /// Nothing between them.
    Loopback,
    /// Relays, which can delay, stall, throttle and close.
    Relays,
    /// Namespaces, where packets can be lost.
    Namespaces,
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// What joins them.
    pub cables: Cables,
    /// Further sections of every node's settings.
    pub settings: String,
    /// Size of each node's disk in bytes, a tmpfs; without one the data is in the node's directory.
    pub disk: Option<u64>,
}

impl Options {
    /// `nodes` nodes on plain loopback.
    pub fn of(nodes: usize) -> Self {
        Self { nodes, cables: Cables::Loopback, settings: String::new(), disk: None }
    }
}

#[derive(Debug)]
enum Network {
    Loopback,
    Relays(Relays),
    Spaces(Spaces),
}

/// Nodes that are one cluster.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    // In the order in which they must go: mounts, processes with their directories, what joins them.
    disks: Vec<SmallDisk>,
    nodes: Vec<Node>,
    listen: Vec<SocketAddr>,
    network: Network,
    settings: String,
    folder: TempDir,
}

impl Cluster {
    /// Starts the nodes and waits until they are one cluster: the first founds it, the others join.
    ///
    /// # Errors
    /// If it is not possible here, or they do not form one in time.
    pub async fn start(program: &str, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("natter-it-cluster-").tempdir()?;
        let cookie = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        fs::write(folder.path().join("cookie"), cookie)?;
        let mut listen = Vec::new();
        let network = match options.cables {
            Cables::Namespaces => {
                let spaces = Spaces::new(options.nodes)?;
                for node in 0..options.nodes {
                    listen.push(format!("{}:7403", spaces.address(node)).parse()?);
                }
                Network::Spaces(spaces)
            }
            Cables::Loopback | Cables::Relays => {
                for _ in 0..options.nodes {
                    listen.push(SocketAddr::from(([127, 0, 0, 1], free_port()?)));
                }
                match options.cables {
                    Cables::Relays => Network::Relays(Relays::start(&listen).await?),
                    Cables::Loopback | Cables::Namespaces => Network::Loopback,
                }
            }
        };
        let program = PathBuf::from(program);
        let (nodes, disks, settings) = (Vec::new(), Vec::new(), options.settings);
        let mut cluster = Self { program, disks, nodes, listen, network, settings, folder };
        for number in 0..options.nodes {
            cluster.prepare(number, options.disk)?;
        }
        cluster.form().await?;
        Ok(cluster)
    }

    fn prepare(&mut self, number: usize, disk: Option<u64>) -> Result<()> {
        let program = self.program.to_string_lossy().into_owned();
        let mut node = Node::prepare(&program, "[listen]\n")?;
        if let Network::Spaces(spaces) = &self.network {
            node.launched_by(spaces.launcher(number));
        }
        let clock = node.dir().join("clock");
        fs::write(&clock, "0")?;
        node.finds(CLOCK_FILE, &clock.to_string_lossy());
        if let Some(bytes) = disk {
            self.disks.push(SmallDisk::mount(node.target().data_dir(), bytes)?);
        }
        self.nodes.push(node);
        self.configure(number, number > 0)
    }

    async fn form(&mut self) -> Result<()> {
        self.restart(0).await?;
        for node in 1..self.nodes.len() {
            self.spawn(node)?;
        }
        for node in 1..self.nodes.len() {
            self.ready(node).await?;
        }
        // From now on the first one, too, joins if it finds its directory empty.
        self.configure(0, true)?;
        self.converge(PATIENCE * 2).await.context("the nodes did not become one cluster")
    }

    /// Where others reach a node.
    fn advertised(&self, node: usize) -> SocketAddr {
        match &self.network {
            Network::Relays(relays) => relays.address(node),
            Network::Loopback | Network::Spaces(_) => self.listen[node],
        }
    }

    /// Writes the settings of a node; they hold from its next start.
    fn configure(&self, node: usize, with_seeds: bool) -> Result<()> {
        let seeds: Vec<String> = (0..self.listen.len())
            .filter(|other| with_seeds && *other != node)
            .map(|other| format!("\"{}\"", self.advertised(other)))
            .collect();
        let listen = self.listen[node];
        self.nodes[node].configure(&format!(
            "[node]\ndata_dir = \"{{dir}}/data\"\n\
             [listen]\nclient = \"{host}:0\"\nwebsocket = \"{host}:0\"\nhttp = \"{host}:0\"\n\
             [cluster]\nlisten = \"{listen}\"\nadvertise = \"{advertise}\"\nseeds = [{seeds}]\n\
             cookie_file = \"{cookie}\"\nname = \"node-{node}\"\n{settings}",
            host = listen.ip(),
            advertise = self.advertised(node),
            seeds = seeds.join(", "),
            cookie = self.folder.path().join("cookie").display(),
            settings = self.settings,
        ))
    }

    /// How many nodes there are, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How to reach a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn target(&self, node: usize) -> Target {
        self.nodes[node].target()
    }

    /// Keeps all directories when it is dropped; where they are.
    pub fn keep(&mut self) -> Vec<PathBuf> {
        self.nodes.iter_mut().map(Node::keep).collect()
    }

    fn spawn(&mut self, node: usize) -> Result<()> {
        self.nodes[node].spawn()?;
        if let Network::Relays(relays) = &self.network {
            relays.runs_as(node, Some(self.nodes[node].pid()?));
        }
        Ok(())
    }

    async fn ready(&mut self, node: usize) -> Result<()> {
        self.nodes[node].ready().await.with_context(|| format!("node {node} did not start"))
    }

    /// SIGKILL; nothing if it does not run.
    ///
    /// # Errors
    /// If the process cannot be waited for.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        if let Network::Relays(relays) = &self.network {
            relays.runs_as(node, None);
        }
        if self.nodes[node].pid().is_ok() { self.nodes[node].kill() } else { Ok(()) }
    }

    /// SIGSTOP: it holds its sockets open and says nothing.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&self, node: usize) -> Result<()> {
        self.nodes[node].signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw(&self, node: usize) -> Result<()> {
        self.nodes[node].signal(Signal::CONT)
    }

    /// Starts it again at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// If it runs or does not start.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        self.spawn(node)?;
        self.ready(node).await
    }

    /// Starts every node that does not run, all at once.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn restart_all(&mut self) -> Result<()> {
        let down: Vec<usize> = (0..self.size()).filter(|node| !self.nodes[*node].runs()).collect();
        for node in &down {
            self.kill(*node)?;
            self.spawn(*node)?;
        }
        for node in down {
            self.ready(node).await?;
        }
        Ok(())
    }

    /// Kills a node, deletes its data, starts it as a new node that joins, and has the old one
    /// removed by another node.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn wipe(&mut self, node: usize) -> Result<()> {
        let other = (node + 1) % self.size();
        let old = self.status(node).await?.node.to_string();
        self.kill(node)?;
        for entry in fs::read_dir(self.target(node).data_dir())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        self.restart(node).await?;
        self.admin(other, &["cluster", "remove", &old, "--no-wait"]).await.map(drop)
    }

    /// The wall clock of a node is off by this from now on, in ms.
    ///
    /// # Errors
    /// If the file that says so cannot be written.
    pub fn set_clock(&self, node: usize, ahead_ms: i64) -> Result<()> {
        let clock = self.nodes[node].dir().join("clock");
        let new = clock.with_extension("new");
        fs::write(&new, ahead_ms.to_string())?;
        Ok(fs::rename(new, clock)?)
    }

    /// The disk of a node, if it has a small one.
    ///
    /// # Errors
    /// If it has none.
    pub fn disk(&self, node: usize) -> Result<&SmallDisk> {
        self.disks.get(node).context("this cluster has no small disks")
    }

    /// Nothing arrives from the first of each pair at the second; everything else does.
    ///
    /// # Errors
    /// If nothing is between the nodes.
    pub fn block(&self, blocked: &BTreeSet<(usize, usize)>) -> Result<()> {
        match &self.network {
            Network::Loopback => bail!("plain loopback cannot be parted"),
            Network::Relays(relays) => {
                relays.heal();
                for (from, to) in blocked {
                    relays.set(*from, *to, Rule { stalled: true, ..Rule::default() });
                }
                Ok(())
            }
            Network::Spaces(spaces) => {
                spaces.set(&Weather { blocked: blocked.clone(), loss_per_1000: 0 })
            }
        }
    }

    /// Everything between nodes is treated by `rule`.
    ///
    /// # Errors
    /// If there are no relays.
    pub fn slow(&self, rule: Rule) -> Result<()> {
        let Network::Relays(relays) = &self.network else { bail!("no relays") };
        for from in 0..self.size() {
            for to in (0..self.size()).filter(|to| *to != from) {
                relays.set(from, to, rule);
            }
        }
        Ok(())
    }

    /// Closes all connections of a node to others, and new ones.
    ///
    /// # Errors
    /// If there are no relays.
    pub fn sever(&self, node: usize) -> Result<()> {
        let Network::Relays(relays) = &self.network else { bail!("no relays") };
        for other in (0..self.size()).filter(|other| *other != node) {
            relays.set(node, other, Rule { closed: true, ..Rule::default() });
        }
        Ok(())
    }

    /// This many of a thousand packets between nodes are lost.
    ///
    /// # Errors
    /// If there are no namespaces.
    pub fn lose(&self, loss_per_1000: u32) -> Result<()> {
        let Network::Spaces(spaces) = &self.network else { bail!("no namespaces") };
        spaces.set(&Weather { loss_per_1000, ..Weather::default() })
    }

    /// Everything passes again.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn heal(&self) -> Result<()> {
        match &self.network {
            Network::Loopback => Ok(()),
            Network::Relays(relays) => {
                relays.heal();
                Ok(())
            }
            Network::Spaces(spaces) => spaces.set(&Weather::default()),
        }
    }

    /// Runs `natter admin` on a node, with `--json`; what it printed.
    ///
    /// # Errors
    /// If it fails; with what it said.
    pub async fn admin(&self, node: usize, words: &[&str]) -> Result<String> {
        admin(&self.program, self.target(node).data_dir(), words).await
    }

    /// What a node says of the cluster.
    ///
    /// # Errors
    /// If it says nothing.
    pub async fn status(&self, node: usize) -> Result<Status> {
        let text = self.admin(node, &["cluster", "status"]).await?;
        serde_json::from_str(&text).with_context(|| format!("the status of node {node}: {text}"))
    }

    /// What every node says, asked at once.
    ///
    /// # Errors
    /// If one says nothing.
    pub async fn statuses(&self) -> Result<Vec<Status>> {
        let mut asked = JoinSet::new();
        for node in 0..self.size() {
            let (program, data) = (self.program.clone(), self.target(node).data_dir().to_owned());
            asked.spawn(async move {
                let text = admin(&program, &data, &["cluster", "status"]).await?;
                let status: Status = serde_json::from_str(&text)
                    .with_context(|| format!("the status of node {node}: {text}"))?;
                anyhow::Ok(status)
            });
        }
        let mut statuses = Vec::new();
        while let Some(status) = asked.join_next().await {
            statuses.push(status??);
        }
        Ok(statuses)
    }

    /// Waits until all nodes are one cluster with one content.
    ///
    /// # Errors
    /// If they are not in time, with what differs; at once if replicas have the same place and not
    /// the same content.
    pub async fn converge(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let (mut last, mut diverged) = (Vec::new(), Vec::new());
        while Instant::now() < deadline {
            last = match self.statuses().await {
                Ok(statuses) => differences(&statuses),
                Err(error) => vec![format!("{error:#}")],
            };
            if last.is_empty() {
                return Ok(());
            }
            let now: Vec<String> =
                last.iter().filter(|line| line.starts_with(DIVERGED)).cloned().collect();
            ensure!(now.is_empty() || now != diverged, "{}", now.join("\n"));
            diverged = now;
            tokio::time::sleep(LOOK).await;
        }
        bail!("after {patience:?} the nodes differ:\n{}", last.join("\n"))
    }
}

/// Runs `natter admin` with `--json` on the node of a data directory; what it printed.
///
/// # Errors
/// If it fails; with what it said.
pub async fn admin(program: &Path, data_dir: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("admin").arg("--data-dir").arg(data_dir).args(words).arg("--json");
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let done = timeout(ADMIN, output).await.context("natter admin does not answer")??;
    let (out, said) =
        (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "natter admin {}: {}{}", words.join(" "), said.trim(), out);
    Ok(out.into_owned())
}

/// A port that is free now and that no other cluster of this process takes.
fn free_port() -> Result<u16> {
    let span = PORTS.end - PORTS.start;
    let begin = u16::try_from(std::process::id() % u32::from(span))?;
    for _ in 0..span {
        let next = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + begin.wrapping_add(next) % span;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}")
}
