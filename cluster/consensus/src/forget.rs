//! A node that is no member of a group any longer forgets all of it.
//!
//! ```text
//! node                                        leader of the group
//!   | stops to answer for the group               |
//!   | Retire                                      |
//!   |-------------------------------------------->|  leads still? a majority agreed that the
//!   |                                        done |  node is no member?
//!   |<--------------------------------------------|
//!   | ends the group, wipes it, opens it anew     |
//! ```
//!
//! A crash before the wipe leaves the group as it was, and the node asks again; after it, the group is
//! empty. If a leader takes the node in again it gets everything from the beginning, as a learner.
//!
//! # Invariants
//! 1. The answer is later than the last thing that this node said for the group. So whoever takes it
//!    in again after the answer has heard nothing of what is being forgotten.
//! 2. The promise of the last election stays, so this node votes once in a term, as ever.
//! 3. Where the log ended stays too, as `floor`: the node neither votes for a candidate whose log ends
//!    before it, nor stands for election while its own does. So it votes as if it still had the log.
//!    Without that, a voter that has not heard of the change could be elected with the help of one
//!    that helped to commit it and has forgotten: two leaders, each with a majority of its own.
//! 4. Nothing of the former log or state is written after the wipe.

use super::error::RaftError;
use super::{Door, Inner, convert};
use crate::network::snapshot::Receiving;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use storage::StorageError;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};

/// How long what is in hand may take. It may wait for the disk, and what is forgotten makes room.
const IN_HAND: Duration = Duration::from_secs(2);

/// Wait before a wipe that found no space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The group says nothing, to its members nor to those who watch it, as long as this lives; or for
/// ever.
struct Rest<'a> {
    inner: &'a Inner,
    for_ever: bool,
}

impl<'a> Rest<'a> {
    fn of(inner: &'a Inner) -> Self {
        inner.resting.store(true, Ordering::Release);
        Self { inner, for_ever: false }
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if !self.for_ever {
            self.inner.resting.store(false, Ordering::Release);
            self.inner.refresh();
        }
    }
}

pub(super) async fn forget(
    door: &Door,
    may: impl Future<Output = bool>,
) -> Result<bool, RaftError> {
    let _one = door.forgetting.lock().await;
    let inner = door.inner.read().clone();
    let mut rest = Rest::of(&inner);
    // What was in hand is answered when this is there.
    let Ok(appends) = timeout(IN_HAND, inner.appends.write()).await else { return Ok(false) };
    if !may.await {
        return Ok(false);
    }
    inner.stop().await;
    drop(appends);
    match anew(door, &inner).await {
        Ok(anew) => {
            rest.for_ever = true;
            *door.inner.write() = anew;
            info!(shard = %inner.group, "forgotten: other nodes hold it");
            Ok(true)
        }
        Err(error) => {
            inner.failure.set(error.to_string()).ok();
            Err(error)
        }
    }
}

/// Forgets all of the group, which has ended, and opens it with nothing.
async fn anew(door: &Door, inner: &Inner) -> Result<Arc<Inner>, RaftError> {
    *inner.receiving.lock().await = Receiving::default();
    tell(|done| door.parts.replica.rest(done)).await?;
    wipe(inner).await?;
    tell(|done| door.parts.replica.reload(done)).await?;
    Inner::open(&door.parts, Vec::new()).await
}

async fn tell(what: impl FnOnce(super::Done)) -> Result<(), RaftError> {
    let (sender, done) = oneshot::channel();
    what(Box::new(move || {
        // Nobody waits if the node stops.
        sender.send(()).ok();
    }));
    done.await.map_err(|_| RaftError::Stopped)
}

async fn wipe(inner: &Inner) -> Result<(), RaftError> {
    let group = inner.group;
    let last = inner.journal.last().max(inner.floor);
    let last = last.as_ref().map(convert::stored_id);
    loop {
        let storage = inner.storage.clone();
        let wiped = tokio::task::spawn_blocking(move || storage.wipe(group, last)).await;
        match wiped.unwrap_or(Err(StorageError::Closed)) {
            Ok(()) => return Ok(()),
            Err(error @ StorageError::DiskFull { .. }) => {
                warn!(shard = %group, %error, "not forgotten yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
