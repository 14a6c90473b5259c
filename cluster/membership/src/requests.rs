//! Changes of the cluster: proposed here or wherever `meta` is led, and what other nodes ask of
//! this one.

use super::meta::MetaRefusal;
use super::meta_actor::{Decision, MetaItem, NotDecided, Reply};
use super::{Cluster, ClusterError, Place, meta};
use crate::balance::orders;
use bytes::Bytes;
use links::{CallError, Lane, PeerId, PeerInfo};
use prost::Message as _;
use proto::cluster::{self, cast, request, response};
use proto::stored::member::State;
use proto::stored::{self, meta_command::Kind};
use proto::{NodeId, ShardId};
use std::sync::Arc;
use std::time::Duration;
use supervision::Full;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, error, info};

/// How long a change may take. Longer than an election.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a node may take to say how it is.
const VITALS_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// How long this node may take to hear of what was decided. Longer than a heartbeat.
const HERE_WITHIN: Duration = Duration::from_secs(2);

/// How a single try ended, if not well.
enum Try {
    Refused(String),
    Again,
}

impl Cluster {
    /// Changes the state of a member.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn set_state(&self, node: NodeId, state: State) -> Result<(), ClusterError> {
        let state = stored::SetState { node: node.0, state: state.into() };
        self.propose(Kind::SetState(state)).await
    }

    /// Sets a setting for the whole cluster; an empty value takes it back. It holds on this node when
    /// this returns.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn set_setting(&self, key: &str, value: &str) -> Result<(), ClusterError> {
        let setting = stored::Setting { key: key.to_owned(), value: value.to_owned() };
        self.propose(Kind::SetSetting(setting)).await?;
        // Other nodes hear a heartbeat later that it counts, and this one may be among them.
        let holds = |meta: &Arc<stored::Meta>| {
            let now = meta.settings.iter().find(|setting| setting.key == key);
            now.map_or("", |setting| setting.value.as_str()) == value
        };
        let mut meta = self.watch_meta();
        drop(timeout(HERE_WITHIN, meta.wait_for(holds)).await); // It is decided all the same.
        Ok(())
    }

    /// Proposes a change wherever `meta` is led; waits up to ten seconds.
    pub(super) async fn propose(&self, kind: Kind) -> Result<(), ClusterError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let command = stored::MetaCommand { kind: Some(kind) };
        loop {
            let tried = match self.leader_of(ShardId::META) {
                Some(leader) if leader == self.me() => self.propose_here(&command).await,
                Some(leader) => self.propose_there(leader, &command).await,
                None => Err(Try::Again),
            };
            match tried {
                Ok(()) => return Ok(()),
                Err(Try::Refused(why)) => return Err(ClusterError::Refused(why)),
                Err(Try::Again) if Instant::now() + PAUSE >= deadline => {
                    return Err(ClusterError::NoMajority);
                }
                Err(Try::Again) => sleep(PAUSE).await,
            }
        }
    }

    async fn propose_here(&self, command: &stored::MetaCommand) -> Result<(), Try> {
        match self.decide(command.clone(), TRY_TIMEOUT).await {
            Some(Ok(())) => Ok(()),
            Some(Err(NotDecided::Refused(refusal))) => Err(Try::Refused(refusal.to_string())),
            Some(Err(NotDecided::Elsewhere(error))) => {
                debug!(%error, "not decided yet");
                Err(Try::Again)
            }
            None => Err(Try::Again),
        }
    }

    /// `None`: nothing is known of it.
    async fn decide(&self, command: stored::MetaCommand, within: Duration) -> Option<Decision> {
        let (reply, decision) = oneshot::channel();
        let item = MetaItem::Propose { command, reply: Reply(reply) };
        if let Err(Full(_)) = self.0.meta_inbox.push(item) {
            return None;
        }
        timeout_at(Instant::now() + within, decision).await.ok()?.ok()
    }

    async fn propose_there(
        &self,
        leader: NodeId,
        command: &stored::MetaCommand,
    ) -> Result<(), Try> {
        let asked = cluster::MetaPropose { command: Some(command.clone()) };
        match self.ask(leader, request::Kind::Meta(asked), TRY_TIMEOUT).await {
            Ok(Some(response::Kind::Meta(cluster::MetaOutcome { done: true, .. }))) => Ok(()),
            Ok(Some(response::Kind::Meta(outcome))) => Err(Try::Refused(outcome.refused)),
            Ok(_) | Err(_) => Err(Try::Again),
        }
    }

    /// Asks another node; `None` for an answer that is not understood.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        kind: request::Kind,
        within: Duration,
    ) -> Result<Option<response::Kind>, CallError> {
        let request = cluster::Request { kind: Some(kind) }.encode_to_vec();
        let answer = self.0.peers.call(node, Lane::Normal, Bytes::from(request), within).await?;
        Ok(cluster::Response::decode(answer).ok().and_then(|response| response.kind))
    }

    /// How another node is; `None` if it does not say within a second.
    pub async fn vitals_of(&self, node: NodeId) -> Option<cluster::Vitals> {
        match self.ask(node, request::Kind::Vitals(true), VITALS_TIMEOUT).await {
            Ok(Some(response::Kind::Vitals(vitals))) => Some(vitals),
            Ok(_) | Err(_) => None,
        }
    }

    /// Answers what another node asks of the cluster; `None` if it is nothing of the kind.
    #[allow(clippy::wildcard_enum_match_arm, reason = "other requests have other doors")]
    pub async fn serve(&self, _from: PeerId, kind: request::Kind) -> Option<response::Kind> {
        match kind {
            request::Kind::Join(join) => Some(self.serve_join(join).await),
            request::Kind::Meta(asked) => Some(self.serve_propose(asked).await),
            request::Kind::Order(order) => Some(orders::serve(&self.0.groups, order).await),
            _ => None,
        }
    }

    async fn serve_propose(&self, asked: cluster::MetaPropose) -> response::Kind {
        let Some(command) = asked.command else { return refused("there is no command") };
        // Only `Join` makes a member: who was removed must not come back by a new address.
        if let Some(Kind::SetMember(member)) = &command.kind
            && meta::member(&self.meta(), NodeId(member.node)).is_none()
        {
            return refused(&MetaRefusal::UnknownNode(NodeId(member.node)).to_string());
        }
        self.decided(command, |_| done()).await
    }

    async fn serve_join(&self, join: cluster::Join) -> response::Kind {
        let Some(member) = join.member else { return refused("a member needs a name") };
        let (node, name) = (NodeId(member.node), member.name.clone());
        let state = meta::member(&self.meta(), node).map(stored::Member::state);
        if let Some(State::Leaving | State::Lost) = state {
            return refused(&MetaRefusal::OnItsWayOut(node).to_string());
        }
        let holds_nothing = "its id votes in this cluster, but it has lost what it held; remove it, \
                             and let it join with an empty data directory";
        let views = self.0.standings().views();
        if views.values().any(|view| view.voters.contains(&node)) {
            return refused(holds_nothing);
        }
        let command = stored::MetaCommand { kind: Some(Kind::SetMember(member.clone())) };
        let answer = self.decided(command, |cluster| {
            info!(%node, name, "node has joined");
            let meta = cluster.meta();
            let (cluster, members) = (meta.cluster, meta.members.clone());
            response::Kind::Joined(cluster::Joined { cluster, members })
        });
        let answer = answer.await;
        if let response::Kind::NotLeader(not) = &answer
            && not.leader != 0
            && !join.forwarded
        {
            return self.forward_join(NodeId(not.leader), member).await;
        }
        answer
    }

    /// Who joins by a seed need not be able to reach anybody else yet.
    async fn forward_join(&self, leader: NodeId, member: stored::Member) -> response::Kind {
        let join = cluster::Join { member: Some(member), forwarded: true };
        let asked = self.ask(leader, request::Kind::Join(join), TRY_TIMEOUT).await;
        let not_leader = response::Kind::NotLeader(cluster::NotLeader { leader: 0 });
        asked.ok().flatten().unwrap_or(not_leader)
    }

    async fn decided(
        &self,
        command: stored::MetaCommand,
        well: impl FnOnce(&Self) -> response::Kind,
    ) -> response::Kind {
        match self.decide(command, TRY_TIMEOUT).await {
            Some(Ok(())) => well(self),
            Some(Err(NotDecided::Refused(refusal))) => refused(&refusal.to_string()),
            undecided @ (Some(Err(NotDecided::Elsewhere(_))) | None) => {
                debug!(?undecided, "not decided here");
                let leader = self.leader_of(ShardId::META).filter(|leader| *leader != self.me());
                let leader = leader.map_or(0, |leader| leader.0);
                response::Kind::NotLeader(cluster::NotLeader { leader })
            }
        }
    }

    /// The leaders of groups tell of them.
    pub fn standings(&self, from: PeerId, told: cluster::Standings) {
        let meta = self.meta();
        if meta.cluster != 0
            && self.place() == Place::Member
            && meta::member(&meta, from.node).is_none()
        {
            let news = cluster::NotMember { cluster: meta.cluster, version: meta.version };
            self.tell(from.node, cast::Kind::NotMember(news));
            return;
        }
        self.0.standings().heard(from.node, told, Instant::now());
    }

    /// Another node tells that this one is no member any longer. It may know less than this one.
    pub fn not_member(&self, from: PeerId, news: cluster::NotMember) {
        let meta = self.meta();
        let from_member = meta::member(&meta, from.node).is_some();
        if from_member && news.cluster == meta.cluster && news.version > meta.version {
            self.removed();
        }
    }

    /// Notes that the cluster has removed this node.
    pub(super) fn removed(&self) {
        if self.set_place(Place::Removed) {
            error!(
                cluster = self.meta().cluster,
                "the cluster has removed this node; to join again it needs an empty data directory"
            );
        }
    }

    /// A peer has come.
    pub fn peer_up(&self, _peer: &PeerInfo) {
        self.look_again();
    }

    /// Tells a node something; it may be lost.
    pub(super) fn tell(&self, node: NodeId, kind: cast::Kind) {
        let parcel = cluster::Cast { kind: Some(kind) }.encode_to_vec();
        self.0.peers.cast(node, Lane::Urgent, Bytes::from(parcel));
    }
}

fn refused(why: &str) -> response::Kind {
    response::Kind::Meta(cluster::MetaOutcome { done: false, refused: why.to_owned() })
}

fn done() -> response::Kind {
    response::Kind::Meta(cluster::MetaOutcome { done: true, refused: String::new() })
}
