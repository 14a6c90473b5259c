//! One node's part in one group: a log with terms on a disk that loses what was not flushed.
//!
//! Elections are made by the world, which knows all logs; everything else is told by messages that
//! may be lost, late or doubled.
//!
//! # Invariants
//! 1. What is acknowledged to a leader is flushed, and the same as in that leader's log.
//! 2. What is committed is never cut off (checked).

use crate::stage::{Message, NODES, NodeEvent, NotDone, Stage};
use crate::table::Place;
use bytes::Bytes;
use consensus::Committed;
use proto::{ShardId, stored};

/// Entries in one append.
const APPEND_MAX: usize = 8;

/// A majority that has not answered for so long counts as lost, in ms.
const QUORUM_MS: u64 = 1_000;

/// A snapshot that was sent is waited for so long, in ms.
const SNAPSHOT_MS: u64 = 500;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    /// `None`: the blank first entry of a term.
    pub(crate) record: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) shard: ShardId,
    pub(crate) term: u64,
    pub(crate) after: Place,
    pub(crate) entries: Vec<Entry>,
    pub(crate) committed: u64,
}

#[derive(Debug)]
pub(crate) struct Raft {
    pub(crate) me: usize,
    pub(crate) shard: ShardId,
    /// Flushed whenever it changes.
    pub(crate) term: u64,
    /// Everything up to here is in the tables and forgotten here.
    pub(crate) base: Place,
    entries: Vec<Entry>,
    durable: Vec<Entry>,
    pub(crate) leads: bool,
    pub(crate) leader: Option<usize>,
    next: [u64; NODES],
    matched: [u64; NODES],
    /// Up to here the log is the same as the leader's.
    verified: u64,
    pub(crate) committed: u64,
    /// Handed to the replica.
    pub(crate) handed: u64,
    pending: Vec<(u64, u64)>,
    snapshot_at: [u64; NODES],
    /// When each peer answered last.
    heard_at: [u64; NODES],
}

impl Raft {
    pub(crate) fn new(me: usize, shard: ShardId) -> Self {
        Self {
            me,
            shard,
            term: 0,
            base: Place::default(),
            entries: Vec::new(),
            durable: Vec::new(),
            leads: false,
            leader: None,
            next: [1; NODES],
            matched: [0; NODES],
            verified: 0,
            committed: 0,
            handed: 0,
            pending: Vec::new(),
            snapshot_at: [0; NODES],
            heard_at: [0; NODES],
        }
    }

    pub(crate) fn last(&self) -> Place {
        let index = self.base.index + self.entries.len() as u64;
        Place { term: self.entries.last().map_or(self.base.term, |entry| entry.term), index }
    }

    fn at(&self, index: u64) -> usize {
        usize::try_from(index - self.base.index - 1).unwrap()
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        (index > self.base.index && index <= self.last().index)
            .then(|| self.entries[self.at(index)].term)
    }

    /// The next committed entry that the replica has not got.
    pub(crate) fn hand_over(&mut self) -> Option<Committed> {
        if self.handed >= self.committed {
            return None;
        }
        self.handed += 1;
        self.pending.retain(|(index, _)| *index > self.handed);
        Some(self.committed_at(self.handed))
    }

    /// What was handed over after this index.
    pub(crate) fn handed_after(&self, index: u64) -> Vec<Committed> {
        (index + 1..=self.handed).map(|index| self.committed_at(index)).collect()
    }

    fn committed_at(&self, index: u64) -> Committed {
        let entry = &self.entries[self.at(index)];
        let id = stored::LogId { term: entry.term, node: 0, index };
        Committed { id, content: entry.record.clone(), membership: None }
    }

    // ---- Leading -----------------------------------------------------------------------------

    pub(crate) fn lead(&mut self, term: u64, stage: &mut Stage) {
        self.follow_term(term, stage);
        self.leads = true;
        self.leader = Some(self.me);
        self.next = [self.last().index + 1; NODES];
        self.matched = [0; NODES];
        self.matched[self.me] = self.flushed();
        self.heard_at = [stage.now; NODES];
        self.push(None, stage);
        stage.local(self.me, 0, NodeEvent::Stands(self.shard));
        stage.local(self.me, 0, NodeEvent::Beat(self.shard, term));
    }

