//! Presence: who watches whom, and who is told how someone stands.
//!
//! ```text
//!   rows of the sessions table change, here or elsewhere --touched--+
//!   an account changes, its shard has a new leader ------touched----+--> read what is so now, tell
//!   somebody subscribes --------------------------------------------+    each watcher if it differs
//! ```
//!
//! Every node has all rows, so each tells its own watchers, and no node tells another who is there.
//!
//! # Invariants
//! 1. What a watcher is shown is a function of the user's account and of the rows of all their devices,
//!    wherever those are. Once these rest, all watchers have been told the same, in whatever order the
//!    changes came.
//! 2. Nothing here is stored. What a busy watcher misses is told again.
//! 3. What a user hides is not told, nor is it told to whom they block.

mod actor;
mod context;
mod watched;

#[cfg(test)]
mod tests;

/// The pure part, as the process drives it; simulations do the same.
pub mod cores {
    pub use super::watched::{Seen, Subscriptions};
}

pub use actor::PresenceActor;
pub use context::{PresenceContext, Watchers};

use crate::connection::Connection;
use crate::shard::AccountView;
use parking_lot::{Mutex, MutexGuard};
use proto::{Code, ShardId, UserId};
use std::collections::HashMap;
use std::sync::Arc;
use supervision::{Inbox, QueueLimits};

/// What waits is bounded by the number of subscriptions: a user who is touched waits once.
const QUEUE: QueueLimits = QueueLimits { high: 10_000, critical: 50_000 };

/// What the presence actor's message queue holds.
#[derive(Debug)]
pub enum PresenceItem {
    /// A user asks to be told about another.
    Subscribe {
        /// Who asks.
        watcher: UserId,
        /// About whom.
        user: UserId,
        /// Where the answer goes.
        connection: Arc<Connection>,
        /// The request.
        id: u64,
    },
    /// A user does not want to be told any longer.
    Unsubscribe(UserId, UserId),
    /// A user has no connection here any longer.
    WatcherGone(UserId),
    /// The rows of a watched user's sessions have changed, or read differently now.
    Touched(UserId),
    /// A watched user's account has changed.
    AccountTouched(UserId),
    /// A shard has a new leader: changes of its accounts may have gone unheard.
    ShardTouched(ShardId),
    /// A shard tells how an account is.
    AccountRead(UserId, Result<Option<Arc<AccountView>>, Code>),
    /// A watcher was too busy to be told about a user.
    Lost(UserId, UserId),
    /// Some time has passed since something failed.
    RetryDue,
}

/// The door to presence. Cheap to clone.
#[derive(Clone)]
pub struct Presence {
    inbox: Arc<Inbox<PresenceItem>>,
    /// Everybody who is watched here, and whether a touch of theirs waits in the queue.
    watched: Arc<Mutex<HashMap<UserId, bool>>>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("waiting", &self.inbox.len()).finish_non_exhaustive()
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self { inbox: Inbox::new("presence", 0, QUEUE), watched: Arc::default() }
    }
}

impl Presence {
    /// The message queue, for the child spec.
    pub fn inbox(&self) -> &Arc<Inbox<PresenceItem>> {
        &self.inbox
    }

    /// Subscribes `watcher` to a user, answers, and tells how things stand.
    pub fn subscribe(&self, watcher: UserId, user: UserId, connection: Arc<Connection>, id: u64) {
        self.inbox.force(PresenceItem::Subscribe { watcher, user, connection, id });
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, watcher: UserId, user: UserId) {
        self.inbox.force(PresenceItem::Unsubscribe(watcher, user));
    }

    /// Ends all subscriptions of a user who has gone.
    pub fn forget_watcher(&self, watcher: UserId) {
        self.inbox.force(PresenceItem::WatcherGone(watcher));
    }

    /// Rows of a user's sessions changed, or read differently now. Cheap for who is not watched.
    pub fn touched(&self, user: UserId) {
        let mut watched = self.watched();
        if let Some(waits) = watched.get_mut(&user)
            && !std::mem::replace(waits, true)
        {
            self.inbox.force(PresenceItem::Touched(user));
        }
    }

    /// A user's account changed.
    pub fn account_touched(&self, user: UserId) {
        if self.watched().contains_key(&user) {
            self.inbox.force(PresenceItem::AccountTouched(user));
        }
    }

    /// A shard has a new leader: changes of its accounts may have gone unheard.
    pub fn shard_touched(&self, shard: ShardId) {
        self.inbox.force(PresenceItem::ShardTouched(shard));
    }

    /// `watcher` was too busy to be told about `user`.
    pub fn lost(&self, watcher: UserId, user: UserId) {
        self.inbox.force(PresenceItem::Lost(watcher, user));
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<UserId, bool>> {
        self.watched.lock()
    }
}
