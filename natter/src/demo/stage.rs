//! The demo's cluster: three nodes with their files, and those who register with them.
//!
//! **Invariant:** nodes and files are gone when the stage is dropped; the files stay if the story
//! went wrong.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::{select_all, try_join_all};
use natter_sdk::{Alias, ClientOptions, DeviceKey, Proof, Tls, register_prove, register_start};
use node::keys::identity::hex;
use tokio::time::{Instant, sleep, timeout};

use super::PATIENCE;
use super::guard::Guard;
use super::node::{Addresses, News, Node};
use super::painter::{Guests, Painter, Place};
use super::people::{Device, Person, span};
use super::screen::Screen;

/// How many nodes there are.
pub(super) const NODES: usize = 3;

/// What a line with a PIN begins with.
const PIN_LINE: &str = "natter-pin ";

/// How long a node that someone killed stays down.
const DOWN: Duration = Duration::from_secs(3);

/// What the story needs to tell of the nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Signs {
    screen: Screen,
    names: Vec<(String, String)>,
}

impl Signs {
    pub(super) fn tell(&self, line: &str) {
        self.screen.tell(line);
    }

    /// The name of the node whose clients connect to `address`.
    pub(super) fn name_of(&self, address: &str) -> &str {
        let node = self.names.iter().find(|(known, _)| known == address);
        node.map_or("another node", |(_, name)| name)
    }
}

/// The nodes and their files.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped in this order: the guard has to know of the nodes until they are gone.
    nodes: Vec<Node>,
    guard: Guard,
    files: Files,
    screen: Screen,
    guests: Guests,
}

/// Removed when dropped, unless they are kept.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    keep: bool,
    screen: Screen,
}

impl Stage {
    /// Makes the directories and settings of nodes that do not run yet.
    pub(super) fn set(screen: Screen) -> anyhow::Result<Self> {
        let files = Files { folder: new_folder()?, keep: false, screen: screen.clone() };
        let cookie = hex(DeviceKey::generate()?.public());
        node::data_dir::write_private(&files.folder.join("cookie"), cookie.as_bytes())?;
        let places = Addresses::free(NODES)?.into_iter().zip(1..);
        let nodes =
            places.map(|(addresses, number)| Node::new(&files.folder, number, addresses)).collect();
        let guests = Guests::default();
        let stage = Self { nodes, guard: Guard::start(), files, screen, guests };
        // The first one founds the cluster, the others find it.
        stage.configure(0, &[])?;
        for node in 1..NODES {
            stage.configure(node, &stage.others(node))?;
        }
        Ok(stage)
    }

    fn configure(&self, node: usize, seeds: &[SocketAddr]) -> anyhow::Result<()> {
        self.nodes[node].configure(seeds, &self.files.folder.join("cookie"))
    }

