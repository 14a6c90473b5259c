//! What the admin socket can see and do of its node.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use actors::service::Vitals;
use actors::shard::Shards;
use consensus::GroupStatus;
use links::Peers;
use membership::clocks::{Clocks, Standing};
use membership::{Cluster, ClusterError, Goal, Place, Work};
use proto::stored::member::State;
use proto::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use sessions::Sessions;

use super::{Failure, FailureCode, join};
use crate::config;

/// How long a command waits for a node that has just started.
const STARTING_MAX: Duration = Duration::from_secs(10);

/// A member, as a status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where nodes reach it.
    pub address: String,
    /// Where clients reach it; empty if it does not say.
    pub client_address: String,
    /// Its zone.
    pub zone: String,
    /// active, draining, leaving or lost.
    pub state: String,
    /// Whether it is heard here.
    pub up: bool,
    /// Which start of it is heard; 0 if it is not.
    pub incarnation: u64,
    /// Version of its program; empty if it is not heard.
    pub version: String,
    /// Seconds since its start, if it answers.
    pub up_s: Option<u64>,
    /// Free bytes on the disk of its data directory, if it answers.
    pub free_bytes: Option<u64>,
    /// Connections of clients, if it answers.
    pub connections: Option<u64>,
    /// How far its clock is ahead of the time that the members agree on, in ms, if that is known here.
    pub clock_ms: Option<i64>,
}

/// A group, with the content of the replica on the node that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The shard of the group, or `meta`.
    pub group: ShardId,
    /// The state of the group; `applied` is the last entry that is in `digest`.
    #[serde(flatten)]
    pub status: GroupStatus,
    /// Digest of the replica, 16 hex digits; the same on all replicas that have applied as much. Empty if this
    /// node holds none, or it was not told in time.
    pub digest: String,
}

/// The sessions table, as a status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsStatus {
    /// Rows.
    pub rows: u64,
    /// Of all rows, 16 hex digits; the same on all nodes that know the same.
    pub digest: String,
    /// Rows of devices that are connected.
    pub online: u64,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's number, as a string; "0": this node belongs to none yet.
    pub cluster: String,
    /// The node that answers.
    pub node: NodeId,
    /// Where it stands: starting, joining, member or removed.
    pub place: String,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// All groups.
    pub groups: Vec<ReplicaStatus>,
    /// What is to be said of this node's clock: right, astray, differs or jumped.
    pub clock: String,
    /// The sessions table here.
    pub sessions: SessionsStatus,
    /// What is set for the whole cluster.
    pub settings: BTreeMap<String, String>,
}

impl Status {
    /// A group as this node sees it.
    pub fn group(&self, group: ShardId) -> Option<&ReplicaStatus> {
        self.groups.iter().find(|known| known.group == group)
    }

    /// The number of groups that this node says it leads.
    pub fn leads(&self) -> usize {
        self.groups.iter().filter(|group| group.status.leader == Some(self.node)).count()
    }
}

fn clock_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Right => "right",
        Standing::Astray => "astray",
        Standing::Differs => "differs",
        Standing::Jumped => "jumped",
    }
}

/// What can be seen and done.
pub trait Control: Send + Sync + fmt::Debug + 'static {
    /// The node that answers.
    fn me(&self) -> NodeId;
    /// All members.
    fn members(&self) -> Vec<MemberStatus>;
    /// How things stand.
    fn status(&self) -> Work<Status>;
    /// Changes the state of a member.
    fn set_state(&self, node: NodeId, state: State) -> Work<Result<(), ClusterError>>;
    /// Sets a setting for the whole cluster.
    fn set_setting(&self, key: String, value: String) -> Work<Result<(), ClusterError>>;
    /// All settings that the cluster can set, as they hold now.
    fn settings(&self) -> BTreeMap<String, String>;
    /// Looks at the balance now.
    fn rebalance(&self);
    /// What is left until a goal is reached.
    fn left(&self, goal: Goal) -> Vec<String>;
    /// Prepares to join another cluster; says what the operator has to do.
    fn join(&self, seed: String) -> Work<Result<String, Failure>>;
}

/// The control of a running node.
#[derive(Clone, Debug)]
pub(super) struct NodeControl {
    pub(super) shards: Shards,
    pub(super) sessions: Sessions,
    pub(super) peers: Peers,
    pub(super) clocks: Clocks,
    pub(super) vitals: Vitals,
    pub(super) incarnation: u64,
    pub(super) cluster: Cluster,
    pub(super) data_dir: PathBuf,
}

impl NodeControl {
    async fn read_status(self) -> Status {
        let cluster = &self.cluster;
        let (digests, meta_digest, members) =
            tokio::join!(self.shards.digests(), cluster.meta_digest(), self.members_and_vitals());
        let groups = cluster.groups().into_iter().map(|(group, mut status)| {
            let told = if group == ShardId::META {
                meta_digest.map(|told| (told.applied, told.digest))
            } else {
                let told = digests.get(usize::from(group.0)).copied().flatten();
                told.map(|told| (told.applied, told.digest))
            };
            let told = told.filter(|_| cluster.holds(group));
            status.applied = told.map_or(status.applied, |(applied, _)| applied);
            let digest = told.map(|(_, digest)| format!("{digest:016x}")).unwrap_or_default();
            ReplicaStatus { group, status, digest }
        });
        let groups = groups.collect();
        let meta = cluster.meta();
        let set = meta.settings.iter();
        let sessions = self.sessions.figures();
        Status {
            cluster: meta.cluster.to_string(),
            node: cluster.me(),
            place: cluster.place().word().to_owned(),
            members,
            groups,
            clock: clock_word(self.clocks.report().standing).to_owned(),
            sessions: SessionsStatus {
                rows: sessions.rows.saturating_sub(sessions.tombstones),
                digest: format!("{:016x}", self.sessions.digest()),
                online: sessions.online,
            },
            settings: set.map(|one| (one.key.clone(), one.value.clone())).collect(),
        }
    }

