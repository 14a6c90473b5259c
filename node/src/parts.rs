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
use actors::shard::{MachineLimits, ShardContext, ShardSettings, Shards};
use actors::user::{UserContext, UserSettings, Users};
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
        let groups = Groups::new(GroupsArgs {
            storage: storage.clone(),
            recovered,
            peers: peers.clone(),
            timing: Timing::default(),
            clock: Arc::new(clocks.clone()),
            bootstrap: opened.bootstrap,
        });
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
        let (metrics, now) = (Metrics::default(), config.cluster_settings());
        let shard = ShardContext {
            node,
            clock: clock.clone(),
            clocks: clocks.clone(),
            storage: storage.clone(),
            groups: groups.clone(),
            peers: peers.clone(),
            sessions: sessions.clone(),
            live: Live::new(shard_settings(config, now)),
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
            live: Live::new(user_settings(now)),
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

/// What shards are told.
pub(crate) fn shard_settings(config: &NodeConfig, now: ClusterSettings) -> ShardSettings {
    let every = config.storage.checkpoint_every.as_millis();
    ShardSettings {
        machine: MachineLimits {
            mailbox_messages: now.mailbox_messages,
            mailbox_bytes: now.mailbox_bytes,
            contact_share: now.contact_share,
            stranger_share: now.stranger_share,
            strangers_share: now.strangers_share,
        },
        stored_bytes_per_second: now.stored_bytes_per_second,
        device_idle_max_ms: u64::from(now.device_idle_max_s) * 1000,
        checkpoint_every_ms: u64::try_from(every).unwrap_or(u64::MAX),
    }
}

/// What user actors are told.
pub(crate) fn user_settings(now: ClusterSettings) -> UserSettings {
    UserSettings {
        message_ttl_max_s: now.message_ttl_max_s,
        pin_digits: now.pin_digits,
        pin_ttl_s: now.pin_ttl_s,
        pin_attempts: now.pin_attempts,
        pin_requests_per_hour: now.pin_requests_per_hour,
        pins_per_hour: now.pins_per_hour,
        wrong_pins_per_alias_per_day: now.wrong_pins_per_alias_per_day,
        wrong_pins_per_hour: now.wrong_pins_per_hour,
    }
}
