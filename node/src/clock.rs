//! The one place where the edges ask what time it is.
//!
//! **Invariant:** nothing but a program under test, before its node runs, changes who is asked.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

static STAND_IN: OnceLock<fn() -> u64> = OnceLock::new();

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    STAND_IN.get().map_or_else(system_ms, |now| now())
}

/// Milliseconds since 1970, as the system says.
#[allow(clippy::disallowed_methods, reason = "the edge where time enters")]
pub fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// From now on [`now_ms`] asks `now`, for programs whose clock is to jump. Only the first call counts.
pub fn stand_in(now: fn() -> u64) {
    // A second stand-in would be a mistake of the test program, and harms nothing.
    STAND_IN.set(now).ok();
}
