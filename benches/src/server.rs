//! The server that is measured: one of our own, started fresh, or one that runs already.
//!
//! **Invariant:** a server started here is ended here, by its process id, however the run ends.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use crate::args::Common;
use crate::clock::{Clock, MS_NS, SECOND_NS};
use crate::link::Target;
use crate::pins::Pins;

/// Longest wait for a server to be ready, and to end.
const PATIENCE_NS: u64 = 60 * SECOND_NS;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// How much of the server's log is shown when it fails.
const LOG_TAIL_BYTES: u64 = 4096;

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    spawned: Option<Spawned>,
    address: SocketAddr,
    ca: Option<PathBuf>,
    tls_name: String,
    pub(crate) pid: u32,
    pub(crate) pins: Pins,
}

/// A server of our own.
#[derive(Debug)]
struct Spawned {
    child: Child,
    directory: TempDir,
    plain: bool,
    clock: Clock,
}

impl Server {
    /// The one that `common` asks for.
    pub(crate) fn of(common: &Common, clock: Clock) -> Result<Self> {
        let pins = Pins::default();
        if common.spawn {
            let spawned = Spawned::start(common, clock, &pins)?;
            let (address, ca) = spawned.ready()?;
            let pid = spawned.child.id();
            let tls_name = common.server_name.clone();
            return Ok(Self { spawned: Some(spawned), address, ca, tls_name, pid, pins });
        }
        let (Some(address), Some(pid)) = (common.server, common.server_pid) else {
            bail!("say --spawn, or --server ADDR --server-pid PID --ca FILE --pins FILE");
        };
        let Some(file) = &common.pins else {
            bail!("--pins FILE is needed to register users: the server's standard output");
        };
        pins.follow_file(file)?;
        let ca = if common.plain { None } else { common.ca.clone() };
        if ca.is_none() && !common.plain {
            bail!("--ca FILE is needed for TLS, or say --plain");
        }
        let tls_name = common.server_name.clone();
        Ok(Self { spawned: None, address, ca, tls_name, pid, pins })
    }

    /// Where to connect.
    pub(crate) fn target(&self) -> Result<Target> {
        let tls = match &self.ca {
            None => None,
            Some(ca) => {
                let name = ServerName::try_from(self.tls_name.clone())?;
                Some((Arc::new(trusting(ca)?), name))
            }
        };
        Ok(Target { address: self.address, tls })
    }

    /// Stops and starts it on the same data, so that nothing but its data is left. Does nothing and
    /// returns `false` for a server that is not ours.
    pub(crate) fn restart(&mut self) -> Result<bool> {
        let Some(spawned) = &mut self.spawned else { return Ok(false) };
        spawned.stop()?;
        spawned.child = launch(spawned.directory.path(), &self.pins)?;
        (self.address, self.ca) = spawned.ready()?;
        self.pid = spawned.child.id();
        Ok(true)
    }

    /// Ends it by SIGTERM, if it is ours.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.spawned.as_mut().map_or(Ok(()), Spawned::stop)
    }

    /// The end of its log, if it is ours.
    pub(crate) fn log_tail(&self) -> String {
        self.spawned.as_ref().map(|own| tail(&own.log())).unwrap_or_default()
    }
}

impl Spawned {
    fn start(common: &Common, clock: Clock, pins: &Pins) -> Result<Self> {
        let place = match &common.dir {
            Some(dir) => dir.clone(),
            None => beside("")?,
        };
        let directory = tempfile::Builder::new()
            .prefix("natter-load-")
            .tempdir_in(&place)
            .with_context(|| format!("cannot make a directory in {}", place.display()))?;
        fs::write(directory.path().join("node.toml"), settings(directory.path()))?;
        let child = launch(directory.path(), pins)?;
        Ok(Self { child, directory, plain: common.plain, clock })
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("stderr")
    }

    /// Waits until it listens: where, and what certificate to trust.
    fn ready(&self) -> Result<(SocketAddr, Option<PathBuf>)> {
        let data = self.directory.path().join("data");
        let begin_ns = self.clock.now_ns();
        let addresses = loop {
            if let Some(found) = addresses(&data.join("addresses.json")) {
                break found;
            }
            if Path::new(&format!("/proc/{}/stat", self.child.id())).exists()
                && self.clock.now_ns() - begin_ns < PATIENCE_NS
                && !ended(self.child.id())
            {
                thread::sleep(PAUSE);
                continue;
            }
            bail!("the server did not become ready; its log ends:\n{}", tail(&self.log()));
        };
        let key = if self.plain { "plain" } else { "client" };
        let address = addresses.get(key).and_then(|value| value.as_str());
        let address = address.with_context(|| format!("addresses.json has no {key}"))?.parse()?;
        let tls = data.join("tls");
        let ca = ["ca.pem", "cert.pem"].map(|name| tls.join(name)).into_iter().find(|p| p.exists());
        if self.plain {
            return Ok((address, None));
        }
        Ok((address, Some(ca.with_context(|| format!("no certificate in {}", tls.display()))?)))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let begin_ns = self.clock.now_ns();
        while self.clock.now_ns() - begin_ns < PATIENCE_NS {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("the server ended with {status}; its log ends:\n{}", tail(&self.log()));
            }
            thread::sleep(PAUSE);
        }
        bail!("the server did not end after SIGTERM; its log ends:\n{}", tail(&self.log()))
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

/// A node as in production, but for the limits that stop one address from registering thousands.
fn settings(directory: &Path) -> String {
    format!(
        "[node]\n\
         data_dir = {:?}\n\
         [listen]\n\
         client = \"127.0.0.1:0\"\n\
         websocket = \"\"\n\
         plain = \"127.0.0.1:0\"\n\
         http = \"127.0.0.1:0\"\n\
         [cluster]\n\
         listen = \"127.0.0.1:0\"\n\
         [registration]\n\
         sender = \"log\"\n\
         requests_per_address_per_hour = 1000000000\n\
         [limits]\n\
         unauthenticated = 19000\n\
         unauthenticated_per_address = 0\n\
         connections_per_address = 0\n\
         [log]\n\
         filter = \"warn\"\n",
        directory.join("data").display().to_string()
    )
}

/// The addresses a server wrote, or `None` if it has not written all of them.
fn addresses(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether a child has ended and waits to be reaped.
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

/// TLS 1.3 that trusts one certificate and resumes nothing: every handshake is a whole one.
fn trusting(ca: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("cannot read {}", ca.display()))?;
    for certificate in certificates {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"natter/1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Waits until the server uses no CPU to speak of, so that what it still does for one phase is not
/// counted in the next. At most ten seconds.
pub(crate) fn quiet(pid: u32, clock: Clock) -> Result<()> {
    let begin_ns = clock.now_ns();
    let mut before = crate::process::cpu_s(pid)?;
    while clock.now_ns() - begin_ns < 10 * SECOND_NS {
        thread::sleep(Duration::from_nanos(300 * MS_NS));
        let now = crate::process::cpu_s(pid)?;
        if now - before <= 0.01 {
            break;
        }
        before = now;
    }
    Ok(())
}
