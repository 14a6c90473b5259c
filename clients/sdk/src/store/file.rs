//! A store in a directory: `device.key` and `identity` (readable by their owner alone), `state`
//! (a journal) and `lock`.
//!
//! `state` and `identity` are replaced by writing a new file, flushing it and renaming it, so a
//! crash leaves the old or the new one. Restoring an old copy of the directory brings back used
//! send ids, whose messages the node would take for repetitions: link a new device instead.

use super::{Change, Saved, Store, journal};
use crate::{
    error::StoreError,
    key::{DeviceKey, Identity},
};
use proto::{DeviceId, UserId};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The journal is rewritten when it has grown by this many bytes, and to more than four times what
/// it holds.
const REWRITE_BYTES: usize = 256 * 1024;

/// Keeps the state of one device in a directory, which it locks.
#[derive(Debug)]
pub struct FileStore {
    dir: PathBuf,
    saved: Saved,
    journal: File,
    appended: usize,
    held: usize,
    _lock: File,
}

impl FileStore {
    /// Opens or creates `dir`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open; [`StoreError::Io`] if it cannot be
    /// read or written.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_path_buf();
        create_private_dir(&dir).map_err(io_error(&dir))?;
        let lock_path = dir.join("lock");
        let lock = private().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io_error(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::InUse { path: dir.clone() },
            TryLockError::Error(source) => StoreError::Io { path: lock_path, source },
        })?;
        let path = dir.join("state");
        let saved = match fs::read(&path) {
            Ok(bytes) => journal::replay(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if dir.join("identity").exists() {
                    let reason = "it is missing, and send ids would be used again".to_owned();
                    return Err(StoreError::Damaged { path, reason });
                }
                Saved::default()
            }
            Err(error) => return Err(io_error(&path)(error)),
        };
        let (journal, held) = rewrite(&path, &saved).map_err(io_error(&path))?;
        Ok(Self { dir, saved, journal, appended: 0, held, _lock: lock })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// This device's key, made and saved at the first call: it is on disk before the node hears of
    /// it.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read, made or written.
    pub fn device_key(&self) -> Result<DeviceKey, StoreError> {
        let path = self.dir.join("device.key");
        let damaged = |path: &Path, error: crate::KeyError| StoreError::Damaged {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        match fs::read(&path) {
            Ok(bytes) => DeviceKey::from_pkcs8(&bytes).map_err(|error| damaged(&path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = DeviceKey::generate().map_err(|error| damaged(&path, error))?;
                replace(&path, key.pkcs8()).map_err(io_error(&path))?;
                Ok(key)
            }
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Who this directory belongs to, or `None` before [`FileStore::save_identity`].
    ///
    /// # Errors
    /// [`StoreError`] if the files cannot be read or are not what was written.
    pub fn identity(&self) -> Result<Option<Identity>, StoreError> {
        let path = self.dir.join("identity");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let mut words = text.split_whitespace();
        let mut number = |label| (words.next() == Some(label)).then(|| words.next()).flatten();
        let user = number("user").and_then(|word| word.parse().ok());
        let device = number("device").and_then(|word| word.parse().ok());
        let (Some(user), Some(device)) = (user, device) else {
            return Err(StoreError::Damaged { path, reason: "expected user and device".into() });
        };
        let key = self.device_key()?;
        Ok(Some(Identity { user: UserId(user), device: DeviceId(device), key }))
    }

    /// Keeps who this device is. Its key must be the one of [`FileStore::device_key`].
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), StoreError> {
        let path = self.dir.join("device.key");
        replace(&path, identity.key.pkcs8()).map_err(io_error(&path))?;
        let path = self.dir.join("identity");
        let text = format!("user {}\ndevice {}\n", identity.user, identity.device);
        replace(&path, text.as_bytes()).map_err(io_error(&path))
    }

    fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for change in changes {
            journal::encode(change, &mut bytes);
        }
        self.journal.write_all(&bytes)?;
        if changes.iter().any(|change| matches!(change, Change::SendIdsUsed(_))) {
            self.journal.sync_data()?;
        }
        self.appended += bytes.len();
        Ok(())
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Saved, StoreError> {
        Ok(self.saved.clone())
    }

    fn record(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let path = self.dir.join("state");
        if let Err(source) = self.append(changes) {
            // Half a record may be on disk: the next write starts over from what is whole.
            self.appended = usize::MAX / 2;
            return Err(StoreError::Io { path, source });
        }
        for change in changes {
            self.saved.apply(change);
        }
        if self.appended > REWRITE_BYTES.max(self.held.saturating_mul(4)) {
            let (journal, held) = rewrite(&path, &self.saved).map_err(io_error(&path))?;
            (self.journal, self.held, self.appended) = (journal, held, 0);
        }
        Ok(())
    }
}

fn rewrite(path: &Path, saved: &Saved) -> io::Result<(File, usize)> {
    let bytes = journal::snapshot(saved);
    replace(path, &bytes)?;
    Ok((OpenOptions::new().append(true).open(path)?, bytes.len()))
}

/// Puts `content` at `path` whole, or leaves what is there.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = private().create(true).truncate(true).write(true).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) if cfg!(unix) => File::open(dir)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    |source| StoreError::Io { path, source }
}

#[cfg(unix)]
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(not(unix))]
fn private() -> OpenOptions {
    OpenOptions::new()
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Unsent;
    use proto::{SendId, Seq, wire};

    #[test]
    fn everything_is_there_after_a_restart_and_only_one_process_may_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(dir.path()).unwrap();
        let key = store.device_key().unwrap();
        assert!(store.identity().unwrap().is_none());
        let identity = Identity { user: UserId(9), device: DeviceId(2), key };
        store.save_identity(&identity).unwrap();
        let queued = Change::Queued(Unsent { id: SendId(1), send: wire::Send::default() });
        store.record(&[Change::SendIdsUsed(256), queued, Change::Acknowledged(Seq(3))]).unwrap();
        let busy = FileStore::open(dir.path()).unwrap_err();
        assert!(matches!(busy, StoreError::InUse { .. }));
        drop(store);

        let mut store = FileStore::open(dir.path()).unwrap();
        let back = store.identity().unwrap().unwrap();
        assert_eq!((back.user, back.device), (UserId(9), DeviceId(2)));
        assert_eq!(back.key.public(), identity.key.public());
        let saved = store.load().unwrap();
        assert_eq!((saved.send_ids_used, saved.acknowledged.0, saved.unsent.len()), (256, 3, 1));
    }

    #[cfg(unix)]
    #[test]
    fn the_key_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        store.device_key().unwrap();
        let mode = fs::metadata(dir.path().join("device.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_journal_does_not_grow_with_what_was_answered() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(dir.path()).unwrap();
        let send = wire::Send { body: vec![7u8; 10_000].into(), ..wire::Send::default() };
        for id in 1..=200 {
            let queued = Change::Queued(Unsent { id: SendId(id), send: send.clone() });
            store.record(&[queued, Change::Answered(SendId(id))]).unwrap();
        }
        let bytes = fs::metadata(dir.path().join("state")).unwrap().len();
        assert!(bytes < 2 * REWRITE_BYTES as u64, "{bytes} bytes after 2 MB of messages");
    }
}
