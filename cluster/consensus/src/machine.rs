//! Hands what is committed to the replica, and openraft what it must know of the tables.
//!
//! Runs in openraft's task for the state machine: one thing at a time, each awaited.
//!
//! # Invariants
//! 1. The replica sees every entry once and in order; after a snapshot, first that the tables are
//!    others.
//! 2. A snapshot is what the tables hold as of one place, never what is in memory.

use super::convert;
use super::types::{Id, LogEntry, Members, SnapshotData, StoreError, Types};
use super::{Committed, Done, Replica};
use crate::log::journal::Journal;
use crate::network::snapshot;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageIOError,
};
use proto::{ShardId, stored};
use std::sync::Arc;
use storage::StorageError;
use tokio::sync::oneshot;

/// The replica as openraft sees it.
pub(super) struct Machine {
    group: ShardId,
    journal: Journal,
    replica: Arc<dyn Replica>,
    applied: Option<Id>,
    members: Members,
}

impl Machine {
    /// A replica whose state is what the tables hold.
    pub(super) fn new(
        (group, journal): (ShardId, Journal),
        replica: Arc<dyn Replica>,
        tables: Option<&stored::Applied>,
    ) -> Self {
        let (applied, members) = place(tables);
        Self { group, journal, replica, applied, members }
    }
}

/// Which place of the log a row of `applied` means, and who took part there.
fn place(row: Option<&stored::Applied>) -> (Option<Id>, Members) {
    let Some(row) = row else { return (None, Members::default()) };
    let members = convert::members(row.membership_at.as_ref(), row.membership.as_ref());
    (row.id.as_ref().map(convert::id), members)
}

fn meta(row: &stored::Applied) -> SnapshotMeta<u64, openraft::EmptyNode> {
    let (last_log_id, last_membership) = place(Some(row));
    let snapshot_id = last_log_id.map(|id| id.to_string()).unwrap_or_default();
    SnapshotMeta { last_log_id, last_membership, snapshot_id }
}

fn read_error(error: &StorageError) -> StoreError {
    StorageIOError::read_snapshot(None, AnyError::new(error)).into()
}

pub(super) fn committed(entry: LogEntry) -> Committed {
    let (content, membership) = match entry.payload {
        EntryPayload::Blank => (None, None),
        EntryPayload::Normal(proposal) => (Some(proposal.content), None),
        EntryPayload::Membership(members) => (None, Some(convert::stored_membership(&members))),
    };
    Committed { id: convert::stored_id(&entry.log_id), content, membership }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<Id>, Members), StoreError> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StoreError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Committed> = entries.into_iter().map(committed).collect();
        let outcomes = vec![(); entries.len()];
        let Some(last) = entries.last().map(|entry| convert::id(&entry.id)) else {
            return Ok(outcomes);
        };
        let (sender, applied) = oneshot::channel();
        self.journal.unless_closed(|| self.replica.apply(entries, tell(sender)));
        match applied.await {
            Ok(()) => Ok(outcomes),
            Err(_) => Err(StorageIOError::apply(last, AnyError::error(REPLICA_GONE)).into()),
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { group: self.group, journal: self.journal.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StoreError> {
        Ok(Box::new(SnapshotData::Elsewhere))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::EmptyNode>,
        _data: Box<SnapshotData>,
    ) -> Result<(), StoreError> {
        let group = self.group;
        // Records beyond the snapshot that openraft has taken back must not come back.
        let after = meta.last_log_id.map_or(0, |id| id.index + 1);
        if self.journal.last().is_none_or(|last| last.index < after) {
            let ended = self.journal.end_before(after).await;
            ended.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)))?;
        }
        let installed = self.journal.outlast(move |storage| storage.install(group)).await;
        let row = installed
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        (self.applied, self.members) = place(Some(&row));
        let (sender, reloaded) = oneshot::channel();
        self.journal.unless_closed(|| self.replica.reload(tell(sender)));
        reloaded
            .await
            .map_err(|_| StorageIOError::write_state_machine(AnyError::error(REPLICA_GONE)).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StoreError> {
        let group = self.group;
        let export = snapshot::open(&self.journal, group).await.map_err(|e| read_error(&e))?;
        Ok(export.map(|export| Snapshot {
            meta: meta(export.applied()),
            snapshot: Box::new(SnapshotData::Tables(Box::new(export))),
        }))
    }
}

fn tell(sender: oneshot::Sender<()>) -> Done {
    Box::new(move || {
        // Nobody waits if the group was stopped.
        sender.send(()).ok();
    })
}

const REPLICA_GONE: &str = "the replica is gone";

/// Tells openraft as of which place the tables are; nothing is built.
pub(super) struct Builder {
    group: ShardId,
    journal: Journal,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StoreError> {
        let group = self.group;
        let row = self.journal.outlast(move |storage| storage.applied(group)).await;
        let row = row.map_err(|error| read_error(&error))?.unwrap_or_default();
        Ok(Snapshot { meta: meta(&row), snapshot: Box::new(SnapshotData::Elsewhere) })
    }
}
