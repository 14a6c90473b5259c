//! Small disks that can be filled: a tmpfs under a node's data directory. Needs root.
//!
//! **Invariant:** a disk that was mounted is unmounted when its [`SmallDisk`] is dropped, also while
//! a process still uses it; what a killed process left is unmounted by the next.

use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

/// How the names of mounts begin, before the process id.
const PREFIX: &str = "natter-it-";

/// One write of the filler, in bytes.
const PIECE: usize = 64 * 1024;

/// A tmpfs of bounded size.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of `bytes` at `path`, which is made.
    ///
    /// # Errors
    /// If that is not allowed here; the message says what is missing.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        unmount_left_behind();
        fs::create_dir_all(path)?;
        let (how, name) = (format!("size={bytes},mode=0700"), format!("{PREFIX}{}", id()));
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &how, &name]);
        let done = command.arg(path).output().context("mount")?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "no small disk: {}", said.trim());
        Ok(Self { path: path.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// If the filler cannot be made.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.filler())?;
        for piece in [PIECE, 1] {
            let bytes = vec![0; piece];
            while filler.write_all(&bytes).is_ok() {}
        }
        Ok(())
    }

    /// Fills it, or makes room, until `bytes` are free.
    ///
    /// # Errors
    /// If the filler cannot be made so long.
    pub fn leave(&self, bytes: u64) -> Result<()> {
        let filler = File::options().create(true).append(true).open(self.filler())?;
        let disk = rustix::fs::statvfs(&self.path)?;
        let (free, length) = (disk.f_bavail * disk.f_frsize, filler.metadata()?.len());
        if free > bytes {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&filler, flags, length, free - bytes)?;
        } else {
            filler.set_len(length.saturating_sub(bytes - free))?;
        }
        Ok(())
    }

    /// Takes the filler away.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if !unmount(&self.path) {
            eprintln!("could not unmount {}", self.path.display());
        }
    }
}

fn unmount(path: &Path) -> bool {
    let done = Command::new("umount").arg("--lazy").arg(path).output();
    done.is_ok_and(|done| done.status.success())
}

/// Unmounts what processes mounted that did not live to unmount it.
fn unmount_left_behind() {
    for line in fs::read_to_string("/proc/mounts").unwrap_or_default().lines() {
        let mut words = line.split(' ');
        let owner = words.next().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        let gone = owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if gone && let Some(path) = words.next() {
            unmount(Path::new(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_can_be_filled_and_freed_and_is_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let disk = match SmallDisk::mount(&path, 1 << 20) {
            Ok(disk) => disk,
            Err(error) => return skip::skipped(error),
        };
        disk.fill().unwrap();
        assert!(fs::write(path.join("more"), [0; 5000]).is_err());
        disk.free().unwrap();
        fs::write(path.join("more"), [0; 5000]).unwrap();
        drop(disk);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }
}
