//! The shard's side of its Raft group: what the group commits goes into the shard's message queue.

use super::machine::{Machine, MachineLimits};
use super::{Loaded, ShardContext, ShardItem};
use consensus::{Committed, Done, Group, GroupStatus, Replica};
use proto::ShardId;
use std::sync::Arc;
use supervision::{Inbox, ProcessError};

/// Hands over to the shard actor.
#[derive(Clone, Debug)]
pub struct ShardReplica(pub Arc<Inbox<ShardItem>>);

impl Replica for ShardReplica {
    fn apply(&self, entries: Vec<Committed>, done: Done) {
        self.0.force(ShardItem::Apply(entries, done));
    }

    fn reload(&self, done: Done) {
        self.0.force(ShardItem::Reload(done));
    }

    fn rest(&self, done: Done) {
        self.0.force(ShardItem::Rest(done));
    }
}

/// Reads a machine from the tables.
pub(super) async fn load(
    context: &Arc<ShardContext>,
    shard: ShardId,
) -> Result<Loaded, ProcessError> {
    let (storage, limits) = (context.storage.clone(), MachineLimits::from(&context.settings()));
    let read = move || -> Result<Loaded, storage::StorageError> {
        let mut machine = Machine::new(shard, limits);
        let applied = storage.load(shard, &mut |row| machine.load(row))?;
        if let Some(applied) = &applied {
            machine.set_clock(applied);
        }
        Ok(Loaded { machine, applied })
    };
    Ok(tokio::task::spawn_blocking(read).await??)
}

/// Tells the shard whenever the group stands differently. Returns how it stands now.
pub(super) fn watch(
    context: &Arc<ShardContext>,
    group: &Group,
    inbox: &Arc<Inbox<ShardItem>>,
) -> GroupStatus {
    let mut statuses = group.watch();
    let now = statuses.borrow_and_update().clone();
    let (inbox, mut told) = (Arc::downgrade(inbox), now.clone());
    context.tasks.spawn("status", async move {
        while statuses.changed().await.is_ok() {
            let status = statuses.borrow_and_update().clone();
            let Some(inbox) = inbox.upgrade() else { return };
            if who_is_who(&status) != who_is_who(&told) {
                told = status.clone();
                inbox.force(ShardItem::Stands(status));
            }
        }
    });
    now
}

/// What a shard must know; places in the log change with every batch.
fn who_is_who(status: &GroupStatus) -> (Option<proto::NodeId>, bool, u64, usize) {
    (status.leader, status.me_leads, status.term, status.voters.len())
}
