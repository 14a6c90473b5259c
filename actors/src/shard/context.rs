//! What the replicas of a node's shards use. All are given the same.

use super::{MachineLimits, Recipients, Shards};
use crate::live::Live;
use consensus::Groups;
use links::Peers;
use membership::clocks::Clocks;
use metrics::Counter;
use proto::NodeId;
use sessions::Sessions;
use std::fmt;
use std::sync::Arc;
use storage::Storage;
use supervision::{Clock, TaskGroup};

/// What the operator has set for shards.
#[derive(Clone, Copy, Debug)]
pub struct ShardSettings {
    /// Limits of mailboxes.
    pub machine: MachineLimits,
    /// Bytes one user may store in one shard in a second, in the long run; 0: no limit.
    pub stored_bytes_per_second: u64,
    /// A device is set aside when something has waited for it this long, in ms.
    pub device_idle_max_ms: u64,
    /// Time between two checkpoints of a shard, in ms.
    pub checkpoint_every_ms: u64,
}

/// What a shard's replica uses.
pub struct ShardContext {
    /// This node's id.
    pub node: NodeId,
    /// What time it is, as the members agree on it.
    pub clock: Clock,
    /// Whether they do: otherwise nothing expires.
    pub clocks: Clocks,
    /// What is durable.
    pub storage: Storage,
    /// Where a shard opens its Raft group.
    pub groups: Groups,
    /// The way to the leader of a shard, if that is another node.
    pub peers: Peers,
    /// Where the sessions of unlinked devices are removed.
    pub sessions: Sessions,
    /// What the operator has set, as of now.
    pub live: Live<ShardSettings>,
    /// Calls under way to other nodes, and readers.
    pub tasks: TaskGroup,
    /// The other shards of this node: notices go to them, and they propose in turn.
    pub shards: Shards,
    /// The users who are told what concerns them.
    pub recipients: Arc<dyn Recipients>,
    /// Counts the hours in which a shard met too many wrong PINs.
    pub wrong_pins_alarms: Counter,
    /// Counts PINs that were not sent because those of the hour are used up.
    pub pins_used_up: Counter,
}

impl fmt::Debug for ShardContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardContext").field("settings", &self.settings()).finish_non_exhaustive()
    }
}

impl ShardContext {
    /// What the operator has set, as of now.
    pub fn settings(&self) -> ShardSettings {
        self.live.get()
    }
}
