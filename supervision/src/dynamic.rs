//! Dynamic supervisors: children on demand, by the hundred thousand, each restarted alone.
//!
//! The list of children lives in the door, not in the actor: it outlives the supervisor, which
//! starts them all again when it is itself restarted.
//!
//! # Invariants
//! 1. A child's failure is noticed by nobody but its supervisor; its successor gets the same inbox.
//! 2. A child that ended normally, or was given up, is forgotten.
//! 3. One id runs at most once: a start for an id that still runs waits for its end.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::bell::{Bell, await_all, cause};
use crate::process::{self, Begin, Process, ProcessError};
use crate::queue::{BATCH_ITEMS_MAX, Inbox};
use crate::strategy::{Exit, Intensity, RestartLog};
use crate::supervisor::ending;

type GiveUp<P> = dyn Fn(u64, <P as Process>::Args) + Send + Sync;

/// What a child starts from.
type Seed<P> = (<P as Process>::Args, Arc<Inbox<<P as Process>::Item>>);

/// The door to a dynamic supervisor. Cheap to clone; usable before the supervisor starts and while
/// it restarts. It becomes part of the tree by `ChildSpec::dynamic`.
pub struct Dynamic<P: Process>(Arc<Shared<P>>);

struct Shared<P: Process> {
    kind: &'static str,
    intensity: Intensity,
    on_give_up: Box<GiveUp<P>>,
    restarts: AtomicU64,
    roll: Mutex<Roll<P>>,
}

/// Everyone there is.
struct Roll<P: Process> {
    supervisor: Option<ActorRef<Bell>>,
    members: HashMap<u64, Member<P>>,
    /// Ids to be started.
    due: VecDeque<u64>,
}

struct Member<P: Process> {
    args: P::Args,
    inbox: Arc<Inbox<P::Item>>,
    actor: Option<ActorRef<Bell>>,
    log: RestartLog,
    /// Asked for while this one still runs; starts when it ends.
    next: Option<Box<Seed<P>>>,
}

impl<P: Process> Member<P> {
    fn new(args: P::Args, inbox: Arc<Inbox<P::Item>>) -> Self {
        Self { args, inbox, actor: None, log: RestartLog::default(), next: None }
    }
}

/// What became of a child that failed.
enum Fate<P: Process> {
    Restart,
    GivenUp(P::Args),
    Unknown,
}

impl<P: Process> Roll<P> {
    /// Takes `id` off the roll and puts on who waited for its end.
    fn forget(&mut self, id: u64) {
        let gone = self.members.remove(&id);
        if let Some(Member { next: Some(next), .. }) = gone {
            let (args, inbox) = *next;
            self.members.insert(id, Member::new(args, inbox));
            self.due.push_back(id);
        } else if self.members.len() < self.members.capacity() / 8 {
            self.members.shrink_to_fit();
        }
    }
}

impl<P: Process> Dynamic<P> {
    /// A door without children. `intensity` holds for each child by itself; a child that exceeds
    /// it is given up and `on_give_up` called with its id and arguments. That runs in the
    /// supervisor and must not block.
    pub fn new(
        kind: &'static str,
        intensity: Intensity,
        on_give_up: impl Fn(u64, P::Args) + Send + Sync + 'static,
    ) -> Self {
        let roll = Roll { supervisor: None, members: HashMap::new(), due: VecDeque::new() };
        Self(Arc::new(Shared {
            kind,
            intensity,
            on_give_up: Box::new(on_give_up),
            restarts: AtomicU64::new(0),
            roll: Mutex::new(roll),
        }))
    }

    /// Starts child `id` on `inbox`. Never blocks. If `id` still runs, this one starts when that
    /// one ends; of several such, the last.
    pub fn start_child(&self, id: u64, args: P::Args, inbox: Arc<Inbox<P::Item>>) {
        let mut roll = self.lock();
        if let Some(member) = roll.members.get_mut(&id) {
            member.next = Some(Box::new((args, inbox)));
            return;
        }
        roll.members.insert(id, Member::new(args, inbox));
        roll.due.push_back(id);
        if roll.due.len() == 1
            && let Some(supervisor) = roll.supervisor.clone()
        {
            drop(roll);
            drop(supervisor.cast(Bell::Ring)); // A successor starts all who are on the roll.
        }
    }

    /// Number of children, those about to start included.
    pub fn count(&self) -> usize {
        self.lock().members.len()
    }

    /// Restarts of children so far.
    pub fn restarts(&self) -> u64 {
        self.0.restarts.load(Relaxed)
    }

    /// What the children are.
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    fn lock(&self) -> MutexGuard<'_, Roll<P>> {
        self.0.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A supervisor begins: returns the actors a predecessor left behind.
    fn adopt(&self, supervisor: ActorRef<Bell>) -> Vec<ActorRef<Bell>> {
        let mut roll = self.lock();
        let roll = &mut *roll;
        roll.supervisor = Some(supervisor);
        let mut orphans = Vec::new();
        for (id, mut member) in std::mem::take(&mut roll.members) {
            orphans.extend(member.actor.take());
            if !member.inbox.is_closed() {
                roll.members.insert(id, member);
            } else if let Some(next) = member.next {
                roll.members.insert(id, Member::new(next.0, next.1));
            }
        }
        roll.due = roll.members.keys().copied().collect();
        orphans
    }

