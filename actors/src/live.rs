//! Settings that change while the node runs. The node sets them, processes read them.

use parking_lot::RwLock;
use std::sync::Arc;

/// A value that one process writes and many read. Clones share it.
#[derive(Clone, Debug)]
pub struct Live<T>(Arc<RwLock<T>>);

impl<T: Copy> Live<T> {
    /// Begins with `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    /// Replaces it.
    pub fn set(&self, value: T) {
        *self.0.write() = value;
    }

    /// As it is now.
    pub fn get(&self) -> T {
        *self.0.read()
    }
}
