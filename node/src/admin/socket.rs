//! The socket file: where it is, who may use it, and what to do with one that a dead process left.

use parking_lot::Mutex;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::{UnixListener, UnixStream};

/// Longest path that a socket's address has room for, on every system.
const PATH_BYTES_MAX: usize = 100;

/// Where the socket of a data directory is.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// A path by which the system takes the socket, however long that of its directory is. The file,
/// if there is one, must live as long as the path is used.
fn address(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((path.to_owned(), None));
    };
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let folder = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    Ok((short.join(name), Some(folder)))
}

/// Connects to the node of a data directory.
pub(super) async fn connect(data_dir: &Path) -> io::Result<UnixStream> {
    let (path, _folder) = address(&socket_path(data_dir))?;
    UnixStream::connect(path).await
}

/// The socket of a running node. Removed when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Socket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Taken by the first run; a restart binds again.
    bound: Mutex<Option<StdListener>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Socket {
    /// Makes the socket; one that a dead process left is replaced.
    ///
    /// # Errors
    /// If a process listens there, or the file cannot be made.
    pub(super) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = socket_path(data_dir);
        let bound = bind(&path).with_context(|| {
            format!(
                "{}: the admin socket cannot be made; does another node run here?",
                path.display()
            )
        })?;
        Ok(Self(Arc::new(Inner { path, bound: Mutex::new(Some(bound)) })))
    }

    /// Listens.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        let bound = self.0.bound.lock().take();
        let bound = bound.map_or_else(|| bind(&self.0.path), Ok)?;
        bound.set_nonblocking(true)?;
        UnixListener::from_std(bound)
    }
}

fn bind(path: &Path) -> io::Result<StdListener> {
    let (short, _folder) = address(path)?;
    if path.exists() {
        if StdStream::connect(&short).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        fs::remove_file(path)?;
    }
    let listener = StdListener::bind(&short)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}
