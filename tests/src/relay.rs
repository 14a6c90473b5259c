//! Relays between nodes on one machine: each node advertises the address of its relay, which passes
//! bytes on as it is told. For every ordered pair of nodes they can be delayed, stalled (as behind a
//! cable that was cut: nobody is told, nothing arrives), throttled, or the connections be closed.
//!
//! Who calls is found by the process that owns the calling socket (`/proc`), so a pair of nodes can
//! be parted although every node has one address.
//!
//! **Invariants:** bytes of one direction keep their order and none is lost while a connection
//! stands, as TCP has it; all tasks end when the [`Relays`] are dropped.

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// One read, in bytes.
const PIECE: usize = 16 * 1024;

/// What one direction may hold while it is delayed, in pieces.
const HELD_MAX: usize = 256;

/// What becomes of bytes on their way from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Every byte comes this much later.
    pub delay: Duration,
    /// Bytes for each second; 0 for no limit.
    pub bytes_per_second: u32,
    /// Nothing arrives until it is let through again.
    pub stalled: bool,
    /// Connections are closed, and new ones at once.
    pub closed: bool,
}

type Rules = BTreeMap<(usize, usize), Rule>;

/// The pids of the nodes, by which callers are known.
type Pids = Arc<Mutex<Vec<Option<u32>>>>;

/// One relay for each of some nodes.
#[derive(Debug)]
pub struct Relays {
    addresses: Vec<SocketAddr>,
    rules: watch::Sender<Rules>,
    pids: Pids,
    _tasks: JoinSet<()>,
}

impl Relays {
    /// Relays to `targets`, where the nodes really listen.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(targets: &[SocketAddr]) -> Result<Self> {
        let rules = watch::Sender::new(Rules::new());
        let pids = Pids::new(Mutex::new(vec![None; targets.len()]));
        let (mut tasks, mut addresses) = (JoinSet::new(), Vec::new());
        for (to, target) in targets.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            let door = Door { to, target: *target, rules: rules.clone(), pids: Arc::clone(&pids) };
            tasks.spawn(door.serve(listener));
        }
        Ok(Self { addresses, rules, pids, _tasks: tasks })
    }

    /// Where others reach node `node`.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node]
    }

    /// Node `node` runs as process `pid`; `None` when it ends.
    pub fn runs_as(&self, node: usize, pid: Option<u32>) {
        if let Some(known) = lock(&self.pids).get_mut(node) {
            *known = pid;
        }
    }

    /// Sets what becomes of bytes from `from` to `to`.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        self.rules.send_modify(|rules| rules.extend([((from, to), rule)]));
    }

    /// All bytes pass again.
    pub fn heal(&self) {
        self.rules.send_modify(Rules::clear);
    }
}

fn lock(pids: &Pids) -> parking_lot::MutexGuard<'_, Vec<Option<u32>>> {
    pids.lock()
}

/// The relay of one node.
struct Door {
    to: usize,
    target: SocketAddr,
    rules: watch::Sender<Rules>,
    pids: Pids,
}

impl Door {
    async fn serve(self, listener: TcpListener) {
        let mut links = JoinSet::new();
        loop {
            tokio::select! {
                Ok((inbound, caller)) = listener.accept() => {
                    let from = self.caller(caller, &inbound);
                    links.spawn(link(inbound, self.target, (from, self.to), self.rules.subscribe()));
                }
                Some(_) = links.join_next() => {}
            }
        }
    }

    /// Which node opened `inbound`; one beyond the last if none did.
    fn caller(&self, caller: SocketAddr, inbound: &TcpStream) -> usize {
        let pids = lock(&self.pids).clone();
        let socket = inbound.local_addr().ok().and_then(|here| inode(caller, here));
        let owner = socket.and_then(|inode| {
            pids.iter().position(|pid| pid.is_some_and(|pid| owns(pid, inode).unwrap_or(false)))
        });
        owner.unwrap_or(pids.len())
    }
}

/// The inode of the socket from `local` to `remote`, by the kernel's table.
fn inode(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(_) => String::new(),
    };
    let (local, remote) = (hex(local), hex(remote));
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let ours = words.next()? == local && words.next()? == remote;
        if ours { words.nth(6)?.parse().ok() } else { None }
    })
}