    /// All members, with what they answer when they are asked how they are.
    async fn members_and_vitals(&self) -> Vec<MemberStatus> {
        let me = self.cluster.me();
        let asked = self.members().into_iter().map(async |mut member| {
            let vitals = if member.node == me {
                Some(self.vitals.now())
            } else if member.up {
                self.cluster.vitals_of(member.node).await
            } else {
                None
            };
            if let Some(vitals) = vitals {
                member.up_s = Some(vitals.up_ms / 1000);
                member.free_bytes = Some(vitals.free_bytes);
                member.connections = Some(vitals.connections);
            }
            member
        });
        futures_util::future::join_all(asked).await
    }

    async fn place_when_known(&self) -> Place {
        let mut place = self.cluster.watch_place();
        let known = place.wait_for(|place| *place != Place::Starting);
        drop(tokio::time::timeout(STARTING_MAX, known).await); // What is known then counts.
        self.cluster.place()
    }

    async fn prepare_to_join(self, seed: String) -> Result<String, Failure> {
        let refused = |text: String| Err(Failure::new(FailureCode::Refused, text));
        if !config::is_host_port(&seed) {
            return refused(format!("{seed:?} is no address; write HOST:PORT"));
        }
        let place = self.place_when_known().await;
        let meta = self.cluster.meta();
        match place {
            Place::Member if meta.members.len() == 1 => {}
            Place::Member => {
                let (cluster, members) = (meta.cluster, meta.members.len());
                return refused(format!(
                    "this node belongs to cluster {cluster} of {members} nodes; let it leave first"
                ));
            }
            Place::Starting => {
                return refused("this node has not started yet; see its log".to_owned());
            }
            Place::Joining => {
                return refused("this node looks for its cluster: see cluster.seeds".to_owned());
            }
            Place::Removed => {
                return refused(
                    "its cluster has removed this node; start it anew with an empty data directory \
                     and cluster.seeds"
                        .to_owned(),
                );
            }
        }
        let digests = self.shards.digests().await;
        let accounts: Option<u64> =
            digests.into_iter().map(|told| told.map(|told| told.accounts)).sum();
        match accounts {
            Some(0) => {}
            Some(accounts) => {
                return refused(format!(
                    "this node holds {accounts} accounts; only an empty one joins"
                ));
            }
            None => return refused("not every shard answers; try again".to_owned()),
        }
        if let Err(error) = join::prepare(&self.data_dir, &seed) {
            return refused(format!("{}: {error}", self.data_dir.display()));
        }
        Ok(format!(
            "give this node the cookie of that cluster, in {} unless its settings say otherwise, \
             then restart it: it gives up its own empty cluster and joins by {seed}",
            self.data_dir.join("cookie").display()
        ))
    }
}

impl Control for NodeControl {
    fn me(&self) -> NodeId {
        self.cluster.me()
    }

    fn members(&self) -> Vec<MemberStatus> {
        let up = self.peers.up();
        let clocks = self.clocks.report();
        let member = |member: &proto::stored::Member| {
            let node = NodeId(member.node);
            let heard = up.iter().find(|peer| peer.id.node == node);
            let me = node == self.cluster.me();
            let incarnation =
                if me { Some(self.incarnation) } else { heard.map(|peer| peer.id.incarnation) };
            let version = heard.map(|peer| peer.version.clone()).unwrap_or_default();
            let clock_ms = clocks.others.get(&node).copied();
            MemberStatus {
                node,
                name: member.name.clone(),
                address: member.address.clone(),
                client_address: member.client_address.clone(),
                zone: member.zone.clone(),
                state: match member.state() {
                    State::Active => "active",
                    State::Draining => "draining",
                    State::Leaving => "leaving",
                    State::Lost => "lost",
                }
                .to_owned(),
                up: incarnation.is_some(),
                incarnation: incarnation.unwrap_or_default(),
                version: if me { env!("CARGO_PKG_VERSION").to_owned() } else { version },
                up_s: None,
                free_bytes: None,
                connections: None,
                clock_ms: if me { Some(clocks.offset_ms) } else { clock_ms },
            }
        };
        self.cluster.meta().members.iter().map(member).collect()
    }

    fn status(&self) -> Work<Status> {
        Box::pin(self.clone().read_status())
    }

    fn set_state(&self, node: NodeId, state: State) -> Work<Result<(), ClusterError>> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.set_state(node, state).await })
    }

    fn set_setting(&self, key: String, value: String) -> Work<Result<(), ClusterError>> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.set_setting(&key, &value).await })
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let texts = self.cluster.settings().texts().into_iter();
        texts.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn rebalance(&self) {
        self.cluster.rebalance();
    }

    fn left(&self, goal: Goal) -> Vec<String> {
        self.cluster.left(goal)
    }

    fn join(&self, seed: String) -> Work<Result<String, Failure>> {
        Box::pin(self.clone().prepare_to_join(seed))
    }
}
