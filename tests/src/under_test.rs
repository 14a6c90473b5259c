//! What the program under test adds to `natter`. Run by `natter-under-test`, and by `chaos` when it
//! starts itself as a node.
//!
//! - A send whose body begins with [`PANIC`] makes the sender's user actor panic, the first time that
//!   this device sends this body; when it is handed on again it goes through.
//! - If the environment names a file in [`CLOCK_FILE`], the node's wall clock is ahead of the
//!   system's by the milliseconds written in it (behind, if negative).
//! - If it names a file in [`KILLS_FILE`], each line that is added there, such as `shard 3`, kills the actor that
//!   serves the queue of that kind and number.

use actors::hooks::{Handler, Verdict};
use parking_lot::Mutex;
use proto::{DeviceId, UserId, wire};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// How a body begins that is to hurt.
pub const PANIC: &[u8] = b"natter-under-test:panic";

/// The environment variable with the path of the file that sets the clock.
pub const CLOCK_FILE: &str = "NATTER_TEST_CLOCK_FILE";

/// The environment variable with the path of the file that says which actors are killed.
pub const KILLS_FILE: &str = "NATTER_TEST_KILLS_FILE";

/// Interval at which those files are read.
const LOOK: Duration = Duration::from_millis(20);

/// Who has panicked over what.
#[derive(Debug, Default)]
struct PanicOnce(Mutex<BTreeSet<(u64, u32, Vec<u8>)>>);

impl Handler for PanicOnce {
    fn name(&self) -> &'static str {
        "panic once"
    }

    #[allow(clippy::panic, reason = "this is what it is for")]
    fn user_send(&self, user: UserId, device: DeviceId, send: &wire::Send) -> Verdict {
        if send.body.starts_with(PANIC) {
            let seen = (user.0, device.0, send.body.to_vec());
            let first = self.0.lock().insert(seen);
            assert!(!first, "panic asked for by a test");
        }
        Verdict::Continue
    }
}

static AHEAD_MS: AtomicI64 = AtomicI64::new(0);

fn crooked_ms() -> u64 {
    node::clock::system_ms().saturating_add_signed(AHEAD_MS.load(Ordering::Relaxed))
}

fn follow(file: PathBuf) {
    node::clock::stand_in(crooked_ms);
    let look = move || {
        loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Ok(ahead) = text.trim().parse()
            {
                AHEAD_MS.store(ahead, Ordering::Relaxed);
            }
            std::thread::sleep(LOOK);
        }
    };
    drop(std::thread::spawn(look));
}

fn kill(file: PathBuf) {
    let look = move || {
        // What was asked of an earlier start is done. A line is there when its end is.
        let read = || std::fs::read_to_string(&file).unwrap_or_default();
        let mut done = read().matches('\n').count();
        loop {
            let text = read();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            for line in lines.skip(done) {
                done += 1;
                let named = line.trim().split_once(' ');
                if let Some((kind, id)) =
                    named.and_then(|(kind, id)| Some((kind, id.parse().ok()?)))
                {
                    supervision::kill(kind, id);
                }
            }
            std::thread::sleep(LOOK);
        }
    };
    drop(std::thread::spawn(look));
}

/// The whole program, with the hooks.
pub fn run() -> ExitCode {
    if let Some(file) = std::env::var_os(CLOCK_FILE) {
        follow(file.into());
    }
    if let Some(file) = std::env::var_os(KILLS_FILE) {
        kill(file.into());
    }
    natter::main_with(vec![Arc::new(PanicOnce::default())])
}
