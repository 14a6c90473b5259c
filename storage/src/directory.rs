//! The data directory: its lock and its version.
//!
//! A first start creates `making`, then the engines' files, then `version`; only then does it store data.
//! After a crash before `version` the next start begins again. Without `making`, a missing `version` is
//! damage.

use crate::StorageError;
use crate::schema;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A locked directory; unlocked when it is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    new: bool,
    _lock: File,
}

impl Directory {
    /// Creates `dir` if needed, locks it and checks its version.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        fs::create_dir_all(dir).map_err(|error| StorageError::io(dir, error))?;
        let lock = lock(dir)?;
        let path = dir.join("version");
        let new = match fs::read_to_string(&path) {
            Ok(text) => schema::check_version(dir, &text).map(|()| false)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                restart_first_start(dir, &path)?;
                true
            }
            Err(error) => return Err(StorageError::io(&path, error)),
        };
        Ok(Self { dir: dir.to_owned(), new, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// True if the directory was empty.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Writes the version to a new directory.
    pub(crate) fn begin(&self) -> Result<(), StorageError> {
        if self.new {
            let path = self.dir.join("version");
            self.replace(&path).map_err(|error| StorageError::io(&path, error))?;
        }
        let making = self.dir.join(MAKING);
        match fs::remove_file(&making) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StorageError::io(&making, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn replace(&self, path: &Path) -> std::io::Result<()> {
        let draft = self.dir.join("version.new");
        let mut file = File::create(&draft)?;
        file.write_all(schema::version_text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Exists while a first start creates the other files.
const MAKING: &str = "making";

/// Files that a first start creates before the version.
const MADE: [&str; 4] = ["tables", "sessions", "votes", "snapshots"];

/// Removes the files of a first start that did not complete.
fn restart_first_start(dir: &Path, version: &Path) -> Result<(), StorageError> {
    let making = dir.join(MAKING);
    if !making.exists() {
        if MADE.iter().chain(&["log"]).any(|part| dir.join(part).exists()) {
            return Err(StorageError::corrupt(version, 0, "it is missing"));
        }
        let made = File::create(&making).and_then(|_| File::open(dir)?.sync_all());
        return made.map_err(|error| StorageError::io(&making, error));
    }
    for part in MADE.map(|part| dir.join(part)) {
        let removed =
            if part.is_dir() { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StorageError::io(&part, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, StorageError> {
    let path = dir.join("lock");
    let fail = |error| StorageError::io(&path, error);
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let owner = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            return Err(StorageError::AlreadyOpen { dir: dir.to_owned(), owner });
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    file.set_len(0).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}
