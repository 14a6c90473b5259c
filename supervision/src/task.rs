//! The actor that runs a supervised task, such as a listener.
//!
//! # Invariants
//! 1. The future is gone before the supervisor hears of its end.

use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use crate::control::Control;
use crate::process::ProcessError;
use crate::stopping::Stopping;

/// The future of a task.
pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = Result<(), ProcessError>> + Send>>;

/// Makes the future of a task at each start.
pub(crate) type TaskStart = Arc<dyn Fn(Stopping) -> TaskFuture + Send + Sync>;

struct TaskRunner;

/// Spawns the actor of a task under `supervisor`.
pub(crate) async fn spawn(
    start: TaskStart,
    stopping: Stopping,
    supervisor: ActorCell,
) -> Result<ActorRef<Control>, SpawnErr> {
    let (actor, _) = Actor::spawn_linked(None, TaskRunner, (start, stopping), supervisor).await?;
    Ok(actor)
}

impl Actor for TaskRunner {
    type Msg = Control;
    type State = (TaskStart, Stopping);
    type Arguments = (TaskStart, Stopping);

    async fn pre_start(
        &self,
        myself: ActorRef<Control>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(Control::Wake)?;
        Ok(arguments)
    }

    async fn handle(
        &self,
        myself: ActorRef<Control>,
        message: Control,
        (start, stopping): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Control::Wake => start(stopping.clone()).await?,
            Control::Stop => {} // The task hears of it through `Stopping`; this message is read after its end.
        }
        myself.stop(None);
        Ok(())
    }
}
