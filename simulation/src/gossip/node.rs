//! One node of the second simulation: the sessions that live here and the real table, driven as
//! `sessions/actor.rs` and `sessions/shared.rs` drive it.

use links::PeerId;
use parking_lot::Mutex;
use prost::Message as _;
use proto::cluster::{self, cast, request, response};
use proto::stored::Session;
use proto::{DeviceId, NodeId, UserId};
use sessions::cores::{Change, Exchange, Key, Rows, Step, Table, Visit};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use storage::StorageError;

/// Rows of one piece of a purge: few, so that other things happen between two pieces.
const PIECE_ROWS: usize = 3;

type Map = BTreeMap<Key, Session>;

/// The rows on a node's disk, and as they were when last flushed.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<(Map, Map)>>);

impl Disk {
    /// The node dies: all writes since the last flush may be lost.
    pub(super) fn crash(&self, lost: bool) {
        let mut rows = self.0.lock();
        if lost {
            rows.0 = rows.1.clone();
        }
    }
}

impl Rows for Disk {
    fn get(&self, key: Key) -> Result<Option<Session>, StorageError> {
        Ok(self.0.lock().0.get(&key).copied())
    }

    fn write(&self, rows: &[(Key, Option<Session>)]) -> Result<(), StorageError> {
        let mut disk = self.0.lock();
        for (key, row) in rows {
            match row {
                Some(row) => disk.0.insert(*key, *row),
                None => disk.0.remove(key),
            };
        }
        Ok(())
    }

