//! Telling users what concerns them, on whatever nodes they are.
//!
//! Everything here is a hint: a push that is lost is found in the mailbox, an account that changed is
//! read again when its shard has a new leader.

use crate::presence::Presence;
use crate::shard::{AccountView, Outbound, Recipients, account_to_wire};
use crate::user::{Signals, Users};
use bytes::Bytes;
use links::{Lane, Peers};
use prost::Message;
use proto::cluster::{self, cast};
use proto::{NodeId, Seq, ShardId, UserId, stored, wire};
use sessions::Sessions;
use std::collections::BTreeSet;
use std::sync::Arc;
use storage::SessionTable;
use tracing::warn;

/// Bytes of bodies in one cast. Larger entries are announced without their content.
const PUSH_BYTES: usize = 48 * 1024;

/// The way to users, wherever they are.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// This node.
    pub node: NodeId,
    /// The way to other nodes.
    pub peers: Peers,
    /// The rows of all sessions.
    pub rows: SessionTable,
    /// How a row reads here: its node may be dead.
    pub sessions: Sessions,
    /// The users connected here.
    pub users: Users,
    /// Who shows users to others.
    pub presence: Presence,
}

impl Recipients for Delivery {
    fn push(
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
        self.users.push(user, seq, envelope);
    }

    fn send(&self, mut outbound: Outbound) -> BTreeSet<NodeId> {
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

    fn account_changed(
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
        for peer in self.peers.up() {
            let touched = cluster::AccountsTouched { users: vec![user.0] };
            if !self.cast(peer.id.node, cast::Kind::Accounts(touched)) {
                outbound.lost.insert(peer.id.node);
            }
        }
        self.presence.account_touched(user);
        self.users.account_changed(user, account);
    }

    fn leader_appeared(&self, shard: ShardId, term: u64) -> BTreeSet<NodeId> {
        self.users.read_again(shard);
        self.presence.shard_touched(shard);
        let peers = self.peers.up().into_iter().map(|peer| peer.id.node);
        peers.filter(|node| !self.leads_here(*node, shard, term)).collect()
    }

    fn leads_here(&self, node: NodeId, shard: ShardId, term: u64) -> bool {
        let appeared = cluster::LeaderAppeared { shard: u32::from(shard.0), term };
        self.cast(node, cast::Kind::Leader(appeared))
    }

    fn grown_to(&self, node: NodeId, user: UserId, last: Seq) -> bool {
        let push = cluster::Push { user: user.0, seq: last.0, envelope: None };
        self.cast(node, cast::Kind::Pushes(cluster::Pushes { pushes: vec![push] }))
    }

    fn is_connected(&self, user: UserId) -> bool {
        self.users.is_here(user) || !self.elsewhere(user).is_empty()
    }
}

impl Signals for Delivery {
    fn signal(&self, to: UserId, signal: &wire::Signaled) -> bool {
        let mut told = self.users.signal(to, signal.clone());
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

    fn link_requested(&self, user: UserId, asked: &wire::LinkRequested) {
        self.users.link_requested(user, asked.clone());
        for node in self.elsewhere(user) {
            let asked = cluster::LinkRequested {
                user: user.0,
                device_key: asked.device_key.clone(),
                device_name: asked.device_name.clone(),
            };
            self.cast(node, cast::Kind::LinkRequested(asked));
        }
    }
}

impl Delivery {
    /// Other nodes on which the user has a session.
    fn elsewhere(&self, user: UserId) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        if self.peers.is_alone() {
            return nodes;
        }
        match self.rows.of(user) {
            Ok(rows) => {
                let rows = rows.iter().map(|(_, row)| row);
                let elsewhere = rows.filter(|row| row.node != self.node.0);
                let live = elsewhere.filter(|row| self.sessions.is_live(row));
                nodes.extend(live.map(|row| NodeId(row.node)));
            }
            Err(error) => warn!(%user, %error, "sessions not read"),
        }
        nodes
    }

    fn cast(&self, node: NodeId, kind: cast::Kind) -> bool {
        let cast = cluster::Cast { kind: Some(kind) };
        self.peers.cast(node, Lane::Normal, Bytes::from(cast.encode_to_vec()))
    }
}