/// Whether process `pid` holds the socket with this inode.
fn owns(pid: u32, inode: u64) -> io::Result<bool> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if fs::read_link(entry?.path()).is_ok_and(|link| link == Path::new(&wanted)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Both directions of one connection, until either ends or the rule says so.
async fn link(
    inbound: TcpStream,
    target: SocketAddr,
    (from, to): (usize, usize),
    rules: watch::Receiver<Rules>,
) {
    let outbound = async {
        let outbound = TcpStream::connect(target).await.context("the node does not listen")?;
        outbound.set_nodelay(true)?;
        inbound.set_nodelay(true)?;
        anyhow::Ok(outbound)
    };
    // A caller that finds nobody sees its connection close, as it would without a relay.
    let Ok(outbound) = outbound.await else { return };
    let (read_in, write_in) = inbound.into_split();
    let (read_out, write_out) = outbound.into_split();
    let (mut there, mut back) = (rules.clone(), rules.clone());
    let mut either = rules;
    let closed = |rules: &Rules| {
        [(from, to), (to, from)].iter().any(|pair| rules.get(pair).is_some_and(|rule| rule.closed))
    };
    tokio::select! {
        _ = either.wait_for(closed) => {}
        _ = pass(read_in, write_out, (from, to), &mut there) => {}
        _ = pass(read_out, write_in, (to, from), &mut back) => {}
    }
}

/// One direction. Ends when the reader or the writer does.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pair: (usize, usize),
    rules: &mut watch::Receiver<Rules>,
) -> Result<()> {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut piece = vec![0; PIECE];
    let mut ended = false;
    loop {
        let rule = rules.borrow_and_update().get(&pair).copied().unwrap_or_default();
        let due = held.front().map(|(at, _)| *at);
        if ended && due.is_none() {
            return Ok(());
        }
        tokio::select! {
            biased;
            changed = rules.changed() => changed?,
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await },
                if due.is_some() && !rule.stalled =>
            {
                let Some((_, bytes)) = held.pop_front() else { continue };
                to.write_all(&bytes).await?;
                if rule.bytes_per_second > 0 {
                    let bytes = u32::try_from(bytes.len())?;
                    sleep(Duration::from_secs(1) * bytes / rule.bytes_per_second).await;
                }
            }
            read = from.read(&mut piece), if !ended && held.len() < HELD_MAX => match read? {
                0 => ended = true,
                count => held.push_back((Instant::now() + rule.delay, piece[..count].to_vec())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that answers each byte, this process as node 0 calling it as node 1.
    async fn echo() -> (Relays, TcpStream, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            }
        });
        let relays = Relays::start(&["127.0.0.1:1".parse().unwrap(), target]).await.unwrap();
        relays.runs_as(0, Some(std::process::id()));
        let stream = TcpStream::connect(relays.address(1)).await.unwrap();
        (relays, stream, tasks)
    }

    async fn round(stream: &mut TcpStream) -> io::Result<Duration> {
        let begun = Instant::now();
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0]).await?;
        Ok(begun.elapsed())
    }

    #[tokio::test]
    async fn bytes_pass_and_a_delay_of_one_direction_is_kept() {
        let (relays, mut stream, _target) = echo().await;
        round(&mut stream).await.unwrap();
        relays.set(0, 1, Rule { delay: Duration::from_millis(300), ..Rule::default() });
        assert!(round(&mut stream).await.unwrap() >= Duration::from_millis(300));
        relays.set(0, 1, Rule::default());
        relays.set(1, 0, Rule { delay: Duration::from_millis(300), ..Rule::default() });
        assert!(round(&mut stream).await.unwrap() >= Duration::from_millis(300));
    }

    #[tokio::test]
    async fn a_stalled_direction_is_silent_and_comes_back_with_everything() {
        for pair in [(0, 1), (1, 0)] {
            let (relays, mut stream, _target) = echo().await;
            round(&mut stream).await.unwrap();
            relays.set(pair.0, pair.1, Rule { stalled: true, ..Rule::default() });
            let silent = tokio::time::timeout(Duration::from_millis(300), round(&mut stream)).await;
            assert!(silent.is_err(), "{silent:?}");
            relays.heal();
            stream.read_exact(&mut [0]).await.unwrap();
            round(&mut stream).await.unwrap();
        }
    }

    #[tokio::test]
    async fn rules_for_other_pairs_touch_nobody() {
        let (relays, mut stream, _target) = echo().await;
        relays.set(1, 2, Rule { stalled: true, ..Rule::default() });
        relays.set(2, 1, Rule { closed: true, ..Rule::default() });
        round(&mut stream).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_pair_is_closed_and_opens_again() {
        let (relays, mut stream, _target) = echo().await;
        round(&mut stream).await.unwrap();
        relays.set(0, 1, Rule { closed: true, ..Rule::default() });
        assert!(round(&mut stream).await.is_err());
        let mut refused = TcpStream::connect(relays.address(1)).await.unwrap();
        assert!(round(&mut refused).await.is_err());
        relays.heal();
        let mut again = TcpStream::connect(relays.address(1)).await.unwrap();
        round(&mut again).await.unwrap();
    }

    #[tokio::test]
    async fn a_throttled_direction_takes_its_time() {
        let (relays, mut stream, _target) = echo().await;
        relays.set(0, 1, Rule { bytes_per_second: 10_000, ..Rule::default() });
        let begun = Instant::now();
        for _ in 0..3 {
            stream.write_all(&[7; 1500]).await.unwrap();
            stream.read_exact(&mut [0; 1500]).await.unwrap();
        }
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    }
}
