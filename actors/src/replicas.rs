//! The Raft groups of this node as the cluster sees them: what it asks of a group goes to the group,
//! and what the group `meta` commits goes to the meta actor.

use bytes::Bytes;
use consensus::{Committed, Done, Group, GroupStatus, Handed, RaftError, Replica};
use membership::{Failed, GroupError, Groups, MetaItem, Nodes, Work};
use proto::{NodeId, ShardId, stored};
use std::sync::Arc;
use storage::{Row, Storage};
use supervision::{Inbox, ProcessError};

/// This node's groups.
#[derive(Clone, Debug)]
pub struct NodeGroups {
    /// The Raft groups.
    pub groups: consensus::Groups,
    /// Where the state of `meta` is kept.
    pub storage: Storage,
}

impl Groups for NodeGroups {
    fn open_meta(
        &self,
        inbox: Arc<Inbox<MetaItem>>,
        handed: Arc<Handed>,
    ) -> Work<Result<(), ProcessError>> {
        let groups = self.groups.clone();
        Box::pin(async move {
            groups.open(ShardId::META, Arc::new(MetaReplica { inbox, handed })).await?;
            Ok(())
        })
    }

    fn committed(&self, after: Option<u64>, up_to: u64) -> Option<Vec<Committed>> {
        self.groups.get(ShardId::META)?.committed(after, up_to)
    }

    fn status(&self, group: ShardId) -> Option<GroupStatus> {
        Some(self.groups.get(group)?.status())
    }

    fn add_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.with(group, async move |group| group.add_learner(node).await)
    }

    fn remove_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.with(group, async move |group| group.remove_learner(node).await)
    }

    fn change_voters(&self, group: ShardId, voters: Nodes) -> Work<Result<(), GroupError>> {
        self.with(group, async move |group| group.change_voters(voters).await)
    }

    fn yield_to(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.with(group, async move |group| group.yield_to(node).await)
    }

    fn has_left(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        let found = self.groups.get(group).cloned();
        Box::pin(async move {
            let group = found.ok_or(GroupError::NotLeader(None))?;
            let left = group.has_left(node).await?;
            if left { Ok(()) } else { Err(GroupError::Refused("the node is a member")) }
        })
    }

    fn forget(&self, group: ShardId, may: Work<bool>) -> Work<Result<bool, GroupError>> {
        let found = self.groups.get(group).cloned();
        Box::pin(async move {
            let group = found.ok_or(GroupError::NotLeader(None))?;
            Ok(group.forget(may).await?)
        })
    }

    fn propose(&self, content: Bytes, failed: Failed) {
        match self.groups.get(ShardId::META) {
            Some(group) => {
                group.propose(content, Box::new(move |error| failed(error.into())));
            }
            None => failed(GroupError::NotLeader(None)),
        }
    }

    fn load(&self) -> Result<(stored::Applied, stored::Meta), ProcessError> {
        let mut meta = stored::Meta::default();
        let applied = self.storage.load(ShardId::META, &mut |row| {
            if let Row::Meta(Some(found)) = row {
                meta = found;
            }
        })?;
        Ok((applied.unwrap_or_default(), meta))
    }

    fn save(&self, applied: stored::Applied, meta: stored::Meta) -> Result<(), ProcessError> {
        let rows = vec![Row::Meta(Some(meta))];
        self.storage.checkpoint(ShardId::META, applied.clone(), rows)?;
        if let (Some(group), Some(id)) = (self.groups.get(ShardId::META), applied.id) {
            group.checkpointed(id);
        }
        Ok(())
    }
}

impl NodeGroups {
    fn with<F>(
        &self,
        group: ShardId,
        work: impl FnOnce(Group) -> F + Send + 'static,
    ) -> Work<Result<(), GroupError>>
    where
        F: Future<Output = Result<(), RaftError>> + Send + 'static,
    {
        let found = self.groups.get(group).cloned();
        Box::pin(async move {
            let group = found.ok_or(GroupError::NotLeader(None))?;
            Ok(work(group).await?)
        })
    }
}

/// What the group `meta` commits goes to its actor.
#[derive(Debug)]
struct MetaReplica {
    inbox: Arc<Inbox<MetaItem>>,
    handed: Arc<Handed>,
}

impl Replica for MetaReplica {
    fn apply(&self, entries: Vec<Committed>, done: Done) {
        let number = self.handed.apply(&entries, done);
        self.inbox.force(MetaItem::Apply(entries, number));
    }

    fn reload(&self, done: Done) {
        let number = self.handed.reload(done);
        self.inbox.force(MetaItem::Reload(number));
    }

    fn rest(&self, done: Done) {
        // Every member holds `meta`: nobody forgets it.
        drop(done);
    }
}
