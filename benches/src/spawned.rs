//! One node of our own: a `natter serve` beside this program, on a fresh directory.
//!
//! **Invariant:** a process started here is ended here, by its id, however the run ends.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::args::Common;
use crate::clock::{Clock, SECOND_NS};
use crate::pins::Pins;

/// Longest wait for a node to be ready, and to end.
const PATIENCE_NS: u64 = 60 * SECOND_NS;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// How much of a node's log is shown when it fails.
const LOG_TAIL_BYTES: u64 = 4096;

/// Where a node is reached, and what certificate it shows.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Option<PathBuf>,
}

/// The way into a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Seed {
    address: SocketAddr,
    cookie: PathBuf,
}

/// A node of our own.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    directory: TempDir,
    cluster: SocketAddr,
    plain: bool,
    clock: Clock,
    pins: Pins,
}

impl Spawned {
    /// Starts one: it founds a cluster, or joins that of `seed`.
    pub(crate) fn start(
        common: &Common,
        clock: Clock,
        pins: &Pins,
        seed: Option<&Seed>,
    ) -> Result<Self> {
        let place = match &common.dir {
            Some(dir) => dir.clone(),
            None => beside("")?,
        };
        let directory = tempfile::Builder::new()
            .prefix("natter-load-")
            .tempdir_in(&place)
            .with_context(|| format!("cannot make a directory in {}", place.display()))?;
        let cluster = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let settings = settings(directory.path(), worker_threads(common.nodes), cluster, seed);
        fs::write(directory.path().join("node.toml"), settings)?;
        let (child, pins) = (launch(directory.path(), pins)?, pins.clone());
        Ok(Self { child, directory, cluster, plain: common.plain, clock, pins })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How others come into its cluster.
    pub(crate) fn seed(&self) -> Seed {
        Seed { address: self.cluster, cookie: self.directory.path().join("data/cookie") }
    }

    /// Starts it again on its data.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.child = launch(self.directory.path(), &self.pins)?;
        Ok(())
    }

    /// Waits until it listens.
    pub(crate) fn ready(&self) -> Result<Reached> {
        let data = self.directory.path().join("data");
        let begin_ns = self.clock.now_ns();
        let addresses = loop {
            if let Some(found) = addresses(&data.join("addresses.json")) {
                break found;
            }
            if self.clock.now_ns() - begin_ns < PATIENCE_NS && !ended(self.child.id()) {
                thread::sleep(PAUSE);
                continue;
            }
            bail!("the node did not become ready; its log ends:\n{}", self.log_tail());
        };
        let key = if self.plain { "plain" } else { "client" };
        let address = addresses.get(key).and_then(|value| value.as_str());
        let address = address.with_context(|| format!("addresses.json has no {key}"))?.parse()?;
        let tls = data.join("tls");
        let ca = ["ca.pem", "cert.pem"].map(|name| tls.join(name)).into_iter().find(|p| p.exists());
        if !self.plain && ca.is_none() {
            bail!("no certificate in {}", tls.display());
        }
        Ok(Reached { address, ca: ca.filter(|_| !self.plain) })
    }

    /// How many members its cluster has; none while it does not say.
    pub(crate) fn members(&self) -> Result<usize> {
        let told = self.admin(&["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap_or_default();
        Ok(status["members"].as_array().map_or(0, Vec::len))
    }

    /// Waits until replicas and leaders are where they should be.
    pub(crate) fn rebalance(&self) -> Result<()> {
        let told = self.admin(&["rebalance"])?;
        if !told.status.success() {
            bail!("natter admin cluster rebalance: {}", String::from_utf8_lossy(&told.stderr));
        }
        Ok(())
    }

    /// Runs `natter admin cluster` on it.
    fn admin(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(beside("natter")?);
        command.args(["admin", "cluster"]).args(words);
        command.arg("--data-dir").arg(self.directory.path().join("data"));
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub(crate) fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let begin_ns = self.clock.now_ns();
        while self.clock.now_ns() - begin_ns < PATIENCE_NS {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("a node ended with {status}; its log ends:\n{}", self.log_tail());
            }
            thread::sleep(PAUSE);
        }
        bail!("a node did not end after SIGTERM; its log ends:\n{}", self.log_tail())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.directory.path().join("stderr"))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Both fail only if it has ended already, and then there is nothing to do.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A file beside this program.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.with_file_name(name))
}

/// Starts `natter serve` on the settings in `directory`.
fn launch(directory: &Path, pins: &Pins) -> Result<Child> {
    let program = beside("natter")?;
    let listening = directory.join("data/addresses.json");
    if listening.exists() {
        fs::remove_file(&listening)?;
    }
    let log = File::options().create(true).append(true).open(directory.join("stderr"))?;
    let mut child = Command::new(&program)
        .arg("serve")
        .arg("--config")
        .arg(directory.join("node.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(output) = child.stdout.take() {
        pins.follow_pipe(output);
    }
    Ok(child)
}

/// What each of so many nodes sets: one alone has the machine, several share it out.
fn worker_threads(nodes: u64) -> u64 {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    if nodes == 1 { 0 } else { (cores / nodes).max(1) }
}

/// A node as in production, but for the limits that stop one address from registering thousands, and one
/// sender from filling mailboxes.
fn settings(
    directory: &Path,
    worker_threads: u64,
    cluster: SocketAddr,
    seed: Option<&Seed>,
) -> String {
    let seed = seed.map_or_else(String::new, |seed| {
        let cookie = seed.cookie.display().to_string();
        format!("seeds = [\"{}\"]\ncookie_file = {cookie:?}\n", seed.address)
    });
    format!(
        "[node]\n\
         data_dir = {:?}\n\
         worker_threads = {worker_threads}\n\
         [listen]\n\
         client = \"127.0.0.1:0\"\n\
         websocket = \"\"\n\
         plain = \"127.0.0.1:0\"\n\
         http = \"127.0.0.1:0\"\n\
         [cluster]\n\
         listen = \"{cluster}\"\n\
         {seed}\
         [registration]\n\
         sender = \"log\"\n\
         requests_per_address_per_hour = 1000000000\n\
         pins_per_hour = 1000000000\n\
         [limits]\n\
         unauthenticated = 19000\n\
         unauthenticated_per_address = 0\n\
         connections_per_address = 0\n\
         contact_share = 100\n\
         stranger_share = 100\n\
         strangers_share = 100\n\
         stored_bytes_per_second = \"0B\"\n\
         stored_bytes_per_second_per_address = \"0B\"\n\
         [rates]\n\
         sends = \"\"\n\
         signals = \"\"\n\
         lookups = \"\"\n\
         lookups_daily = \"\"\n\
         subscribes = \"\"\n\
         reads = \"\"\n\
         logins_per_address = \"\"\n\
         [log]\n\
         filter = \"warn\"\n",
        directory.join("data").display().to_string()
    )
}

/// The addresses a node wrote, or `None` if it has not written all of them.
fn addresses(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether a child has ended and waits to be reaped, or is gone.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// The end of a file.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    read().map(|end| String::from_utf8_lossy(&end).into_owned()).unwrap_or_default()
}
