//! Telling users what concerns them, on whatever nodes they are.
//!
//! Everything here is a hint: a push that is lost is found in the mailbox, an account that changed is
//! read again when its shard has a new leader.

use crate::context::Context;
use crate::shard::{AccountView, account_to_wire};
use bytes::Bytes;
use links::Lane;
use prost::Message;
use proto::cluster::{self, cast};
use proto::{NodeId, Seq, ShardId, UserId, stored, wire};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::warn;

/// Bytes of bodies in one cast. Larger entries are announced without their content.
const PUSH_BYTES: usize = 48 * 1024;

/// Pushes for other nodes that travel together.
#[derive(Debug, Default)]
pub struct Outbound {
    pushes: BTreeMap<NodeId, (Vec<cluster::Push>, usize)>,
    lost: BTreeSet<NodeId>,
}

/// The way to users, wherever they are.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a>(pub(crate) &'a Context);

impl Delivery<'_> {
    /// A mailbox has a new entry: tells the user's actors, here at once, elsewhere with `outbound`.
    pub fn push(
        &self,
        outbound: &mut Outbound,
        user: UserId,
        seq: Seq,
        envelope: Arc<stored::Envelope>,
    ) {
        for node in self.elsewhere(user) {
            let bytes = envelope.encoded_len();
            let push = cluster::Push {
                user: user.0,
                seq: seq.0,
                envelope: (bytes <= PUSH_BYTES).then(|| stored::Envelope::clone(&envelope)),
            };
            let (pushes, held) = outbound.pushes.entry(node).or_default();
            pushes.push(push);
            *held += bytes.min(PUSH_BYTES);
            if *held >= PUSH_BYTES {
                let pushes = std::mem::take(pushes);
                *held = 0;
                if !self.cast(node, cast::Kind::Pushes(cluster::Pushes { pushes })) {
                    outbound.lost.insert(node);
                }
            }
        }
        self.0.users.push(user, seq, envelope);
    }

    /// Sends what has been gathered. Returns the nodes that must be told to read again, because
    /// pushes to them were lost.
    pub fn send(&self, mut outbound: Outbound) -> BTreeSet<NodeId> {
        for (node, (pushes, _)) in outbound.pushes {
            if pushes.is_empty() {
                continue;
            }
            let kind = cast::Kind::Pushes(cluster::Pushes { pushes });
            if !self.cast(node, kind) {
                outbound.lost.insert(node);
            }
        }
        outbound.lost
    }

    /// An account changed; `None`: it is no more. Its devices are told, and whoever shows its presence.
    pub fn account_changed(
        &self,
        outbound: &mut Outbound,
        user: UserId,
        account: Option<Arc<AccountView>>,
    ) {
        for node in self.elsewhere(user) {
            let account = account.as_deref().map(account_to_wire);
            let changed = cluster::AccountChanged { user: user.0, account };
            if !self.cast(node, cast::Kind::Account(changed)) {
                outbound.lost.insert(node);
            }
        }
        for peer in self.0.peers.up() {
            let touched = cluster::AccountsTouched { users: vec![user.0] };
            if !self.cast(peer.id.node, cast::Kind::Accounts(touched)) {
                outbound.lost.insert(peer.id.node);
            }
        }
        self.0.presence.account_touched(user);
        self.0.users.account_changed(user, account);
    }

    /// A shard has a new leader, this node: hints of the old one may have been lost. Returns the nodes
    /// that did not hear of it.
    pub fn leader_appeared(&self, shard: ShardId, term: u64) -> BTreeSet<NodeId> {
        self.0.users.read_again(shard);
        self.0.presence.shard_touched(shard);
        let peers = self.0.peers.up().into_iter().map(|peer| peer.id.node);
        peers.filter(|node| !self.leads_here(*node, shard, term)).collect()
    }

    /// Tells one node that this node leads a shard, and that hints may have been lost. False if that
    /// was lost as well.
    pub fn leads_here(&self, node: NodeId, shard: ShardId, term: u64) -> bool {
        let appeared = cluster::LeaderAppeared { shard: u32::from(shard.0), term };
        self.cast(node, cast::Kind::Leader(appeared))
    }

    /// A user has come to another node: their mailbox ends with `last`. False if that was lost.
    pub fn grown_to(&self, node: NodeId, user: UserId, last: Seq) -> bool {
        let push = cluster::Push { user: user.0, seq: last.0, envelope: None };
        self.cast(node, cast::Kind::Pushes(cluster::Pushes { pushes: vec![push] }))
    }

    /// Passes a signal on. False if nobody can have got it.
    pub fn signal(&self, to: UserId, signal: &wire::Signaled) -> bool {
        let mut told = self.0.users.signal(to, signal.clone());
        for node in self.elsewhere(to) {
            let signal = cluster::Signal {
                to: to.0,
                from: signal.from,
                from_device: signal.from_device,
                kind: signal.kind,
                body: signal.body.clone(),
            };
            let signals = cluster::Signals { signals: vec![signal] };
            told |= self.cast(node, cast::Kind::Signals(signals));
        }
        told
    }

    /// Whether the user has a session on another node.
    pub fn is_elsewhere(&self, user: UserId) -> bool {
        !self.elsewhere(user).is_empty()
    }

    /// Other nodes on which the user has a session.
    fn elsewhere(self, user: UserId) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        if self.0.peers.is_alone() {
            return nodes;
        }
        match self.0.storage.sessions().of(user) {
            Ok(rows) => {
                let rows = rows.iter().map(|(_, row)| row);
                let elsewhere = rows.filter(|row| row.node != self.0.node.0);
                let live = elsewhere.filter(|row| self.0.sessions.is_live(row));
                nodes.extend(live.map(|row| NodeId(row.node)));
            }
            Err(error) => warn!(%user, %error, "sessions not read"),
        }
        nodes
    }

    fn cast(self, node: NodeId, kind: cast::Kind) -> bool {
        let cast = cluster::Cast { kind: Some(kind) };
        self.0.peers.cast(node, Lane::Normal, Bytes::from(cast.encode_to_vec()))
    }
}
