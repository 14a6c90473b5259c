//! The message type that all actors of this crate share, and how a supervisor stops its children.
//!
//! One message type lets a supervisor treat a process, a task and another supervisor alike, and an
//! inbox wakes its process without knowing the type of that process.

use std::time::Duration;

use ractor::{ActorRef, SpawnErr};

use crate::process::ProcessError;

/// Longest wait for a killed actor to be gone. A kill takes effect at the actor's next await, so only
/// an actor in an endless computation takes longer.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// Time that a supervisor gets to stop beyond that of its children: it may have to kill some.
pub(crate) const SUPERVISOR_GRACE: Duration = Duration::from_secs(3);

/// The message of every actor here. Never leaves this OS process.
#[derive(Debug)]
pub(crate) enum Control {
    /// Sent by an inbox, or by the actor to itself: there is work.
    Wake,
    /// Sent by the supervisor: handle the queued items, run the stop callback, end.
    Stop,
}

impl ractor::Message for Control {}

/// Asks `child` to stop, waits up to `within`, then kills it. Returns `false` if the kill failed too.
pub(crate) async fn halt(child: &ActorRef<Control>, within: Duration) -> bool {
    drop(child.cast(Control::Stop)); // The child may be gone already.
    if child.wait(Some(within)).await.is_ok() {
        return true;
    }
    child.kill_and_wait(Some(KILL_WAIT)).await.is_ok()
}

/// Waits until all `children`, which were asked to stop, are gone, and kills those left after
/// `within`. Returns the number of kills.
pub(crate) async fn await_all(children: Vec<ActorRef<Control>>, within: Duration) -> usize {
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

/// The error that a child returned from its start.
pub(crate) fn cause(refusal: SpawnErr) -> ProcessError {
    if let SpawnErr::StartupFailed(error) = refusal { error } else { refusal.into() }
}