    /// A supervisor ends: from now on starts wait for its successor. Returns who still runs.
    fn dismiss(&self) -> Vec<ActorRef<Bell>> {
        let mut roll = self.lock();
        roll.supervisor = None;
        roll.members.values_mut().filter_map(|member| member.actor.take()).collect()
    }

    /// The next child to start, and what from.
    fn next_due(&self) -> Option<(u64, Seed<P>)> {
        let mut roll = self.lock();
        while let Some(id) = roll.due.pop_front() {
            if let Some(member) = roll.members.get(&id)
                && member.actor.is_none()
            {
                return Some((id, (member.args.clone(), Arc::clone(&member.inbox))));
            }
        }
        roll.due = VecDeque::new();
        None
    }

    fn runs(&self, id: u64, actor: ActorRef<Bell>) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.actor = Some(actor);
        }
    }

    /// Decides what becomes of child `id`, which failed.
    fn failed(&self, id: u64) -> Fate<P> {
        let mut roll = self.lock();
        let Some(member) = roll.members.get_mut(&id) else { return Fate::Unknown };
        member.actor = None;
        if member.next.is_some() {
            // It had retired: its successor waits.
            roll.forget(id);
            self.0.restarts.fetch_add(1, Relaxed);
            return Fate::Restart;
        }
        if member.log.grant(Instant::now(), self.0.intensity) {
            roll.due.push_back(id);
            self.0.restarts.fetch_add(1, Relaxed);
            return Fate::Restart;
        }
        let args = member.args.clone();
        roll.forget(id);
        Fate::GivenUp(args)
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

/// Spawns the supervisor of `door`'s children under `supervisor`. They get `shutdown` to stop.
pub(crate) async fn spawn<P: Process>(
    door: Dynamic<P>,
    shutdown: Duration,
    supervisor: ActorCell,
) -> Result<ActorRef<Bell>, ProcessError> {
    let keeper = Keeper { door, shutdown };
    let (actor, _) = Actor::spawn_linked(None, keeper, (), supervisor).await.map_err(cause)?;
    Ok(actor)
}

/// The actor of a dynamic supervisor. Its state tells which actor is which child.
struct Keeper<P: Process> {
    door: Dynamic<P>,
    shutdown: Duration,
}

impl<P: Process> Keeper<P> {
    /// Starts up to a batch of those who are due; rings for itself if more are.
    async fn start_due(
        &self,
        myself: &ActorRef<Bell>,
        ids: &mut HashMap<ActorId, u64>,
    ) -> Result<(), ActorProcessingErr> {
        for _ in 0..BATCH_ITEMS_MAX {
            let Some((id, (args, inbox))) = self.door.next_due() else { return Ok(()) };
            let actor = process::spawn::<P>(Begin::After, args, inbox, myself.get_cell()).await?;
            ids.insert(actor.get_id(), id);
            self.door.runs(id, actor);
        }
        myself.cast(Bell::Ring)?;
        Ok(())
    }

    fn failed(&self, id: u64, reason: &str) {
        let child = self.door.kind();
        match self.door.failed(id) {
            Fate::Restart => warn!(child, id, error = reason, "child failed and is restarted"),
            Fate::GivenUp(args) => {
                error!(child, id, error = reason, "child fails too often and is given up");
                let tell = AssertUnwindSafe(|| (self.door.0.on_give_up)(id, args));
                if catch_unwind(tell).is_err() {
                    error!(child, id, "the answer to giving up a child panicked");
                }
            }
            Fate::Unknown => {}
        }
    }
}

impl<P: Process> Actor for Keeper<P> {
    type Msg = Bell;
    type State = HashMap<ActorId, u64>;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Bell>,
        (): (),
    ) -> Result<Self::State, ActorProcessingErr> {
        let orphans = self.door.adopt(myself.clone());
        for orphan in &orphans {
            orphan.kill();
        }
        await_all(orphans, self.shutdown).await;
        myself.cast(Bell::Ring)?;
        Ok(HashMap::new())
    }

    async fn handle(
        &self,
        myself: ActorRef<Bell>,
        bell: Bell,
        ids: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match bell {
            Bell::Ring => self.start_due(&myself, ids).await?,
            Bell::Stop => {
                let children = self.door.dismiss();
                for child in &children {
                    drop(child.cast(Bell::Stop)); // One that is gone already is what we want.
                }
                let killed = await_all(children, self.shutdown).await;
                if killed > 0 {
                    warn!(child = self.door.kind(), killed, "children had to be killed");
                }
                myself.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Bell>,
        event: SupervisionEvent,
        ids: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((cell, exit, reason)) = ending(event) else { return Ok(()) };
        let Some(id) = ids.remove(&cell.get_id()) else { return Ok(()) };
        match exit {
            Exit::Failed => self.failed(id, &reason),
            Exit::Normal => self.door.lock().forget(id),
        }
        self.start_due(&myself, ids).await
    }
}
