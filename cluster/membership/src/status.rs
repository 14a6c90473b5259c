//! What an operator wants to know: how the groups stand, and what is left to do until a wish is
//! fulfilled.

use super::placement::{self, plan};
use super::{Cluster, MetaDigest, MetaItem, Place, meta};
use crate::balance::steps::steps;
use consensus::GroupStatus;
use proto::{NodeId, ShardId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What an operator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A node leads nothing.
    Drained(NodeId),
    /// A node holds nothing and is no member.
    Gone(NodeId),
    /// Everything is where it should be.
    Balanced,
}

impl Cluster {
    /// The state of all groups: as this node sees those it holds, as their leaders tell of the others. No leader
    /// if a majority was not seen to follow it lately.
    pub fn groups(&self) -> BTreeMap<ShardId, GroupStatus> {
        let reports = self.0.standings().clone();
        let status = |group| {
            let here = self.0.groups.status(group).unwrap_or_default();
            let held = here.has_member(self.me());
            let heard =
                reports.get(group).filter(|report| !held || report.status.term >= here.term);
            let Some(heard) = heard else {
                return GroupStatus { leader: here.leader.filter(|_| here.is_led()), ..here };
            };
            let applied = if held { here.applied } else { heard.status.applied };
            GroupStatus { applied, ..heard.status.clone() }
        };
        placement::groups().map(|group| (group, status(group))).collect()
    }

    /// True if this node holds a replica of a group.
    pub fn holds(&self, group: ShardId) -> bool {
        let here = self.0.groups.status(group);
        here.is_some_and(|here| here.has_member(self.me()))
    }

    /// What is left to do until `goal` is reached, in words; empty: nothing.
    pub fn left(&self, goal: Goal) -> Vec<String> {
        let meta = self.meta();
        let picture = self.picture(&meta);
        let mut left = Vec::new();
        let mut count = |what: &str, groups: usize| {
            if groups > 0 {
                let s = if groups == 1 { "" } else { "s" };
                left.push(format!("{what} {groups} group{s}"));
            }
        };
        let views = || picture.groups.values();
        let silent = placement::groups().filter(|group| !picture.groups.contains_key(group));
        count("no leader is known of", silent.count());
        match goal {
            Goal::Drained(node) => {
                count("leads", views().filter(|view| view.leader == Some(node)).count());
            }
            Goal::Gone(node) => {
                let holds = |view: &&GroupStatus| view.has_member(node);
                // Who is gone is told so, and hears nothing of members and groups any longer.
                let told = node == self.me() && self.place() == Place::Removed;
                if told || meta::member(&meta, node).is_none() {
                    return Vec::new();
                }
                count("holds", views().filter(holds).count());
                left.push("is a member".to_owned());
            }
            Goal::Balanced => {
                let plan = plan(&picture);
                let moved = |group: &&ShardId| {
                    let view = picture.groups.get(*group);
                    view.is_some_and(|view| Some(&view.voters) != plan.get(*group))
                };
                count("to be moved:", plan.keys().filter(moved).count());
                let to_do = steps(&picture, &plan, &BTreeMap::new());
                count(
                    "to be tended:",
                    to_do.iter().filter_map(crate::balance::steps::Step::group).count(),
                );
            }
        }
        left
    }

    /// What this node's replica of `meta` holds; `None` if it does not say within a second.
    pub async fn meta_digest(&self) -> Option<MetaDigest> {
        let (answer, digest) = oneshot::channel();
        self.0.meta_inbox.push(MetaItem::Digest(answer)).ok()?;
        timeout(Duration::from_secs(1), digest).await.ok()?.ok()
    }

    /// Looks at the balance of the groups now rather than within a second, where `meta` is led.
    pub fn rebalance(&self) {
        self.look_again();
    }
}
