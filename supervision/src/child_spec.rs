//! Child specs: how a supervisor starts a child, when it restarts it, and how long it waits for it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorCell, ActorRef};

use crate::control::{Control, SUPERVISOR_GRACE, cause};
use crate::dynamic::{self, Dynamic};
use crate::outline::{Outline, Role};
use crate::process::{self, Begin, Process, ProcessError};
use crate::queue::Inbox;
use crate::stopping::Stopping;
use crate::strategy::{Intensity, Restart, Strategy};
use crate::supervisor;
use crate::task::{self, TaskStart};

/// Default of [`ChildSpec::shutdown`] for a process, a task or a dynamic supervisor. (OTP's default.)
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// The environment in which a child starts.
pub(crate) struct StartContext {
    pub(crate) supervisor: ActorCell,
    pub(crate) stopping: Stopping,
    pub(crate) shutdown: Duration,
}

type StartFuture = Pin<Box<dyn Future<Output = Result<ActorRef<Control>, ProcessError>> + Send>>;

/// How a supervisor starts, restarts and stops one child. The default is [`Restart::Permanent`].
#[derive(Clone)]
pub struct ChildSpec {
    pub(crate) outline: Outline,
    pub(crate) restart: Restart,
    shutdown: Duration,
    start: Arc<dyn Fn(StartContext) -> StartFuture + Send + Sync>,
}

impl ChildSpec {
    /// A process that serves `inbox`.
    pub fn process<P: Process>(
        name: &'static str,
        args: P::Args,
        inbox: Arc<Inbox<P::Item>>,
    ) -> Self {
        Self::new(Outline::leaf(name, Role::Process), SHUTDOWN_WAIT, move |context| {
            let (args, inbox) = (args.clone(), Arc::clone(&inbox));
            Box::pin(async move {
                let spawn =
                    process::spawn::<P>(Begin::BeforeSpawnReturns, args, inbox, context.supervisor);
                Box::pin(spawn).await.map_err(cause)
            })
        })
    }

    /// A long-running task, such as a listener. It must end when `Stopping` fires; an `Err` or a panic
    /// is a failure. The supervisor restarts a permanent task that returns `Ok` without being asked.
    pub fn task<F, Fut>(name: &'static str, start: F) -> Self
    where
        F: Fn(Stopping) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), ProcessError>> + Send + 'static,
    {
        let start: TaskStart = Arc::new(move |stopping| Box::pin(start(stopping)));
        Self::new(Outline::leaf(name, Role::Task), SHUTDOWN_WAIT, move |context| {
            let start = Arc::clone(&start);
            Box::pin(async move {
                task::spawn(start, context.stopping, context.supervisor).await.map_err(cause)
            })
        })
    }

    /// A supervisor as a child: its children are started in order and stopped in reverse order.
    /// By default its stop may take as long as those of all its children, one after the other.
    pub fn supervisor(
        name: &'static str,
        strategy: Strategy,
        intensity: Intensity,
        children: Vec<ChildSpec>,
    ) -> Self {
        let children: Arc<[Self]> = children.into();
        let shutdown = stop_timeout(&children);
        let outline = Outline::of(name, strategy, &children);
        Self::new(outline, shutdown, move |context| {
            let plan = supervisor::Plan {
                name,
                strategy,
                intensity,
                children: Arc::clone(&children),
                stopping: context.stopping,
                gave_up: None,
            };
            Box::pin(supervisor::spawn(plan, context.supervisor))
        })
    }

    /// A dynamic supervisor as a child; `handle` starts its children. When it is restarted, it starts
    /// all children again that had not ended.
    pub fn dynamic<P: Process>(name: &'static str, handle: &Dynamic<P>) -> Self {
        let handle = handle.clone();
        Self::new(Outline::leaf(name, Role::Dynamic), SHUTDOWN_WAIT, move |context| {
            let handle = handle.clone();
            Box::pin(dynamic::spawn(handle, context.shutdown, context.supervisor))
        })
    }

    fn new(
        outline: Outline,
        shutdown: Duration,
        start: impl Fn(StartContext) -> StartFuture + Send + Sync + 'static,
    ) -> Self {
        Self { outline, restart: Restart::Permanent, shutdown, start: Arc::new(start) }
    }

    /// Sets which exits lead to a restart.
    #[must_use]
    pub fn restart(self, restart: Restart) -> Self {
        Self { restart, ..self }
    }

    /// Sets the longest wait for an orderly stop; after it the supervisor kills the child.
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
    ) -> Result<ActorRef<Control>, ProcessError> {
        (self.start)(StartContext { supervisor, stopping, shutdown: self.shutdown }).await
    }

    /// Time until the supervisor kills this child.
    pub(crate) fn stop_timeout(&self) -> Duration {
        match self.outline.role {
            Role::Process | Role::Task => self.shutdown,
            Role::Dynamic | Role::Supervisor(_) => self.shutdown + SUPERVISOR_GRACE,
        }
    }
}

/// Longest time of an orderly stop of all `children`, one after the other.
pub(crate) fn stop_timeout(children: &[ChildSpec]) -> Duration {
    children.iter().map(ChildSpec::stop_timeout).sum()
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
