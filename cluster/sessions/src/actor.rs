//! The sessions process: sends own rows, takes in those of peers, compares with one peer at a time,
//! and goes through the table piece by piece when a node has died, was lost or is back.

use super::exchange::{Exchange, Step};
use super::row::{self, Key};
use super::standing::Standing;
use super::table::{self, Change};
use super::{CAST_BYTES, CUTOFF_STEP_MS, Sessions, Shared, TOMBSTONE_MS};
use bytes::Bytes;
use links::{CallError, Lane};
use prost::Message as _;
use proto::NodeId;
use proto::cluster::{self, cast, request, response};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use storage::StorageError;
use supervision::timer::{self, Timer};
use supervision::{Flow, Inbox, Process, ProcessError, TaskGroup};
use tracing::{debug, info, warn};

/// Rows that are gone through before other items have their turn.
const PIECE_ROWS: usize = 2_000;

/// What the message queue of the sessions process holds.
#[derive(Debug)]
pub enum SessionsItem {
    /// Own rows wait to be sent.
    Send,
    /// Rows of a peer.
    Received(NodeId, Vec<cluster::SessionRow>),
    /// Rows of peers were dropped.
    Missed,
    /// A peer is there, and whether it was lost until now.
    Came(NodeId, bool),
    /// A peer has gone; the number of this absence.
    Went(NodeId, u64),
    /// The grace of that absence is over.
    GraceOver(NodeId, u64),
    /// The grace after the start is over.
    Settle,
    /// See whether a purge is due.
    Look,
    /// The next piece of the table.
    Piece,
    /// Time to compare.
    Beat,
    /// Compare with a peer.
    Compare(NodeId),
    /// A peer answered the exchange of this number.
    Answered(u64, Result<Bytes, CallError>),
}

#[derive(Debug)]
enum Errand {
    /// Bring all rows into normal form; the purge of this number.
    Purge(u64),
    /// Tell that the sessions of a node are gone, or there again.
    Tell { node: NodeId, there: bool },
}

/// The sessions process.
pub struct SessionsActor {
    shared: Arc<Shared>,
    inbox: Arc<Inbox<SessionsItem>>,
    tasks: TaskGroup,
    exchange: Option<Exchange>,
    /// Peers to compare with after that.
    waiting: VecDeque<NodeId>,
    /// Each from a key of the table on.
    errands: VecDeque<(Errand, Key)>,
    /// Peers that did not get something.
    shed: BTreeSet<NodeId>,
    timers: [Timer; 2],
}

impl std::fmt::Debug for SessionsActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("SessionsActor");
        out.field("exchange", &self.exchange).field("errands", &self.errands);
        out.finish_non_exhaustive()
    }
}

impl Drop for SessionsActor {
    fn drop(&mut self) {
        self.timers.iter().for_each(Timer::cancel);
    }
}

impl Process for SessionsActor {
    type Item = SessionsItem;
    type Args = Sessions;

    async fn start(
        sessions: Sessions,
        inbox: Arc<Inbox<SessionsItem>>,
    ) -> Result<Self, ProcessError> {
        let shared = sessions.0;
        let beat = jittered(shared.timing.compare_every, shared.me.node.0 ^ shared.me.incarnation);
        let timers = [
            timer::push_every(&inbox, beat, || SessionsItem::Beat),
            timer::push_after(&inbox, shared.timing.grace, SessionsItem::Settle),
        ];
        let (waiting, tasks) = (shared.table.standing().up().into(), TaskGroup::new());
        let (exchange, errands, shed) = (None, VecDeque::new(), BTreeSet::new());
        inbox.force_all([SessionsItem::Send, SessionsItem::Look]);
        Ok(Self { shared, inbox, tasks, exchange, waiting, errands, shed, timers })
    }

