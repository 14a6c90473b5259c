//! The task that lets this node forget shards that it holds no longer.
//!
//! A shard that moved leaves its rows and records behind. When the plan does not have it here, and its
//! leader has told for a while that this node neither votes nor listens, the leader is asked whether a
//! majority agrees ([`Retire`](proto::cluster::order::Retire)), and all of it is forgotten.
//!
//! # Invariants
//! 1. What is heard here only says when to ask. Whether anything is forgotten is for the group's
//!    leader to say, and asked when this node has ceased to answer for the group.
//! 2. It is safe to be stopped at any moment: what is left is found by the next start.

use crate::balance::standings::Report;
use crate::placement::groups;
use crate::{Cluster, Place};
use consensus::GroupStatus;
use proto::cluster::{self, order, request, response};
use proto::stored;
use proto::{NodeId, ShardId};
use std::collections::BTreeMap;
use std::time::Duration;
use supervision::{ProcessError, Stopping};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);

/// How long a shard has to be elsewhere before it is forgotten here: it may be on its way back.
const QUIET: Duration = Duration::from_secs(3);

/// How long the leader may take to answer. The group answers nobody meanwhile, and should not be
/// missed if it is needed after all.
const ASK: Duration = Duration::from_secs(2);

/// Runs until `stopping`.
pub(crate) async fn run(cluster: Cluster, stopping: Stopping) -> Result<(), ProcessError> {
    let work = async {
        let mut since = BTreeMap::new();
        loop {
            sleep(LOOK).await;
            if cluster.place() == Place::Member {
                look(&cluster, &mut since).await;
            }
        }
    };
    tokio::select! {
        () = stopping.wait() => {}
        () = work => {}
    }
    Ok(())
}

/// Forgets what has been elsewhere for long enough.
async fn look(cluster: &Cluster, since: &mut BTreeMap<ShardId, Instant>) {
    for group in groups().filter(|group| *group != ShardId::META) {
        let here = cluster.0.groups.status(group).unwrap_or_default();
        let told = cluster.0.standings().get(group).cloned();
        let Some(leader) = leader_elsewhere(cluster.me(), (group, &cluster.meta()), &here, told)
        else {
            since.remove(&group);
            continue;
        };
        if since.entry(group).or_insert_with(Instant::now).elapsed() >= QUIET {
            retire(cluster, group, (leader, here.term)).await;
            since.remove(&group);
        }
    }
}

/// Who leads a group of which this node holds something though it should not, as far as is heard.
fn leader_elsewhere(
    me: NodeId,
    (group, meta): (ShardId, &stored::Meta),
    here: &GroupStatus,
    told: Option<Report>,
) -> Option<NodeId> {
    let holds = here.last > 0 || !here.voters.is_empty();
    let placed = meta.placements.iter().find(|placed| placed.group == u32::from(group.0))?;
    let there = told.map(|report| report.status).filter(|there| there.term >= here.term)?;
    let takes_part = there.has_member(me);
    let leads = here.leads_a_majority();
    let gone = holds && !leads && !takes_part && !placed.voters.contains(&me.0);
    there.leader.filter(|leader| gone && *leader != me)
}

async fn retire(cluster: &Cluster, group: ShardId, (leader, term): (NodeId, u64)) {
    let kind = order::Kind::Retire(order::Retire { term });
    let order = cluster::Order { group: group.0.into(), kind: Some(kind), to: cluster.me().0 };
    let asking = cluster.clone();
    let may = async move {
        match asking.ask(leader, request::Kind::Order(order), ASK).await {
            Ok(Some(response::Kind::Order(done))) => done.refused.is_empty(),
            Ok(_) | Err(_) => false,
        }
    };
    match cluster.0.groups.forget(group, Box::pin(may)).await {
        Ok(true) => {}
        Ok(false) => info!(shard = %group, "not forgotten yet: its leader does not say so"),
        Err(error) => warn!(shard = %group, %error, "not forgotten"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Nodes;

    const ME: NodeId = NodeId(4);

    fn nodes(ids: &[u64]) -> Nodes {
        ids.iter().copied().map(NodeId).collect()
    }

    fn meta(voters: &[u64]) -> stored::Meta {
        let placement = stored::Placement { group: 3, voters: voters.to_vec() };
        stored::Meta { placements: vec![placement], ..stored::Meta::default() }
    }

    fn told(term: u64, voters: &[u64], learners: &[u64]) -> Report {
        let status = GroupStatus {
            leader: Some(NodeId(1)),
            voters: nodes(voters),
            learners: nodes(learners),
            caught_up: nodes(voters),
            term,
            applied: 9,
            ..GroupStatus::default()
        };
        Report { at: Instant::now(), status }
    }

    fn asks(here: &GroupStatus, meta: &stored::Meta, told: impl Into<Option<Report>>) -> bool {
        let told = told.into();
        leader_elsewhere(ME, (ShardId(3), meta), here, told) == Some(NodeId(1))
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_held_planned_and_led_elsewhere_is_asked_about() {
        let here = GroupStatus { voters: nodes(&[1, 2, 4]), term: 5, ..Default::default() };
        let away = meta(&[1, 2, 3]);
        assert!(asks(&here, &away, told(5, &[1, 2, 3], &[])));
        assert!(!asks(&here, &away, None), "nobody tells");
        assert!(!asks(&here, &away, told(4, &[1, 2, 3], &[])), "an old leader");
        assert!(!asks(&here, &away, told(5, &[1, 2, 3, 4], &[])), "it votes");
        assert!(!asks(&here, &away, told(5, &[1, 2, 3], &[4])), "it listens");
        assert!(!asks(&here, &meta(&[1, 2, 4]), told(5, &[1, 2, 3], &[])), "it should come back");
        assert!(!asks(&here, &stored::Meta::default(), told(5, &[1, 2, 3], &[])), "no plan");
        let empty = GroupStatus { term: 5, ..Default::default() };
        assert!(!asks(&empty, &away, told(5, &[1, 2, 3], &[])), "there is nothing to forget");
    }
}
