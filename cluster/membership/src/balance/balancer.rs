//! The process that tells everyone which groups this node leads and, where `meta` is led, brings
//! the groups to where they should be.
//!
//! # Invariants
//! 1. It changes a group only by an order to its leader, one at a time, and looks at the group
//!    again before the next.
//! 2. What it is wrong about costs an order that is refused, never data.

use crate::balance::orders;
use crate::balance::standings::told;
use crate::balance::steps::{Step, steps};
use crate::groups::GroupError;
use crate::placement::{MemberView, Nodes, Picture, Plan, plan};
use crate::{Cluster, ClusterError, Place, placement};
use consensus::GroupStatus;
use links::CallError;
use proto::cluster::{self, cast, request, response};
use proto::stored::{self, meta_command::Kind};
use proto::{NodeId, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use supervision::timer::{self, Timer};
use supervision::{Flow, Inbox, Paced, Process, ProcessError, QueueLimits};
use tokio::time::Instant;
use tracing::{debug, info};

/// Ticks and news; what is more is the same again.
pub(crate) const QUEUE: QueueLimits = QueueLimits { high: 500, critical: 1_000 };

/// How often it sees whether this node leads other groups than before.
const TICK: Duration = Duration::from_millis(250);

/// How often it tells all of them, and looks at all groups.
const EVERY: Duration = Duration::from_secs(1);

/// Pause after a step that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How often the log says what it does: there are dozens of steps after each change of the members.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// What the balancer's message queue holds.
#[derive(Debug)]
pub(crate) enum BalancerItem {
    /// The clock tells.
    TickDue,
    /// A door tells: look now.
    Changed,
    /// A step has ended, well or not, and its pause is over.
    StepEnded(Step),
    /// The placements were proposed.
    PlacingEnded,
}

/// What there is to know of a group that changes seldom.
type Led = (ShardId, u64, Nodes, Nodes, Nodes);

/// The process.
pub(crate) struct BalancerActor {
    cluster: Cluster,
    inbox: Arc<Inbox<BalancerItem>>,
    told: Vec<Led>,
    told_at: Option<Instant>,
    looks: bool,
    under_way: BTreeMap<ShardId, Step>,
    /// Groups whose step has ended, until their leader has been heard of again.
    ended: BTreeMap<ShardId, Instant>,
    striking: Nodes,
    placing: bool,
    begun: Paced,
    refused: Arc<Paced>,
    timer: Timer,
}

impl Drop for BalancerActor {
    fn drop(&mut self) {
        self.timer.cancel();
    }
}

impl Process for BalancerActor {
    type Item = BalancerItem;
    type Args = Cluster;

    async fn start(
        cluster: Cluster,
        inbox: Arc<Inbox<BalancerItem>>,
    ) -> Result<Self, ProcessError> {
        let timer = timer::push_every(&inbox, TICK, || BalancerItem::TickDue);
        Ok(Self {
            cluster,
            inbox,
            told: Vec::new(),
            told_at: None,
            looks: false,
            under_way: BTreeMap::new(),
            ended: BTreeMap::new(),
            striking: Nodes::new(),
            placing: false,
            begun: Paced::new(SAY_AGAIN),
            refused: Arc::new(Paced::new(SAY_AGAIN)),
            timer,
        })
    }

    fn handle(&mut self, item: BalancerItem) -> Result<Flow, ProcessError> {
        match item {
            BalancerItem::TickDue => {}
            BalancerItem::Changed => self.looks = true,
            BalancerItem::StepEnded(step) => {
                self.looks = true;
                match step.group() {
                    Some(group) => drop(self.ended.insert(group, Instant::now())),
                    None => self.striking.clear(),
                }
            }
            BalancerItem::PlacingEnded => self.placing = false,
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        self.report();
        if std::mem::take(&mut self.looks) {
            self.balance();
        }
        Ok(Flow::Continue)
    }
}

impl BalancerActor {
    /// Tells which groups this node leads if that has changed, or a second has passed.
    fn report(&mut self) {
        let now = Instant::now();
        let shared = &self.cluster.0;
        let led_here = placement::groups().filter_map(|group| {
            Some((group, shared.groups.status(group).filter(GroupStatus::leads_a_majority)?))
        });
        let led_here: Vec<_> = led_here.collect();
        let led = |(group, status): &(ShardId, GroupStatus)| {
            let (voters, learners) = (status.voters.clone(), status.learners.clone());
            (*group, status.term, voters, learners, status.caught_up.clone())
        };
        let led: Vec<Led> = led_here.iter().map(led).collect();
        let is_due = self.told_at.is_none_or(|at| now.duration_since(at) >= EVERY);
        if led == self.told && !is_due {
            return;
        }
        (self.told, self.told_at, self.looks) = (led, Some(now), true);
        let groups = led_here.iter().map(|(group, status)| told(*group, status)).collect();
        let report = cluster::Standings { groups };
        let mut heard = shared.standings();
        heard.heard(self.cluster.me(), report.clone(), now);
        heard.forget_old(now);
        drop(heard);
        if self.cluster.place() == Place::Member {
            for peer in shared.peers.up() {
                self.cluster.tell(peer.id.node, cast::Kind::Standings(report.clone()));
            }
        }
    }

    /// Where `meta` is led: sees what is to do, and begins it.
    fn balance(&mut self) {
        let meta = self.cluster.meta();
        let meta_status = self.cluster.0.groups.status(ShardId::META);
        let leads = meta_status.is_some_and(|status| status.leads_a_majority());
        if !leads || meta.cluster == 0 {
            self.under_way.clear();
            self.ended.clear();
            return;
        }
        self.forget_ended();
        let picture = self.cluster.picture(&meta);
        let plan = plan(&picture);
        let placed = placements(&plan);
        if placed != meta.placements && !self.placing {
            self.place(placed);
        }
        for step in steps(&picture, &plan, &self.under_way) {
            self.begin(step);
        }
    }

    /// A group may change again when its leader was heard of after its last change.
    fn forget_ended(&mut self) {
        let standings = self.cluster.0.standings();
        self.ended.retain(|group, ended| {
            let heard = standings.get(*group).is_none_or(|report| report.at > *ended);
            if heard {
                self.under_way.remove(group);
            }
            !heard
        });
    }

    fn place(&mut self, placements: Vec<stored::Placement>) {
        self.placing = true;
        let (cluster, inbox) = (self.cluster.clone(), self.inbox.clone());
        self.cluster.0.tasks.spawn("placements", async move {
            let wanted = stored::SetPlacements { placements };
            if let Err(error) = cluster.propose(Kind::SetPlacements(wanted)).await {
                debug!(%error, "placements not proposed");
                tokio::time::sleep(PAUSE).await;
            }
            inbox.force(BalancerItem::PlacingEnded);
        });
    }

    fn begin(&mut self, step: Step) {
        match (&step, step.group()) {
            (Step::RemoveMember { node }, _) => {
                if !self.striking.insert(*node) {
                    return;
                }
            }
            (_, Some(group)) => drop(self.under_way.insert(group, step.clone())),
            (_, None) => return,
        }
        debug!(%step, "balancing");
        if let Some(steps) = self.begun.count(Instant::now()) {
            info!(%step, steps, "balancing");
        }
        let (cluster, inbox) = (self.cluster.clone(), self.inbox.clone());
        let refused = Arc::clone(&self.refused);
        self.cluster.0.tasks.spawn("step", async move {
            if let Err(error) = carry_out(&cluster, &step).await {
                debug!(%step, %error, "not balanced yet");
                if let Some(times) = refused.count(Instant::now()) {
                    info!(%step, %error, times, "not balanced yet");
                }
                tokio::time::sleep(PAUSE).await;
            }
            inbox.force(BalancerItem::StepEnded(step));
        });
    }
}

impl Cluster {
    /// How things stand, as far as this node knows.
    pub(crate) fn picture(&self, meta: &stored::Meta) -> Picture {
        let up: Nodes = self.0.peers.up().into_iter().map(|peer| peer.id.node).collect();
        let members = meta.members.iter().map(|member| {
            let node = NodeId(member.node);
            let up = node == self.me() || up.contains(&node);
            (node, MemberView { state: member.state(), zone: member.zone.clone(), up })
        });
        let placements = meta.placements.iter().filter_map(|placement| {
            let group = u16::try_from(placement.group).ok().map(ShardId)?;
            Some((group, placement.voters.iter().copied().map(NodeId).collect()))
        });
        Picture {
            members: members.collect(),
            groups: self.0.standings().views(),
            placements: placements.collect(),
        }
    }
}

fn placements(plan: &Plan) -> Vec<stored::Placement> {
    let placement = |(group, nodes): (&ShardId, &Nodes)| stored::Placement {
        group: group.0.into(),
        voters: nodes.iter().map(|node| node.0).collect(),
    };
    plan.iter().filter(|(_, nodes)| !nodes.is_empty()).map(placement).collect()
}

/// Why a step was not carried out.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// The group has no leader that this node knows.
    #[error("the group has no leader")]
    NoLeader,
    /// This node leads the group, and the group did not do it.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The group `meta` did not decide it.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The leader was not reached.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The leader refused, for this reason.
    #[error("{0}")]
    Refused(String),
    /// The node that was asked does not lead the group.
    #[error("the leader has changed")]
    LeaderChanged,
}

async fn carry_out(cluster: &Cluster, step: &Step) -> Result<(), StepError> {
    let Some(order) = orders::order_for(step) else {
        let Step::RemoveMember { node } = step else { return Ok(()) };
        return Ok(cluster.propose(Kind::RemoveMember(node.0)).await?);
    };
    let leader = step.group().and_then(|group| cluster.leader_of(group));
    let leader = leader.ok_or(StepError::NoLeader)?;
    if leader == cluster.me() {
        return Ok(orders::carry_out(&cluster.0.groups, order).await?);
    }
    let asked = cluster.ask(leader, request::Kind::Order(order), orders::patience(step)).await;
    match asked? {
        Some(response::Kind::Order(done)) if done.refused.is_empty() => Ok(()),
        Some(response::Kind::Order(done)) => Err(StepError::Refused(done.refused)),
        Some(_) | None => Err(StepError::LeaderChanged),
    }
}
