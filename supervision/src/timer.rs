//! Timers that put items into an inbox, once or periodically.
//!
//! A timer is a small task that holds its inbox weakly: it keeps nothing alive and ends with its
//! inbox. Like the inbox it survives a restart of the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use crate::queue::Inbox;

/// A running timer. Dropping this value does not stop the timer.
#[derive(Debug)]
pub struct Timer(AbortHandle);

impl Timer {
    /// Stops the timer; items that it pushed stay in the inbox.
    pub fn cancel(&self) {
        self.0.abort();
    }
}

/// Puts `item` into `inbox` after the time `after`, whatever the length of the queue.
#[allow(clippy::disallowed_methods, reason = "the task does nothing that can fail")]
pub fn push_after<T: Send + 'static>(inbox: &Arc<Inbox<T>>, after: Duration, item: T) -> Timer {
    let inbox = Arc::downgrade(inbox);
    let wait = async move {
        sleep(after).await;
        if let Some(inbox) = inbox.upgrade() {
            inbox.force(item);
        }
    };
    Timer(tokio::spawn(wait).abort_handle())
}

/// Puts the result of `make` into `inbox` every `period` (above zero), the first time after one
/// period. Skips a tick while the queue is at capacity. Ends when the inbox is closed or dropped.
#[allow(clippy::disallowed_methods, reason = "if `make` panics the beats end; nothing else does")]
pub fn push_every<T: Send + 'static>(
    inbox: &Arc<Inbox<T>>,
    period: Duration,
    make: impl Fn() -> T + Send + 'static,
) -> Timer {
    let inbox = Arc::downgrade(inbox);
    let beat = async move {
        let mut beats = interval_at(tokio::time::Instant::now() + period, period);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let Some(inbox) = inbox.upgrade() else { return };
            if inbox.push(make()).is_err() && inbox.is_closed() {
                return;
            }
        }
    };
    Timer(tokio::spawn(beat).abort_handle())
}
