//! The data directory: who owns it, and which version of natter wrote it.

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
    /// Makes, locks and recognizes `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        fs::create_dir_all(dir).map_err(|error| StorageError::io(dir, error))?;
        let lock = lock(dir)?;
        let path = dir.join("version");
        let new = match fs::read_to_string(&path) {
            Ok(text) => schema::check_version(dir, &text).map(|()| false)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The version is written last but before anything is kept.
                if has_log(dir) {
                    return Err(StorageError::corrupt(&path, 0, "it is missing"));
                }
                true
            }
            Err(error) => return Err(StorageError::io(&path, error)),
        };
        Ok(Self { dir: dir.to_owned(), new, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether there was nothing before.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Notes the version in a new directory.
    pub(crate) fn begin(&self) -> Result<(), StorageError> {
        if self.new {
            let path = self.dir.join("version");
            self.replace(&path).map_err(|error| StorageError::io(&path, error))?;
        }
        Ok(())
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

fn has_log(dir: &Path) -> bool {
    fs::read_dir(dir.join("log")).is_ok_and(|mut entries| entries.next().is_some())
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