    fn handle(&mut self, item: SessionsItem) -> Result<Flow, ProcessError> {
        match item {
            SessionsItem::Send => self.send(),
            SessionsItem::Received(from, rows) => {
                if rows.is_empty() {
                    self.compare(from); // It could not send us everything.
                }
                self.shared.counters.received.fetch_add(rows.len() as u64, Relaxed);
                self.shared.merge(rows);
            }
            SessionsItem::Missed => {
                self.shared.missed.store(false, Relaxed);
                self.compare_all();
            }
            SessionsItem::Came(node, was_lost) => self.came(node, was_lost),
            SessionsItem::Went(node, absence) => {
                if self.exchange.as_ref().is_some_and(|exchange| exchange.peer == node) {
                    self.exchange = None;
                }
                let over = SessionsItem::GraceOver(node, absence);
                timer::push_after(&self.inbox, self.shared.timing.grace, over);
            }
            SessionsItem::GraceOver(node, absence) => {
                let table = &self.shared.table;
                if table.change_standing(|standing| standing.grace_over(node, absence)) {
                    info!(%node, "lost: its sessions read as offline");
                    self.tell_of(node, false);
                }
            }
            SessionsItem::Settle => {
                for node in self.shared.table.change_standing(Standing::settle) {
                    self.tell_of(node, false);
                }
            }
            SessionsItem::Look => {}
            SessionsItem::Piece => self.piece(),
            SessionsItem::Beat => {
                let cutoff = self.shared.clock.now_ms().saturating_sub(TOMBSTONE_MS);
                self.shared.table.set_cutoff(cutoff - cutoff % CUTOFF_STEP_MS);
                self.compare_all();
            }
            SessionsItem::Compare(node) => self.compare(node),
            SessionsItem::Answered(number, answer) => self.answered(number, answer),
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        let is_purging = |(errand, _): &(Errand, Key)| matches!(errand, Errand::Purge(_));
        if let Some(due) = self.shared.table.purge_due()
            && !self.errands.iter().any(is_purging)
        {
            self.run(Errand::Purge(due));
        }
        self.begin_exchange();
        Ok(Flow::Continue)
    }
}

/// `period` give or take a tenth, always the same for one start of a node: so that nodes do not all
/// compare at once.
fn jittered(period: Duration, seed: u64) -> Duration {
    let share = u32::try_from(row::hash(&[seed]) % 200).unwrap_or_default();
    period * (900 + share) / 1_000
}

impl SessionsActor {
    /// Sends own rows to all peers.
    fn send(&mut self) {
        let rows = std::mem::take(&mut *self.shared.outbox());
        let Some(wired) = self.shared.wired.get() else { return };
        let peers = self.shared.table.standing().up();
        let (sent, shed) = (&self.shared.counters.sent, &self.shared.counters.shed);
        for part in parts(rows) {
            let number = part.rows.len() as u64;
            let cast = cluster::Cast { kind: Some(cast::Kind::Sessions(part)) };
            let parcel = Bytes::from(cast.encode_to_vec());
            for peer in &peers {
                if wired.peers.cast(*peer, Lane::Normal, parcel.clone()) {
                    sent.fetch_add(number, Relaxed);
                } else {
                    shed.fetch_add(number, Relaxed);
                    self.shed.insert(*peer);
                }
            }
        }
        // An empty cast: there was something that you did not get.
        let empty =
            cluster::Cast { kind: Some(cast::Kind::Sessions(cluster::SessionRows::default())) };
        let parcel = Bytes::from(empty.encode_to_vec());
        self.shed.retain(|peer| {
            peers.contains(peer) && !wired.peers.cast(*peer, Lane::Normal, parcel.clone())
        });
        if !self.shed.is_empty() {
            timer::push_after(&self.inbox, self.shared.timing.retry, SessionsItem::Send);
        }
    }

    fn came(&mut self, node: NodeId, was_lost: bool) {
        if was_lost {
            self.tell_of(node, true);
        }
        // Whatever was under way went over an earlier link.
        if self.exchange.as_ref().is_some_and(|exchange| exchange.peer == node) {
            self.exchange = None;
        }
        self.compare(node);
    }

    fn tell_of(&mut self, node: NodeId, there: bool) {
        if self.shared.table.has_sessions(node) {
            self.run(Errand::Tell { node, there });
        }
    }

    fn run(&mut self, errand: Errand) {
        if self.errands.is_empty() {
            self.inbox.force(SessionsItem::Piece);
        }
        self.errands.push_back((errand, row::bucket_begin(0)));
    }

    /// Goes through one more piece of the table.
    fn piece(&mut self) {
        let Some((errand, from)) = self.errands.front() else { return };
        match self.pace(errand, *from) {
            Ok(Some(next)) => {
                if let Some((_, from)) = self.errands.front_mut() {
                    *from = next;
                }
            }
            Ok(None) => {
                if let Some((Errand::Purge(due), _)) = self.errands.pop_front() {
                    self.shared.table.purged(due);
                }
            }
            Err(error) => {
                warn!(%error, "sessions table not gone through; it will be tried again");
                timer::push_after(&self.inbox, self.shared.timing.retry, SessionsItem::Piece);
                return;
            }
        }
        if !self.errands.is_empty() {
            self.inbox.force(SessionsItem::Piece);
        }
    }

