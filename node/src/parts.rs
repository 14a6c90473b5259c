//! The parts of a node, each made once, and what its processes are given of them.
//!
//! Made by `boot`; nothing else reaches all of them.

use std::sync::Arc;

use actors::delivery::Delivery;
use actors::hooks::Handler;
use actors::live::Live;
use actors::metrics::Metrics;
use actors::presence::{Presence, PresenceContext};
use actors::rates::Rates;
use actors::secrets::Secrets;
use actors::service::Vitals;
use actors::shard::{ShardContext, Shards};
use actors::user::{UserContext, Users};
use consensus::{Groups, GroupsArgs, Timing};
use links::Peers;
use membership::ClusterSettings;
use membership::clocks::Clocks;
use proto::NodeId;
use sessions::Sessions;
use storage::{ShardRecords, Storage};
use supervision::{StopSource, TaskGroup};

use crate::client::reception::Reception;
use crate::config::NodeConfig;
use crate::links::Links;
use crate::listener::Gate;
use crate::observe::http::Readiness;
use crate::observe::telemetry;
use crate::tls::Certificates;

/// What was opened before anything is made of it.
pub(crate) struct Opened {
    pub(crate) incarnation: u64,
    pub(crate) peers: Peers,
    pub(crate) clocks: Clocks,
    pub(crate) storage: Storage,
    /// What the log held beyond the tables.
    pub(crate) recovered: Vec<ShardRecords>,
    pub(crate) sessions: Sessions,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) handlers: Vec<Arc<dyn Handler>>,
    /// This start makes a cluster of its own.
    pub(crate) bootstrap: bool,
}

/// A running node's parts, for those who build and stop it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) parts: Parts,
    pub(crate) reception: Arc<Reception>,
    /// For strangers.
    pub(crate) close: StopSource,
    pub(crate) connections: TaskGroup,
    pub(crate) gate: Gate,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: telemetry::Metrics,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) links: Links,
}

/// The parts of a node.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) peers: Peers,
    pub(crate) clocks: Clocks,
    pub(crate) storage: Storage,
    pub(crate) groups: Groups,
    pub(crate) sessions: Sessions,
    /// The settings of the cluster, as of now.
    pub(crate) settings: Live<ClusterSettings>,
    /// Calls under way to other nodes.
    pub(crate) tasks: TaskGroup,
    /// The tasks of client connections.
    pub(crate) connections: TaskGroup,
    pub(crate) shards: Arc<ShardContext>,
    pub(crate) users: Arc<UserContext>,
    pub(crate) presence: Arc<PresenceContext>,
}

impl Parts {
    /// Makes them. Nothing runs yet.
    pub(crate) fn new(config: &NodeConfig, opened: Opened) -> Self {
        let Opened { incarnation, peers, clocks, storage, recovered, sessions, .. } = opened;
        let bootstrap = opened.bootstrap;
        let groups = groups(&storage, recovered, (&peers, &clocks), bootstrap);
        let (node, clock, tasks) = (peers.me().node, clocks.clock(), TaskGroup::new());
        let (shards, users, presence) = (Shards::default(), Users::default(), Presence::default());
        let delivery = Arc::new(Delivery {
            node,
            peers: peers.clone(),
            rows: storage.sessions().clone(),
            sessions: sessions.clone(),
            users: users.clone(),
            presence: presence.clone(),
        });
        let (metrics, settings) = (Metrics::default(), Live::new(config.cluster_settings()));
        let shard = ShardContext {
            node,
            clock: clock.clone(),
            clocks: clocks.clone(),
            storage: storage.clone(),
            groups: groups.clone(),
            peers: peers.clone(),
            sessions: sessions.clone(),
            settings: settings.clone(),
            checkpoint_every_ms: config.checkpoint_every_ms(),
            tasks: tasks.clone(),
            shards: shards.clone(),
            recipients: delivery.clone(),
            wrong_pins_alarms: metrics.wrong_pins_alarms.clone(),
            pins_used_up: metrics.pins_used_up.clone(),
        };
        let watching = PresenceContext {
            presence: presence.clone(),
            watchers: Arc::new(users.clone()),
            shards: shards.clone(),
            rows: storage.sessions().clone(),
            sessions: sessions.clone(),
        };
        let user = UserContext {
            clock,
            rows: storage.sessions().clone(),
            secrets: opened.secrets,
            settings: settings.clone(),
            sessions: sessions.clone(),
            rates: Rates::new(config.rates.limits()),
            metrics,
            handlers: opened.handlers,
            shards,
            users,
            presence,
            signals: delivery,
        };
        Self {
            node,
            incarnation,
            peers,
            clocks,
            storage,
            groups,
            sessions,
            settings,
            tasks,
            connections: TaskGroup::new(),
            shards: Arc::new(shard),
            users: Arc::new(user),
            presence: Arc::new(watching),
        }
    }

    /// What an operator is shown of this node.
    pub(crate) fn vitals(&self) -> Vitals {
        Vitals {
            clocks: self.clocks.clone(),
            storage: self.storage.clone(),
            connections: self.connections.clone(),
        }
    }
}

/// The Raft groups, before they are opened.
fn groups(
    storage: &Storage,
    recovered: Vec<ShardRecords>,
    (peers, clocks): (&Peers, &Clocks),
    bootstrap: bool,
) -> Groups {
    Groups::new(GroupsArgs {
        storage: storage.clone(),
        recovered,
        peers: peers.clone(),
        timing: Timing::default(),
        clock: Arc::new(clocks.clone()),
        bootstrap,
    })
}
