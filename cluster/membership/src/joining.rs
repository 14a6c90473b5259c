//! The task that makes this node a member: it founds the cluster, or asks to join it, and tells
//! when its address has changed.

use super::{Cluster, ClusterError, Nodes, Place, meta, placement};
use links::CallError;
use proto::cluster::{self, request, response};
use proto::stored::meta_command::Kind;
use proto::{NodeId, ShardId};
use std::time::Duration;
use supervision::{ProcessError, Stopping};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(500);

/// How often it looks until it knows where it stands: a start waits for that.
const LOOK_AT_START: Duration = Duration::from_millis(25);

/// How long an answer to a request to join may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(6);

/// How long the members that this node knows may lack it before it takes that for its removal.
const DOUBT: Duration = Duration::from_secs(10);

/// How long seeds are dialed before it is said that none answers.
const DIAL_WAIT: Duration = Duration::from_secs(5);

/// How often it says again that it cannot join.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Runs until `stopping`.
pub(super) async fn run(cluster: Cluster, stopping: Stopping) -> Result<(), ProcessError> {
    let mut task = Membership { cluster, joins_since: None, missing_since: None, said: None };
    let work = async {
        loop {
            task.look().await;
            let starts = task.cluster.place() == Place::Starting;
            sleep(if starts { LOOK_AT_START } else { LOOK }).await;
        }
    };
    tokio::select! {
        () = stopping.wait() => Ok(()),
        () = work => Ok(()),
    }
}

struct Membership {
    cluster: Cluster,
    joins_since: Option<Instant>,
    missing_since: Option<Instant>,
    said: Option<(String, Instant)>,
}

impl Cluster {
    fn is_alone_in(&self, group: ShardId) -> bool {
        let status = self.0.groups.status(group);
        status.is_some_and(|status| status.voters == Nodes::from([self.me()]))
    }
}

impl Membership {
    async fn look(&mut self) {
        let cluster = self.cluster.clone();
        let Some(status) = cluster.0.groups.status(ShardId::META) else { return };
        if cluster.place() == Place::Removed {
            return;
        }
        let (known, me) = (cluster.meta(), cluster.me());
        if known.cluster == 0 {
            // The number is given last: a node that has it founds no group ever again.
            if placement::groups().all(|group| cluster.is_alone_in(group)) {
                self.found().await;
            } else if status.voters.is_empty() && cluster.0.joins {
                self.join().await;
            }
            return;
        }
        match meta::member(&known, me) {
            Some(member) => {
                self.missing_since = None;
                if cluster.set_place(Place::Member) {
                    info!(cluster = known.cluster, members = known.members.len(), "member");
                }
                let mut about = cluster.0.about.clone();
                about.state = member.state;
                if about != *member {
                    self.propose(Kind::SetMember(about), "this node's address is not told").await;
                }
            }
            None if status.leads_a_majority() => self.propose_me().await,
            None => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if cluster.place() == Place::Member || since.elapsed() > DOUBT {
                    cluster.removed();
                }
            }
        }
    }

    async fn found(&mut self) {
        let found = Kind::Found(self.cluster.0.chance);
        if self.propose(found, "the cluster cannot be founded").await {
            info!(cluster = self.cluster.0.chance, "cluster founded");
            self.propose_me().await;
        }
    }

    async fn propose_me(&mut self) {
        let me = Kind::SetMember(self.cluster.0.about.clone());
        self.propose(me, "this node does not become a member").await;
    }

    async fn propose(&mut self, kind: Kind, failed: &'static str) -> bool {
        match self.cluster.propose(kind).await {
            Ok(()) => true,
            Err(error @ (ClusterError::Refused(_) | ClusterError::NoMajority)) => {
                self.say(format!("{failed}: {error}"));
                false
            }
        }
    }

    /// Asks everyone who is there, the leader of `meta` first once it is known.
    async fn join(&mut self) {
        let cluster = self.cluster.clone();
        if cluster.set_place(Place::Joining) {
            info!("looking for a member of the cluster");
        }
        let since = *self.joins_since.get_or_insert_with(Instant::now);
        let there: Vec<_> = cluster.0.peers.up().into_iter().map(|peer| peer.id.node).collect();
        if there.is_empty() && since.elapsed() >= DIAL_WAIT {
            self.say("no seed answers; are cluster.seeds and the cookie right?".to_owned());
        }
        for node in there {
            if let Ok(true) = self.ask_to_join(node).await {
                return;
            }
        }
    }

    /// Whether nobody else has to be asked: it has joined, or was refused.
    async fn ask_to_join(&mut self, node: NodeId) -> Result<bool, CallError> {
        let member = Some(self.cluster.0.about.clone());
        let asked = request::Kind::Join(cluster::Join { member, forwarded: false });
        match self.cluster.ask(node, asked, JOIN_TIMEOUT).await? {
            Some(response::Kind::Joined(joined)) => {
                info!(cluster = joined.cluster, "joined; waiting for what it knows");
                self.cluster.learn(&joined.members);
                self.wait_for_meta().await;
                Ok(true)
            }
            Some(response::Kind::Meta(outcome)) => {
                self.say(format!("the cluster does not let this node in: {}", outcome.refused));
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }

    /// Waits a while for the group `meta` to reach this node.
    async fn wait_for_meta(&self) {
        let mut meta = self.cluster.watch_meta();
        let told = meta.wait_for(|meta| meta.cluster != 0);
        // If it takes longer the node asks again, which does no harm.
        drop(tokio::time::timeout(DOUBT, told).await);
    }

    fn say(&mut self, what: String) {
        let repeated =
            self.said.as_ref().is_some_and(|(said, at)| *said == what && at.elapsed() < SAY_AGAIN);
        if !repeated {
            warn!("{what}");
            self.said = Some((what, Instant::now()));
        }
    }
}
