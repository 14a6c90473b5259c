//! How many files this process may have open, and what that means for connections.
//!
//! **Invariant:** connections leave [`OTHER_FILES`] to the log, the tables and other nodes: a node that is
//! full of clients can still make a segment of its log.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config::NodeConfig;

/// File descriptors that are not client connections: log segments, tables, listeners, other nodes.
const OTHER_FILES: u64 = 500;

/// More connections are set than files may be open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits.connections {connections}: only {files} files may be open, which is enough for {fits} connections; \
     raise the limit (`ulimit -n`, LimitNOFILE=) to {}, or lower the setting",
    u64::from(*connections) + OTHER_FILES
)]
pub(crate) struct TooFewFiles {
    connections: u32,
    files: u64,
    fits: u32,
}

/// Whether so many connections fit into so many files.
///
/// # Errors
/// [`TooFewFiles`] with the cure.
pub(crate) fn check(connections: u32, files: u64) -> Result<(), TooFewFiles> {
    let fits = files.saturating_sub(OTHER_FILES).max(1);
    let fits = u32::try_from(fits).unwrap_or(u32::MAX);
    if connections <= fits { Ok(()) } else { Err(TooFewFiles { connections, files, fits }) }
}

/// Lets in only as many connections as files allow, and says so.
pub(crate) fn fit(config: &mut NodeConfig, files: u64) {
    if let Err(too_few) = check(config.limits.connections, files) {
        warn!(
            connections = too_few.connections,
            files,
            fits = too_few.fits,
            "limits.connections is more than files may be open: no more than fit are let in; raise \
             `ulimit -n`, or lower the setting"
        );
        config.limits.connections = too_few.fits;
    }
}

/// Files that may be open once the soft limit is raised to the hard one.
pub(crate) fn most() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    maximum.or(current).unwrap_or(u64::MAX)
}

/// Raises the soft limit of open files to the hard one; returns what it is now.
pub(crate) fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if raised.is_ok() { maximum } else { current }.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_log() {
        assert_eq!(check(19_000, 20_000), Ok(()));
        assert_eq!(check(19_500, 20_000), Ok(()));
        let said = check(19_000, 1_024).unwrap_err().to_string();
        for part in ["limits.connections 19000", "1024 files", "524 connections", "19500", "ulimit"]
        {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
        let mut config = NodeConfig::default();
        fit(&mut config, 1_024);
        assert_eq!(config.limits.connections, 524);
        fit(&mut config, 100);
        assert_eq!(config.limits.connections, 1);
    }
}