    /// A higher term was heard of.
    pub(crate) fn follow_term(&mut self, term: u64, stage: &mut Stage) {
        if term <= self.term {
            return;
        }
        self.term = term;
        self.verified = self.base.index;
        self.leader = None;
        if std::mem::take(&mut self.leads) {
            self.give_up(stage);
        }
        let late = stage.chance.below(40);
        stage.local(self.me, late, NodeEvent::Stands(self.shard));
    }

    /// What is under way fails: nobody knows what will become of it.
    fn give_up(&mut self, stage: &mut Stage) {
        for (_, number) in std::mem::take(&mut self.pending) {
            let late = stage.chance.below(60);
            let event = NodeEvent::NotProposed(self.shard, number, NotDone::Unknown);
            stage.local(self.me, late, event);
        }
    }

    /// Whether a majority has answered lately.
    pub(crate) fn has_quorum(&self, now: u64) -> bool {
        let fresh = |node: &usize| *node == self.me || self.heard_at[*node] + QUORUM_MS > now;
        (0..NODES).filter(fresh).count() > NODES / 2
    }

    /// With each heartbeat.
    pub(crate) fn beat(&mut self, stage: &mut Stage) {
        if !self.has_quorum(stage.now) {
            self.give_up(stage);
        }
        self.broadcast(stage);
    }

    pub(crate) fn propose(&mut self, record: Bytes, number: u64, stage: &mut Stage) {
        if !self.leads || !self.has_quorum(stage.now) {
            let event = NodeEvent::NotProposed(self.shard, number, NotDone::NotLeader);
            stage.local(self.me, 1, event);
            return;
        }
        self.pending.push((self.last().index + 1, number));
        self.push(Some(record), stage);
        self.broadcast(stage);
    }

    fn push(&mut self, record: Option<Bytes>, stage: &mut Stage) {
        self.entries.push(Entry { term: self.term, record });
        self.flush_soon(stage);
    }

    fn flush_soon(&self, stage: &mut Stage) {
        let late = stage.flush_delay();
        stage.local(self.me, late, NodeEvent::Flushed(self.shard, self.last()));
    }

    /// Sends everyone what they lack. Who lacks what is forgotten here gets [`NodeEvent::Snapshot`].
    pub(crate) fn broadcast(&mut self, stage: &mut Stage) {
        for to in (0..NODES).filter(|to| *to != self.me) {
            let next = self.next[to];
            if next <= self.base.index {
                if stage.now >= self.snapshot_at[to] {
                    self.snapshot_at[to] = stage.now + SNAPSHOT_MS;
                    stage.local(self.me, 0, NodeEvent::SendSnapshot(self.shard, to, self.term));
                }
                continue;
            }
            let Some(term) = self.term_at(next - 1) else { continue };
            let append = Append {
                shard: self.shard,
                term: self.term,
                after: Place { term, index: next - 1 },
                entries: self.entries[self.at(next)..].iter().take(APPEND_MAX).cloned().collect(),
                committed: self.committed,
            };
            stage.send(self.me, to, Message::Append(append));
        }
    }

    pub(crate) fn appended(
        &mut self,
        from: usize,
        term: u64,
        matched: Result<u64, u64>,
        stage: &mut Stage,
    ) {
        self.follow_term(term, stage);
        if !self.leads || term != self.term {
            return;
        }
        self.heard_at[from] = stage.now;
        match matched {
            Ok(index) => {
                self.matched[from] = self.matched[from].max(index);
                self.next[from] = self.next[from].max(index + 1);
                self.commit(stage);
            }
            Err(hint) => {
                self.next[from] = hint.min(self.next[from]).max(self.matched[from] + 1);
            }
        }
    }

    fn commit(&mut self, stage: &mut Stage) {
        self.matched[self.me] = self.flushed();
        let mut matched = self.matched;
        matched.sort_unstable();
        let index = matched[NODES - 1 - NODES / 2];
        if index > self.committed && self.term_at(index) == Some(self.term) {
            self.committed = index;
            self.apply_soon(stage);
            self.broadcast(stage);
        }
    }

    // ---- Following ---------------------------------------------------------------------------

