//! What the cluster needs of the Raft groups and tables of this node, so that it can be tried
//! without them.

use super::placement::Nodes;
use bytes::Bytes;
use consensus::{Committed, GroupStatus, Handed, ProposeError, RaftError};
use proto::stored;
use proto::{NodeId, ShardId};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use supervision::{Inbox, ProcessError};

use super::meta_actor::MetaItem;

/// Something that takes a while.
pub type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a group did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// Another node leads it, or nobody.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// Who votes, listens or leads was not changed.
    #[error(transparent)]
    NotChanged(Arc<RaftError>),
    /// A proposal came to nothing.
    #[error(transparent)]
    NotProposed(ProposeError),
    /// It takes too long. It may come about later.
    #[error("it takes too long")]
    Late,
    /// It makes no sense as the group stands.
    #[error("{0}")]
    Refused(&'static str),
}

impl From<RaftError> for GroupError {
    fn from(error: RaftError) -> Self {
        if let RaftError::NotLeader(leader) = error {
            Self::NotLeader(leader)
        } else {
            Self::NotChanged(Arc::new(error))
        }
    }
}

impl From<ProposeError> for GroupError {
    fn from(error: ProposeError) -> Self {
        if let ProposeError::NotLeader(leader) = error {
            Self::NotLeader(leader)
        } else {
            Self::NotProposed(error)
        }
    }
}

/// Called if a proposal certainly comes to nothing.
pub type Failed = Box<dyn FnOnce(GroupError) + Send>;

/// The groups of this node.
pub trait Groups: Send + Sync + fmt::Debug + 'static {
    /// Opens the group `meta`, unless it is open; from then on it tells `inbox` what is committed, and `handed`
    /// keeps it until it is finished. If this start founds a cluster, this node becomes its only voter.
    fn open_meta(
        &self,
        inbox: Arc<Inbox<MetaItem>>,
        handed: Arc<Handed>,
    ) -> Work<Result<(), ProcessError>>;
    /// The entries that `meta` has committed after index `after`, up to `up_to`: see
    /// [`consensus::Group::committed`].
    fn committed(&self, after: Option<u64>, up_to: u64) -> Option<Vec<Committed>>;
    /// The state of a group as this node sees it; `None` before it is open.
    fn status(&self, group: ShardId) -> Option<GroupStatus>;
    /// Lets a node listen; ends when it has caught up, or in time.
    fn add_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>>;
    /// Lets a node listen no longer.
    fn remove_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>>;
    /// Lets these vote and nobody else.
    fn change_voters(&self, group: ShardId, voters: Nodes) -> Work<Result<(), GroupError>>;
    /// Lets another voter lead.
    fn yield_to(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>>;
    /// Succeeds if a majority has agreed that a node is no member of a group; the leader knows.
    fn has_left(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>>;
    /// Forgets all of a group on this node if `may` says so, and says what it said. The group answers
    /// nobody meanwhile; `may` must not ask before it is polled.
    fn forget(&self, group: ShardId, may: Work<bool>) -> Work<Result<bool, GroupError>>;
    /// Proposes an entry to the group `meta`; success is seen when it is applied.
    fn propose(&self, content: Bytes, failed: Failed);
    /// Reads what the table `meta` holds, and as of which place. Blocking.
    ///
    /// # Errors
    /// Those of the storage.
    fn load(&self) -> Result<(stored::Applied, stored::Meta), ProcessError>;
    /// Writes the table `meta`, durably, and lets the log forget what is older. Blocking.
    ///
    /// # Errors
    /// Those of the storage; then nothing was written.
    fn save(&self, applied: stored::Applied, meta: stored::Meta) -> Result<(), ProcessError>;
}
