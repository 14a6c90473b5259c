//! The free space of the disk, and reserves of it.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{Errno, retry_on_intr};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const REFRESH_MS: u64 = 1_000;

/// Free space of the file system that holds the data directory.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    free_bytes_min: u64,
    start: Instant,
    /// Time of the last query of `free`, in milliseconds after `start`, plus 1; 0: never.
    asked_ms: AtomicU64,
    free: AtomicU64,
    /// A write found no space, and none was freed since.
    met_end: AtomicBool,
    /// Bytes that only the tables may use.
    kept: AtomicU64,
}

impl Space {
    pub(crate) fn new(dir: &Path, free_bytes_min: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            free_bytes_min,
            start: now(),
            asked_ms: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            met_end: AtomicBool::new(false),
            kept: AtomicU64::new(0),
        }
    }

    /// Keeps `bytes` of the free space for the tables.
    pub(crate) fn keep(&self, bytes: u64) {
        self.kept.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Records that a write found no space.
    pub(crate) fn set_full(&self) {
        self.met_end.store(true, Ordering::Relaxed);
    }

    /// True if less space is free than the minimum.
    pub(crate) fn nearly_full(&self) -> bool {
        let enough = self.free_bytes() >= self.free_bytes_min;
        !enough || self.met_end.load(Ordering::Relaxed)
    }

    /// Free bytes in hundredths of the minimum.
    pub(crate) fn free_percent_of_min(&self) -> u64 {
        let hundredths = self.free_bytes().saturating_mul(100);
        hundredths.checked_div(self.free_bytes_min).unwrap_or(u64::MAX)
    }

    /// Free bytes, queried now.
    pub(crate) fn ask(&self) -> u64 {
        self.asked_ms.store(0, Ordering::Relaxed);
        self.free_bytes()
    }

    /// Bytes that may still be written. At most a second old.
    pub(crate) fn free_bytes(&self) -> u64 {
        let elapsed_ms = u64::try_from(now().duration_since(self.start).as_millis());
        let now_ms = elapsed_ms.unwrap_or(u64::MAX - 1) + 1;
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let stale = asked_ms == 0 || now_ms - asked_ms.min(now_ms) >= REFRESH_MS;
        if stale {
            self.asked_ms.store(now_ms, Ordering::Relaxed);
            if let Ok(disk) = statvfs(&self.dir) {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                self.free.store(free, Ordering::Relaxed);
                if free >= self.free_bytes_min {
                    self.met_end.store(false, Ordering::Relaxed);
                }
            }
        }
        self.free.load(Ordering::Relaxed)
    }
}

/// Allocates space for `file` up to `length`. On file systems that cannot, a full disk shows later.
pub(crate) fn take(file: &File, length: u64) -> io::Result<()> {
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, length)) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Space that is set aside for a full disk.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    /// A reserve of `bytes` in the file `path`, held if the file is there from an earlier run.
    pub(crate) fn new(path: PathBuf, bytes: u64) -> Self {
        let held = path.exists();
        Self { path, bytes, held }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Sets the space aside, if the same amount stays free beside it.
    pub(crate) fn restore(&mut self, space: &Space) {
        if self.held || space.free_bytes() < 2 * self.bytes + space.kept() {
            return;
        }
        let taken = File::create(&self.path).and_then(|file| take(&file, self.bytes));
        if taken.is_ok() {
            self.held = true;
        } else {
            self.give();
        }
    }

    /// Frees the reserve; returns true if it was held.
    pub(crate) fn give(&mut self) -> bool {
        self.held = false;
        fs::remove_file(&self.path).is_ok()
    }
}

#[allow(clippy::disallowed_methods, reason = "an edge: decides only how often the disk is asked")]
fn now() -> Instant {
    Instant::now()
}
