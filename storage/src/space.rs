//! How much space the disk has left, asked at most once a second.

use rustix::fs::statvfs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_secs(1);

/// Free space of the file system that holds the data directory.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    free_bytes_min: u64,
    start: Instant,
    /// When `free` was asked for, in milliseconds after `start`, plus 1; 0: never.
    asked_ms: AtomicU64,
    free: AtomicU64,
    /// A write found no space, and none has come since.
    met_end: AtomicBool,
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
        }
    }

    /// A write found no space.
    pub(crate) fn met_its_end(&self) {
        self.met_end.store(true, Ordering::Relaxed);
    }

    /// Whether there is less space than there should be.
    pub(crate) fn nearly_full(&self) -> bool {
        let enough = self.free_bytes() >= self.free_bytes_min;
        !enough || self.met_end.load(Ordering::Relaxed)
    }

    /// Bytes that may still be written. At most a second old.
    pub(crate) fn free_bytes(&self) -> u64 {
        let elapsed_ms = u64::try_from(now().duration_since(self.start).as_millis());
        let now_ms = elapsed_ms.unwrap_or(u64::MAX - 1) + 1;
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let stale = asked_ms == 0 || now_ms - asked_ms.min(now_ms) >= REFRESH.as_millis() as u64;
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

#[allow(clippy::disallowed_methods, reason = "an edge: decides only how often the disk is asked")]
fn now() -> Instant {
    Instant::now()
}
