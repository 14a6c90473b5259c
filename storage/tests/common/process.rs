//! Processes that die and disks that are cut off from their power.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Runs one test of this binary as a process of its own, with a directory in a variable.
pub fn spawn(test: &str, variable: &str, dir: &Path) -> (Victim, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(variable, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (Victim(child), out)
}

/// A process that dies when it is dropped.
pub struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A mounted file system; unmounted when it is dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    /// `None` if this machine does not permit it.
    pub fn new(at: &Path, arguments: &[&str]) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let why = match mount.args(arguments).arg(at).output() {
            Ok(output) if output.status.success() => return Some(Self(at.to_owned())),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        skip::skipped(format_args!("mount is not permitted here ({why})"));
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that another test is just starting has our files open until it is another program.
        let unmounted = (0..100).any(|_| {
            let output = Command::new("umount").arg(&self.0).output();
            let done = output.is_ok_and(|output| output.status.success());
            if !done {
                std::thread::sleep(Duration::from_millis(50));
            }
            done
        });
        assert!(unmounted || std::thread::panicking(), "{} is busy", self.0.display());
    }
}

/// A file system in a file, which can be seen as a power cut would leave it.
pub struct Disk {
    // Dropped before the folder that holds it.
    mount: Mount,
    image: PathBuf,
    root: tempfile::TempDir,
}

impl Disk {
    /// `None` if this machine does not permit it.
    pub fn new() -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("disk.img");
        fs::File::create(&image).unwrap().set_len(256 * 1024 * 1024).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            skip::skipped("no mkfs.ext4 here");
            return None;
        }
        let disk = mount(&root, &image, "disk")?;
        Some(Self { mount: disk, image, root })
    }

    /// A directory on it.
    pub fn dir(&self) -> PathBuf {
        self.mount.0.join("data")
    }

    /// Stops `child` for a moment and shows what a power cut would have left of the directory.
    pub fn cut(&self, child: &Victim, look: impl FnOnce(&Path)) {
        signal(child, "-STOP");
        let cut = self.root.path().join("cut.img");
        fs::copy(&self.image, &cut).unwrap();
        {
            let copy = mount(&self.root, &cut, "cut").unwrap();
            look(&copy.0.join("data"));
        }
        signal(child, "-CONT");
    }
}

fn mount(root: &tempfile::TempDir, image: &Path, at: &str) -> Option<Mount> {
    Mount::new(&root.path().join(at), &["-o", "loop", image.to_str().unwrap()])
}

fn signal(child: &Victim, name: &str) {
    let status = Command::new("kill").args([name, &child.0.id().to_string()]).status().unwrap();
    assert!(status.success());
}
