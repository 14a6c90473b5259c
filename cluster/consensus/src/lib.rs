//! One Raft group: the door to openraft, which decides; the log, the tables and the links are ours.
//!
//! ```text
//!   propose --> openraft --> journal --> the node's log, flushed
//!                  |  \----> links   --> members on other nodes (Append, Vote, SnapshotPiece)
//!                  v
//!               machine --> Replica::apply
//! ```
//!
//! Every node opens every group. One that was never initialized here has no members: it waits until
//! a leader takes it in. One member that votes is a group that leads as soon as it is open.
//!
//! # Invariants
//! 1. The replica sees an entry only after a majority of the voters has it on disk.
//! 2. Proposals enter the log in the order of the calls.
//! 3. A proposal that failed with anything but [`ProposeError::Unknown`] is never committed.
//! 4. A full disk ends nothing: others lead meanwhile, and if nobody can, the group waits.

mod convert;
mod error;
mod forget;
mod groups;
mod leadership;
mod log;
mod machine;
mod network;
mod proposals;
mod serve;
mod types;

#[cfg(test)]
mod tests;

pub use error::{OpenError, ProposeError, RaftError};
pub use groups::{Groups, GroupsArgs};
pub use leadership::space::OwnClock;
pub use leadership::standing::Standing;
pub use proposals::describe_metrics;

use bytes::Bytes;
use leadership::confirm::Confirmations;
use leadership::election::Contact;
use leadership::space::WayOut;
use leadership::standing::Checkpoints;
use links::Peers;
use log::journal::Journal;
use machine::Machine;
use network::link::{Links, Wire};
use network::snapshot::Receiving;
use openraft::{Config, SnapshotPolicy};
use proposals::Proposals;
use proto::{NodeId, ShardId, cluster, stored};
use serve::InHand;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use storage::Storage;
use supervision::TaskGroup;
use tokio::sync::{Notify, watch};
use types::{Core, Id};

/// Called when what was asked is done.
pub type Done = Box<dyn FnOnce() + Send>;

/// Called with the reason why a proposal failed.
pub type Failed = Box<dyn FnOnce(ProposeError) + Send>;

/// The process that owns the state machine.
pub trait Replica: Send + Sync + 'static {
    /// These entries are committed. They come in order and without a gap; the next ones come after
    /// `done` was called. Dropping `done` unused ends the group: the state is lost.
    fn apply(&self, entries: Vec<Committed>, done: Done);

    /// The tables were replaced by a snapshot, or emptied: load them again. Nothing else comes before
    /// `done`.
    fn reload(&self, done: Done);

    /// The group has ended here, and all of it is about to be forgotten: when `done` is called nothing
    /// of it is being written any more. [`Replica::reload`] comes next.
    fn rest(&self, done: Done);
}

/// A committed entry. Entries of the group itself carry nothing; the replica must know of them all
/// the same, for its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// Its place.
    pub id: stored::LogId,
    /// What was proposed; `None`: an entry of the group itself.
    pub content: Option<Bytes>,
    /// Who takes part from here on, if that changed.
    pub membership: Option<stored::Membership>,
}

/// How patient a group is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time between two heartbeats of a leader. Default 250 ms.
    pub heartbeat: Duration,
    /// How long a silent leader is waited for: by chance between these. Default 1 s to 2 s, at least
    /// twice the heartbeat. Whose link is gone is not waited for.
    pub election: (Duration, Duration),
    /// How long one request that carries entries may take. Default 1 s, at least the heartbeat.
    pub request: Duration,
    /// How long one piece of a snapshot may take; the last one includes the replacement of all
    /// tables. Default 60 s.
    pub piece: Duration,
    /// How long a learner may make no progress. Default 30 s.
    pub learner: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election: (Duration::from_secs(1), Duration::from_secs(2)),
            request: Duration::from_secs(1),
            piece: Duration::from_mins(1),
            learner: Duration::from_secs(30),
        }
    }
}

