//! The situation of a replica in its group, its node and its cluster.

use membership::ClusterSettings;
use proto::{NodeId, UserId};
use std::collections::BTreeSet;

/// State of a node's disk: does it take something new?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It does.
    HasSpace,
    /// It has hardly any space.
    NearlyFull,
    /// The same, and this leader is about to hand over to a node with space.
    GivesWay,
}

/// The situation around a replica when it proposes, or when a second has passed.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The settings of the cluster.
    pub settings: ClusterSettings,
    /// Time between two checkpoints, in ms.
    pub checkpoint_every_ms: u64,
    /// The disk of this node.
    pub disk: Disk,
    /// Free space on the scarcest disk among the replicas, in hundredths of the least that should be free.
    pub free_percent: u64,
    /// A majority followed this leader a moment ago.
    pub followed: bool,
    /// A majority of the members agrees about the time of the step.
    pub may_expire: bool,
    /// Recipients of waiting sends who are nowhere, if space is scarce: [`ReplicaCore::recipients`].
    pub away: BTreeSet<UserId>,
}

/// State of the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if this replica knows it.
    pub leader: Option<NodeId>,
    /// This replica leads.
    pub me_leads: bool,
    /// In which term.
    pub term: u64,
    /// The number of voters.
    pub voters: usize,
    /// Last index of the log.
    pub last_index: u64,
}
