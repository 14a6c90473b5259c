//! One real `natter serve` process: started on free ports in a directory of its own, killed,
//! stopped and restarted on the same directory, cleaned up by its process id.
//!
//! **Invariants:** a node that was started is gone when its [`Node`] is dropped; its directory stays
//! if the test fails, and is named.

use crate::under_test::KILLS_FILE;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a node may take to start or to stop. Generous: the machine may be compiling.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The file in a node's directory that says which actors are killed.
const KILLS: &str = "kills";

/// Stories that are not about rates ask as fast as they can, so that they end soon.
const NO_RATES: &str = "[rates]\nsends = \"\"\nsignals = \"\"\nlookups = \"\"\nlookups_daily = \"\"\n\
     subscribes = \"\"\nchanges = \"\"\npresence = \"\"\nreads = \"\"\nother = \"\"\nneedless = \"\"\nlogins = \"\"\n\
     logins_per_address = \"\"\nlinks = \"\"\nlinks_per_address = \"\"\n";

/// Waits until `ready` gives something, looking every 10 ms.
///
/// # Errors
/// If `patience` ends first; `what` says what was waited for.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let tries = patience.as_millis() / 10 + 1;
    for _ in 0..tries {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("waited {patience:?} in vain: {what}")
}

/// Asks again and again until the answer is good. An `Err` says what is not good yet.
///
/// # Errors
/// If `patience` ends first: what was not good the last time.
pub async fn eventually<T>(
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let begun = tokio::time::Instant::now();
    loop {
        match ask().await {
            Err(error) if begun.elapsed() >= patience => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            good => return good,
        }
    }
}

/// Where a node listens: the content of its `addresses.json`.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Clients over TLS.
    pub client: String,
    /// WebSocket over TLS.
    pub websocket: String,
    /// Clients without TLS.
    pub plain: String,
    /// Health and metrics.
    pub http: String,
    /// Other nodes.
    pub cluster: String,
}

/// How to reach the node of a data directory, now and after a restart.
#[derive(Clone, Debug)]
pub struct Target {
    data_dir: PathBuf,
}

impl Target {
    /// Where the node listens now, if it is ready.
    pub fn addresses(&self) -> Option<Addresses> {
        let text = fs::read_to_string(self.data_dir.join("addresses.json")).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        let get = |key: &str| json.get(key).and_then(|v| v.as_str()).unwrap_or("").to_owned();
        Some(Addresses {
            client: get("client"),
            websocket: get("websocket"),
            plain: get("plain"),
            http: get("http"),
            cluster: get("cluster"),
        })
    }

