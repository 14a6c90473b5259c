//! The types that openraft is told to work with.

use bytes::Bytes;
use openraft::{EmptyNode, Entry, LogId, Raft, StoredMembership, Vote};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use storage::Export;

openraft::declare_raft_types!(
    /// Our choice of types.
    pub(super) Types:
        D = Proposal,
        R = (),
        NodeId = u64,
        Node = EmptyNode,
        SnapshotData = SnapshotData,
);

pub(super) type Core = Raft<Types>;
pub(super) type Id = LogId<u64>;
pub(super) type Ballot = Vote<u64>;
pub(super) type LogEntry = Entry<Types>;
pub(super) type Members = StoredMembership<u64, EmptyNode>;
pub(super) type StoreError = openraft::StorageError<u64>;

/// Whether a proposal has reached the log of the node that made it. From then on nobody can say
/// that it will not be committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Logged(Option<Arc<AtomicBool>>);

impl Logged {
    /// For a proposal made here.
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    pub(super) fn set(&self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Acquire))
    }
}

/// What an entry of the log carries. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Proposal {
    pub(super) content: Bytes,
    pub(super) logged: Logged,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proposal").field("bytes", &self.content.len()).finish_non_exhaustive()
    }
}

/// What openraft holds of a snapshot.
pub(super) enum SnapshotData {
    /// The tables of this node, as of one moment.
    Tables(Box<Export>),
    /// In the tables or in a file; openraft need not hold it.
    Elsewhere,
}