    pub(crate) fn append(&mut self, from: usize, append: Append, stage: &mut Stage) {
        let Append { shard, term, mut after, mut entries, committed } = append;
        let told = |matched| Message::Appended { shard, term, matched };
        if term < self.term {
            stage.send(
                self.me,
                from,
                Message::Appended { shard, term: self.term, matched: Err(0) },
            );
            return;
        }
        self.follow_term(term, stage);
        self.has_leader(from, stage);
        while after.index < self.base.index && !entries.is_empty() {
            let entry = entries.remove(0);
            after = Place { term: entry.term, index: after.index + 1 };
        }
        if after.index < self.base.index {
            stage.send(self.me, from, told(Ok(self.base.index)));
            return;
        }
        if self.term_at(after.index) != Some(after.term) {
            let hint = after.index.min(self.last().index + 1).max(self.base.index + 1);
            stage.send(self.me, from, told(Err(hint)));
            return;
        }
        let end = after.index + entries.len() as u64;
        for (index, entry) in (after.index + 1..).zip(entries) {
            if self.term_at(index).is_some_and(|term| term != entry.term) {
                assert!(index > self.committed, "a committed entry is cut off");
                self.entries.truncate(self.at(index));
            }
            if index > self.last().index {
                self.entries.push(entry);
            }
        }
        self.verified = self.verified.max(end);
        if committed.min(end) > self.committed {
            self.committed = committed.min(end);
            self.apply_soon(stage);
        }
        if self.flushed() >= end {
            stage.send(self.me, from, told(Ok(end)));
        } else {
            self.flush_soon(stage);
        }
    }

    /// Tells the leader how far this log is the same as its.
    pub(crate) fn acknowledge(&self, leader: usize, stage: &mut Stage) {
        let matched = Ok(self.flushed().min(self.verified));
        let told = Message::Appended { shard: self.shard, term: self.term, matched };
        stage.send(self.me, leader, told);
    }

    pub(crate) fn has_leader(&mut self, leader: usize, stage: &mut Stage) {
        if self.leader != Some(leader) {
            self.leader = Some(leader);
            let late = stage.chance.below(40);
            stage.local(self.me, late, NodeEvent::Stands(self.shard));
        }
    }

    pub(crate) fn flush(&mut self, place: Place, stage: &mut Stage) {
        if place.index > self.flushed() && self.term_at(place.index) == Some(place.term) {
            self.durable = self.entries[..=self.at(place.index)].to_vec();
        }
        if self.leads {
            self.commit(stage);
        } else if let Some(leader) = self.leader {
            self.acknowledge(leader, stage);
        }
    }

    /// Up to here the log in memory and on the disk are the same.
    fn flushed(&self) -> u64 {
        let pairs = self.entries.iter().zip(&self.durable);
        let same = pairs.take_while(|(memory, disk)| memory.term == disk.term).count();
        self.base.index + same as u64
    }

    fn apply_soon(&self, stage: &mut Stage) {
        let late = stage.apply_delay();
        stage.local(self.me, late, NodeEvent::Apply(self.shard));
    }

    // ---- Tables ------------------------------------------------------------------------------

    /// The tables are at this place: what is older is forgotten.
    pub(crate) fn purge(&mut self, to: Place) {
        if to.index <= self.base.index {
            return;
        }
        let count = usize::try_from(to.index - self.base.index).unwrap();
        self.entries.drain(..count.min(self.entries.len()));
        self.durable.drain(..count.min(self.durable.len()));
        self.base = to;
        self.verified = self.verified.max(to.index);
    }

    /// The tables were replaced by a snapshot as of this place.
    pub(crate) fn install(&mut self, to: Place) {
        if self.term_at(to.index) == Some(to.term) {
            self.purge(to);
        } else {
            self.entries.clear();
            self.durable.clear();
            self.base = to;
        }
        self.committed = self.committed.max(to.index);
        self.handed = to.index;
        self.verified = self.verified.max(to.index);
    }

    /// The node dies: what was not flushed is lost, or some of it is not.
    pub(crate) fn crash(&mut self, stage: &mut Stage) {
        let common = usize::try_from(self.flushed() - self.base.index).unwrap();
        let mut left = std::mem::take(&mut self.durable);
        if left.len() == common {
            let more = stage.chance.index(self.entries.len() - common + 1);
            left.extend_from_slice(&self.entries[common..common + more]);
        }
        // What is read from a disk is never the memory that was proposed.
        let copy = |entry: &Entry| Entry {
            term: entry.term,
            record: entry.record.as_ref().map(|record| Bytes::copy_from_slice(record)),
        };
        self.entries = left.iter().map(copy).collect();
        self.durable = self.entries.clone();
        self.leads = false;
        self.leader = None;
        self.pending.clear();
        self.verified = self.base.index;
    }

    /// The node starts with tables as of `applied`.
    pub(crate) fn restart(&mut self, applied: Place) {
        self.purge(applied);
        self.committed = applied.index;
        self.handed = applied.index;
    }
}
