//! What the operating system says about processes: CPU time, memory, file descriptors.

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::clock::{Clock, seconds};

/// Descriptors this program needs beside its connections.
const OTHER_DESCRIPTORS: usize = 64;

/// CPU time used so far, and when that was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) at_ns: u64,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
}

impl Usage {
    /// Of the servers and of this process, now.
    pub(crate) fn now(pids: &[u32], clock: Clock) -> Result<Self> {
        let client = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Self {
            at_ns: clock.now_ns(),
            server_cpu_s: cpu_s(pids)?,
            client_cpu_s: client.tv_sec as f64 + client.tv_nsec as f64 / 1e9,
        })
    }

    /// What was used from here to `later`.
    pub(crate) fn until(self, later: Self) -> Spent {
        Spent {
            seconds: seconds(later.at_ns - self.at_ns),
            server_cpu_s: later.server_cpu_s - self.server_cpu_s,
            client_cpu_s: later.client_cpu_s - self.client_cpu_s,
        }
    }
}

/// CPU time used in a span of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
}

/// User and system time of all threads of processes, together.
pub(crate) fn cpu_s(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_s_of(*pid)).sum()
}

/// Of one process: `utime` and `stime` of `/proc/PID/stat`.
fn cpu_s_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<u64> =
        after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    if ticks.len() != 2 {
        bail!("{path} is not understood");
    }
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((ticks[0] + ticks[1]) as f64 / per_second as f64)
}

/// Resident memory of processes in KiB, together.
pub(crate) fn resident_kib(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| resident_kib_of(*pid)).sum()
}

/// Of one process: `VmRSS` of `/proc/PID/status`.
fn resident_kib_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no VmRSS"))
}

/// Raises this process's limit of open files to what is allowed.
///
/// # Errors
/// If `connections` do not fit.
pub(crate) fn allow_connections(connections: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let needed = (connections + OTHER_DESCRIPTORS) as u64;
    match limit.maximum {
        Some(maximum) if needed > maximum => {
            bail!("{connections} connections need {needed} open files, {maximum} are allowed")
        }
        _ => Ok(()),
    }
}
