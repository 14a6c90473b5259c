//! The sessions table: who is connected where, on every node.
//!
//! Each node writes the rows of its own sessions, sends them to all peers, and takes in theirs.
//! What is lost on the way is found by comparing digests: when a peer appears, and now and then.
//!
//! ```text
//!   user actors --claim, write--> table --rows, in batches--> peers
//!                                   ^  <------rows------------
//!                                   +--digest, differing parts-- exchange, one peer at a time
//! ```
//!
//! # Invariants
//! 1. A node writes no row that is another's, but to claim a device that has come to it, and to
//!    bury one that was unlinked.
//! 2. Of two nodes that claim a device the same one wins everywhere. The loser ends its connection
//!    and does not claim again by itself.
//! 3. A session that lives here says so again only if the row that won says that nobody is there.
//!    Such a row is made by the end of a session, once; so this comes to an end.
//! 4. A row reads as offline when its incarnation is dead or its node is out of reach for longer
//!    than the grace; it is rewritten only when the incarnation is certainly dead.
//! 5. Nobody waits for other nodes; alone a write costs one read and one write of the engine.

mod actor;
mod digest;
mod exchange;
pub mod memory;
mod row;
mod rows;
mod shared;
mod standing;
mod table;

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod table_tests;

/// The pure parts, as the process drives them; simulations do the same.
pub mod cores {
    pub use super::digest::Digest;
    pub use super::exchange::{Exchange, Step, answer};
    pub use super::row::Key;
    pub use super::rows::{Rows, Visit};
    pub use super::standing::Standing;
    pub use super::table::{Change, Piece, Table};
}

pub use actor::{SessionsActor, SessionsItem};

use links::{PeerId, Peers};
use parking_lot::Mutex;
use proto::cluster::{self, request, response};
use proto::stored::Session;
use proto::{DeviceId, NodeId, UserId};
use rows::Rows;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use storage::{SessionTable, StorageError};
use supervision::{Clock, Inbox, QueueLimits};
use table::Table;
use tracing::{debug, warn};

/// Beyond `critical` casts of rows are dropped; the digest finds what they said.
const QUEUE: QueueLimits = QueueLimits { high: 128, critical: 256 };

/// Bytes of rows in one cast, and in one answer to a fetch.
const CAST_BYTES: usize = 64 * 1024;

/// Own rows that wait to be sent; more are dropped, and found by the digest.
const OUTBOX_ROWS_MAX: usize = 65_536;

/// How long a tombstone is kept, in ms: longer than a node is away and still comes back.
const TOMBSTONE_MS: u64 = 7 * 24 * 3_600_000;

/// Tombstones are dropped by the hour, so that nodes drop the same ones.
const CUTOFF_STEP_MS: u64 = 3_600_000;

/// What the rest of the node does when rows change. Called without any lock of the table held.
pub trait Watch: Send + Sync {
    /// The row of a session that lives here was won by another node, or the device was unlinked:
    /// its connection must end.
    fn displaced(&self, user: UserId, device: DeviceId);

    /// Someone came, went, is away, or came to another node than before; elsewhere. May be told twice.
    fn changed(
        &self,
        user: UserId,
        device: DeviceId,
        before: Option<&Session>,
        after: Option<&Session>,
    );

    /// Rows of this user changed, by this node or another, or read differently now. May be told twice,
    /// and is never left out.
    fn touched(&self, user: UserId);

    /// Whether a session of this device lives here. Must be true from before its `claim`, and false
    /// from before the `write` that ends it.
    fn still_here(&self, user: UserId, device: DeviceId) -> bool;
}

/// Times of the sessions table.
#[derive(Clone, Copy, Debug)]
pub struct SessionsTiming {
    /// Out of reach for so long, a node's sessions read as offline. Default 10 s.
    pub grace: Duration,
    /// Time between two comparisons with each peer, give or take a tenth. Default 30 s.
    pub compare_every: Duration,
    /// How long an answer of a peer is waited for. Default 10 s.
    pub answer_within: Duration,
    /// Time until a comparison that failed is tried again. Default 1 s.
    pub retry: Duration,
}

impl Default for SessionsTiming {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            compare_every: Duration::from_secs(30),
            answer_within: Duration::from_secs(10),
            retry: Duration::from_secs(1),
        }
    }
}

