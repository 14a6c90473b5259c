//! What the user actors of a node use, and what logs their devices in. All are given the same.

use super::Users;
use crate::hooks::Handler;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::rates::Rates;
use crate::secrets::Secrets;
use crate::shard::Shards;
use membership::ClusterSettings;
use proto::{UserId, wire};
use sessions::Sessions;
use std::fmt;
use std::sync::Arc;
use storage::SessionTable;
use supervision::Clock;

/// The way of signals from one user to another. `delivery` implements it.
pub trait Signals: Send + Sync {
    /// Passes a signal on. False if nobody can have got it.
    fn signal(&self, to: UserId, signal: &wire::Signaled) -> bool;
    /// Tells the user's devices that another one asks to be linked.
    fn link_requested(&self, user: UserId, asked: &wire::LinkRequested);
}

/// What a user actor uses.
pub struct UserContext {
    /// What time it is, as the members agree on it.
    pub clock: Clock,
    /// Chance and keys.
    pub secrets: Arc<dyn Secrets>,
    /// The settings of the cluster, as of now.
    pub settings: Live<ClusterSettings>,
    /// Where it is written who is connected here.
    pub sessions: Sessions,
    /// The rows of that, of all nodes.
    pub rows: SessionTable,
    /// How fast users and addresses may ask.
    pub rates: Rates,
    /// All counters.
    pub metrics: Metrics,
    /// See every send, in this order.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// Accounts and mailboxes.
    pub shards: Shards,
    /// The users connected here.
    pub users: Users,
    /// Where users subscribe to the presence of others.
    pub presence: Presence,
    /// The way to users who are signaled.
    pub signals: Arc<dyn Signals>,
}

impl fmt::Debug for UserContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserContext").field("settings", &self.settings()).finish_non_exhaustive()
    }
}

impl UserContext {
    /// The settings of the cluster, as of now.
    pub fn settings(&self) -> ClusterSettings {
        self.settings.get()
    }
}
