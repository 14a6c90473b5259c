//! The [`Process`] trait, which other crates implement, and the actor that runs a process.
//!
//! A [`Process`] is plain, synchronous code over its own state. [`Runner`] is the ractor actor
//! around it: woken up, it takes up to 64 items from the inbox, hands them to the process one by one,
//! calls [`Process::settle`], and wakes itself again if more items wait.
//!
//! # Invariants
//! 1. A panic or `Err` costs the item in hand and nothing else.
//! 2. The failed process value is dropped before the supervisor hears of the failure.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use crate::control::Control;
use crate::queue::Inbox;

/// Why a process failed: a bug, or memory that may no longer match disk. Asks for a restart.
pub type ProcessError = Box<dyn std::error::Error + Send + Sync>;

/// Why a process failed that a test has killed.
const KILLED: &str = "killed by a test";

/// Tells the runner to go on or to stop the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// Go on.
    Continue,
    /// End normally. Items that still wait stay in the inbox; to lose none, close it first with
    /// [`Inbox::close_if_empty`].
    Stop,
}

/// A supervised process with a message queue.
pub trait Process: Sized + Send + 'static {
    /// The type of the queue's items.
    type Item: Send + 'static;
    /// The arguments of [`Process::start`]. The supervisor keeps them for the next start.
    type Args: Clone + Send + Sync + 'static;

    /// Runs at each start and restart. The inbox may already hold items.
    fn start(
        args: Self::Args,
        inbox: Arc<Inbox<Self::Item>>,
    ) -> impl Future<Output = Result<Self, ProcessError>> + Send;

    /// Handles one item. Synchronous on purpose: a process never awaits while it holds its state;
    /// answers come back as items.
    ///
    /// # Errors
    /// An `Err` asks the supervisor for a restart, exactly as a panic does.
    fn handle(&mut self, item: Self::Item) -> Result<Flow, ProcessError>;

    /// Runs after each batch of items: the place to send what the batch gathered.
    ///
    /// # Errors
    /// As for [`Process::handle`].
    fn settle(&mut self) -> Result<Flow, ProcessError> {
        Ok(Flow::Continue)
    }

    /// Runs at an orderly stop, after the queued items were handled.
    fn stop(&mut self) {}
}

/// When [`Process::start`] runs, relative to the spawn of its actor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    /// Before the spawn returns; the spawn reports a failed start.
    BeforeSpawnReturns,
    /// In the actor, after the spawn returned; a failed start is a failure like any other.
    AfterSpawn,
}

/// The actor that runs a process.
pub(crate) struct Runner<P>(PhantomData<fn() -> P>);

/// Spawns the actor of a process under `supervisor`.
pub(crate) async fn spawn<P: Process>(
    begin: Begin,
    args: P::Args,
    inbox: Arc<Inbox<P::Item>>,
    supervisor: ActorCell,
) -> Result<ActorRef<Control>, SpawnErr> {
    let runner = Runner::<P>(PhantomData);
    let (actor, _) = Actor::spawn_linked(None, runner, (begin, args, inbox), supervisor).await?;
    Ok(actor)
}

/// The state of a [`Runner`].
pub(crate) struct RunnerState<P: Process> {
    /// `None` before the start, after the end, and during a turn.
    process: Option<Box<P>>,
    args: Option<P::Args>,
    inbox: Arc<Inbox<P::Item>>,
    incarnation: u32,
    spare: VecDeque<P::Item>,
    /// While stopping: the number of items still to be handled.
    items_before_stop: Option<usize>,
}

impl<P: Process> RunnerState<P> {
    async fn begin(&mut self, myself: &ActorRef<Control>) -> Result<(), ProcessError> {
        let Some(args) = self.args.take() else { return Ok(()) };
        self.process = Some(Box::new(P::start(args, Arc::clone(&self.inbox)).await?));
        self.incarnation = self.inbox.attach(myself.clone());
        Ok(())
    }

    /// One turn: a batch of items, then `settle`. On failure the process is dropped before this returns.
    fn turn(&mut self, myself: &ActorRef<Control>) -> Result<(), ProcessError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let mut batch = self.inbox.take(self.incarnation, std::mem::take(&mut self.spare));
        let mut flow = Flow::Continue;
        let mut handled = 0;
        while flow == Flow::Continue {
            if self.inbox.takes_doom() {
                return Err(KILLED.into());
            }
            let Some(item) = batch.next() else { break };
            flow = process.handle(item)?;
            handled += 1;
        }
        let settled = process.settle()?;
        self.spare = batch.reclaim();
        if flow == Flow::Stop || settled == Flow::Stop {
            drop(process);
            myself.stop(None);
            return Ok(());
        }
        self.process = Some(process);
        self.go_on(myself, handled);
        Ok(())
    }

    fn go_on(&mut self, myself: &ActorRef<Control>, handled: usize) {
        let more = self.inbox.end_turn(self.incarnation);
        if !more {
            self.spare = VecDeque::new();
        }
        if let Some(rest) = self.items_before_stop.as_mut() {
            *rest = rest.saturating_sub(handled);
            if *rest == 0 || !more {
                self.end(myself);
                return;
            }
        }
        if more {
            drop(myself.cast(Control::Wake)); // Fails only while this actor is stopping.
        }
    }

    fn end(&mut self, myself: &ActorRef<Control>) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
        myself.stop(None);
    }
}

impl<P: Process> Drop for RunnerState<P> {
    fn drop(&mut self) {
        self.inbox.detach(self.incarnation);
    }
}

impl<P: Process> Actor for Runner<P> {
    type Msg = Control;
    type State = RunnerState<P>;
    type Arguments = (Begin, P::Args, Arc<Inbox<P::Item>>);

    async fn pre_start(
        &self,
        myself: ActorRef<Control>,
        (begin, args, inbox): Self::Arguments,
    ) -> Result<RunnerState<P>, ActorProcessingErr> {
        let mut state = RunnerState {
            process: None,
            args: Some(args),
            inbox,
            incarnation: 0,
            spare: VecDeque::new(),
            items_before_stop: None,
        };
        match begin {
            Begin::BeforeSpawnReturns => Box::pin(state.begin(&myself)).await?,
            Begin::AfterSpawn => {}
        }
        Ok(state)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Control>,
        state: &mut RunnerState<P>,
    ) -> Result<(), ActorProcessingErr> {
        state.begin(&myself).await
    }

    async fn handle(
        &self,
        myself: ActorRef<Control>,
        message: Control,
        state: &mut RunnerState<P>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Control::Wake => {}
            Control::Stop => state.items_before_stop = Some(state.inbox.len()),
        }
        state.turn(&myself)
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Control>,
        state: &mut RunnerState<P>,
    ) -> Result<(), ActorProcessingErr> {
        state.process = None;
        Ok(())
    }
}
