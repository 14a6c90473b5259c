//! What the leader of a group does for whoever places the groups, and for a node that wants to forget
//! one: a last look, then the change.

use crate::balance::steps::Step;
use crate::groups::{GroupError, Groups};
use crate::placement::Nodes;
use proto::cluster::{self, order, response};
use proto::{NodeId, ShardId};
use std::sync::Arc;
use std::time::Duration;

/// How long a new listener may take to catch up before the order is given again.
const CATCH_UP: Duration = Duration::from_mins(2);

/// How long any other change may take.
const CHANGE: Duration = Duration::from_secs(15);

/// How long to wait for a step.
pub(crate) fn patience(step: &Step) -> Duration {
    match step {
        Step::AddLearner { .. } => CATCH_UP,
        Step::ChangeVoters { .. }
        | Step::RemoveLearner { .. }
        | Step::Yield { .. }
        | Step::RemoveMember { .. } => CHANGE,
    }
}

/// The order for a step; `None` for one that is no order.
pub(crate) fn order_for(step: &Step) -> Option<cluster::Order> {
    let (group, kind, to) = match step {
        Step::AddLearner { group, node } => {
            (group, order::Kind::AddLearner(order::AddLearner { node: node.0 }), 0)
        }
        Step::ChangeVoters { group, voters } => {
            let voters = voters.iter().map(|node| node.0).collect();
            (group, order::Kind::ChangeVoters(order::ChangeVoters { voters }), 0)
        }
        Step::RemoveLearner { group, node } => (group, order::Kind::RemoveLearner(node.0), 0),
        Step::Yield { group, to } => (group, order::Kind::YieldLeadership(true), to.0),
        Step::RemoveMember { .. } => return None,
    };
    Some(cluster::Order { group: group.0.into(), kind: Some(kind), to })
}

/// Carries an order out and says how it went.
pub(crate) async fn serve(groups: &Arc<dyn Groups>, order: cluster::Order) -> response::Kind {
    match carry_out(groups, order).await {
        Ok(()) => response::Kind::Order(cluster::OrderDone::default()),
        Err(GroupError::NotLeader(leader)) => {
            let leader = leader.map_or(0, |node| node.0);
            response::Kind::NotLeader(cluster::NotLeader { leader })
        }
        Err(error) => {
            // The other node only tells it: it waits, and tries again.
            response::Kind::Order(cluster::OrderDone { refused: error.to_string() })
        }
    }
}

/// Carries an order out.
pub(crate) async fn carry_out(
    groups: &Arc<dyn Groups>,
    order: cluster::Order,
) -> Result<(), GroupError> {
    let failed = |why| Err(GroupError::Refused(why));
    let group = u16::try_from(order.group).map(ShardId);
    let Some(group) = group.ok().filter(|group| *group <= ShardId::META) else {
        return failed("there is no such group");
    };
    let Some(status) = groups.status(group) else { return Err(GroupError::NotLeader(None)) };
    if !status.leads_a_majority() {
        return Err(GroupError::NotLeader(status.leader));
    }
    let listens = |node: &NodeId| status.has_member(*node);
    match order.kind {
        Some(order::Kind::AddLearner(add)) => {
            let node = NodeId(add.node);
            if listens(&node) && status.caught_up.contains(&node) {
                return Ok(());
            }
            within(CATCH_UP, groups.add_learner(group, node)).await
        }
        Some(order::Kind::ChangeVoters(change)) => {
            let voters: Nodes = change.voters.into_iter().map(NodeId).collect();
            if voters == status.voters {
                return Ok(());
            }
            if voters.is_empty() || !voters.iter().all(listens) {
                return failed("only who listens can become a voter");
            }
            within(CHANGE, groups.change_voters(group, voters)).await
        }
        Some(order::Kind::RemoveLearner(node)) if status.learners.contains(&NodeId(node)) => {
            within(CHANGE, groups.remove_learner(group, NodeId(node))).await
        }
        Some(order::Kind::RemoveLearner(_)) => Ok(()),
        Some(order::Kind::YieldLeadership(_)) if status.voters.contains(&NodeId(order.to)) => {
            within(CHANGE, groups.yield_to(group, NodeId(order.to))).await
        }
        Some(order::Kind::YieldLeadership(_)) => failed("only a voter can lead"),
        Some(order::Kind::Retire(_)) => {
            within(CHANGE, groups.has_left(group, NodeId(order.to))).await
        }
        None => failed("the order is not known to this version"),
    }
}

async fn within(
    time: Duration,
    work: impl Future<Output = Result<(), GroupError>>,
) -> Result<(), GroupError> {
    tokio::time::timeout(time, work).await.unwrap_or(Err(GroupError::Late))
}
