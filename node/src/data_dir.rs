//! The directory that a node is: checked at start, and files in it that only its owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "node.data_dir {}: cannot be written; choose another with --data-dir, or give this user the right to write there",
    path.display()
)]
pub struct DataDirError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the directory if it is not there and checks that files can be written in it.
///
/// # Errors
/// [`DataDirError`] if they cannot.
pub fn prepare(path: &Path) -> Result<(), DataDirError> {
    let check = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let probe = path.join(".writable");
        File::create(&probe)?;
        fs::remove_file(&probe)
    };
    check().map_err(|source| DataDirError { path: path.to_owned(), source })
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
    use std::os::unix::fs::PermissionsExt as _;

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
}
