//! What the group sends to its members on other nodes: entries, votes, snapshots.

pub(crate) mod link;
pub(crate) mod snapshot;