/// What a group is opened with.
pub struct GroupArgs {
    /// Which group.
    pub group: ShardId,
    /// This node's storage.
    pub storage: Storage,
    /// This node's links.
    pub peers: Peers,
    /// The group's records in the log beyond its tables, as [`Storage::open`] found them.
    pub recovered: Vec<(u64, Bytes)>,
    /// What is committed goes there. Its state is that of the tables.
    pub replica: Arc<dyn Replica>,
    /// How patient the group is.
    pub timing: Timing,
    /// Whether this node's clock lets it lead.
    pub clock: Arc<dyn OwnClock>,
}

impl fmt::Debug for GroupArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupArgs").field("group", &self.group).finish_non_exhaustive()
    }
}

/// One Raft group on this node. Cheap to clone. Ends with [`Group::stop`], not by being dropped.
#[derive(Clone)]
pub struct Group(Arc<Door>);

struct Door {
    parts: Parts,
    /// Another one after [`Group::forget`].
    inner: RwLock<Arc<Inner>>,
    /// Held while the group is forgotten.
    forgetting: tokio::sync::Mutex<()>,
}

/// What a group is made of, each time that it is opened.
#[derive(Clone)]
struct Parts {
    group: ShardId,
    storage: Storage,
    peers: Peers,
    replica: Arc<dyn Replica>,
    timing: Timing,
    clock: Arc<dyn OwnClock>,
    standing: Arc<watch::Sender<Standing>>,
}

pub(crate) struct Inner {
    group: ShardId,
    me: u64,
    peers: Peers,
    storage: Storage,
    timing: Timing,
    clock: Arc<dyn OwnClock>,
    raft: Core,
    journal: Journal,
    wire: Arc<Wire>,
    contact: Contact,
    standing: Arc<watch::Sender<Standing>>,
    checkpoints: Checkpoints,
    proposals: Proposals,
    confirmations: Confirmations,
    in_hand: InHand,
    receiving: tokio::sync::Mutex<Receiving>,
    /// Held while leadership is handed over.
    handover: tokio::sync::Mutex<()>,
    way_out: WayOut,
    /// Where the log ended when it was forgotten, see [`forget`].
    floor: Option<Id>,
    /// Nothing is answered and nobody elected: the group may be forgotten.
    resting: AtomicBool,
    /// Somebody ends the group.
    stopped: AtomicBool,
    /// Why it could not be opened anew.
    failure: OnceLock<String>,
    /// Held for reading while an append is handled, for writing while a snapshot is installed.
    appends: tokio::sync::RwLock<()>,
    /// Wakes the task that sends heartbeats and stands for election.
    nudge: Notify,
    tasks: TaskGroup,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("group", &self.0.parts.group).finish_non_exhaustive()
    }
}

/// Runs a future that is ready at once, as those of openraft are that only hand it something.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn config(timing: &Timing) -> Config {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (least, most) = timing.election;
    let request = ms(timing.request.max(timing.heartbeat));
    let election_timeout_min = ms(least).max(request) + 1;
    Config {
        // openraft's own timers are off, see `election`. This is how long a request may take.
        heartbeat_interval: request,
        enable_heartbeat: false,
        enable_elect: false,
        election_timeout_min,
        election_timeout_max: ms(most).max(election_timeout_min + 1),
        install_snapshot_timeout: ms(timing.piece),
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::Never,
        // Purged is what `Checkpoints` says.
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}

impl Group {
    /// Opens the group as storage has it. A sole voter leads when this returns, or soon after.
    ///
    /// # Errors
    /// [`RaftError::Storage`], [`RaftError::Damaged`], [`RaftError::Stopped`].
    pub async fn open(args: GroupArgs) -> Result<Self, RaftError> {
        let GroupArgs { group, storage, peers, recovered, replica, timing, clock } = args;
        let standing = Arc::new(watch::Sender::new(Standing::default()));
        let parts = Parts { group, storage, peers, replica, timing, clock, standing };
        let inner = RwLock::new(Inner::open(&parts, recovered).await?);
        Ok(Self(Arc::new(Door { parts, inner, forgetting: tokio::sync::Mutex::default() })))
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes this node the sole voter of a group that has no members; otherwise does nothing.
    ///
    /// # Errors
    /// [`RaftError::Stopped`].
    pub async fn found(&self) -> Result<(), RaftError> {
        leadership::members::found(&self.inner()).await
    }

    /// Proposes `content`. If it is committed, [`Replica::apply`] sees it, here and on all members;
    /// if not, or if nobody knows, `failed` is called, on any thread. Never waits.
    ///
    /// Only [`ProposeError::Unknown`] leaves open whether it is committed in the end: then it may
    /// still be seen by [`Replica::apply`], before or after.
    pub fn propose(&self, content: Bytes, failed: Failed) {
        proposals::propose(&self.inner(), content, failed);
    }

    /// Makes sure that this node leads, so that its state, as it is when this returns, has all that
    /// was answered to anybody before the call. Those who wait at the same time share one question
    /// to the others; a sole voter asks nobody.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::NoMajority`], [`ProposeError::Failed`].
    pub async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        leadership::confirm::confirm(&self.inner()).await
    }

