//! Dynamic supervisors: children on demand, by the hundred thousand, each restarted alone.
//!
//! The list of children lives in the shared handle [`Dynamic`], not in the actor. It outlives the
//! supervisor, which starts all children again when it is restarted itself.
//!
//! # Invariants
//! 1. Only its supervisor notices a child's failure; the restarted child gets the same inbox.
//! 2. A child that ended normally, or was given up, is forgotten.
//! 3. One id runs at most once: a start for an id that still runs waits for its end.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::control::{Control, await_all, cause};
use crate::process::{self, Begin, Process, ProcessError};
use crate::queue::{BATCH_ITEMS_MAX, Inbox};
use crate::strategy::{Exit, Intensity, RestartLog};
use crate::supervisor::exit_of;

type GiveUp<P> = dyn Fn(u64, <P as Process>::Args) + Send + Sync;

/// The arguments and the inbox with which a child starts.
type StartArgs<P> = (<P as Process>::Args, Arc<Inbox<<P as Process>::Item>>);

/// The handle of a dynamic supervisor. Cheap to clone; usable before the supervisor starts and while
/// it restarts. `ChildSpec::dynamic` makes it part of the tree.
pub struct Dynamic<P: Process>(Arc<Shared<P>>);

struct Shared<P: Process> {
    kind: &'static str,
    intensity: Intensity,
    on_give_up: Box<GiveUp<P>>,
    restarts: AtomicU64,
    children: Mutex<Children<P>>,
}

/// All children, running or about to start.
struct Children<P: Process> {
    supervisor: Option<ActorRef<Control>>,
    by_id: HashMap<u64, Child<P>>,
    /// Ids of children to start.
    to_start: VecDeque<u64>,
}

struct Child<P: Process> {
    args: P::Args,
    inbox: Arc<Inbox<P::Item>>,
    actor: Option<ActorRef<Control>>,
    log: RestartLog,
    /// Requested while this child still runs; starts when it ends.
    next: Option<Box<StartArgs<P>>>,
}

impl<P: Process> Child<P> {
    fn new(args: P::Args, inbox: Arc<Inbox<P::Item>>) -> Self {
        Self { args, inbox, actor: None, log: RestartLog::default(), next: None }
    }
}

/// The decision about a failed child.
enum AfterFailure<P: Process> {
    Restart,
    GivenUp(P::Args),
    Unknown,
}

impl<P: Process> Children<P> {
    /// Removes child `id`, and adds the one that was requested while it ran.
    fn forget(&mut self, id: u64) {
        let gone = self.by_id.remove(&id);
        if let Some(Child { next: Some(next), .. }) = gone {
            let (args, inbox) = *next;
            self.by_id.insert(id, Child::new(args, inbox));
            self.to_start.push_back(id);
        } else if self.by_id.len() < self.by_id.capacity() / 8 {
            self.by_id.shrink_to_fit();
        }
    }
}

impl<P: Process> Dynamic<P> {
    /// A handle without children. `intensity` holds for each child by itself. A child that exceeds it
    /// is given up: the supervisor calls `on_give_up` with its id and arguments. The callback runs in
    /// the supervisor's actor and must not block.
    pub fn new(
        kind: &'static str,
        intensity: Intensity,
        on_give_up: impl Fn(u64, P::Args) + Send + Sync + 'static,
    ) -> Self {
        let children =
            Children { supervisor: None, by_id: HashMap::new(), to_start: VecDeque::new() };
        Self(Arc::new(Shared {
            kind,
            intensity,
            on_give_up: Box::new(on_give_up),
            restarts: AtomicU64::new(0),
            children: Mutex::new(children),
        }))
    }

    /// Starts child `id` on `inbox`. Never blocks. If a child `id` still runs, the new one starts when
    /// that one ends; of several requested meanwhile, only the last.
    pub fn start_child(&self, id: u64, args: P::Args, inbox: Arc<Inbox<P::Item>>) {
        let mut children = self.lock();
        if let Some(child) = children.by_id.get_mut(&id) {
            child.next = Some(Box::new((args, inbox)));
            return;
        }
        children.by_id.insert(id, Child::new(args, inbox));
        children.to_start.push_back(id);
        if children.to_start.len() == 1
            && let Some(supervisor) = children.supervisor.clone()
        {
            drop(children);
            drop(supervisor.cast(Control::Wake)); // If it has ended, its successor starts all children.
        }
    }

    /// Number of children, including those about to start.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Number of restarts so far.
    pub fn restarts(&self) -> u64 {
        self.0.restarts.load(Relaxed)
    }

