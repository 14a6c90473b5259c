//! Carries requests out: finds the node that is meant, changes its state, and tells what is left to do.

use std::sync::Arc;
use std::time::Duration;

use membership::{ClusterError, Goal};
use proto::NodeId;
use proto::stored::member::State;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::control::{Control, MemberStatus};
use super::{Drain, Failure, FailureCode, Join, Remove, Reply, Request, Wait};

/// How often it looks at what is left.
const LOOK: Duration = Duration::from_millis(250);

/// How long something must be done before it counts: standings are told once a second.
const SETTLED: Duration = Duration::from_millis(1500);

/// Interval at which the same progress is told again, so that the client knows that the node is there.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// Longest time for which progress is told.
const WAIT_MAX: Duration = Duration::from_hours(6);

/// A request that was carried out, or begun.
pub(super) enum Begun {
    /// It is done; this is the outcome.
    Done(Value),
    /// The cluster works on it.
    Underway {
        /// It is done once the cluster has reached this.
        goal: Goal,
        /// The outcome then.
        done: Value,
    },
}

impl Begun {
    /// With a warning in its outcome.
    fn warned(mut self, warning: Option<String>) -> Self {
        let (Self::Done(done) | Self::Underway { done, .. }) = &mut self;
        if let Some(warning) = warning {
            done["warning"] = Value::String(warning);
        }
        self
    }
}

/// Members from which on a shard has three voters.
const ENOUGH: usize = 3;

/// What to say if few members stay when `gone` has gone.
fn few_left(members: &[MemberStatus], gone: NodeId) -> Option<String> {
    let stays = |member: &&MemberStatus| {
        member.node != gone && !["leaving", "lost"].contains(&member.state.as_str())
    };
    let left = members.iter().filter(stays).count();
    let s = if left == 1 { "" } else { "s" };
    (left < ENOUGH).then(|| format!("now only {left} node{s}: each shard has one voter"))
}

/// Why `drained` had better not be drained as well: if it is stopped, and those that lead nothing
/// already are, there is no majority. With fewer than three members there is none in any case.
fn too_few_lead(members: &[MemberStatus], drained: NodeId) -> Option<String> {
    let others = || members.iter().filter(|member| member.node != drained);
    let leads = |member: &&MemberStatus| member.up && member.state == "active";
    let away: Vec<_> = others().filter(|member| !leads(member)).collect();
    let left = members.len().saturating_sub(away.len() + 1);
    if members.len() < ENOUGH || 2 * left > members.len() {
        return None;
    }
    let names = away.iter().map(|member| {
        let why = if member.up { member.state.as_str() } else { "not up" };
        format!("{} is {why}", member.name)
    });
    let names: Vec<_> = names.collect();
    Some(format!(
        "{}: only {left} of {} nodes would be left to lead, no majority; end that first \
         (`drain NAME --undo`), or say --force",
        names.join(", "),
        members.len()
    ))
}

/// Carries a request out, or begins to.
///
/// # Errors
/// [`Failure`]; nothing was changed.
pub(super) async fn begin(control: &Arc<dyn Control>, request: Request) -> Result<Begun, Failure> {
    match request {
        Request::Status => {
            let status = serde_json::to_value(control.status().await);
            status
                .map(Begun::Done)
                .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))
        }
        Request::Join(Join { seed }) => {
            control.join(seed).await.map(|next| Begun::Done(json!({ "next": next })))
        }
        Request::Leave(Wait { wait }) => {
            let me = control.me();
            change(control, me, State::Leaving).await?;
            Ok(under(control, Goal::Gone(me), Some(me), wait))
        }
        Request::Drain(Drain { node, undo, force, wait }) => {
            let members = control.members();
            let node = who(&members, &node)?;
            if let Some(why) = too_few_lead(&members, node).filter(|_| !undo && !force) {
                return Err(Failure::new(FailureCode::Refused, why));
            }
            change(control, node, if undo { State::Active } else { State::Draining }).await?;
            let goal = if undo { Goal::Balanced } else { Goal::Drained(node) };
            Ok(under(control, goal, Some(node), wait && !undo))
        }
        Request::Rebalance(Wait { wait }) => {
            control.rebalance();
            Ok(under(control, Goal::Balanced, None, wait))
        }
        Request::Remove(Remove { node, wait }) => {
            let members = control.members();
            let node = who(&members, &node)?;
            // One that is up can hand over what it alone may have.
            let up = members.iter().any(|member| member.node == node && member.up);
            change(control, node, if up { State::Leaving } else { State::Lost }).await?;
            Ok(under(control, Goal::Gone(node), Some(node), wait).warned(few_left(&members, node)))
        }
        Request::Set { key, set } => {
            control.set_setting(key.clone(), set.value).await.map_err(|error| failure(&error))?;
            Ok(Begun::Done(json!({ "set": key })))
        }
        Request::Get { key } => {
            let mut settings = control.settings();
            if let Some(key) = key {
                settings.retain(|known, _| *known == key);
                if settings.is_empty() {
                    let text = format!("{key} is no setting of the cluster");
                    return Err(Failure::new(FailureCode::UnknownSetting, text));
                }
            }
            Ok(Begun::Done(json!(settings)))
        }
    }
}

