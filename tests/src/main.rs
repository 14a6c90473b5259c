//! The program under test: `natter` with a hook that only tests have. Started by `tests::node`.
//!
//! A send whose body begins with [`PANIC`] makes the sender's user actor panic, the first time that
//! this device sends this body; when it is handed on again it goes through.

use actors::context::{Handler, Verdict};
use proto::{DeviceId, UserId, wire};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// How such a body begins.
const PANIC: &[u8] = b"natter-under-test:panic";

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
            let first = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seen);
            assert!(!first, "panic asked for by a test");
        }
        Verdict::Continue
    }
}

fn main() -> ExitCode {
    node::serve::main_with(vec![Arc::new(PanicOnce::default())])
}
