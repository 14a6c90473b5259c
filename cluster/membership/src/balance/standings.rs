//! What the leaders of all groups tell of them, as far as this node has heard. A pure core.
//!
//! # Invariants
//! 1. Of two reports of a group the one of the later term counts; of the same term, the later one.
//! 2. A report that is not repeated is forgotten: its leader may be gone.

use crate::placement::Nodes;
use consensus::GroupStatus;
use proto::cluster;
use proto::{NodeId, ShardId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a report holds. Leaders report each second, of which a few may be lost.
pub(crate) const REPORT_HOLDS: Duration = Duration::from_secs(5);

/// What a leader told of its group, and when it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) at: Instant,
    pub(crate) status: GroupStatus,
}

/// All reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings(BTreeMap<ShardId, Report>);

impl Standings {
    /// A leader told of its groups. Groups that do not exist are passed over.
    pub(crate) fn heard(&mut self, from: NodeId, told: cluster::Standings, now: Instant) {
        for told in told.groups {
            let group = u16::try_from(told.group).map(ShardId);
            let Some(group) = group.ok().filter(|group| *group <= ShardId::META) else { continue };
            let nodes = |ids: Vec<u64>| ids.into_iter().map(NodeId).collect::<Nodes>();
            let status = GroupStatus {
                leader: Some(from),
                term: told.term,
                voters: nodes(told.voters),
                learners: nodes(told.learners),
                caught_up: nodes(told.caught_up),
                last: told.last,
                applied: told.applied,
                ..GroupStatus::default()
            };
            let report = Report { at: now, status };
            match self.0.get_mut(&group) {
                Some(known) if known.status.term > report.status.term => {}
                Some(known) => *known = report,
                None => drop(self.0.insert(group, report)),
            }
        }
    }

    /// Forgets what was not repeated.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, report| now.duration_since(report.at) < REPORT_HOLDS);
    }

    pub(crate) fn get(&self, group: ShardId) -> Option<&Report> {
        self.0.get(&group)
    }

    pub(crate) fn views(&self) -> BTreeMap<ShardId, GroupStatus> {
        self.0.iter().map(|(group, report)| (*group, report.status.clone())).collect()
    }
}

/// What this node tells of a group that it leads.
pub(crate) fn told(group: ShardId, status: &GroupStatus) -> cluster::GroupStatus {
    let ids = |nodes: &Nodes| nodes.iter().map(|node| node.0).collect();
    cluster::GroupStatus {
        group: group.0.into(),
        term: status.term,
        voters: ids(&status.voters),
        learners: ids(&status.learners),
        caught_up: ids(&status.caught_up),
        last: status.last,
        applied: status.applied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(group: u32, term: u64) -> cluster::Standings {
        let status = cluster::GroupStatus { group, term, voters: vec![1, 2], ..Default::default() };
        cluster::Standings { groups: vec![status] }
    }

    #[tokio::test(start_paused = true)]
    async fn the_later_term_counts_and_silence_is_forgotten() {
        let mut standings = Standings::default();
        let now = Instant::now();
        standings.heard(NodeId(1), told_of(3, 7), now);
        standings.heard(NodeId(2), told_of(3, 6), now);
        standings.heard(NodeId(2), told_of(99, 6), now);
        assert_eq!(standings.views().len(), 1);
        assert_eq!(standings.get(ShardId(3)).unwrap().status.leader, Some(NodeId(1)));
        standings.heard(NodeId(2), told_of(3, 8), now + Duration::from_secs(1));
        assert_eq!(standings.get(ShardId(3)).unwrap().status.leader, Some(NodeId(2)));
        standings.forget_old(now + REPORT_HOLDS);
        assert!(standings.get(ShardId(3)).is_some());
        standings.forget_old(now + REPORT_HOLDS + Duration::from_secs(1));
        assert!(standings.get(ShardId(3)).is_none());
    }
}
