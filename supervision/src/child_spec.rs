//! Child specs: how a supervisor starts a child, when it restarts it, and how long it waits for it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorCell, ActorRef};

use crate::bell::{Bell, SUPERVISOR_GRACE, cause};
use crate::dynamic::{self, Dynamic};
use crate::outline::{Outline, Role};
use crate::process::{self, Begin, Process, ProcessError};
use crate::queue::Inbox;
use crate::stopping::Stopping;
use crate::strategy::{Intensity, Restart, Strategy};
use crate::supervisor;
use crate::task::{self, TaskStart};

/// Longest wait for an orderly stop of a process, a task or a dynamic supervisor, unless
/// [`ChildSpec::shutdown`] says otherwise. (OTP's own default.)
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Where a child is born.
pub(crate) struct Cradle {
    pub(crate) supervisor: ActorCell,
    pub(crate) stopping: Stopping,
    pub(crate) shutdown: Duration,
}

type Birth = Pin<Box<dyn Future<Output = Result<ActorRef<Bell>, ProcessError>> + Send>>;

/// How one child of a supervisor is started, restarted and stopped. [`Restart::Permanent`] unless
/// told otherwise.
#[derive(Clone)]
pub struct ChildSpec {
    pub(crate) outline: Outline,
    pub(crate) restart: Restart,
    shutdown: Duration,
    start: Arc<dyn Fn(Cradle) -> Birth + Send + Sync>,
}

impl ChildSpec {
    /// A process that serves `inbox`.
    pub fn process<P: Process>(
        name: &'static str,
        args: P::Args,
        inbox: Arc<Inbox<P::Item>>,
    ) -> Self {
        Self::new(Outline::leaf(name, Role::Process), SHUTDOWN_WAIT, move |cradle| {
            let (args, inbox) = (args.clone(), Arc::clone(&inbox));
            Box::pin(async move {
                let spawn = process::spawn::<P>(Begin::Before, args, inbox, cradle.supervisor);
                Box::pin(spawn).await.map_err(cause)
            })
        })
    }

    /// A long-running task, such as a listener. It ends itself when `Stopping` says so; an `Err`
    /// or a panic is a failure. A permanent task that returns `Ok` unasked is started again.
    pub fn task<F, Fut>(name: &'static str, start: F) -> Self
    where
        F: Fn(Stopping) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), ProcessError>> + Send + 'static,
    {
        let start: TaskStart = Arc::new(move |stopping| Box::pin(start(stopping)));
        Self::new(Outline::leaf(name, Role::Task), SHUTDOWN_WAIT, move |cradle| {
            let start = Arc::clone(&start);
            Box::pin(async move {
                task::spawn(start, cradle.stopping, cradle.supervisor).await.map_err(cause)
            })
        })
    }

    /// A supervisor as a child: its children are started in order and stopped in reverse order.
    /// Waits, unless told otherwise, as long for its stop as for all its children one by one.
    pub fn supervisor(
        name: &'static str,
        strategy: Strategy,
        intensity: Intensity,
        children: Vec<ChildSpec>,
    ) -> Self {
        let children: Arc<[Self]> = children.into();
        let shutdown = patience(&children);
        let outline = Outline::of(name, strategy, &children);
        Self::new(outline, shutdown, move |cradle| {
            let plan = supervisor::Plan {
                name,
                strategy,
                intensity,
                children: Arc::clone(&children),
                stopping: cradle.stopping,
                gave_up: None,
            };
            Box::pin(supervisor::spawn(plan, cradle.supervisor))
        })
    }

    /// A dynamic supervisor as a child; `door` is how its children get started. Started again, it
    /// starts again all children that had not ended.
    pub fn dynamic<P: Process>(name: &'static str, door: &Dynamic<P>) -> Self {
        let door = door.clone();
        Self::new(Outline::leaf(name, Role::Dynamic), SHUTDOWN_WAIT, move |cradle| {
            let door = door.clone();
            Box::pin(dynamic::spawn(door, cradle.shutdown, cradle.supervisor))
        })
    }

    fn new(
        outline: Outline,
        shutdown: Duration,
        start: impl Fn(Cradle) -> Birth + Send + Sync + 'static,
    ) -> Self {
        Self { outline, restart: Restart::Permanent, shutdown, start: Arc::new(start) }
    }

    /// Which ends ask for a restart.
    #[must_use]
    pub fn restart(self, restart: Restart) -> Self {
        Self { restart, ..self }
    }

    /// Longest wait for an orderly stop; then the child is killed.
    #[must_use]
    pub fn shutdown(self, shutdown: Duration) -> Self {
        Self { shutdown, ..self }
    }

    /// The child's name.
    pub fn name(&self) -> &'static str {
        self.outline.name
    }

    pub(crate) async fn start(
        &self,
        supervisor: ActorCell,
        stopping: Stopping,
    ) -> Result<ActorRef<Bell>, ProcessError> {
        (self.start)(Cradle { supervisor, stopping, shutdown: self.shutdown }).await
    }

    /// How long this child's supervisor waits before it kills.
    pub(crate) fn patience(&self) -> Duration {
        match self.outline.role {
            Role::Process | Role::Task => self.shutdown,
            Role::Dynamic | Role::Supervisor(_) => self.shutdown + SUPERVISOR_GRACE,
        }
    }
}

/// How long an orderly stop of all `children`, one by one, may take.
pub(crate) fn patience(children: &[ChildSpec]) -> Duration {
    children.iter().map(ChildSpec::patience).sum()
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ChildSpec")
            .field("outline", &self.outline)
            .field("restart", &self.restart)
            .field("shutdown", &self.shutdown)
            .finish_non_exhaustive()
    }
}