    /// The kind of the children, for logs.
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    fn lock(&self) -> MutexGuard<'_, Children<P>> {
        self.0.children.lock()
    }

    /// A supervisor starts. Returns the actors that its predecessor left behind.
    fn attach_supervisor(&self, supervisor: ActorRef<Control>) -> Vec<ActorRef<Control>> {
        let mut children = self.lock();
        let children = &mut *children;
        children.supervisor = Some(supervisor);
        let mut orphans = Vec::new();
        for (id, mut child) in std::mem::take(&mut children.by_id) {
            orphans.extend(child.actor.take());
            if !child.inbox.is_closed() {
                children.by_id.insert(id, child);
            } else if let Some(next) = child.next {
                children.by_id.insert(id, Child::new(next.0, next.1));
            }
        }
        children.to_start = children.by_id.keys().copied().collect();
        orphans
    }

    /// A supervisor ends; starts wait for its successor. Returns the actors that still run.
    fn detach_supervisor(&self) -> Vec<ActorRef<Control>> {
        let mut children = self.lock();
        children.supervisor = None;
        children.by_id.values_mut().filter_map(|child| child.actor.take()).collect()
    }

    /// The next child to start, with its arguments.
    fn next_to_start(&self) -> Option<(u64, StartArgs<P>)> {
        let mut children = self.lock();
        while let Some(id) = children.to_start.pop_front() {
            if let Some(child) = children.by_id.get(&id)
                && child.actor.is_none()
            {
                return Some((id, (child.args.clone(), Arc::clone(&child.inbox))));
            }
        }
        children.to_start = VecDeque::new();
        None
    }

    fn set_running(&self, id: u64, actor: ActorRef<Control>) {
        if let Some(child) = self.lock().by_id.get_mut(&id) {
            child.actor = Some(actor);
        }
    }

    /// Records the failure of child `id` and decides what follows.
    fn record_failure(&self, id: u64) -> AfterFailure<P> {
        let mut children = self.lock();
        let Some(child) = children.by_id.get_mut(&id) else { return AfterFailure::Unknown };
        child.actor = None;
        if child.next.is_some() {
            // A new child with this id was requested already.
            children.forget(id);
            self.0.restarts.fetch_add(1, Relaxed);
            return AfterFailure::Restart;
        }
        if child.log.grant(Instant::now(), self.0.intensity) {
            children.to_start.push_back(id);
            self.0.restarts.fetch_add(1, Relaxed);
            return AfterFailure::Restart;
        }
        let args = child.args.clone();
        children.forget(id);
        AfterFailure::GivenUp(args)
    }
}

impl<P: Process> Clone for Dynamic<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Process> fmt::Debug for Dynamic<P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Dynamic").field("kind", &self.0.kind).finish_non_exhaustive()
    }
}

/// Spawns the supervisor of `handle`'s children under `supervisor`. The children get `shutdown` to
/// stop.
pub(crate) async fn spawn<P: Process>(
    handle: Dynamic<P>,
    shutdown: Duration,
    supervisor: ActorCell,
) -> Result<ActorRef<Control>, ProcessError> {
    let actor = DynamicSupervisor { handle, shutdown };
    let (actor, _) = Actor::spawn_linked(None, actor, (), supervisor).await.map_err(cause)?;
    Ok(actor)
}

/// The actor of a dynamic supervisor. Its state maps actors to children.
struct DynamicSupervisor<P: Process> {
    handle: Dynamic<P>,
    shutdown: Duration,
}

impl<P: Process> DynamicSupervisor<P> {
    /// Starts at most one batch of children; wakes itself if more are to start.
    async fn start_batch(
        &self,
        myself: &ActorRef<Control>,
        ids: &mut HashMap<ActorId, u64>,
    ) -> Result<(), ActorProcessingErr> {
        for _ in 0..BATCH_ITEMS_MAX {
            let Some((id, (args, inbox))) = self.handle.next_to_start() else { return Ok(()) };
            let actor =
                process::spawn::<P>(Begin::AfterSpawn, args, inbox, myself.get_cell()).await?;
            ids.insert(actor.get_id(), id);
            self.handle.set_running(id, actor);
        }
        myself.cast(Control::Wake)?;
        Ok(())
    }

    fn handle_failure(&self, id: u64, reason: &str) {
        let child = self.handle.kind();
        match self.handle.record_failure(id) {
            AfterFailure::Restart => {
                warn!(child, id, error = reason, "child failed and is restarted");
            }
            AfterFailure::GivenUp(args) => {
                error!(child, id, error = reason, "child fails too often and is given up");
                let tell = AssertUnwindSafe(|| (self.handle.0.on_give_up)(id, args));
                if catch_unwind(tell).is_err() {
                    error!(child, id, "the callback for a child that was given up panicked");
                }
            }
            AfterFailure::Unknown => {}
        }
    }
}

impl<P: Process> Actor for DynamicSupervisor<P> {
    type Msg = Control;
    type State = HashMap<ActorId, u64>;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Control>,
        (): (),
    ) -> Result<Self::State, ActorProcessingErr> {
        let orphans = self.handle.attach_supervisor(myself.clone());
        for orphan in &orphans {
            orphan.kill();
        }
        await_all(orphans, self.shutdown).await;
        myself.cast(Control::Wake)?;
        Ok(HashMap::new())
    }

    async fn handle(
        &self,
        myself: ActorRef<Control>,
        message: Control,
        ids: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Control::Wake => self.start_batch(&myself, ids).await?,
            Control::Stop => {
                let children = self.handle.detach_supervisor();
                for child in &children {
                    drop(child.cast(Control::Stop)); // The child may be gone already.
                }
                let killed = await_all(children, self.shutdown).await;
                if killed > 0 {
                    warn!(child = self.handle.kind(), killed, "children had to be killed");
                }
                myself.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Control>,
        event: SupervisionEvent,
        ids: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((cell, exit, reason)) = exit_of(event) else { return Ok(()) };
        let Some(id) = ids.remove(&cell.get_id()) else { return Ok(()) };
        match exit {
            Exit::Failed => self.handle_failure(id, &reason),
            Exit::Normal => self.handle.lock().forget(id),
        }
        self.start_batch(&myself, ids).await
    }
}
