//! What every actor of this crate can be told, and how one is brought to its end.
//!
//! All actors share one message type, so a supervisor handles a process, a task and another
//! supervisor alike, and an inbox needs to know nothing of the process behind it.

use std::time::Duration;

use ractor::{ActorRef, SpawnErr};

use crate::process::ProcessError;

/// How long a killed actor may take to be gone. A kill waits for the next await, so only one that
/// computes without end takes longer.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// How much longer than its children a supervisor is waited for: they may have to be killed.
pub(crate) const SUPERVISOR_GRACE: Duration = Duration::from_secs(3);

/// The message of every actor here. Never leaves this process.
#[derive(Debug)]
pub(crate) enum Bell {
    /// An inbox, or the actor itself: there is work.
    Ring,
    /// The supervisor: finish what waits, say last words, end.
    Stop,
}

impl ractor::Message for Bell {}

/// Asks `child` to stop, waits up to `within`, then kills it. `false`: it could not be killed.
pub(crate) async fn halt(child: &ActorRef<Bell>, within: Duration) -> bool {
    drop(child.cast(Bell::Stop)); // One that is gone already is what we want.
    if child.wait(Some(within)).await.is_ok() {
        return true;
    }
    child.kill_and_wait(Some(KILL_WAIT)).await.is_ok()
}

/// Waits until all `children`, who were asked to stop, are gone; those left after `within` are
/// killed. Returns how many had to be killed.
pub(crate) async fn await_all(children: Vec<ActorRef<Bell>>, within: Duration) -> usize {
    let deadline = tokio::time::Instant::now() + within;
    let mut late = Vec::new();
    for child in children {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if child.wait(Some(left)).await.is_err() {
            child.kill();
            late.push(child);
        }
    }
    let deadline = tokio::time::Instant::now() + KILL_WAIT;
    for child in &late {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if child.wait(Some(left)).await.is_err() {
            tracing::error!(actor = %child.get_id(), "actor could not be killed");
        }
    }
    late.len()
}

/// The error with which a child refused to start.
pub(crate) fn cause(refusal: SpawnErr) -> ProcessError {
    if let SpawnErr::StartupFailed(error) = refusal { error } else { refusal.into() }
}
