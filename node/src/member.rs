//! This node as a member of its cluster: what it says of itself, the settings that hold for all, and
//! leadership handed over before it goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actors::replicas::NodeGroups;
use actors::service::NodeService;
use consensus::Groups;
use membership::{Cluster, ClusterArgs, Place};
use proto::ids::SHARDS;
use proto::{ShardId, stored};
use storage::{Row, Storage};
use supervision::ChildSpec;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::admin;
use crate::config::NodeConfig;
use crate::parts::{Node, Parts};

/// How long a start waits for leaders before it lets clients in all the same: they are told to try
/// again.
const LEADERS_WAIT: Duration = Duration::from_secs(10);

/// How long the end waits for others to lead.
const HAND_OVER_WAIT: Duration = Duration::from_secs(3);

/// The doors of a member.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) cluster: Cluster,
    pub(crate) service: Arc<NodeService>,
}

impl Membership {
    /// `tcp` and `websocket`: where this node listens for clients.
    pub(crate) fn new(
        config: &NodeConfig,
        node: &Node,
        (tcp, websocket): (Option<&str>, Option<&str>),
    ) -> Self {
        let parts = &node.parts;
        let told = |advertised: &str, bound: Option<&str>| {
            let for_others = |bound: &&str| is_for_others(bound, &node.links.advertised());
            let bound = bound.filter(for_others).unwrap_or_default();
            if advertised.is_empty() { bound.to_owned() } else { advertised.to_owned() }
        };
        let client = told(&config.listen.advertise, tcp);
        let websocket = told(&config.listen.advertise_websocket, websocket);
        node.links.tell_client_addresses(&client, &websocket);
        let mut chance = [0; 8];
        parts.users.secrets.fill(&mut chance);
        let cluster = Cluster::new(ClusterArgs {
            about: stored::Member {
                node: parts.node.0,
                name: config.cluster.node_name(),
                address: node.links.advertised(),
                zone: config.cluster.zone.clone(),
                client_address: client,
                ..stored::Member::default()
            },
            incarnation: parts.incarnation,
            own: config.cluster_settings(),
            joins: !config.cluster.seeds.is_empty(),
            chance: u64::from_le_bytes(chance).max(1),
            peers: parts.peers.clone(),
            groups: Arc::new(NodeGroups {
                groups: parts.groups.clone(),
                storage: parts.storage.clone(),
            }),
        });
        let service = Arc::new(NodeService {
            node: parts.node,
            cluster: cluster.clone(),
            sessions: parts.sessions.clone(),
            groups: parts.groups.clone(),
            shards: parts.shards.shards.clone(),
            users: parts.users.users.clone(),
            presence: parts.presence.presence.clone(),
            clocks: parts.clocks.clone(),
            vitals: parts.vitals(),
            tasks: parts.tasks.clone(),
            hints_dropped: parts.users.metrics.hints_dropped.clone(),
        });
        parts.sessions.wire(parts.peers.clone(), service.clone());
        Self { cluster, service }
    }

    /// Takes over what is set for the cluster, whenever it changes.
    pub(crate) fn settings(&self, parts: &Parts) -> ChildSpec {
        let (cluster, settings) = (self.cluster.clone(), parts.settings.clone());
        ChildSpec::task("settings", move |stopping| {
            let (mut news, settings) = (cluster.watch_settings(), settings.clone());
            async move {
                loop {
                    settings.set(*news.borrow_and_update());
                    tokio::select! {
                        () = stopping.wait() => return Ok(()),
                        told = news.changed() => told?,
                    }
                }
            }
        })
    }

    /// The admin socket.
    pub(crate) fn admin(&self, config: &NodeConfig, node: &Node) -> anyhow::Result<ChildSpec> {
        admin::child(config, node, self.cluster.clone())
    }
}

/// Whether this node's tables say that it belongs to a cluster: then it never founds one, whatever
/// the settings say.
pub(crate) async fn belongs(storage: &Storage) -> anyhow::Result<bool> {
    let storage = storage.clone();
    let read = move || {
        let mut cluster = 0;
        storage.load(ShardId::META, &mut |row| {
            if let Row::Meta(Some(meta)) = row {
                cluster = meta.cluster;
            }
        })?;
        anyhow::Ok(cluster != 0)
    };
    tokio::task::spawn_blocking(read).await?
}

