//! The cluster: its members, what is set for all of them, and where the shards are.
//!
//! ```text
//!   admin, membership --propose--> meta actor --> Raft group `meta` --> meta actor, on every node
//!                                                                          | publishes
//!   standings of all groups (told by their leaders) --> balancer <---------+
//!                                                          | on the leader of meta alone
//!                                                          +--> orders to the leaders of groups
//! ```
//!
//! # Invariants
//! 1. Members, settings and placements change by a majority of the group `meta`, and the same on
//!    every node.
//! 2. The balancer may be wrong, doubled or dead without harm to data: every order is a safe Raft
//!    change, looked at again by the leader that carries it out.
//! 3. A node founds a cluster at most once, and only if it was told to; a node with seeds joins.

mod balance;
pub mod clocks;
mod groups;
mod joining;
mod meta;
mod meta_actor;
mod placement;
#[cfg(test)]
mod placement_tests;
mod requests;
mod settings;
mod status;
#[cfg(test)]
mod tests;
pub mod units;

pub use groups::{Failed, GroupError, Groups, Work};
pub use meta_actor::{MetaDigest, MetaItem};
pub use placement::Nodes;
pub use settings::{ClusterSettings, SettingError, keys};
pub use status::Goal;

use balance::balancer::{BalancerActor, BalancerItem};
use balance::standings::Standings;
use consensus::Handed;
use links::Peers;
use meta_actor::MetaActor;
use parking_lot::{Mutex, MutexGuard};
use proto::stored;
use proto::{NodeId, ShardId};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use supervision::{ChildSpec, Inbox, TaskGroup};
use tokio::sync::watch;

/// Why a change of the cluster did not happen, or is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It makes no sense; nothing changed.
    #[error("{0}")]
    Refused(String),
    /// No majority answered in time. It may have happened all the same; it is safe to try again.
    #[error("no majority of the cluster answers; try again when more nodes are up")]
    NoMajority,
}

/// Where this node stands in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has just started and does not know yet.
    Starting,
    /// It looks for a member that lets it in.
    Joining,
    /// It belongs to the cluster.
    Member,
    /// The cluster has removed it. It cannot come back with what it holds.
    Removed,
}

impl Place {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Joining => "joining",
            Self::Member => "member",
            Self::Removed => "removed",
        }
    }
}

/// What a cluster door is made of.
#[derive(Clone, Debug)]
pub struct ClusterArgs {
    /// This node as others should know it. Its state does not count.
    pub about: stored::Member,
    /// Which start of this node this is; grows with each.
    pub incarnation: u64,
    /// The settings of this node.
    pub own: ClusterSettings,
    /// Whether there are seeds: then the node joins, and never founds.
    pub joins: bool,
    /// A random number, never 0: the cluster's, should this node found one.
    pub chance: u64,
    /// The links to other nodes.
    pub peers: Peers,
    /// The Raft groups of this node.
    pub groups: Arc<dyn Groups>,
}

/// The door to the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    about: stored::Member,
    own: Mutex<ClusterSettings>,
    joins: bool,
    chance: u64,
    peers: Peers,
    groups: Arc<dyn Groups>,
    tasks: TaskGroup,
    numbers: AtomicU64,
    meta: watch::Sender<Arc<stored::Meta>>,
    settings: watch::Sender<ClusterSettings>,
    place: watch::Sender<Place>,
    standings: Mutex<Standings>,
    meta_inbox: Arc<Inbox<MetaItem>>,
    /// Entries that `meta` has committed and its actor has not applied.
    meta_handed: Arc<Handed>,
    balancer_inbox: Arc<Inbox<BalancerItem>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("about", &self.0.about).finish_non_exhaustive()
    }
}

impl Shared {
    fn me(&self) -> NodeId {
        NodeId(self.about.node)
    }

    /// A number that no proposal of this node had before, in any of its starts.
    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings.lock()
    }
}