    /// How the group stands, as far as this node knows.
    pub fn standing(&self) -> Standing {
        self.inner().standing_now()
    }

    /// Told when the group stands otherwise. The two indexes alone tell nobody.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.0.parts.standing.subscribe()
    }

    /// Returns, with the reason, when the group has ended though nobody stopped it: its storage or its
    /// replica failed. Only a start of the node brings it back. While it has not, this waits.
    pub async fn failed(&self) -> String {
        let mut standing = self.watch();
        loop {
            if standing.borrow_and_update().ended
                && let Some(reason) = self.inner().failure()
            {
                return reason;
            }
            if standing.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The members that have the log but for its end. Empty if this node does not lead.
    pub fn caught_up(&self) -> BTreeSet<NodeId> {
        self.inner().caught_up()
    }

    /// Makes a node a learner and waits until it has the log.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`], [`RaftError::NoProgress`] after [`Timing::learner`] without any; it
    /// is a learner then all the same. [`RaftError::NoMajority`], [`RaftError::Busy`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::add_learner(&self.inner(), node).await
    }

    /// Takes a learner out; does nothing if it is none.
    ///
    /// # Errors
    /// As [`Group::add_learner`]; [`RaftError::Refused`] if it is a voter.
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::remove_learner(&self.inner(), node).await
    }

    /// Makes these nodes the voters, through learners and a joint membership. Who was a voter and is
    /// none any longer leaves the group.
    ///
    /// If this node leads and is not among them it hands leadership to one of them and answers
    /// [`RaftError::NotLeader`] with its name: ask that one again.
    ///
    /// # Errors
    /// As [`Group::add_learner`]; [`RaftError::Refused`] for no voters at all.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), RaftError> {
        leadership::members::change_voters(&self.inner(), voters).await
    }

    /// Hands leadership to a voter. Proposals wait meanwhile. If the other does not take it, this
    /// node goes on.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`], [`RaftError::Refused`] if it is no voter, [`RaftError::NotTaken`].
    pub async fn yield_to(&self, node: NodeId) -> Result<(), RaftError> {
        leadership::members::yield_to(&self.inner(), node).await
    }

    /// Whether this node leads, and a majority said so when asked within the election time, over links
    /// that are up still. Never waits.
    ///
    /// Such a leader has been replaced only if it asked for it, or if a voter lost its link while this
    /// end still took it for up: voters wait for a leader that they hear, and a silent link falls
    /// later than this ends. Who must be certain uses [`Group::confirm_leadership`].
    pub fn is_followed(&self) -> bool {
        self.inner().is_followed()
    }

    /// Whether this node leads, is nearly full, and is about to hand leadership to a node with space:
    /// what stores should wait for that rather than be refused. At most some seconds.
    pub fn gives_way(&self) -> bool {
        self.inner().gives_way()
    }

    /// Answers what another node asks of this group. `None`: nothing is answered, and the other
    /// tries again; also for what is not the group's to answer.
    pub async fn serve(&self, request: cluster::request::Kind) -> Option<cluster::response::Kind> {
        serve::serve(&self.inner(), request).await
    }

    /// The link to a node is gone. If it leads the group, another is elected at once.
    pub fn peer_down(&self, node: NodeId) {
        if self.0.parts.standing.borrow().leader == Some(node) {
            self.inner().nudge.notify_one();
        }
    }

    /// The tables are as of this place: older entries are let go.
    pub fn checkpointed(&self, applied: stored::LogId) {
        self.inner().checkpointed(applied);
    }

    /// Whether a node is no member any longer, and a majority has agreed to that. Only the leader
    /// knows.
    ///
    /// # Errors
    /// [`RaftError::NotLeader`], [`RaftError::NoMajority`], [`RaftError::Stopped`].
    pub async fn has_left(&self, node: NodeId) -> Result<bool, RaftError> {
        leadership::members::has_left(&self.inner(), node).await
    }

    /// Forgets all of the group on this node, if `may` says so, and opens it anew: it holds nothing
    /// then, and waits for a leader to take it in. Meanwhile it answers nobody. Says what `may` said.
    ///
    /// `may` must ask the group's leader [`Group::has_left`], and not before it is polled.
    ///
    /// # Errors
    /// [`RaftError::Storage`], [`RaftError::Damaged`], [`RaftError::Stopped`]; then it has ended.
    pub async fn forget(&self, may: impl Future<Output = bool>) -> Result<bool, RaftError> {
        forget::forget(&self.0, may).await
    }

    /// Ends the group. What was proposed and is not committed fails. The storage stays open.
    pub async fn stop(&self) {
        self.inner().stop().await;
    }
}

