//! The time that processes read. They never ask the system: a node, a test or a simulation hands a clock in.

use std::fmt;
use std::sync::Arc;

/// What time it is, Unix time in ms. Tests hand in their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Clock {
    /// A clock that reads `now`.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Unix time in ms.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}
