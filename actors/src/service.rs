//! What this node does with what other nodes say: every cast and request finds its door here.
//!
//! Runs on the links' own tasks, so it only hands over.

use crate::presence::Presence;
use crate::shard::{Shards, account_from_wire};
use crate::user::Users;
use bytes::Bytes;
use consensus::Groups;
use links::{PeerId, PeerInfo, Respond, Service};
use membership::Cluster;
use membership::clocks::Clocks;
use metrics::Counter;
use prost::Message;
use proto::cluster::{self, cast, request, response};
use proto::stored::Session;
use proto::{Code, DeviceId, NodeId, Seq, ShardId, UserId, wire};
use sessions::{Sessions, Watch};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use storage::Storage;
use supervision::TaskGroup;
use tracing::debug;

/// What an operator is shown of this node.
#[derive(Clone)]
pub struct Vitals {
    /// They know since when the node runs.
    pub clocks: Clocks,
    /// It knows how much space is left.
    pub storage: Storage,
    /// The tasks of client connections.
    pub connections: TaskGroup,
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").finish_non_exhaustive()
    }
}

impl Vitals {
    /// As they are now.
    pub fn now(&self) -> cluster::Vitals {
        cluster::Vitals {
            up_ms: self.clocks.up_ms(),
            free_bytes: self.storage.usage().free_bytes,
            connections: self.connections.count() as u64,
        }
    }
}

/// The node as its peers see it: the doors to which what they say goes.
#[derive(Clone)]
pub struct NodeService {
    /// This node's id.
    pub node: NodeId,
    /// Members and settings.
    pub cluster: Cluster,
    /// Who is connected where.
    pub sessions: Sessions,
    /// The Raft groups of this node.
    pub groups: Groups,
    /// Commands and questions to shards.
    pub shards: Shards,
    /// The users connected here.
    pub users: Users,
    /// Who shows users to others.
    pub presence: Presence,
    /// What this node's clock says.
    pub clocks: Clocks,
    /// What other nodes show an operator of this one.
    pub vitals: Vitals,
    /// Answers under way.
    pub tasks: TaskGroup,
    /// Counts signals that nobody took.
    pub hints_dropped: Counter,
}

impl fmt::Debug for NodeService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeService").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Service for NodeService {
    fn up(&self, peer: PeerInfo) {
        self.sessions.peer_up(peer.id);
        self.cluster.peer_up(&peer);
        self.shards.peer_changed(peer.id.node, true);
    }

    fn down(&self, peer: PeerId) {
        self.sessions.peer_down(peer);
        for (_, group) in self.groups.all() {
            group.peer_down(peer.node);
        }
        self.shards.peer_changed(peer.node, false);
    }

    fn cast(&self, from: PeerId, parcel: Bytes) {
        let Ok(cluster::Cast { kind: Some(kind) }) = cluster::Cast::decode(parcel) else {
            debug!("cast not understood");
            return;
        };
        match kind {
            cast::Kind::Sessions(rows) => self.sessions.received(from, rows),
            cast::Kind::Pushes(pushes) => pushes.pushes.into_iter().for_each(|p| self.push(p)),
            cast::Kind::Signals(signals) => {
                signals.signals.into_iter().for_each(|signal| self.signal(signal));
            }
            cast::Kind::Accounts(touched) => {
                for user in touched.users {
                    self.presence.account_touched(UserId(user));
                }
            }
            cast::Kind::Leader(leader) => {
                let shard = ShardId::from_number(leader.shard);
                self.shards.leads_elsewhere(shard, from.node, leader.term);
                self.users.read_again(shard);
                self.presence.shard_touched(shard);
            }
            cast::Kind::Account(changed) => {
                let account = changed.account.as_ref().and_then(account_from_wire);
                self.users.account_changed(UserId(changed.user), account);
            }
            cast::Kind::Standings(standings) => self.cluster.standings(from, standings),
            cast::Kind::NotMember(news) => self.cluster.not_member(from, news),
            cast::Kind::LinkRequested(asked) => {
                let cluster::LinkRequested { user, device_key, device_name } = asked;
                let asked = wire::LinkRequested { device_key, device_name };
                self.users.link_requested(UserId(user), asked);
            }
        }
    }

    fn call(&self, from: PeerId, parcel: Bytes, left: Duration, respond: Respond) {
        let Ok(cluster::Request { kind: Some(kind) }) = cluster::Request::decode(parcel) else {
            respond(encode(refused(Code::NotSupported)));
            return;
        };
        match kind {
            request::Kind::Propose(propose) => {
                let answer = Box::new(move |outcomes: Vec<_>| {
                    let outcomes = cluster::Outcomes { outcomes };
                    respond(encode(response::Kind::Outcomes(outcomes)));
                });
                self.shards.serve_proposal(propose, answer);
            }
            request::Kind::Ask(ask) => {
                let answer = Box::new(move |answer: Option<cluster::Answer>| {
                    let not_leader = response::Kind::NotLeader(cluster::NotLeader { leader: 0 });
                    respond(encode(answer.map_or(not_leader, response::Kind::Answer)));
                });
                self.shards.serve_question(ask, answer);
            }
            request::Kind::Clock(_) => {
                respond(encode(response::Kind::ClockMs(self.clocks.own_ms())));
            }
            request::Kind::Vitals(_) => {
                respond(encode(response::Kind::Vitals(self.vitals.now())));
            }
            kind @ (request::Kind::Append(_)
            | request::Kind::Vote(_)
            | request::Kind::Snapshot(_)
            | request::Kind::TimeoutNow(_)) => self.raft(kind, respond),
            kind @ (request::Kind::Sessions(_) | request::Kind::Fetch(_)) => {
                let sessions = self.sessions.clone();
                self.tasks.spawn("sessions", async move {
                    let asked = tokio::task::spawn_blocking(move || sessions.serve(&kind));
                    let answer = asked.await.ok().flatten();
                    respond(encode(answer.unwrap_or(refused(Code::Unavailable))));
                });
            }
            kind @ (request::Kind::Join(_) | request::Kind::Order(_) | request::Kind::Meta(_)) => {
                let cluster = self.cluster.clone();
                self.tasks.spawn("cluster", async move {
                    let answer = tokio::time::timeout(left, cluster.serve(from, kind)).await;
                    let answer = answer.ok().flatten();
                    respond(encode(answer.unwrap_or(refused(Code::Unavailable))));
                });
            }
        }
    }
}

