//! Processes: what other crates write, and the one actor that runs them.
//!
//! A [`Process`] is plain, synchronous code over its own state. [`Runner`] is the ractor actor
//! around it: the bell rings, it takes up to 64 items from the inbox, hands them over, lets the
//! process settle, and rings again if more waits.
//!
//! # Invariants
//! 1. A panic or `Err` costs the item in hand and nothing else.
//! 2. The failed process value is dropped before the supervisor hears of the failure.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use crate::bell::Bell;
use crate::queue::Inbox;

/// Why a process failed: a bug, or memory that may no longer match disk. Asks for a restart.
pub type ProcessError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// Go on.
    Continue,
    /// End normally. What still waits in the inbox stays there; to lose nothing, close it first
    /// with [`Inbox::close_if_empty`].
    Stop,
}

/// A supervised process with a message queue.
pub trait Process: Sized + Send + 'static {
    /// What its queue holds.
    type Item: Send + 'static;
    /// What it starts from; kept by the supervisor for the next start.
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

    /// Runs after the items taken at one bell were handled: the place to send what was gathered.
    ///
    /// # Errors
    /// As for [`Process::handle`].
    fn settle(&mut self) -> Result<Flow, ProcessError> {
        Ok(Flow::Continue)
    }

    /// Last words of an orderly stop, after the items that waited were handled.
    fn stop(&mut self) {}
}

/// When a process starts, seen from whoever spawns its actor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    /// Before the spawn returns, which then reports a refusal.
    Before,
    /// In the actor's own time; a refusal is a failure like any other.
    After,
}

/// The actor that runs a process.
pub(crate) struct Runner<P>(PhantomData<fn() -> P>);

/// Spawns the actor of a process under `supervisor`.
pub(crate) async fn spawn<P: Process>(
    begin: Begin,
    args: P::Args,
    inbox: Arc<Inbox<P::Item>>,
    supervisor: ActorCell,
) -> Result<ActorRef<Bell>, SpawnErr> {
    let runner = Runner::<P>(PhantomData);
    let (actor, _) = Actor::spawn_linked(None, runner, (begin, args, inbox), supervisor).await?;
    Ok(actor)
}

/// The state of a [`Runner`].
pub(crate) struct Desk<P: Process> {
    /// Absent before the start, after the end, and while it is at work.
    process: Option<Box<P>>,
    args: Option<P::Args>,
    inbox: Arc<Inbox<P::Item>>,
    incarnation: u32,
    spare: VecDeque<P::Item>,
    /// When stopping: how many items are still to be handled.
    last_items: Option<usize>,
}

impl<P: Process> Desk<P> {
    async fn begin(&mut self, myself: &ActorRef<Bell>) -> Result<(), ProcessError> {
        let Some(args) = self.args.take() else { return Ok(()) };
        self.process = Some(Box::new(P::start(args, Arc::clone(&self.inbox)).await?));
        self.incarnation = self.inbox.attach(myself.clone());
        Ok(())
    }

    /// One turn: a batch of items, then settle. A failure drops the process on its way out.
    fn turn(&mut self, myself: &ActorRef<Bell>) -> Result<(), ProcessError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let mut batch = self.inbox.take(self.incarnation, std::mem::take(&mut self.spare));
        let mut flow = Flow::Continue;
        let mut handled = 0;
        while flow == Flow::Continue
            && let Some(item) = batch.next()
        {
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

    fn go_on(&mut self, myself: &ActorRef<Bell>, handled: usize) {
        let more = self.inbox.more_waits(self.incarnation);
        if !more {
            self.spare = VecDeque::new();
        }
        if let Some(rest) = self.last_items.as_mut() {
            *rest = rest.saturating_sub(handled);
            if *rest == 0 || !more {
                self.end(myself);
                return;
            }
        }
        if more {
            drop(myself.cast(Bell::Ring)); // Refused only when this actor is on its way out.
        }
    }

    fn end(&mut self, myself: &ActorRef<Bell>) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
        myself.stop(None);
    }
}

impl<P: Process> Drop for Desk<P> {
    fn drop(&mut self) {
        self.inbox.detach(self.incarnation);
    }
}

impl<P: Process> Actor for Runner<P> {
    type Msg = Bell;
    type State = Desk<P>;
    type Arguments = (Begin, P::Args, Arc<Inbox<P::Item>>);

    async fn pre_start(
        &self,
        myself: ActorRef<Bell>,
        (begin, args, inbox): Self::Arguments,
    ) -> Result<Desk<P>, ActorProcessingErr> {
        let mut desk = Desk {
            process: None,
            args: Some(args),
            inbox,
            incarnation: 0,
            spare: VecDeque::new(),
            last_items: None,
        };
        match begin {
            Begin::Before => Box::pin(desk.begin(&myself)).await?,
            Begin::After => {}
        }
        Ok(desk)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Bell>,
        desk: &mut Desk<P>,
    ) -> Result<(), ActorProcessingErr> {
        desk.begin(&myself).await
    }

    async fn handle(
        &self,
        myself: ActorRef<Bell>,
        bell: Bell,
        desk: &mut Desk<P>,
    ) -> Result<(), ActorProcessingErr> {
        match bell {
            Bell::Ring => {}
            Bell::Stop => desk.last_items = Some(desk.inbox.len()),
        }
        desk.turn(&myself)
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Bell>,
        desk: &mut Desk<P>,
    ) -> Result<(), ActorProcessingErr> {
        desk.process = None;
        Ok(())
    }
}
