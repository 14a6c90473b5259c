//! The actor that runs a supervised task, such as a listener.
//!
//! # Invariants
//! 1. The future is gone before the supervisor hears of its end.

use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use crate::bell::Bell;
use crate::process::ProcessError;
use crate::stopping::Stopping;

/// What a task runs.
pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = Result<(), ProcessError>> + Send>>;

/// Makes the future of a task at each start.
pub(crate) type TaskStart = Arc<dyn Fn(Stopping) -> TaskFuture + Send + Sync>;

struct TaskRunner;

/// Spawns the actor of a task under `supervisor`.
pub(crate) async fn spawn(
    start: TaskStart,
    stopping: Stopping,
    supervisor: ActorCell,
) -> Result<ActorRef<Bell>, SpawnErr> {
    let (actor, _) = Actor::spawn_linked(None, TaskRunner, (start, stopping), supervisor).await?;
    Ok(actor)
}

impl Actor for TaskRunner {
    type Msg = Bell;
    type State = (TaskStart, Stopping);
    type Arguments = (TaskStart, Stopping);

    async fn pre_start(
        &self,
        myself: ActorRef<Bell>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(Bell::Ring)?;
        Ok(arguments)
    }

    async fn handle(
        &self,
        myself: ActorRef<Bell>,
        bell: Bell,
        (start, stopping): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match bell {
            Bell::Ring => start(stopping.clone()).await?,
            Bell::Stop => {} // Only read once the task has ended: `Stopping` is what it hears.
        }
        myself.stop(None);
        Ok(())
    }
}