impl NodeService {
    fn raft(&self, kind: request::Kind, respond: Respond) {
        let group = group_of(&kind).and_then(|group| self.groups.get(group)).cloned();
        let Some(group) = group else {
            respond(encode(refused(Code::Unavailable)));
            return;
        };
        self.tasks.spawn("raft", async move {
            if let Some(answer) = group.serve(kind).await {
                respond(encode(answer));
            }
        });
    }

    fn push(&self, push: cluster::Push) {
        let (users, user) = (&self.users, UserId(push.user));
        match push.envelope {
            Some(envelope) => users.push(user, Seq(push.seq), Arc::new(envelope)),
            None => users.grown_to(user, Seq(push.seq)),
        }
    }

    fn signal(&self, signal: cluster::Signal) {
        let cluster::Signal { to, from, from_device, kind, body } = signal;
        let signaled = wire::Signaled { from, from_device, kind, body };
        if !self.users.signal(UserId(to), signaled) {
            self.hints_dropped.increment(1);
        }
    }
}

impl Watch for NodeService {
    fn displaced(&self, user: UserId, device: DeviceId) {
        self.users.displaced(user, device);
    }

    fn changed(
        &self,
        user: UserId,
        _device: DeviceId,
        _before: Option<&Session>,
        after: Option<&Session>,
    ) {
        if let Some(row) = after.filter(|row| row.online && row.node != self.node.0) {
            self.shards.session_opened(user, NodeId(row.node));
        }
    }

    fn touched(&self, user: UserId) {
        self.presence.touched(user);
    }

    fn still_here(&self, user: UserId, device: DeviceId) -> bool {
        self.users.has_session(user, device)
    }
}

fn group_of(kind: &request::Kind) -> Option<ShardId> {
    let number = match kind {
        request::Kind::Append(append) => append.group,
        request::Kind::Vote(vote) => vote.group,
        request::Kind::Snapshot(piece) => piece.group,
        request::Kind::TimeoutNow(now) => now.group,
        request::Kind::Propose(_)
        | request::Kind::Ask(_)
        | request::Kind::Sessions(_)
        | request::Kind::Fetch(_)
        | request::Kind::Join(_)
        | request::Kind::Order(_)
        | request::Kind::Meta(_)
        | request::Kind::Clock(_)
        | request::Kind::Vitals(_) => return None,
    };
    u16::try_from(number).ok().map(ShardId)
}

fn refused(code: Code) -> response::Kind {
    response::Kind::Refused(code.number())
}

fn encode(kind: response::Kind) -> Bytes {
    Bytes::from(cluster::Response { kind: Some(kind) }.encode_to_vec())
}