/// When something was stored last, as far as the tables say, Unix time in ms; 0: nothing was.
pub(crate) async fn recorded_ms(storage: &Storage) -> anyhow::Result<u64> {
    let storage = storage.clone();
    let read = move || {
        let applied = (0..SHARDS).map(|shard| storage.applied(ShardId(shard)));
        let ms = applied.map(|applied| Ok(applied?.map_or(0, |applied| applied.now_ms)));
        let ms: Vec<u64> = ms.collect::<anyhow::Result<_>>()?;
        anyhow::Ok(ms.into_iter().max().unwrap_or_default())
    };
    tokio::task::spawn_blocking(read).await?
}

/// Whether clients of other nodes can be sent to where this node listens for clients, `client`. To a
/// loopback address only if the nodes, too, meet on one: `cluster`.
fn is_for_others(client: &str, cluster: &str) -> bool {
    let ip = |address: &str| address.parse().map(|address: SocketAddr| address.ip());
    match (ip(client), ip(cluster)) {
        (Ok(client), _) if client.is_unspecified() => false,
        (Ok(client), cluster) if client.is_loopback() => cluster.is_ok_and(|ip| ip.is_loopback()),
        (Ok(_), _) => true,
        (Err(_), _) => false,
    }
}

/// Waits until each group in which this node votes has a leader.
pub(crate) async fn wait_for_leaders(groups: &Groups) {
    let began = Instant::now();
    let leaderless = || {
        let statuses = groups.all().map(|(_, group)| group.status());
        statuses.filter(|group| !group.voters.is_empty() && !group.is_led()).count()
    };
    while leaderless() > 0 {
        if began.elapsed() >= LEADERS_WAIT {
            warn!(groups = leaderless(), "no majority yet; clients are told to try again");
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until this node knows where it stands in the cluster: until then no client is sent to it.
pub(crate) async fn wait_for_place(cluster: &Cluster) {
    let mut place = cluster.watch_place();
    let known = place.wait_for(|place| *place != Place::Starting);
    if timeout(LEADERS_WAIT, known).await.is_err() {
        warn!("this node is no member of a cluster yet; clients are told to try again");
    }
}

/// Returns, with the reason, when a group of this node has ended though nobody stopped it. While none
/// has, this waits. All groups must be open.
pub(crate) async fn group_failed(groups: &Groups) -> (ShardId, String) {
    let groups = groups.all().map(|(id, group)| {
        let group = group.clone();
        Box::pin(async move { (id, group.failed().await) })
    });
    let groups: Vec<_> = groups.collect();
    if groups.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(groups).await.0
}

/// Lets other nodes lead what this one leads, so that its end is no pause for anybody.
pub(crate) async fn hand_over(parts: &Parts) {
    let mut moves = Vec::new();
    for (_, group) in parts.groups.all() {
        let status = group.status();
        let mut others = status.voters.iter().filter(|node| **node != parts.node);
        let heir = others.find(|node| status.caught_up.contains(node) && parts.peers.is_up(**node));
        if let Some(heir) = heir.filter(|_| status.me_leads) {
            let (group, heir) = (group.clone(), *heir);
            moves.push(async move { group.yield_to(heir).await });
        }
    }
    if moves.is_empty() {
        return;
    }
    let count = moves.len();
    let ended = timeout(HAND_OVER_WAIT, futures_util::future::join_all(moves)).await;
    if let Ok(ended) = ended {
        let taken = ended.iter().filter(|taken| taken.is_ok()).count();
        info!(taken, of = count, "leadership handed over");
    } else {
        warn!("others did not take over leadership in time; they will elect");
    }
}

#[cfg(test)]
mod tests {
    use super::is_for_others;

    #[test]
    fn clients_are_sent_only_to_where_they_can_connect() {
        for (client, cluster, is) in [
            ("10.0.0.1:7400", "10.0.0.1:7403", true),
            ("[2001:db8::1]:7400", "node-1.natter.svc:7403", true),
            ("127.0.0.1:7400", "127.0.0.2:7403", true),
            ("127.0.0.1:7400", "10.0.0.1:7403", false),
            ("127.0.0.1:7400", "node-1.natter.svc:7403", false),
            ("[::1]:7400", "10.0.0.1:7403", false),
            ("0.0.0.0:7400", "127.0.0.1:7403", false),
            ("", "10.0.0.1:7403", false),
        ] {
            assert_eq!(is_for_others(client, cluster), is, "{client} {cluster}");
        }
    }
}
