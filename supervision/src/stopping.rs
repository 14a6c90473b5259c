//! The stop signal of long-running tasks.
//!
//! # Invariants
//! 1. Once fired it stays fired. Dropping the source fires it.

use tokio::sync::watch;

/// The receiver of the stop signal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

/// The sender of the stop signal.
#[derive(Debug)]
pub struct StopSource(watch::Sender<bool>);

impl StopSource {
    /// A source that has not fired, and its receiver.
    pub fn new() -> (Self, Stopping) {
        let (source, stopping) = watch::channel(false);
        (Self(source), Stopping(stopping))
    }

    /// Fires the signal to all receivers.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    /// Waits for the signal; returns at once if it has fired.
    pub async fn wait(&self) {
        let mut stopping = self.0.clone();
        drop(stopping.wait_for(|said| *said).await); // An error means the source is gone.
    }

    /// True once the signal has fired.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
