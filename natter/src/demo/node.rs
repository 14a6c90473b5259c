//! One of the demo's nodes: a child process with a directory, ports, settings and a log of its own.
//!
//! **Invariant:** the process is gone when its [`Node`] is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep};

use super::PATIENCE;

/// How often a starting node is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// Lines of a node's log that are shown if it does not start.
const TAIL: usize = 20;

/// Ports are below those that the system gives to outgoing connections, so that those of a killed
/// node stay free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) client: SocketAddr,
    pub(super) websocket: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) cluster: SocketAddr,
}

impl Addresses {
    /// Addresses for `nodes` nodes, none of which anybody uses now.
    pub(super) fn free(nodes: usize) -> anyhow::Result<Vec<Self>> {
        let ports = PORTS.end - PORTS.start;
        // Two demos at once begin at different ports.
        let begin = std::process::id().wrapping_mul(12) % u32::from(ports);
        let begin = PORTS.start + u16::try_from(begin)?;
        let mut free = (begin..PORTS.end)
            .chain(PORTS.start..begin)
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .filter(|address| TcpListener::bind(address).is_ok());
        let mut next = || free.next().context("no port is free");
        (0..nodes)
            .map(|_| {
                let (client, websocket, http) = (next()?, next()?, next()?);
                Ok(Self { client, websocket, http, cluster: next()? })
            })
            .collect()
    }
}

/// What a running node does.
#[derive(Debug)]
pub(super) enum News {
    /// It says something on its standard output.
    Said(String),
    /// It is gone.
    Ended(ExitStatus),
}

/// A node and its files.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) addresses: Addresses,
    files: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
}

impl Node {
    /// A node that does not run yet; its files are in `folder` and have its name.
    pub(super) fn new(folder: &Path, number: usize, addresses: Addresses) -> Self {
        let files = folder.join(format!("node-{number}"));
        Self { name: format!("node {number}"), addresses, files, running: None }
    }

    /// Writes its settings; they hold from its next start.
    pub(super) fn configure(&self, seeds: &[SocketAddr], cookie: &Path) -> anyhow::Result<()> {
        let Addresses { client, websocket, http, cluster } = self.addresses;
        let seeds: Vec<String> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let settings = format!(
            "[node]\ndata_dir = \"{data}\"\nworker_threads = {threads}\n\
             [listen]\nclient = \"{client}\"\nwebsocket = \"{websocket}\"\nhttp = \"{http}\"\n\
             [registration]\nsender = \"log\"\n\
             [cluster]\nlisten = \"{cluster}\"\nseeds = [{seeds}]\ncookie_file = \"{cookie}\"\n\
             name = \"{name}\"\n",
            data = self.data_dir().display(),
            threads = share_of_cores(),
            seeds = seeds.join(", "),
            cookie = cookie.display(),
            name = self.name,
        );
        Ok(std::fs::write(self.settings(), settings)?)
    }

    /// Starts it.
    pub(super) fn spawn(&mut self) -> anyhow::Result<()> {
        std::fs::remove_file(self.ready_file()).ok();
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--config"])
            .arg(self.settings())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for the demo alone: it ends its nodes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start", self.name))?;
        let out = child.stdout.take().context("the node has no output")?;
        self.running = Some(Running { child, out: BufReader::new(out).lines() });
        Ok(())
    }

    /// Waits until it is ready.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let (begun, ready) = (Instant::now(), self.ready_file());
        while !ready.exists() {
            let Some(running) = &mut self.running else { bail!("{} is gone", self.name) };
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended with {status}{}", self.name, self.last_words());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{} is not ready in time{}", self.name, self.last_words());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Kills it as a power cut would.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        let Some(running) = &mut self.running else { bail!("{} does not run", self.name) };
        Ok(running.child.start_kill()?)
    }

    /// Waits until nothing is left of it.
    pub(super) async fn gone(&mut self) -> anyhow::Result<()> {
        if let Some(running) = &mut self.running {
            running.child.wait().await?;
        }
        self.running = None;
        Ok(())
    }

    /// Its process, while it runs.
    pub(super) fn process(&self) -> Option<u32> {
        self.running.as_ref()?.child.id()
    }

    /// Waits for what it does next; for ever, if it does not run.
    pub(super) async fn news(&mut self) -> anyhow::Result<News> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        if let Some(line) = running.out.next_line().await? {
            return Ok(News::Said(line));
        }
        let status = running.child.wait().await?;
        self.running = None;
        Ok(News::Ended(status))
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.files.clone()
    }

    /// Where it writes what it has to say.
    pub(super) fn log(&self) -> PathBuf {
        self.files.with_extension("log")
    }

    /// What clients must trust: the authority of all nodes with the demo's cookie.
    pub(super) fn authority(&self) -> PathBuf {
        self.data_dir().join("tls/ca.pem")
    }

    /// Written by a node once it is ready.
    fn ready_file(&self) -> PathBuf {
        self.data_dir().join("addresses.json")
    }

    fn settings(&self) -> PathBuf {
        self.files.with_extension("toml")
    }

    /// The end of its log, to be put after what happened to it.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("; the end of {}:\n{tail}", self.log().display())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(running) = &mut self.running else { return };
        // If it cannot be killed it is gone already.
        running.child.start_kill().ok();
        // Its files can be removed only after it.
        while let Ok(None) = running.child.try_wait() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How many threads each node of the demo has.
fn share_of_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / super::stage::NODES).max(1)
}