/// What the table has done so far, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionsFigures {
    /// Rows, tombstones among them.
    pub rows: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Rows that read as online.
    pub online: u64,
    /// Own rows handed to links; each counts once for each peer.
    pub sent: u64,
    /// Rows that could not be handed to a link or taken from one, for too much waited.
    pub shed: u64,
    /// Rows that peers sent by themselves.
    pub received: u64,
    /// Rows that came because a digest differed.
    pub fetched: u64,
    /// Rows of peers that changed the table.
    pub merged: u64,
    /// Rows rewritten because their incarnation was dead, and tombstones dropped.
    pub purged: u64,
    /// Comparisons with peers that came to their end.
    pub compared: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    shed: AtomicU64,
    received: AtomicU64,
    fetched: AtomicU64,
    merged: AtomicU64,
    purged: AtomicU64,
    compared: AtomicU64,
}

struct Wired {
    peers: Peers,
    watch: Arc<dyn Watch>,
}

struct Shared {
    table: Table,
    me: PeerId,
    clock: Clock,
    timing: SessionsTiming,
    inbox: Arc<Inbox<SessionsItem>>,
    wired: OnceLock<Wired>,
    outbox: Mutex<Vec<cluster::SessionRow>>,
    /// Something that peers sent was dropped.
    missed: AtomicBool,
    /// Number of the last exchange.
    exchanges: AtomicU64,
    counters: Counters,
}

