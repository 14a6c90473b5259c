//! Timers: items that arrive in an inbox later, or again and again.
//!
//! Each is a small task that holds its inbox weakly, so a timer keeps nothing alive and ends with
//! its inbox. It survives a restart of the process, as the inbox does.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use crate::queue::Inbox;

/// A running timer. Dropping it lets the timer run.
#[derive(Debug)]
pub struct Timer(AbortHandle);

impl Timer {
    /// Ends the timer; what it pushed already stays.
    pub fn cancel(&self) {
        self.0.abort();
    }
}

/// Puts `item` into `inbox` `after` some time, whatever the length of the queue by then.
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

/// Puts what `make` returns into `inbox` every `period` (above zero), the first time after one
/// period. A beat that finds the queue at capacity is skipped. Ends when the inbox closes or goes.
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
