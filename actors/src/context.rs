//! All that an actor may touch: clock, chance, storage, settings, metrics and the other doors.

use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::rates::Rates;
use crate::shard::{MachineLimits, Shards};
use crate::user::Users;
use bytes::Bytes;
use consensus::{Group, Timing};
use links::Peers;
use membership::clocks::Clocks;
use proto::ids::SHARDS;
use proto::stored::PinGrant;
use proto::{Alias, Code, DeviceId, NodeId, ShardId, UserId, cluster, wire};
use sessions::Sessions;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use storage::{ShardRecords, Storage};
use supervision::{Clock, TaskGroup};

/// What a resume ticket says, once opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub user: UserId,
    /// For which device.
    pub device: DeviceId,
    /// Which ticket of that device; only the newest is good.
    pub number: u64,
}

/// What an asker's token says, once opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinToken {
    /// Which token; random.
    pub id: [u8; 16],
    /// The PIN that it stands for.
    pub grant: PinGrant,
}

/// Chance, and what only the cluster's secret can make.
pub trait Secrets: Send + Sync {
    /// Fills with random bytes that nobody can guess.
    fn fill(&self, bytes: &mut [u8]);
    /// A digest of a PIN that is worth nothing without the cluster's secret.
    fn pin_digest(&self, alias: &Alias, pin: &str) -> [u8; 32];
    /// A digest of a registration lock, of the same kind.
    fn lock_digest(&self, user: UserId, lock: &str) -> [u8; 32];
    /// Seals the token of someone who asked for a PIN for `alias`.
    fn seal_pin_token(&self, alias: &Alias, token: &PinToken) -> Vec<u8>;
    /// Opens such a token; `None` if it is not ours or for another alias.
    fn open_pin_token(&self, alias: &Alias, sealed: &[u8]) -> Option<PinToken>;
    /// Seals a ticket.
    fn seal_ticket(&self, ticket: Ticket, now_ms: u64) -> Vec<u8>;
    /// Opens a ticket; `None` if it is not ours or too old.
    fn open_ticket(&self, sealed: &[u8], now_ms: u64) -> Option<Ticket>;
    /// Whether `signature` over `message` was made with the Ed25519 key `public_key`.
    fn verify(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool;
}

/// What a handler says of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Refuse it with this code.
    Drop(Code),
}

/// A handler: sees what a user sends before the recipient's shard does.
pub trait Handler: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &'static str;
    /// A device of `user` sends.
    fn user_send(&self, user: UserId, device: DeviceId, send: &wire::Send) -> Verdict;
}

/// What the operator has set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Limits of mailboxes.
    pub machine: MachineLimits,
    /// Bytes one user may store in one shard in a second, in the long run; 0: no limit.
    pub stored_bytes_per_second: u64,
    /// A device is set aside when something has waited for it this long, in ms.
    pub device_idle_max_ms: u64,
    /// Time between two checkpoints of a shard, in ms.
    pub checkpoint_every_ms: u64,
    /// The longest time to live of a message, in seconds.
    pub message_ttl_max_s: u32,
    /// Digits of a PIN.
    pub pin_digits: u32,
    /// How long a PIN is good, in seconds.
    pub pin_ttl_s: u32,
    /// Wrong PINs before a new one must be asked for.
    pub pin_attempts: u32,
    /// PINs that are sent to one alias in an hour.
    pub pin_requests_per_hour: u32,
    /// Wrong PINs of one alias in a day before only long ones count.
    pub wrong_pins_per_alias_per_day: u32,
    /// Wrong PINs of all aliases in an hour before only long ones count.
    pub wrong_pins_per_hour: u32,
}

/// What the operator has set, as it is now: the cluster's settings change while nodes run.
#[derive(Debug)]
pub struct LiveSettings(RwLock<Settings>);

impl LiveSettings {
    /// Begins with `settings`.
    pub fn new(settings: Settings) -> Self {
        Self(RwLock::new(settings))
    }

