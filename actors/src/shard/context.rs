//! What the replicas of a node's shards use. All are given the same.

use super::{Recipients, Shards};
use crate::live::Live;
use consensus::Groups;
use links::Peers;
use membership::ClusterSettings;
use membership::clocks::Clocks;
use metrics::Counter;
use proto::NodeId;
use sessions::Sessions;
use std::fmt;
use std::sync::Arc;
use storage::Storage;
use supervision::{Clock, TaskGroup};

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
    /// The settings of the cluster, as of now.
    pub settings: Live<ClusterSettings>,
    /// Time between two checkpoints of a shard, in ms.
    pub checkpoint_every_ms: u64,
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
    /// The settings of the cluster, as of now.
    pub fn settings(&self) -> ClusterSettings {
        self.settings.get()
    }
}
