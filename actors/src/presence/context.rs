//! What the presence process uses.

use super::Presence;
use crate::shard::Shards;
use proto::{UserId, wire};
use sessions::Sessions;
use std::fmt;
use std::sync::Arc;
use storage::SessionTable;

/// The users who watch others. The directory of connected users implements it.
pub trait Watchers: Send + Sync {
    /// Whether a user is connected here.
    fn is_here(&self, watcher: UserId) -> bool;
    /// Tells a user's actor how somebody stands. False if the user is not here, or too busy.
    fn tell(&self, watcher: UserId, presence: wire::Presence) -> bool;
}

/// What the presence process uses.
pub struct PresenceContext {
    /// Its own door.
    pub presence: Presence,
    /// Whom it tells.
    pub watchers: Arc<dyn Watchers>,
    /// Where accounts are.
    pub shards: Shards,
    /// The rows of all sessions.
    pub rows: SessionTable,
    /// How a row reads here: its node may be dead.
    pub sessions: Sessions,
}

impl fmt::Debug for PresenceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceContext").field("presence", &self.presence).finish_non_exhaustive()
    }
}
