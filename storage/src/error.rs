//! Errors of storage, each with its path and its cure.

use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// Why a call of storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process, or another part of this one, owns the directory.
    #[error(
        "{} is in use by process {}: stop it, or give this node a directory of its own",
        dir.display(), owner.map_or_else(|| "?".to_owned(), |pid| pid.to_string())
    )]
    AlreadyOpen {
        /// The data directory.
        dir: PathBuf,
        /// Process id of the owner, if it left one.
        owner: Option<u32>,
    },
    /// A newer natter wrote the directory.
    #[error(
        "{} has data version {found}, this natter knows versions up to {known}: start the newer natter",
        dir.display()
    )]
    NewerVersion {
        /// The data directory.
        dir: PathBuf,
        /// Version found there.
        found: u32,
        /// Newest version this program knows.
        known: u32,
    },
    /// A natter that was never released wrote the directory.
    #[error(
        "{} has data version {found}, this natter reads versions from {known} on: give it an empty directory",
        dir.display()
    )]
    OlderVersion {
        /// The data directory.
        dir: PathBuf,
        /// Version found there.
        found: u32,
        /// Oldest version this program knows.
        known: u32,
    },
    /// Flushed data can no longer be read. Nothing was changed.
    #[error(
        "{} is damaged at byte {offset} ({what}): restore the directory from a replica or a backup",
        file.display()
    )]
    Corrupt {
        /// The damaged file; for a table, its directory.
        file: PathBuf,
        /// Where the damage begins, in bytes; 0 if only the file is known.
        offset: u64,
        /// The expected content.
        what: String,
    },
    /// A snapshot cannot be used. Nothing was changed.
    #[error("snapshot {} cannot be used ({what}): have it sent again", file.display())]
    BadSnapshot {
        /// The received file.
        file: PathBuf,
        /// The defect.
        what: String,
    },
    /// The tables include later log entries than the data to write. Nothing was changed.
    #[error("the tables of group {group} are at {present} already, later than {found}")]
    Outdated {
        /// The group.
        group: u16,
        /// Index of the first record that is not in the tables.
        present: u64,
        /// The same index of the data to write.
        found: u64,
    },
    /// There is no such group.
    #[error("there is no group {0}")]
    NoSuchGroup(u16),
    /// The disk is full; nothing was changed.
    #[error("no space left for {}: free some, or grow the disk", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// The operating system reported an error.
    #[error("{} cannot be read or written: check the disk and the owner of the directory", path.display())]
    Io {
        /// The file that was being read or written.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Storage was closed by [`crate::Storage::close`].
    #[error("storage is closed")]
    Closed,
}

impl StorageError {
    /// Adds the path to an error of the operating system.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            Self::DiskFull { path: path.to_owned() }
        } else {
            Self::Io { path: path.to_owned(), source }
        }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, what: what.into() }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// True if a file could not be opened because too many are open.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    let out = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| out.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_space_or_files_differs_from_a_fault() {
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for lack in [Errno::NOSPC, Errno::DQUOT] {
            assert!(is_full(&of(lack)) && !is_out_of_files(&of(lack)), "{lack}");
        }
        for lack in [Errno::MFILE, Errno::NFILE] {
            assert!(is_out_of_files(&of(lack)) && !is_full(&of(lack)), "{lack}");
        }
        for fault in [Errno::NOENT, Errno::ROFS, Errno::ACCESS, Errno::IO, Errno::EXIST] {
            assert!(!is_full(&of(fault)) && !is_out_of_files(&of(fault)), "{fault}");
        }
    }
}
