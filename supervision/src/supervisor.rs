//! Supervisors with a fixed list of children, and the root of the tree.
//!
//! # Invariants
//! 1. Children start in order and stop in reverse order, also in a restart.
//! 2. A supervisor that exceeds its restart intensity stops its children and fails; its own
//!    supervisor decides what follows. If the root fails, the node ends.
//! 3. Exits of earlier incarnations of a child are ignored.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::child_spec::{self, ChildSpec};
use crate::control::{Control, SUPERVISOR_GRACE, cause, halt};
use crate::outline::Outline;
use crate::process::ProcessError;
use crate::stopping::{StopSource, Stopping};
use crate::strategy::{Exit, Intensity, Restart, RestartLog, Strategy, affected, is_restarted};

/// Wait before the next attempt to start a child that failed to start; doubles up to the maximum.
const RETRY_WAIT: Duration = Duration::from_millis(10);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);

/// A child failed to start, so the tree did too; children that had started were stopped again.
#[derive(Debug, thiserror::Error)]
#[error("{child} did not start")]
pub struct StartError {
    /// Path of the child, from the root's name down, with slashes.
    pub child: String,
    /// Its error.
    pub source: ProcessError,
}

/// A supervisor granted more restarts than its intensity allows.
#[derive(Debug, thiserror::Error)]
#[error("supervisor {supervisor} gave up after {child} failed: {reason}")]
struct GaveUp {
    supervisor: &'static str,
    child: &'static str,
    reason: String,
}

/// The children of a supervisor and its rules.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) strategy: Strategy,
    pub(crate) intensity: Intensity,
    pub(crate) children: Arc<[ChildSpec]>,
    pub(crate) stopping: Stopping,
    /// Only at the root: receives the reason when it gives up.
    pub(crate) gave_up: Option<oneshot::Sender<String>>,
}

/// The root of a running supervision tree. The tree outlives this value: call [`Supervisor::stop`].
#[derive(Debug)]
pub struct Supervisor {
    root: ActorRef<Control>,
    stop: StopSource,
    stop_timeout: Duration,
    gave_up: oneshot::Receiver<String>,
    reason: Option<String>,
    outline: Outline,
}

impl Supervisor {
    /// Starts `children` in order.
    ///
    /// # Errors
    /// [`StartError`] names the child that failed; those before it were stopped in reverse order.
    pub async fn start(
        name: &'static str,
        strategy: Strategy,
        intensity: Intensity,
        children: Vec<ChildSpec>,
    ) -> Result<Self, StartError> {
        let (stop, stopping) = StopSource::new();
        let (tell, gave_up) = oneshot::channel();
        let outline = Outline::of(name, strategy, &children);
        let stop_timeout = child_spec::stop_timeout(&children) + SUPERVISOR_GRACE;
        let children = children.into();
        let plan = Plan { name, strategy, intensity, children, stopping, gave_up: Some(tell) };
        #[allow(clippy::disallowed_methods, reason = "the root has no supervisor to be linked to")]
        let spawned = Box::pin(Actor::spawn(None, SupervisorActor, plan)).await;
        match spawned {
            Ok((root, _)) => Ok(Self { root, stop, stop_timeout, gave_up, reason: None, outline }),
            Err(refusal) => Err(match cause(refusal).downcast::<StartError>() {
                Ok(error) => *error,
                Err(source) => StartError { child: name.to_owned(), source },
            }),
        }
    }

    /// Stops all children in reverse order; returns when all are gone.
    pub async fn stop(self) {
        self.stop.fire();
        if !halt(&self.root, self.stop_timeout).await {
            error!(supervisor = self.outline.name, "supervisor could not be killed");
        }
    }

    /// Waits until the tree gives up and has stopped its children; returns the reason.
    pub async fn failed(&mut self) -> String {
        if let Some(reason) = &self.reason {
            return reason.clone();
        }
        let reason = match (&mut self.gave_up).await {
            Ok(reason) => reason,
            Err(_) => format!("supervisor {} ended by itself", self.outline.name),
        };
        self.reason.insert(reason).clone()
    }

    /// The tree as indented names, a line each.
    pub fn tree(&self) -> String {
        self.outline.to_string()
    }

    /// The tree as data.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }
}

/// Spawns a supervisor under a supervisor.
pub(crate) async fn spawn(
    plan: Plan,
    supervisor: ActorCell,
) -> Result<ActorRef<Control>, ProcessError> {
    let (actor, _) = Box::pin(Actor::spawn_linked(None, SupervisorActor, plan, supervisor))
        .await
        .map_err(cause)?;
    Ok(actor)
}

/// The actor of a supervisor.
struct SupervisorActor;

/// A running child.
struct Running {
    actor: ActorRef<Control>,
    stop: StopSource,
}

struct SupervisorState {
    plan: Plan,
    myself: ActorCell,
    running: Vec<Option<Running>>,
    log: RestartLog,
}