    fn pace(&self, errand: &Errand, from: Key) -> Result<Option<Key>, StorageError> {
        let table = &self.shared.table;
        match errand {
            Errand::Purge(_) => {
                let piece = table.purge(from, PIECE_ROWS)?;
                self.shared.counters.purged.fetch_add(piece.found.len() as u64, Relaxed);
                piece.found.iter().for_each(|change| self.tell(*change));
                Ok(piece.next)
            }
            Errand::Tell { node, there } => {
                let piece = table.sessions_of(*node, from, PIECE_ROWS)?;
                let turn = |Change { key, before, after }| {
                    if *there {
                        Change { key, before: after, after: before }
                    } else {
                        Change { key, before, after }
                    }
                };
                piece.found.into_iter().for_each(|change| self.tell(turn(change)));
                Ok(piece.next)
            }
        }
    }

    fn tell(&self, Change { key: (user, device), before, after }: Change) {
        if let Some(wired) = self.shared.wired.get() {
            wired.watch.touched(user);
            wired.watch.changed(user, device, before.as_ref(), after.as_ref());
        }
    }

    fn compare_all(&mut self) {
        let up = self.shared.table.standing().up();
        for node in up {
            self.compare(node);
        }
    }

    fn compare(&mut self, node: NodeId) {
        if !self.waiting.contains(&node) {
            self.waiting.push_back(node);
        }
    }

    fn begin_exchange(&mut self) {
        if self.exchange.is_some() || self.shared.table.purge_due().is_some() {
            return;
        }
        while let Some(peer) = self.waiting.pop_front() {
            if self.shared.table.standing().is_up(peer) {
                let number = self.shared.exchanges.fetch_add(1, Relaxed) + 1;
                let (exchange, question) = Exchange::begin(&self.shared.table, peer, number);
                self.exchange = Some(exchange);
                self.ask(peer, number, question);
                return;
            }
        }
    }

    fn ask(&self, peer: NodeId, number: u64, question: request::Kind) {
        let Some(wired) = self.shared.wired.get() else { return };
        let parcel = cluster::Request { kind: Some(question) }.encode_to_vec();
        let within = self.shared.timing.answer_within;
        let answer = wired.peers.call(peer, Lane::Bulk, parcel.into(), within);
        let inbox = self.inbox.clone();
        self.tasks.spawn("sessions exchange", async move {
            inbox.force(SessionsItem::Answered(number, answer.await));
        });
    }

    fn answered(&mut self, number: u64, answer: Result<Bytes, CallError>) {
        let Some(mut exchange) = self.exchange.take_if(|exchange| exchange.number == number) else {
            return;
        };
        match self.step(&mut exchange, answer) {
            Step::Ask(question) => {
                self.ask(exchange.peer, number, *question);
                self.exchange = Some(exchange);
            }
            Step::Done => {
                self.shared.counters.compared.fetch_add(1, Relaxed);
            }
            Step::Again => {
                let again = SessionsItem::Compare(exchange.peer);
                timer::push_after(&self.inbox, self.shared.timing.retry, again);
            }
        }
    }

    fn step(&self, exchange: &mut Exchange, answer: Result<Bytes, CallError>) -> Step {
        let (table, peer) = (&self.shared.table, exchange.peer);
        let answer = match answer.map(cluster::Response::decode) {
            Ok(Ok(cluster::Response { kind })) => kind,
            Ok(Err(error)) => {
                warn!(%peer, %error, "answer about sessions not understood");
                None
            }
            Err(error) => {
                debug!(%peer, %error, "no answer about sessions");
                None
            }
        };
        let step = if let Some(response::Kind::Sessions(differ)) = answer {
            exchange.differ(table, &differ)
        } else if let Some(response::Kind::Rows(rows)) = answer {
            self.shared.counters.fetched.fetch_add(rows.rows.len() as u64, Relaxed);
            self.shared.merge(rows.rows);
            exchange.fetched(table, rows.more)
        } else {
            Ok(Step::Again)
        };
        step.unwrap_or_else(|error| {
            warn!(%peer, %error, "sessions not compared");
            Step::Again
        })
    }
}

/// Rows in casts of bounded size.
fn parts(rows: Vec<cluster::SessionRow>) -> Vec<cluster::SessionRows> {
    let mut parts: Vec<cluster::SessionRows> = Vec::new();
    let mut bytes = CAST_BYTES;
    for row in rows {
        let more = table::wire_bytes(&row);
        if bytes + more > CAST_BYTES {
            parts.push(cluster::SessionRows::default());
            bytes = 0;
        }
        bytes += more;
        if let Some(part) = parts.last_mut() {
            part.rows.push(row);
        }
    }
    parts
}