/// The door to the sessions table. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Opens the table of this start of this node; reads all rows once. Blocking.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn open(
        table: SessionTable,
        me: PeerId,
        clock: Clock,
        timing: SessionsTiming,
    ) -> Result<Self, StorageError> {
        Self::open_on(Box::new(table), me, clock, timing)
    }

    fn open_on(
        rows: Box<dyn Rows>,
        me: PeerId,
        clock: Clock,
        timing: SessionsTiming,
    ) -> Result<Self, StorageError> {
        let table = Table::open(rows, me)?;
        Ok(Self(Arc::new(Shared {
            table,
            me,
            clock,
            timing,
            inbox: Inbox::new("sessions", 0, QUEUE),
            wired: OnceLock::new(),
            outbox: Mutex::default(),
            missed: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
            counters: Counters::default(),
        })))
    }

    /// Connects the table to the links and to who must know of changes; before the process starts.
    /// Without it the table works alone. Only the first call counts.
    pub fn wire(&self, peers: Peers, watch: Arc<dyn Watch>) {
        drop(self.0.wired.set(Wired { peers, watch }));
    }

    /// The message queue, for the child spec.
    pub fn inbox(&self) -> &Arc<Inbox<SessionsItem>> {
        &self.0.inbox
    }

    /// The row of a device as it reads here: offline if its node is dead or lost. `None` also for
    /// one that was unlinked.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Corrupt`].
    pub fn get(&self, user: UserId, device: DeviceId) -> Result<Option<Session>, StorageError> {
        let row = self.0.table.get((user, device))?.filter(|row| !row.gone);
        Ok(row.map(|row| self.0.table.standing().view(row)))
    }

    /// Makes a device's session one of this node, whosever it was: for a login. `change` sees the row
    /// as it was, or an empty one, and sets all but node, incarnation and version. The row as it
    /// was written.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing changed.
    pub fn claim(
        &self,
        user: UserId,
        device: DeviceId,
        change: impl FnOnce(&mut Session),
    ) -> Result<Session, StorageError> {
        let change = self.0.table.claim((user, device), change)?;
        Ok(self.0.wrote(change).unwrap_or_default())
    }

    /// Changes the row of a session of this node. `None`, and nothing is written, if the row is not
    /// this incarnation's, or no longer.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing changed.
    pub fn write(
        &self,
        user: UserId,
        device: DeviceId,
        change: impl FnOnce(&mut Session),
    ) -> Result<Option<Session>, StorageError> {
        let change = self.0.table.write((user, device), change)?;
        Ok(self.0.wrote(change))
    }

    /// Leaves a tombstone for a device that was unlinked, wherever its session is. Whether there was
    /// a row.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing changed.
    pub fn remove(&self, user: UserId, device: DeviceId) -> Result<bool, StorageError> {
        let change = self.0.table.bury((user, device), self.0.clock.now_ms())?;
        Ok(self.0.wrote(change).is_some())
    }

    /// Which of these devices of a user have a session that can be reached now, and where.
    pub fn places(
        &self,
        user: UserId,
        devices: impl IntoIterator<Item = DeviceId>,
    ) -> Vec<(DeviceId, NodeId)> {
        let mut places = Vec::new();
        for device in devices {
            match self.0.table.get((user, device)) {
                Ok(Some(row)) if self.is_live(&row) => places.push((device, NodeId(row.node))),
                Ok(_) => {}
                Err(error) => debug!(%user, %device, %error, "session row not read"),
            }
        }
        places
    }

    /// The other nodes where these devices of a user can be reached now, each once.
    pub fn nodes_of(
        &self,
        user: UserId,
        devices: impl IntoIterator<Item = DeviceId>,
    ) -> Vec<NodeId> {
        let places = self.places(user, devices).into_iter().map(|(_, node)| node);
        let mut nodes: Vec<NodeId> = places.filter(|node| *node != self.0.me.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// A row as it reads here: offline if its node is dead or lost.
    pub fn view(&self, row: Session) -> Session {
        self.0.table.standing().view(row)
    }

    /// Whether the session of a row can be reached now.
    pub fn is_live(&self, row: &Session) -> bool {
        self.0.table.standing().is_live(row)
    }

    /// One number for all that the table holds. Equal tables have equal digests.
    pub fn digest(&self) -> u64 {
        self.0.table.digest().whole()
    }

    /// Whether every row is as it should be: no purge is due or under way.
    pub fn is_settled(&self) -> bool {
        self.0.table.purge_due().is_none()
    }

    /// Makes all writes durable. Blocking.
    ///
    /// # Errors
    /// [`StorageError::DiskFull`], [`StorageError::Io`].
    pub fn flush(&self) -> Result<(), StorageError> {
        self.0.table.flush()
    }

    /// Figures for metrics and the admin.
    pub fn figures(&self) -> SessionsFigures {
        let Shared { table, counters, .. } = &*self.0;
        SessionsFigures {
            rows: table.rows(),
            tombstones: table.tombstones(),
            online: table.online(),
            sent: counters.sent.load(Relaxed),
            shed: counters.shed.load(Relaxed),
            received: counters.received.load(Relaxed),
            fetched: counters.fetched.load(Relaxed),
            merged: counters.merged.load(Relaxed),
            purged: counters.purged.load(Relaxed),
            compared: counters.compared.load(Relaxed),
        }
    }

    /// A peer is there.
    pub fn peer_up(&self, peer: PeerId) {
        let was_lost = self.0.table.change_standing(|standing| standing.came(peer));
        if let Some(was_lost) = was_lost {
            self.0.inbox.force(SessionsItem::Came(peer.node, was_lost));
        } else {
            let (node, incarnation) = (peer.node, peer.incarnation);
            warn!(%node, incarnation, "a later start of this node is known; its sessions are not");
        }
    }

    /// A peer has gone: its sessions cannot be reached from now on, and read as offline after the
    /// grace.
    pub fn peer_down(&self, peer: PeerId) {
        let absence = self.0.table.change_standing(|standing| standing.went(peer));
        if let Some(absence) = absence {
            self.0.inbox.force(SessionsItem::Went(peer.node, absence));
        }
    }

    /// A node was taken out of the cluster for good (`true`), or is a member again (`false`). The
    /// sessions of a node that was taken out are dead. To be told again after each start.
    pub fn set_removed(&self, node: NodeId, removed: bool) {
        if self.0.table.change_standing(|standing| standing.set_removed(node, removed)) {
            self.0.inbox.force(SessionsItem::Look);
        }
    }

    /// Rows of a peer arrived. Does not block.
    pub fn received(&self, from: PeerId, rows: cluster::SessionRows) {
        let number = rows.rows.len() as u64;
        if self.0.inbox.push(SessionsItem::Received(from.node, rows.rows)).is_err() {
            self.0.counters.shed.fetch_add(number, Relaxed);
            if !self.0.missed.swap(true, Relaxed) {
                self.0.inbox.force(SessionsItem::Missed);
            }
        }
    }

    /// Answers a peer's question about this table; `None` if it is about something else. Reads up
    /// to some ten thousand rows.
    pub fn serve(&self, request: &request::Kind) -> Option<response::Kind> {
        exchange::serve(&self.0, request)
    }
}
