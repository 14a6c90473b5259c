//! The users whom a shard tells what concerns them, on whatever nodes they are. `delivery` implements it.
//!
//! All of it are hints. A push that is lost is found in the mailbox; an account that changed is read again
//! when its shard has a new leader.

use super::AccountView;
use proto::{NodeId, Seq, ShardId, UserId, cluster, stored};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pushes for other nodes that travel together.
#[derive(Debug, Default)]
pub struct Outbound {
    /// By node, with their size in bytes.
    pub pushes: BTreeMap<NodeId, (Vec<cluster::Push>, usize)>,
    /// Nodes to which something was lost.
    pub lost: BTreeSet<NodeId>,
}

impl Outbound {
    /// Whether there is nothing to send, and nothing was lost.
    pub(super) fn is_empty(&self) -> bool {
        self.pushes.is_empty() && self.lost.is_empty()
    }
}

/// Users, wherever they are.
pub trait Recipients: Send + Sync {
    /// A mailbox has a new entry: tells the user's actors, here at once, elsewhere with `outbound`.
    fn push(
        &self,
        outbound: &mut Outbound,
        user: UserId,
        seq: Seq,
        envelope: Arc<stored::Envelope>,
    );
    /// Sends what has been gathered. Returns the nodes that must be told to read again, because
    /// pushes to them were lost.
    fn send(&self, outbound: Outbound) -> BTreeSet<NodeId>;
    /// An account changed; `None`: it is no more. Its devices are told, and whoever shows its presence.
    fn account_changed(
        &self,
        outbound: &mut Outbound,
        user: UserId,
        account: Option<Arc<AccountView>>,
    );
    /// A shard has a new leader, this node: hints of the old one may have been lost. Returns the nodes
    /// that did not hear of it.
    fn leader_appeared(&self, shard: ShardId, term: u64) -> BTreeSet<NodeId>;
    /// Tells one node that this node leads a shard, and that hints may have been lost. False if that
    /// was lost as well.
    fn leads_here(&self, node: NodeId, shard: ShardId, term: u64) -> bool;
    /// A user has come to another node: their mailbox ends with `last`. False if that was lost.
    fn grown_to(&self, node: NodeId, user: UserId, last: Seq) -> bool;
    /// Whether the user has a session on any node.
    fn is_connected(&self, user: UserId) -> bool;
}
