//! The demo's node: a child process with a directory, ports and a log of its own, and the PINs that
//! it prints.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use natter_sdk::{Alias, ClientOptions, DeviceKey, Tls, register_prove, register_start};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use super::PATIENCE;
use super::people::{Device, Person};

/// How often the node is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// What a line with a PIN begins with.
const PIN_LINE: &str = "natter-pin ";

/// Tells the newcomer something.
pub(super) fn narrate(line: &str) {
    // A newcomer who closed the terminal is told nothing.
    writeln!(io::stdout(), "{line}").ok();
}

/// A node and its files.
#[derive(Debug)]
pub(super) struct Stage {
    dir: PathBuf,
    client: SocketAddr,
    running: Option<Running>,
    keep: bool,
}

#[derive(Debug)]
struct Running {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
}

impl Stage {
    /// Makes a directory, takes free ports and starts the node.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("natter-demo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (client, web, http) = (free_port()?, free_port()?, free_port()?);
        let settings = format!(
            "[node]\ndata_dir = \"{}\"\n[listen]\nclient = \"{client}\"\nwebsocket = \"{web}\"\n\
             http = \"{http}\"\n[registration]\nsender = \"log\"\n",
            dir.join("data").display()
        );
        std::fs::write(dir.join("node.toml"), settings)?;
        let mut stage = Self { dir, client, running: None, keep: false };
        let took = stage.start().await?;
        narrate(&format!("A natter node runs on {client}, ready after {} ms.", took.as_millis()));
        Ok(stage)
    }

    /// Starts the node and waits until it is ready.
    pub(super) async fn start(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let ready = self.dir.join("data/addresses.json");
        std::fs::remove_file(&ready).ok();
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--config"])
            .arg(self.dir.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("the node does not start")?;
        let out = child.stdout.take().context("the node has no output")?;
        self.running = Some(Running { child, out: BufReader::new(out).lines() });
        while !ready.exists() {
            let Some(running) = &mut self.running else { bail!("the node is gone") };
            if let Some(status) = running.child.try_wait()? {
                bail!("the node ended with {status}; see {}", self.log().display());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the node is not ready; see {}", self.log().display());
            }
            sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// Kills the node as a power cut would.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut running) = self.running.take() else { bail!("no node runs") };
        running.child.kill().await?;
        narrate("   node    killed");
        Ok(())
    }

    /// Registers someone through the real registration and logs them in.
    pub(super) async fn register(&mut self, name: &'static str) -> anyhow::Result<Person> {
        let options = ClientOptions::tls(self.client.to_string(), Tls::from_ca_file(self.ca())?);
        let alias = Alias::parse(name)?;
        register_start(&options, &alias).await?;
        let pin = self.pin_of(&alias).await?;
        let key = DeviceKey::generate()?;
        let identity = register_prove(&options, &alias, &pin, key, "demo phone").await?;
        let user = identity.user;
        narrate(&format!("   {name:<5}   PIN {pin} proved, is now user {user} with device 1"));
        let dir = self.dir.join(name);
        Person::log_in(Device { name, options, identity, dir }).await
    }

    async fn pin_of(&mut self, alias: &Alias) -> anyhow::Result<String> {
        let wanted = format!("{PIN_LINE}alias={alias} pin=");
        let Some(running) = &mut self.running else { bail!("no node runs") };
        let reading = async {
            while let Some(line) = running.out.next_line().await? {
                if let Some(pin) = line.strip_prefix(&wanted) {
                    return anyhow::Ok(pin.to_owned());
                }
            }
            bail!("the node ended")
        };
        timeout(PATIENCE, reading).await.context("no PIN came")?
    }

    /// Prints how a third person joins.
    pub(super) fn invite(&self) {
        let natter = std::env::current_exe().unwrap_or_else(|_| "natter".into());
        let (natter, ca) = (natter.display(), self.ca());
        let (client, ca) = (self.client, ca.display());
        let home = self.dir.join("eve");
        narrate(&format!(
            "The node keeps running. Join as a third person, in another terminal:\n\n  \
             {natter} chat bob --as eve --server {client} --ca {ca} --home {}\n\n\
             It asks for a PIN, which appears here. Bob answers whoever writes to him.\n\
             Ctrl-C ends the demo and removes {}.\n",
            home.display(),
            self.dir.display()
        ));
    }

    /// Shows the PINs of those who join; returns when the node ends.
    pub(super) async fn ended(&mut self) -> anyhow::Result<()> {
        let Some(running) = &mut self.running else { bail!("no node runs") };
        while let Some(line) = running.out.next_line().await? {
            if let Some(pin) = line.strip_prefix(PIN_LINE) {
                narrate(&format!(
                    "   PIN for {}",
                    pin.replace("alias=", "").replace(" pin=", ": ")
                ));
            }
        }
        bail!("the node ended; see {}", self.log().display())
    }

    /// Where the node writes what it has to say.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// Leaves the files for someone to look at.
    pub(super) fn keep_files(&mut self) {
        self.keep = true;
    }

    /// Ends the node and removes its files.
    pub(super) async fn clear(mut self) -> anyhow::Result<()> {
        if let Some(mut running) = self.running.take() {
            running.child.kill().await?;
        }
        Ok(())
    }

    fn ca(&self) -> PathBuf {
        let tls = self.dir.join("data/tls");
        let authority = tls.join("ca.pem");
        if authority.exists() { authority } else { tls.join("cert.pem") }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.dir);
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        narrate(&format!("{} stays: {error}", dir.display()));
    }
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