    fn others(&self, node: usize) -> Vec<SocketAddr> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
        others.map(|(_, other)| other.addresses.cluster).collect()
    }

    /// Who paints these nodes.
    pub(super) fn painter(&self) -> Painter {
        let place = |node: &Node| Place {
            name: node.name.clone(),
            data_dir: node.data_dir(),
            client: node.addresses.client.to_string(),
            http: node.addresses.http.to_string(),
        };
        let places = self.nodes.iter().map(place).collect();
        Painter::new(self.screen.clone(), places, self.guests.clone())
    }

    pub(super) fn signs(&self) -> Signs {
        let sign = |node: &Node| (node.addresses.client.to_string(), node.name.clone());
        Signs { screen: self.screen.clone(), names: self.nodes.iter().map(sign).collect() }
    }

    pub(super) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Which node clients reach at `address`.
    pub(super) fn node_at(&self, address: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.addresses.client.to_string() == address)
    }

    /// Starts all nodes and waits until each is ready.
    pub(super) async fn raise(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        self.inform_guard();
        try_join_all(self.nodes.iter_mut().map(Node::ready)).await?;
        // From now on the first one, too, finds the others.
        self.configure(0, &self.others(0))
    }

    /// Starts one node and waits until it is ready; how long that took.
    pub(super) async fn start(&mut self, node: usize) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.nodes[node].spawn()?;
        self.inform_guard();
        self.nodes[node].ready().await?;
        Ok(begun.elapsed())
    }

    /// Kills some nodes at once, as a power cut would.
    pub(super) async fn kill(&mut self, nodes: Range<usize>) -> anyhow::Result<()> {
        self.nodes[nodes.clone()].iter_mut().try_for_each(Node::kill)?;
        try_join_all(self.nodes[nodes].iter_mut().map(Node::gone)).await?;
        self.inform_guard();
        Ok(())
    }

    fn inform_guard(&mut self) {
        self.guard.watch(self.nodes.iter().filter_map(Node::process));
    }

    /// What a client of any node must trust.
    fn authority(&self) -> PathBuf {
        self.nodes[0].authority()
    }

    /// The addresses for clients: that of node `first` in front, then from the last to the first, so
    /// that two who begin at the first two nodes do not meet when one of these dies.
    fn addresses(&self, first: usize) -> String {
        let others = (0..NODES).rev().filter(|node| *node != first);
        let addresses: Vec<String> = std::iter::once(first)
            .chain(others)
            .map(|node| self.nodes[node].addresses.client.to_string())
            .collect();
        addresses.join(",")
    }

    /// Registers someone through the real registration at a node and logs them in there.
    pub(super) async fn register(
        &mut self,
        name: &'static str,
        node: usize,
    ) -> anyhow::Result<Person> {
        let tls = Tls::from_ca_file(self.authority())?;
        let options = ClientOptions::tls(self.addresses(node), tls);
        let alias = Alias::parse(name)?;
        let sent = register_start(&options, &alias).await?;
        let pin = self.pin_of(&alias).await?;
        let key = DeviceKey::generate()?;
        let proof = Proof { pin: &pin, token: &sent.token, lock: "" };
        let identity = register_prove(&options, &alias, proof, key, "demo phone").await?;
        let (user, dir) = (identity.user, self.files.folder.join(name));
        let (screen, guests) = (self.screen.clone(), self.guests.clone());
        let device = Device { name, options, identity, dir, screen, guests };
        let person = Person::log_in(device).await?;
        self.screen.tell(&format!(
            "   {name:<5}   PIN {pin} proved, is now user {user} with device 1, connected to {}",
            self.name(node)
        ));
        Ok(person)
    }

    async fn pin_of(&mut self, alias: &Alias) -> anyhow::Result<String> {
        let wanted = format!("{PIN_LINE}alias={alias} pin=");
        let reading = async {
            loop {
                match self.news().await? {
                    (_, News::Said(line)) => {
                        if let Some(pin) = line.strip_prefix(&wanted) {
                            return anyhow::Ok(pin.to_owned());
                        }
                    }
                    (node, News::Ended(status)) => {
                        let node = &self.nodes[node];
                        bail!("{} ended with {status}{}", node.name, node.last_words());
                    }
                }
            }
        };
        timeout(PATIENCE, reading).await.context("no PIN came")?
    }

    /// Returns, with an error that shows its last words, when a node ends by itself.
    pub(super) async fn fallen(&mut self) -> anyhow::Result<()> {
        loop {
            if let (node, News::Ended(status)) = self.news().await? {
                let node = &self.nodes[node];
                bail!("{} ended with {status}{}", node.name, node.last_words());
            }
        }
    }

    /// What any node does next. May be dropped and called again.
    async fn news(&mut self) -> anyhow::Result<(usize, News)> {
        let (news, node, _) =
            select_all(self.nodes.iter_mut().map(|node| Box::pin(node.news()))).await;
        Ok((node, news?))
    }

    /// Prints how a third person joins.
    pub(super) fn invite(&self) {
        let natter = std::env::current_exe().unwrap_or_else(|_| "natter".into());
        let (natter, ca) = (natter.display(), self.authority());
        let folder = &self.files.folder;
        let home = folder.join("eve");
        let processes: Vec<String> =
            self.nodes.iter().filter_map(|node| Some(node.process()?.to_string())).collect();
        self.screen.tell(&format!(
            "The nodes keep running. Join as a third person, in another terminal:\n\n  \
             {natter} chat bob --as eve --server {server} --ca {ca} --home {home}\n\n\
             It asks for a PIN, which appears here. Ada and Bob answer whoever writes to them.\n\
             Kill a node while you write (`kill -9` {processes}): it is started again after {down} s.\n\
             Ctrl-C ends the demo and removes {folder}.\n",
            server = self.addresses(2),
            ca = ca.display(),
            home = home.display(),
            processes = processes.join(", or "),
            down = DOWN.as_secs(),
            folder = folder.display(),
        ));
    }

    /// Shows the PINs of those who join, and starts nodes again that someone killed. For ever.
    pub(super) async fn keep_up(&mut self) -> anyhow::Result<()> {
        loop {
            match self.news().await? {
                (_, News::Said(line)) => {
                    if let Some(pin) = line.strip_prefix(PIN_LINE) {
                        let pin = pin.replace("alias=", "").replace(" pin=", ": ");
                        if let Some((name, _)) = pin.split_once(':') {
                            self.guests.invite(name);
                        }
                        self.screen.tell(&format!("   PIN for {pin}"));
                    }
                }
                (node, News::Ended(status)) => {
                    let name = self.name(node).to_owned();
                    self.screen.tell(&format!("   {name}  ended: {status}"));
                    sleep(DOWN).await;
                    let took = span(self.start(node).await?);
                    let process = self.nodes[node].process().unwrap_or_default();
                    self.screen.tell(&format!(
                        "   {name}  started again as process {process}, ready after {took}"
                    ));
                }
            }
        }
    }

    /// Where the nodes write what they have to say.
    pub(super) fn logs(&self) -> String {
        let logs: Vec<String> =
            self.nodes.iter().map(|node| node.log().display().to_string()).collect();
        logs.join(", ")
    }

    /// Leaves the files for someone to look at.
    pub(super) fn keep_files(&mut self) {
        self.files.keep = true;
    }
}

/// A folder that was not there before, for this user alone.
fn new_folder() -> anyhow::Result<PathBuf> {
    let name = format!("natter-demo-{}", std::process::id());
    let mut folder = std::env::temp_dir().join(&name);
    for further in 1.. {
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            // Left by a demo that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                folder.set_file_name(format!("{name}-{further}"));
            }
            made => {
                made.with_context(|| format!("cannot make {}", folder.display()))?;
                break;
            }
        }
    }
    Ok(folder)
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.folder, &self.screen);
        }
    }
}

fn remove(folder: &Path, screen: &Screen) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        screen.tell(&format!("{} stays: {error}", folder.display()));
    }
}