    /// The certificate that clients trust, as PEM.
    ///
    /// # Errors
    /// If there is none yet.
    pub fn authority(&self) -> Result<Vec<u8>> {
        let tls = self.data_dir.join("tls");
        fs::read(tls.join("ca.pem"))
            .or_else(|_| fs::read(tls.join("cert.pem")))
            .with_context(|| format!("no certificate in {}", tls.display()))
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

/// A node under test.
#[derive(Debug)]
pub struct Node {
    program: PathBuf,
    launcher: Vec<String>,
    environment: Vec<(String, String)>,
    folder: Option<TempDir>,
    child: Option<Child>,
}

impl Node {
    /// Writes the settings file for a node that is started by hand or by [`Node::restart`]. `settings` is TOML in which
    /// `{dir}` stands for the directory of the test; sections `node` and `listen` are added, and one that turns the rates
    /// off unless there is one.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn prepare(program: &str, settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("natter-it-").tempdir()?;
        let kills = folder.path().join(KILLS).to_string_lossy().into_owned();
        let node = Self {
            program: program.into(),
            launcher: Vec::new(),
            environment: vec![(KILLS_FILE.to_owned(), kills)],
            folder: Some(folder),
            child: None,
        };
        node.configure(settings)?;
        Ok(node)
    }

    /// From the next start on the program is started by this command, which must become the program
    /// by `exec`: `ip netns exec NAME`.
    pub fn launched_by(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// From the next start on the program finds `value` in its environment as `name`.
    pub fn finds(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn start(program: &str, settings: &str) -> Result<Self> {
        let mut node = Self::prepare(program, settings)?;
        node.restart().await?;
        Ok(node)
    }

    /// Writes other settings; they hold from the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, settings: &str) -> Result<()> {
        let any = "\"127.0.0.1:0\"";
        let base = format!(
            "[node]\ndata_dir = \"{{dir}}/data\"\n[listen]\nclient = {any}\nwebsocket = {any}\n\
             plain = {any}\nhttp = {any}\n[cluster]\nlisten = {any}\n"
        );
        let base = if settings.contains("[listen]") { "" } else { &base };
        let rates = if settings.contains("[rates]") { "" } else { NO_RATES };
        let text =
            format!("{base}{settings}\n{rates}").replace("{dir}", &self.dir().to_string_lossy());
        Ok(fs::write(self.dir().join("node.toml"), text)?)
    }

    /// The directory of this test: settings, logs, and the data directory `data`.
    pub fn dir(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// How to reach it.
    pub fn target(&self) -> Target {
        Target { data_dir: self.dir().join("data") }
    }

    /// The command that starts it, output appended to `stdout.log` and `stderr.log`.
    ///
    /// # Errors
    /// If the logs cannot be opened.
    pub fn command(&self) -> Result<Command> {
        let log = |name| File::options().create(true).append(true).open(self.dir().join(name));
        let mut words = self.launcher.iter().map(PathBuf::from).chain([self.program.clone()]);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words).envs(self.environment.iter().cloned());
        command.arg("serve").arg("--config").arg(self.dir().join("node.toml"));
        command.stdin(Stdio::null()).stdout(log("stdout.log")?).stderr(log("stderr.log")?);
        Ok(command)
    }

    /// Starts it on its directory without waiting.
    ///
    /// # Errors
    /// If it runs already or the program cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "it runs already");
        self.forget_addresses()?;
        self.child = Some(self.command()?.spawn().context("start the program under test")?);
        Ok(())
    }

    /// Removes what a killed node said about where it listens.
    fn forget_addresses(&self) -> Result<()> {
        match fs::remove_file(self.target().data_dir().join("addresses.json")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts it on its directory and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time.
    pub async fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Waits until it is ready after [`Node::spawn`].
    ///
    /// # Errors
    /// If it ends or is not ready in time.
    pub async fn ready(&mut self) -> Result<()> {
        let target = self.target();
        let child = self.child.as_mut().context("not started")?;
        let ready = until("the node to be ready", PATIENCE, || {
            if let Some(status) = child.try_wait()? {
                bail!("the node ended at start: {status}");
            }
            Ok(target.addresses())
        });
        let ready = ready.await;
        ready.map(drop).with_context(|| self.errors())
    }

    /// The process id.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the node does not run")?.id())
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node does not run")?;
        child.kill()?;
        child.wait()?;
        self.forget_addresses()
    }

    /// The actor that serves the queue of this kind and number fails, as if it had panicked.
    ///
    /// # Errors
    /// If that cannot be written where the program reads it.
    pub fn kill_actor(&self, kind: &str, id: u64) -> Result<()> {
        let kills = self.dir().join(KILLS);
        let mut kills = File::options().append(true).create(true).open(kills)?;
        Ok(kills.write_all(format!("{kind} {id}\n").as_bytes())?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the node does not run")?;
        let status = until("the node to end", PATIENCE, || Ok(child.try_wait()?)).await?;
        self.child = None;
        Ok(status)
    }

    /// Keeps its directory when it is dropped; where that is.
    pub fn keep(&mut self) -> PathBuf {
        let dir = self.dir().to_owned();
        if let Some(folder) = &mut self.folder {
            folder.disable_cleanup(true);
        }
        dir
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it printed on standard output so far, over all starts.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir().join("stdout.log")).unwrap_or_default()
    }

    /// What it printed on standard error so far, over all starts.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.dir().join("stderr.log")).unwrap_or_default()
    }

    /// The PIN for `alias` that was printed last, after the first `seen` bytes of the output.
    ///
    /// # Errors
    /// If none is printed in time.
    pub async fn pin(&self, alias: &str, seen: usize) -> Result<String> {
        let mark = format!("natter-pin alias={alias} pin=");
        until("a PIN on standard output", PATIENCE, || {
            let output = self.output();
            let line = output.get(seen..).and_then(|new| new.rsplit_once(&mark));
            Ok(line
                .and_then(|(_, rest)| rest.split_once(['\n', ' ']))
                .map(|(pin, _)| pin.to_owned()))
        })
        .await
    }

    /// Resident memory, in KiB.
    ///
    /// # Errors
    /// If it does not run.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }

    /// The files of the data directory that contain `needle`.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn files_with(&self, needle: &[u8]) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut folders = vec![self.target().data_dir().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = fs::read(&path)
                    && memchr::memmem::find(&bytes, needle).is_some()
                {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let kept = folder.keep();
            let log = fs::read_to_string(kept.join("stderr.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("kept {}; the end of its log:", kept.display());
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
