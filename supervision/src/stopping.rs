//! The word that it is time to stop, for tasks that run on their own.
//!
//! # Invariants
//! 1. Once said it stays said, and a source that is gone counts as having said it.

use tokio::sync::watch;

/// Tells when to stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

/// The one who says it.
#[derive(Debug)]
pub struct StopSource(watch::Sender<bool>);

impl StopSource {
    /// A source that has not said it, and its listener.
    pub fn new() -> (Self, Stopping) {
        let (source, stopping) = watch::channel(false);
        (Self(source), Stopping(stopping))
    }

    /// Says it to all listeners.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    /// Returns when it is time to stop; at once if it was said before.
    pub async fn wait(&self) {
        let mut stopping = self.0.clone();
        drop(stopping.wait_for(|said| *said).await); // An error means the source is gone.
    }

    /// Whether it was said.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
