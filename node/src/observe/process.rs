//! What the operating system knows of this process, as Prometheus' clients name it: processor time, memory,
//! descriptors, start.
//!
//! Read anew for each page; a few small files of `/proc`.
//!
//! **Invariant:** what cannot be read is left out, never zero.

use std::fmt::Write as _;
use std::fs;

use rustix::process::{Resource, getrlimit};

/// Ticks in a second of the times in `/proc/self/stat`: the same on all Linux that we run on.
const TICKS_PER_S: f64 = 100.0;

/// Fields of `/proc/self/stat` behind the name, counted from 0: state is the first.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
const START_TIME: usize = 19;

/// The metrics of the process, in Prometheus' text form.
pub(crate) fn page() -> String {
    let mut page = String::new();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let times = Times::of(&stat);
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string does not fail.
            write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n").ok();
        }
    };
    put(
        "process_cpu_seconds_total",
        "counter",
        "Processor time that this process has used, in seconds.",
        times.as_ref().map(|times| times.used_s),
    );
    put(
        "process_start_time_seconds",
        "gauge",
        "When this process was started, in seconds of Unix time.",
        times.and_then(|times| Some(boot_time_s()? + times.started_s)),
    );
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    put(
        "process_resident_memory_bytes",
        "gauge",
        "Memory of this process that is in RAM, in bytes.",
        kibibytes(&status, "VmRSS:"),
    );
    put(
        "process_virtual_memory_bytes",
        "gauge",
        "Address space of this process, in bytes.",
        kibibytes(&status, "VmSize:"),
    );
    put("process_open_fds", "gauge", "Open file descriptors of this process.", open_files());
    #[allow(clippy::cast_precision_loss, reason = "metrics are floating point")]
    let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
    put("process_max_fds", "gauge", "File descriptors that this process may have open.", most);
    page
}

struct Times {
    used_s: f64,
    /// After the machine was.
    started_s: f64,
}

impl Times {
    fn of(stat: &str) -> Option<Self> {
        // The name in brackets may hold anything.
        let (_, behind) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = behind.split_whitespace().collect();
        let seconds = |field: usize| Some(fields.get(field)?.parse::<f64>().ok()? / TICKS_PER_S);
        let used_s = seconds(USER_TIME)? + seconds(SYSTEM_TIME)?;
        Some(Self { used_s, started_s: seconds(START_TIME)? })
    }
}

fn boot_time_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn kibibytes(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floating point")]
fn open_files() -> Option<f64> {
    // Linux 6.2 and newer say it without a list of all.
    let counted = fs::metadata("/proc/self/fd").ok()?.len();
    if counted > 0 {
        return Some(counted as f64);
    }
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_time_memory_and_files() {
        let page = page();
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{page} lacks {name}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 4200 1 2 3";
        let times = Times::of(stat).unwrap();
        assert_eq!((times.used_s, times.started_s), (3.0, 42.0));
    }
}