impl SupervisorState {
    async fn start_child(&mut self, index: usize) -> Result<(), StartError> {
        let spec = &self.plan.children[index];
        let (stop, stopping) = StopSource::new();
        match spec.start(self.myself.clone(), stopping).await {
            Ok(actor) => {
                self.running[index] = Some(Running { actor, stop });
                Ok(())
            }
            Err(source) => Err(match source.downcast::<StartError>() {
                Ok(inner) => {
                    let child = format!("{}/{}", self.plan.name, inner.child);
                    StartError { child, source: inner.source }
                }
                Err(source) => {
                    let child = format!("{}/{}", self.plan.name, spec.name());
                    StartError { child, source }
                }
            }),
        }
    }

    /// Stops the running children of `range`, the last one first.
    async fn stop_children(&mut self, range: Range<usize>) {
        for index in range.rev() {
            let Some(Running { actor, stop }) = self.running[index].take() else { continue };
            let spec = &self.plan.children[index];
            stop.fire();
            if !halt(&actor, spec.stop_timeout()).await {
                error!(supervisor = self.plan.name, child = spec.name(), "could not be killed");
            }
        }
    }

    /// Handles the exit of a child: restarts what the strategy says, or gives up.
    async fn handle_exit(
        &mut self,
        index: usize,
        exit: Exit,
        reason: String,
    ) -> Result<(), GaveUp> {
        self.running[index] = None;
        let restart = self.plan.children[index].restart;
        let (supervisor, child) = (self.plan.name, self.plan.children[index].name());
        if self.plan.stopping.is_stopping() {
            return Ok(());
        }
        if !is_restarted(restart, exit) {
            match exit {
                Exit::Normal => info!(supervisor, child, "child ended"),
                Exit::Failed => error!(supervisor, child, error = reason, "child failed for good"),
            }
            return Ok(());
        }
        warn!(supervisor, child, error = reason, "child failed and is restarted");
        if !self.log.grant(Instant::now(), self.plan.intensity) {
            return Err(self.give_up(index, reason).await);
        }
        self.restart(affected(self.plan.strategy, index, self.running.len())).await
    }

    async fn restart(&mut self, range: Range<usize>) -> Result<(), GaveUp> {
        self.stop_children(range.clone()).await;
        let mut wait = RETRY_WAIT;
        for index in range {
            if self.plan.children[index].restart == Restart::Temporary {
                continue;
            }
            while let Err(refusal) = self.start_child(index).await {
                let reason = format!("{refusal}: {}", refusal.source);
                warn!(supervisor = self.plan.name, error = reason, "child failed to restart");
                if !self.log.grant(Instant::now(), self.plan.intensity) {
                    return Err(self.give_up(index, reason).await);
                }
                tokio::select! {
                    () = self.plan.stopping.wait() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
                wait = RETRY_WAIT_MAX.min(wait * 2);
            }
        }
        Ok(())
    }

    async fn give_up(&mut self, index: usize, reason: String) -> GaveUp {
        let (supervisor, child) = (self.plan.name, self.plan.children[index].name());
        let gave_up = GaveUp { supervisor, child, reason };
        error!(supervisor, child, error = gave_up.reason, "too many restarts, supervisor gives up");
        self.stop_children(0..self.running.len()).await;
        if let Some(tell) = self.plan.gave_up.take() {
            drop(tell.send(gave_up.to_string())); // Nobody may be waiting.
        }
        gave_up
    }

    fn index_of(&self, cell: &ActorCell) -> Option<usize> {
        let id = cell.get_id();
        self.running
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|running| running.actor.get_id() == id))
    }
}

impl Actor for SupervisorActor {
    type Msg = Control;
    type State = SupervisorState;
    type Arguments = Plan;

    async fn pre_start(
        &self,
        myself: ActorRef<Control>,
        plan: Plan,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let count = plan.children.len();
        let running = (0..count).map(|_| None).collect();
        let myself = myself.get_cell();
        let mut state = SupervisorState { plan, myself, running, log: RestartLog::default() };
        for index in 0..count {
            if let Err(refusal) = state.start_child(index).await {
                state.stop_children(0..index).await;
                return Err(refusal.into());
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Control>,
        message: Control,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Control::Wake => {}
            Control::Stop => {
                state.stop_children(0..state.running.len()).await;
                myself.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Control>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((cell, exit, reason)) = exit_of(event) else { return Ok(()) };
        match state.index_of(&cell) {
            Some(index) => Ok(state.handle_exit(index, exit, reason).await?),
            None => Ok(()),
        }
    }
}

/// The actor that ended and how, if `event` is an exit.
pub(crate) fn exit_of(event: SupervisionEvent) -> Option<(ActorCell, Exit, String)> {
    match event {
        SupervisionEvent::ActorFailed(cell, error) => Some((cell, Exit::Failed, error.to_string())),
        SupervisionEvent::ActorTerminated(cell, Some(_), _) => {
            Some((cell, Exit::Normal, "ended".to_owned()))
        }
        SupervisionEvent::ActorTerminated(cell, None, reason) => {
            Some((cell, Exit::Failed, reason.unwrap_or_else(|| "killed".to_owned())))
        }
        SupervisionEvent::ActorStarted(_)
        | SupervisionEvent::ProcessGroupChanged(_)
        | SupervisionEvent::PidLifecycleEvent(_) => None,
    }
}
