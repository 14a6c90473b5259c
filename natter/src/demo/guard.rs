//! A small shell beside the demo that ends its nodes if the demo itself is killed, when nothing of
//! its own can run any more. It waits for the end of a pipe that only the demo holds.
//!
//! **Invariant:** it kills only processes that the demo named last.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Remembers the last line it read, a list of processes, and kills them when there are no more
/// lines.
const SCRIPT: &str =
    "while read -r line; do nodes=$line; done; [ -z \"$nodes\" ] || kill -9 $nodes";

/// The shell, or nothing on a system without one.
#[derive(Debug)]
pub(super) struct Guard(Option<(Child, ChildStdin)>);

impl Guard {
    pub(super) fn start() -> Self {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the reach of Ctrl-C.
            .process_group(0)
            .spawn();
        Self(shell.ok().and_then(|mut child| child.stdin.take().map(|pipe| (child, pipe))))
    }

    /// From now on `processes` are to end with the demo, and no others.
    pub(super) fn watch(&mut self, processes: impl Iterator<Item = u32>) {
        let line: Vec<String> = processes.map(|process| process.to_string()).collect();
        if let Some((_, pipe)) = &mut self.0 {
            // Without a guard the demo ends its nodes as long as it can run.
            writeln!(pipe, "{}", line.join(" ")).ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watch(std::iter::empty());
        if let Some((mut child, pipe)) = self.0.take() {
            drop(pipe);
            child.wait().ok();
        }
    }
}