    fn visit(&self, from: Key, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        for (key, row) in self.0.lock().0.range(from..) {
            if visit(*key, *row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut rows = self.0.lock();
        rows.1 = rows.0.clone();
        Ok(())
    }
}

/// Something for a peer.
pub(super) enum Say {
    Cast(Vec<u8>),
    Ask(u64, Vec<u8>),
}

pub(super) struct Node {
    pub(super) id: PeerId,
    pub(super) disk: Disk,
    pub(super) table: Table,
    /// Devices with a connection to this node.
    pub(super) here: BTreeSet<Key>,
    exchange: Option<Exchange>,
    waiting: VecDeque<NodeId>,
    numbers: u64,
    purging: Option<(u64, Key)>,
    /// Rows and questions for peers; no peer: for all.
    pub(super) says: Vec<(Option<NodeId>, Say)>,
    /// Peers to compare with in a moment.
    pub(super) again: Vec<NodeId>,
    pub(super) now_ms: u64,
}

fn open(disk: &Disk, id: PeerId) -> Table {
    Table::open(Box::new(disk.clone()), id).unwrap()
}

impl Node {
    pub(super) fn new(id: PeerId, disk: Disk) -> Self {
        Self {
            id,
            table: open(&disk, id),
            disk,
            here: BTreeSet::new(),
            exchange: None,
            waiting: VecDeque::new(),
            numbers: id.incarnation << 32,
            purging: None,
            says: Vec::new(),
            again: Vec::new(),
            now_ms: 0,
        }
    }

    // ---- What users do -----------------------------------------------------------------------

    /// A device logs in here.
    pub(super) fn arrive(&mut self, key: Key, since_ms: u64) {
        self.here.insert(key);
        let last_seen_ms = self.now_ms;
        let claim = |row: &mut Session| {
            *row = Session { online: true, away: false, last_seen_ms, since_ms, ..*row };
        };
        let change = self.table.claim(key, claim).unwrap();
        self.wrote(change);
    }

    /// A device is away, or back.
    pub(super) fn rest(&mut self, key: Key, away: bool) {
        if self.here.contains(&key) {
            let change = self.table.write(key, |row| row.away = away).unwrap();
            self.wrote(change);
        }
    }

    /// A device has gone.
    pub(super) fn leave(&mut self, key: Key) {
        if self.here.remove(&key) {
            self.end(key);
        }
    }

    /// A device is unlinked.
    pub(super) fn unlink(&mut self, key: Key) {
        self.here.remove(&key);
        let change = self.table.bury(key, self.now_ms).unwrap();
        self.wrote(change);
    }

    fn end(&mut self, key: Key) {
        let last_seen_ms = self.now_ms;
        let end = |row: &mut Session| {
            *row = Session { online: false, away: false, last_seen_ms, ..*row };
        };
        let change = self.table.write(key, end).unwrap();
        self.wrote(change);
    }

    fn wrote(&mut self, change: Option<Change>) {
        let Some(Change { key: (user, device), after: Some(session), .. }) = change else { return };
        let row = cluster::SessionRow { user: user.0, device: device.0, session: Some(session) };
        let rows = cluster::SessionRows { rows: vec![row], ..Default::default() };
        let cast = cluster::Cast { kind: Some(cast::Kind::Sessions(rows)) };
        self.says.push((None, Say::Cast(cast.encode_to_vec())));
    }

    // ---- What peers say ----------------------------------------------------------------------

    pub(super) fn cast(&mut self, body: &[u8]) {
        let cast = cluster::Cast::decode(body).unwrap();
        if let Some(cast::Kind::Sessions(rows)) = cast.kind {
            self.merge(rows.rows);
        }
    }

    fn merge(&mut self, rows: Vec<cluster::SessionRow>) {
        let row = |row: cluster::SessionRow| {
            ((UserId(row.user), DeviceId(row.device)), row.session.unwrap())
        };
        for change in self.table.merge(rows.into_iter().map(row).collect()).unwrap() {
            let version = |row: Option<Session>| row.map(|row| row.version);
            assert!(version(change.after) >= version(change.before), "back in time: {change:?}");
            self.react(change);
        }
    }

    fn react(&mut self, change: Change) {
        let is_ours = |row: &Session| self.table.standing().is_ours(row);
        let was_ours = change.before.filter(|row| row.online && is_ours(row));
        let here = self.here.contains(&change.key);
        match (was_ours, change.after) {
            (_, Some(after)) if after.online && is_ours(&after) => {
                if !here {
                    self.end(change.key);
                }
            }
            (Some(ours), Some(after))
                if !after.online && !after.gone && !is_ours(&after) && here =>
            {
                let change = self.table.assert_again(change.key, ours).unwrap();
                self.wrote(change);
            }
            // Displaced: the connection ends, and its end writes nothing that is another's.
            (Some(_), _) => drop(self.here.remove(&change.key)),
            (None, _) => {}
        }
    }

    pub(super) fn request(&mut self, body: &[u8]) -> Vec<u8> {
        let asked = cluster::Request::decode(body).unwrap().kind.unwrap();
        let kind = sessions::cores::answer(&self.table, &asked);
        cluster::Response { kind }.encode_to_vec()
    }

    /// A peer is there.
    pub(super) fn came(&mut self, peer: PeerId) {
        if self.table.change_standing(|standing| standing.came(peer)).is_some() {
            self.exchange.take_if(|exchange| exchange.peer == peer.node);
            self.compare(peer.node);
        }
    }

    pub(super) fn went(&mut self, peer: PeerId) {
        self.exchange.take_if(|exchange| exchange.peer == peer.node);
        self.table.change_standing(|standing| standing.went(peer));
    }

    // ---- Comparisons and purges --------------------------------------------------------------

    pub(super) fn compare(&mut self, peer: NodeId) {
        if !self.waiting.contains(&peer) {
            self.waiting.push_back(peer);
        }
    }

    /// After each event: a purge that is due goes on, a comparison that waits begins.
    pub(super) fn settle(&mut self) {
        if let Some(due) = self.table.purge_due() {
            let (due, from) = self.purging.take().unwrap_or((due, (UserId(0), DeviceId(0))));
            let piece = self.table.purge(from, PIECE_ROWS).unwrap();
            match piece.next {
                Some(next) => self.purging = Some((due, next)),
                None => self.table.purged(due),
            }
            return;
        }
        if self.exchange.is_some() {
            return;
        }
        while let Some(peer) = self.waiting.pop_front() {
            if self.table.standing().is_up(peer) {
                self.numbers += 1;
                let (exchange, question) = Exchange::begin(&self.table, peer, self.numbers);
                self.exchange = Some(exchange);
                self.ask(peer, self.numbers, question);
                return;
            }
        }
    }

    fn ask(&mut self, peer: NodeId, number: u64, question: request::Kind) {
        let request = cluster::Request { kind: Some(question) }.encode_to_vec();
        self.says.push((Some(peer), Say::Ask(number, request)));
    }

    /// What became of a question; `None`: no answer in time.
    pub(super) fn answered(&mut self, number: u64, answer: Option<&[u8]>) {
        let ours = |exchange: &mut Exchange| exchange.number == number;
        let Some(mut exchange) = self.exchange.take_if(ours) else { return };
        let answer = answer.and_then(|body| cluster::Response::decode(body).unwrap().kind);
        let step = match answer {
            Some(response::Kind::Sessions(differ)) => exchange.differ(&self.table, &differ),
            Some(response::Kind::Rows(rows)) => {
                self.merge(rows.rows);
                exchange.fetched(&self.table, rows.more)
            }
            _ => Ok(Step::Again),
        };
        match step.unwrap() {
            Step::Ask(question) => {
                self.ask(exchange.peer, number, *question);
                self.exchange = Some(exchange);
            }
            Step::Done => {}
            Step::Again => self.again.push(exchange.peer),
        }
    }

    /// The digest as it would be if the table was read anew.
    pub(super) fn digest_anew(&self) -> u64 {
        open(&self.disk, self.id).digest().whole()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.table.purge_due().is_none()
    }

    pub(super) fn rows(&self) -> Map {
        self.disk.0.lock().0.clone()
    }

    /// What was written so far survives.
    pub(super) fn flush(&self) {
        self.disk.flush().unwrap();
    }
}