    /// Replaces them.
    pub fn set(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    fn get(&self) -> Settings {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Raft groups of this node, once each is open.
#[derive(Debug)]
pub struct Groups(Vec<OnceLock<Group>>);

impl Default for Groups {
    fn default() -> Self {
        Self((0..=SHARDS).map(|_| OnceLock::new()).collect())
    }
}

impl Groups {
    /// A group has been opened.
    pub fn set(&self, group: ShardId, opened: Group) {
        if let Some(place) = self.0.get(usize::from(group.0)) {
            drop(place.set(opened));
        }
    }

    /// A group, if it is open; the last one is [`ShardId::META`].
    pub fn get(&self, group: ShardId) -> Option<&Group> {
        self.0.get(usize::from(group.0)).and_then(OnceLock::get)
    }

    /// All that are open.
    pub fn all(&self) -> impl Iterator<Item = (ShardId, &Group)> {
        let groups = (0..=SHARDS).map(ShardId).zip(&self.0);
        groups.filter_map(|(id, place)| place.get().map(|group| (id, group)))
    }
}

/// All that an actor may touch.
pub struct Context {
    /// What time it is, as the members agree on it.
    pub clock: Clock,
    /// Whether they do.
    pub clocks: Clocks,
    /// Chance and keys.
    pub secrets: Arc<dyn Secrets>,
    /// What is durable.
    pub storage: Storage,
    /// What the log held at start, until each shard has taken its part.
    pub recovered: Recovered,
    /// What the operator has set.
    pub live: LiveSettings,
    /// The door to other nodes.
    pub peers: Peers,
    /// The Raft groups of this node.
    pub groups: Groups,
    /// Who is connected where, on all nodes.
    pub sessions: Sessions,
    /// Waits and heartbeats of Raft.
    pub timing: Timing,
    /// Whether this start founds a cluster.
    pub founds: bool,
    /// Calls under way to other nodes.
    pub tasks: TaskGroup,
    /// The tasks of client connections.
    pub connections: TaskGroup,
    /// How fast users and addresses may ask.
    pub rates: Rates,
    /// All counters.
    pub metrics: Metrics,
    /// See every send, in this order.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// The door to the shards.
    pub shards: Shards,
    /// The door to the users connected here.
    pub users: Users,
    /// The door to presence.
    pub presence: Presence,
    /// This node's id.
    pub node: NodeId,
    /// Which start of this node this is; grows with each.
    pub incarnation: u64,
}

/// What the log held when the node started, for each shard to take once.
#[derive(Debug)]
pub struct Recovered(Mutex<BTreeMap<ShardId, Vec<(u64, Bytes)>>>);

impl Recovered {
    /// Shares out what storage found.
    pub fn new(found: Vec<ShardRecords>) -> Self {
        let mut parts: BTreeMap<_, _> =
            (0..=SHARDS).map(|shard| (ShardId(shard), Vec::new())).collect();
        parts.extend(found.into_iter().map(|part| (part.shard, part.records)));
        Self(Mutex::new(parts))
    }

    /// A shard's part; `None` if it was taken before.
    fn take(&self, shard: ShardId) -> Option<Vec<(u64, Bytes)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&shard)
    }
}

impl Context {
    /// What the operator has set, as of now.
    pub fn settings(&self) -> Settings {
        self.live.get()
    }

    /// The way to users, wherever they are.
    pub fn delivery(&self) -> Delivery<'_> {
        Delivery(self)
    }

    /// What an operator is shown of this node.
    pub fn vitals(&self) -> cluster::Vitals {
        cluster::Vitals {
            up_ms: self.clocks.up_ms(),
            free_bytes: self.storage.usage().free_bytes,
            connections: self.connections.count() as u64,
        }
    }

    /// What the log held of a shard when the node started; `None` the second time.
    pub(crate) fn records_of(&self, shard: ShardId) -> Option<Vec<(u64, Bytes)>> {
        self.recovered.take(shard)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings()).finish_non_exhaustive()
    }
}
