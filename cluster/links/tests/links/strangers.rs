//! Who connects to a node and is none; and what a stranger could connect to.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections that a stranger keeps open at the same time: more than a node has places.
const OPEN_MAX: usize = 300;

/// Somebody who opens connections and says nothing.
pub(crate) struct Silent {
    stop: Arc<AtomicBool>,
    opened: JoinHandle<usize>,
}

impl Silent {
    /// Ends it; how many connections there were.
    pub(crate) fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.opened.join().unwrap()
    }
}

/// Begins to open connections to `address`; there are many when this returns.
pub(crate) fn silent(address: &str) -> Silent {
    let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
    let mut open: VecDeque<_> =
        (0..OPEN_MAX).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let stopped = Arc::clone(&stop);
    let opened = std::thread::spawn(move || {
        let mut count = OPEN_MAX;
        while !stopped.load(Ordering::Relaxed) {
            open.extend(TcpStream::connect(&address));
            open.pop_front();
            count += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        count
    });
    Silent { stop, opened }
}

/// The TCP ports on which a process listens, ascending.
pub(crate) fn listening(pid: u32) -> Vec<u16> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: BTreeSet<String> = links
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    let mut ports = BTreeSet::new();
    for line in tables
        .into_iter()
        .flatten()
        .flat_map(|table| table.lines().map(str::to_owned).collect::<Vec<_>>())
    {
        let columns: Vec<_> = line.split_whitespace().collect();
        // 0A: it listens.
        if columns.len() > 9 && columns[3] == "0A" && sockets.contains(columns[9]) {
            let port = columns[1].rsplit(':').next().unwrap();
            ports.insert(u16::from_str_radix(port, 16).unwrap());
        }
    }
    ports.into_iter().collect()
}
