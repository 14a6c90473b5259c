//! The directory that a node is: checked at start, and files in it that only its owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use tracing::warn;

/// Bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Files cannot be written there.
    #[error(
        "node.data_dir {}: cannot be written; choose another with --data-dir, or give this user the right to write there",
        path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it, and it is not this user's to change that.
    #[error(
        "node.data_dir {}: others can read it (mode {mode:03o}) and it belongs to another user; as its owner: chmod 700 {}",
        path.display(), path.display()
    )]
    OthersMayRead {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Makes the directory if it is not there, and checks that files can be written in it and that nobody
/// else can read them: it holds keys and messages.
///
/// # Errors
/// [`DataDirError`] names the directory and the cure.
pub fn prepare(path: &Path) -> Result<(), DataDirError> {
    let check = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let probe = path.join(".writable");
        File::create(&probe)?;
        fs::remove_file(&probe)?;
        fs::metadata(path)
    };
    let not_writable = |source| DataDirError::NotWritable { path: path.to_owned(), source };
    let metadata = check().map_err(not_writable)?;
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(DataDirError::OthersMayRead { path: path.to_owned(), mode });
    }
    let private = fs::Permissions::from_mode(mode & !OTHERS);
    fs::set_permissions(path, private).map_err(not_writable)?;
    warn!(file = %path.display(), "others could read the data directory: it is now its owner's alone");
    Ok(())
}

/// Writes a file that only its owner may read, whole or not at all, and durably.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let partial = path.with_extension("partial");
    // One left by a crash may have other permissions.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_whole_and_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(path.with_extension("partial"), "left by a crash").unwrap();
        write_private(&path, b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named_with_a_cure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = prepare(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("file/data") && error.contains("--data-dir"), "{error}");
        prepare(&folder.path().join("new/data")).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_becomes_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_of_another_user_that_others_can_read_is_refused_with_the_cure() {
        if !rustix::process::geteuid().is_root() {
            return; // Only root can make one.
        }
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&data, Some(4711), None).unwrap();
        let error = prepare(&data).unwrap_err().to_string();
        assert!(error.contains("mode 755") && error.contains("chmod 700"), "{error}");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        prepare(&data).unwrap();
    }
}