fn under(control: &Arc<dyn Control>, goal: Goal, node: Option<NodeId>, wait: bool) -> Begun {
    let name = |node| {
        let members = control.members();
        let member = members.into_iter().find(|member| member.node == node);
        member.map(|member| member.name).unwrap_or_default()
    };
    let done = match node {
        Some(node) => json!({ "node": node, "name": name(node), "waited": wait }),
        None => json!({ "waited": wait }),
    };
    if wait { Begun::Underway { goal, done } } else { Begun::Done(done) }
}

async fn change(control: &Arc<dyn Control>, node: NodeId, state: State) -> Result<(), Failure> {
    control.set_state(node, state).await.map_err(|error| failure(&error))
}

fn failure(error: &ClusterError) -> Failure {
    let kind = match error {
        ClusterError::Refused(_) => FailureCode::Refused,
        ClusterError::NoMajority => FailureCode::NoMajority,
    };
    Failure::new(kind, error.to_string())
}

/// The one member that is meant: by name, by id, or by the beginning of an id.
fn who(members: &[MemberStatus], text: &str) -> Result<NodeId, Failure> {
    let unknown = |why: String| Failure::new(FailureCode::UnknownNode, why);
    let named: Vec<_> = members.iter().filter(|member| member.name == text).collect();
    let digits = text.to_ascii_lowercase();
    let begins: Vec<_> = members
        .iter()
        .filter(|member| !digits.is_empty() && member.node.to_string().starts_with(&digits))
        .collect();
    match (named.as_slice(), begins.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one.node),
        ([], []) => {
            Err(unknown(format!("no member is called {text:?}; see `natter admin cluster status`")))
        }
        (several, begins) => {
            let ids = if several.is_empty() { begins } else { several };
            let ids: Vec<_> = ids.iter().map(|member| member.node.to_string()).collect();
            Err(unknown(format!("{text:?} could be any of {}; write the id", ids.join(", "))))
        }
    }
}

/// Tells a client how far the cluster is with what it asked for. The cluster goes on if this is dropped.
pub(super) struct Waiting {
    control: Arc<dyn Control>,
    goal: Goal,
    /// The outcome; `None` once it was told.
    done: Option<Value>,
    began: Instant,
    /// The steps that were told last, and when.
    told: Option<(Vec<String>, Instant)>,
    /// When the last step was done.
    reached: Option<Instant>,
}

impl Waiting {
    pub(super) fn new(control: Arc<dyn Control>, goal: Goal, done: Value) -> Self {
        let began = Instant::now();
        Self { control, goal, done: Some(done), began, told: None, reached: None }
    }

    /// The steps that are left, each time that they change; at last the outcome, and then nothing.
    pub(super) async fn next(&mut self) -> Option<Reply> {
        self.done.as_ref()?;
        while self.began.elapsed() < WAIT_MAX {
            let left = self.control.left(self.goal);
            if left.is_empty() {
                if self.reached.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
                    return self.done.take().map(Reply::Done);
                }
            } else {
                self.reached = None;
                let is_news = |(said, at): &(Vec<String>, Instant)| {
                    *said != left || at.elapsed() >= TELL_AGAIN
                };
                if self.told.as_ref().is_none_or(is_news) {
                    self.told = Some((left.clone(), Instant::now()));
                    return Some(Reply::Progress(left));
                }
            }
            sleep(LOOK).await;
        }
        self.done = None;
        let text = "the cluster goes on; see `natter admin cluster status`";
        Some(Reply::Failed(Failure::new(FailureCode::StillGoing, text)))
    }
}
