//! What an attack may cost the node: memory of its process, bytes of its data directory, open
//! descriptors. Measured from outside, asserted as bounds.
//!
//! **Invariant:** the peak counts, not the end: memory that came back was still taken from others.

use crate::node::Node;
use anyhow::{Context as _, Result, ensure};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The most that may be taken during an attack.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Resident memory more than before, in KiB.
    pub memory_kib: u64,
    /// Bytes on disk more than before.
    pub disk_bytes: u64,
    /// Open descriptors, in all.
    pub descriptors: u64,
}

/// What was taken at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Resident memory more than before, in KiB.
    pub memory_kib: u64,
    /// Bytes on disk more than before.
    pub disk_bytes: u64,
    /// Open descriptors, in all.
    pub descriptors: u64,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, disk_bytes, descriptors } = self;
        write!(
            f,
            "{memory_kib} KiB of memory, {} KiB of disk, {descriptors} descriptors",
            disk_bytes / 1024
        )
    }
}

impl Bounds {
    /// Fails if more was taken.
    ///
    /// # Errors
    /// Names all that was taken, and the bounds.
    pub fn hold(&self, taken: &Taken) -> Result<()> {
        let within = taken.memory_kib <= self.memory_kib
            && taken.disk_bytes <= self.disk_bytes
            && taken.descriptors <= self.descriptors;
        ensure!(within, "the attack took {taken}; the budget is {self:?}");
        Ok(())
    }
}

/// Measures one process from the moment it is made.
#[derive(Debug)]
pub struct Meter {
    process: PathBuf,
    data_dir: PathBuf,
    memory_kib: u64,
    disk_bytes: u64,
    most: Taken,
}

impl Meter {
    /// Begins to measure `node`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn begin(node: &Node) -> Result<Self> {
        let process = PathBuf::from(format!("/proc/{}", node.pid()?));
        // Forgets the peak so far, so that the next one is the attack's.
        fs::write(process.join("clear_refs"), "5").context("clear the peak of memory")?;
        let data_dir = node.target().data_dir().to_owned();
        let (memory_kib, disk_bytes) = (status_kib(&process, "VmRSS:")?, disk_bytes(&data_dir));
        Ok(Self { process, data_dir, memory_kib, disk_bytes, most: Taken::default() })
    }

    /// Looks at disk and descriptors, of which nobody else keeps the peak.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn look(&mut self) -> Result<Taken> {
        let descriptors = fs::read_dir(self.process.join("fd"))?.count() as u64;
        let peak_kib = status_kib(&self.process, "VmHWM:")?;
        let Taken { memory_kib, disk_bytes: disk, descriptors: most } = &mut self.most;
        *memory_kib = peak_kib.saturating_sub(self.memory_kib).max(*memory_kib);
        *disk = disk_bytes(&self.data_dir).saturating_sub(self.disk_bytes).max(*disk);
        *most = descriptors.max(*most);
        Ok(self.most)
    }
}

fn status_kib(process: &Path, name: &str) -> Result<u64> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

/// Bytes that the files below `folder` take on disk. A file that goes meanwhile counts nothing.
pub fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}
