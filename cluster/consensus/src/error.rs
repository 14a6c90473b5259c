//! What can go wrong with a group.

use proto::{NodeId, ShardId};
use storage::StorageError;

/// Why a proposal failed, or a question to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead; perhaps that one does. Nothing was logged.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// This node leads and does not hear from a majority. Nothing was logged.
    #[error("a majority of the group does not answer")]
    NoMajority,
    /// The log waits for space. Nothing was logged.
    #[error("no space left for the log")]
    Full,
    /// Too many proposals are under way. Nothing was logged.
    #[error("too many proposals are under way")]
    Busy,
    /// It was logged here, and it is not known whether it will be committed.
    #[error("it is not known whether the proposal was accepted")]
    Unknown,
    /// The group has ended. Nothing was logged.
    #[error("the group has ended")]
    Failed,
}

/// Why a group was not opened, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// This node does not lead; perhaps that one does.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// A majority did not answer in time. The change may come about later.
    #[error("a majority of the group does not answer")]
    NoMajority,
    /// Another change of the members is under way.
    #[error("another change of the members is under way")]
    Busy,
    /// A learner made no progress.
    #[error("node {0} does not catch up")]
    NoProgress(NodeId),
    /// The change makes no sense: the members are not such.
    #[error("the members are not such that this can be done")]
    Refused,
    /// The other node did not take over.
    #[error("node {0} did not take over")]
    NotTaken(NodeId),
    /// The log and the tables contradict each other.
    #[error("record {index} of group {group} does not follow on what is before it")]
    Damaged {
        /// Which group.
        group: ShardId,
        /// Where in its log.
        index: u64,
    },
    /// Storage failed.
    #[error("storage of the group failed")]
    Storage(#[from] StorageError),
    /// The group has ended.
    #[error("the group has ended")]
    Stopped,
}

/// Why a group of this node was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be opened before: restart the node, which reads the log again.
    #[error("group {0} has failed: the node must start again to read its log")]
    Twice(ShardId),
    /// The group did not start.
    #[error(transparent)]
    Raft(#[from] RaftError),
}