impl Inner {
    async fn open(parts: &Parts, recovered: Vec<(u64, Bytes)>) -> Result<Arc<Self>, RaftError> {
        let Parts { group, storage, peers, replica, timing, clock, standing } = parts.clone();
        let me = peers.me().node.0;
        let tables = {
            let storage = storage.clone();
            let read = tokio::task::spawn_blocking(move || storage.applied(group)).await;
            read.map_err(|_| RaftError::Stopped)??
        };
        let floor = storage.wiped(group)?.as_ref().map(convert::id);
        let applied = tables.as_ref().and_then(|row| row.id.as_ref()).map(convert::id);
        let entries = log::recovered::entries(applied, recovered)
            .map_err(|index| RaftError::Damaged { group, index })?;
        let alone = log::recovered::elects_alone(me, tables.as_ref(), &entries);
        let demoted = (!alone).then_some(me);
        let journal = Journal::new((group, demoted, storage.clone()), applied, entries);
        let machine = Machine::new((group, journal.clone()), replica, tables.as_ref());
        let wire = Arc::new(Wire::new(group, Arc::clone(&peers), timing.heartbeat / 2));
        let links = Links(Arc::clone(&wire));
        let raft = Core::new(me, Arc::new(config(&timing)), links, journal.clone(), machine);
        let raft = raft.await.map_err(|_| RaftError::Stopped)?;
        let (proposals, waiting) = Proposals::new();
        let inner = Arc::new(Self {
            group,
            me,
            peers,
            storage,
            timing,
            clock,
            raft,
            journal,
            wire,
            contact: Contact::new(),
            standing,
            checkpoints: Checkpoints::default(),
            proposals,
            confirmations: Confirmations::default(),
            in_hand: InHand::default(),
            receiving: tokio::sync::Mutex::default(),
            handover: tokio::sync::Mutex::default(),
            way_out: WayOut::default(),
            floor,
            resting: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            failure: OnceLock::new(),
            appends: tokio::sync::RwLock::default(),
            nudge: Notify::new(),
            tasks: TaskGroup::new(),
        });
        inner.begin(waiting);
        Ok(inner)
    }

    fn begin(self: &Arc<Self>, waiting: proposals::Waiting) {
        self.refresh();
        self.tasks.spawn("raft disk", log::journal::retry(self.journal.clone()));
        self.tasks.spawn("raft proposals", proposals::run(Arc::clone(self), waiting));
        self.tasks.spawn("raft standing", leadership::standing::run(Arc::clone(self)));
        self.tasks.spawn("raft election", leadership::election::run(Arc::clone(self)));
        self.tasks.spawn("raft space", leadership::space::run(Arc::clone(self)));
    }

    async fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // What waits for space would keep openraft from hearing that it should stop.
        self.journal.close();
        if self.raft.shutdown().await.is_err() {
            tracing::warn!(shard = %self.group, "openraft ended in a panic");
        }
        self.proposals.close();
        self.tasks.finish(Duration::from_secs(1)).await;
        self.refresh();
    }
}