impl Cluster {
    /// A door; its [`children`](Self::children) do the work.
    pub fn new(args: ClusterArgs) -> Self {
        let ClusterArgs { about, incarnation, own, joins, chance, peers, groups } = args;
        Self(Arc::new(Shared {
            about,
            own: Mutex::new(own),
            joins,
            chance,
            peers,
            groups,
            tasks: TaskGroup::new(),
            // An incarnation is a time in ms: a start makes less than a million proposals for each.
            numbers: AtomicU64::new(incarnation << 20),
            meta: watch::Sender::new(Arc::default()),
            settings: watch::Sender::new(own),
            place: watch::Sender::new(Place::Starting),
            standings: Mutex::default(),
            meta_handed: Arc::default(),
            meta_inbox: Inbox::new("meta", 0, meta_actor::QUEUE),
            balancer_inbox: Inbox::new("balancer", 0, balance::balancer::QUEUE),
        }))
    }

    /// What runs for it, in start order: the meta actor, which opens its group; the balancer; what
    /// makes this node a member; and what forgets shards that went elsewhere. Links must be there
    /// before.
    pub fn children(&self) -> Vec<ChildSpec> {
        let (member, retires) = (self.clone(), self.clone());
        vec![
            ChildSpec::process::<MetaActor>("meta", self.clone(), self.0.meta_inbox.clone()),
            ChildSpec::process::<BalancerActor>(
                "balancer",
                self.clone(),
                self.0.balancer_inbox.clone(),
            ),
            ChildSpec::task("membership", move |stopping| joining::run(member.clone(), stopping)),
            ChildSpec::task("retirement", move |stopping| {
                balance::retirement::run(retires.clone(), stopping)
            }),
        ]
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.0.me()
    }

    /// What the cluster has decided, as far as this node knows.
    pub fn meta(&self) -> Arc<stored::Meta> {
        self.0.meta.borrow().clone()
    }

    /// Tells whenever the cluster has decided something.
    pub fn watch_meta(&self) -> watch::Receiver<Arc<stored::Meta>> {
        self.0.meta.subscribe()
    }

    /// The settings that hold now.
    pub fn settings(&self) -> ClusterSettings {
        *self.0.settings.borrow()
    }

    /// Tells whenever settings change.
    pub fn watch_settings(&self) -> watch::Receiver<ClusterSettings> {
        self.0.settings.subscribe()
    }

    /// Where this node stands.
    pub fn place(&self) -> Place {
        *self.0.place.borrow()
    }

    /// Tells whenever that changes.
    pub fn watch_place(&self) -> watch::Receiver<Place> {
        self.0.place.subscribe()
    }

    /// Who leads a group, as far as this node knows; it need not hold the group.
    pub fn leader_of(&self, group: ShardId) -> Option<NodeId> {
        let here = self.0.groups.status(group).unwrap_or_default();
        let standings = self.0.standings();
        let told = standings.get(group).filter(|report| report.status.term > here.term);
        let told = told.and_then(|report| report.status.leader);
        told.or(here.leader).or_else(|| standings.get(group)?.status.leader)
    }

    /// Makes known what was decided.
    fn publish(&self, meta: &stored::Meta) {
        if meta.cluster != 0 {
            self.learn(&meta.members);
        }
        self.0.meta.send_replace(Arc::new(meta.clone()));
        self.settle_settings();
        self.look_again();
    }

    /// Other settings of this node; what is set for the cluster goes before them as always.
    pub fn set_own(&self, own: ClusterSettings) {
        *self.0.own.lock() = own;
        self.settle_settings();
    }

    fn settle_settings(&self) {
        let own = self.0.own.lock();
        let settings = own.overridden(&self.0.meta.borrow());
        self.0.settings.send_if_modified(|now| std::mem::replace(now, settings) != settings);
    }

    /// Tells the links where the members are.
    fn learn(&self, members: &[stored::Member]) {
        let others = members.iter().filter(|member| member.node != self.0.about.node);
        let addresses = others.map(|member| (NodeId(member.node), member.address.clone()));
        self.0.peers.learn(addresses.collect());
    }

    fn set_place(&self, place: Place) -> bool {
        self.0.place.send_if_modified(|now| std::mem::replace(now, place) != place)
    }

    /// The balancer should look now rather than at its next tick.
    fn look_again(&self) {
        drop(self.0.balancer_inbox.push(BalancerItem::Changed));
    }
}
