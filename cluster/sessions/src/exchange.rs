//! ◇ A comparison with one peer: digests, then the parts of buckets that differ, page by page. It
//! fetches what this node lacks; the peer does the same at its own time.
//!
//! # Invariants
//! 1. One question is under way at a time, and each has a bounded answer.
//! 2. Nothing is compared while rows are being rewritten, here or there.

use super::digest::PartSums;
use super::row::BUCKETS;
use super::table::Table;
use super::{CAST_BYTES, Shared};
use bytes::Bytes;
use links::PeerId;
use proto::cluster::{self, request, response};
use proto::{Code, NodeId};
use std::collections::BTreeSet;
use storage::StorageError;
use tracing::warn;

/// Buckets in one fetch, at most.
const BUCKETS_MAX: usize = 16;

/// Rows of a fetch's buckets for which sums are made at once, about.
const SUMMED_ROWS: u64 = 16_384;

/// A comparison that is under way.
#[derive(Debug)]
pub struct Exchange {
    /// With whom.
    pub peer: NodeId,
    /// Tells apart the answers of different exchanges.
    pub number: u64,
    /// Buckets that differ and were not fetched yet.
    todo: Vec<u32>,
    /// What was asked last.
    fetch: cluster::SessionsFetch,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Ask the peer.
    Ask(Box<request::Kind>),
    /// All was compared.
    Done,
    /// It has to be begun again, in a moment.
    Again,
}

impl Exchange {
    /// Begins a comparison: the first question.
    pub fn begin(table: &Table, peer: NodeId, number: u64) -> (Self, request::Kind) {
        let buckets = table.digest().sums();
        let digest = cluster::SessionsDigest { buckets, floors: floors(table) };
        let fetch = cluster::SessionsFetch::default();
        (Self { peer, number, todo: Vec::new(), fetch }, request::Kind::Sessions(digest))
    }

    /// The peer said which buckets differ.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read.
    pub fn differ(
        &mut self,
        table: &Table,
        differ: &cluster::SessionsDiffer,
    ) -> Result<Step, StorageError> {
        learn(table, &differ.floors);
        if differ.busy || table.purge_due().is_some() {
            return Ok(Step::Again);
        }
        let buckets: BTreeSet<u32> = differ.buckets.iter().copied().collect();
        self.todo = buckets.into_iter().filter(|bucket| (*bucket as usize) < BUCKETS).collect();
        self.todo.reverse();
        self.next_fetch(table)
    }

    /// The peer's rows were taken in; `more` is where it broke off.
    ///
    /// # Errors
    /// [`StorageError`]: the rows were not read.
    pub fn fetched(&mut self, table: &Table, more: Bytes) -> Result<Step, StorageError> {
        if more.is_empty() {
            return self.next_fetch(table);
        }
        // A page must lead on, or the exchange would never end.
        if more <= self.fetch.from {
            return Ok(Step::Again);
        }
        self.fetch.from = more;
        Ok(self.ask())
    }

    fn ask(&self) -> Step {
        Step::Ask(Box::new(request::Kind::Fetch(self.fetch.clone())))
    }

    fn next_fetch(&mut self, table: &Table) -> Result<Step, StorageError> {
        let in_a_bucket = table.rows() / BUCKETS as u64 + 1;
        let buckets_max = usize::try_from(SUMMED_ROWS / in_a_bucket).unwrap_or(BUCKETS_MAX);
        let rest = self.todo.len().saturating_sub(buckets_max.clamp(1, BUCKETS_MAX));
        let mut buckets = self.todo.split_off(rest);
        if buckets.is_empty() {
            return Ok(Step::Done);
        }
        buckets.reverse();
        let mut sums = Vec::with_capacity(buckets.len() * size_of::<PartSums>() / 8);
        for bucket in &buckets {
            let (parts, _) = table.part_sums(*bucket as usize)?;
            sums.extend(parts.0);
        }
        self.fetch = cluster::SessionsFetch { buckets, from: Bytes::new(), sums };
        Ok(self.ask())
    }
}

/// Answers a peer's question; `None` if it is about something else.
pub(super) fn serve(shared: &Shared, request: &request::Kind) -> Option<response::Kind> {
    let answer = answer(&shared.table, request);
    if let Some(response::Kind::Sessions(cluster::SessionsDiffer { busy: true, .. })) = answer {
        drop(shared.inbox.push(super::SessionsItem::Look)); // A full queue looks by itself.
    }
    answer
}

/// What a table says to a peer's question; `None` if it is about something else.
pub fn answer(table: &Table, request: &request::Kind) -> Option<response::Kind> {
    if let request::Kind::Sessions(digest) = request {
        learn(table, &digest.floors);
        let busy = table.purge_due().is_some();
        let buckets = if busy { Vec::new() } else { table.digest().differing(&digest.buckets) };
        let differ = cluster::SessionsDiffer { buckets, floors: floors(table), busy };
        return Some(response::Kind::Sessions(differ));
    }
    let request::Kind::Fetch(fetch) = request else { return None };
    Some(table.page(fetch, CAST_BYTES).map_or_else(
        |error| {
            warn!(%error, "session rows not read for a peer");
            response::Kind::Refused(Code::Unavailable.number())
        },
        response::Kind::Rows,
    ))
}

fn floors(table: &Table) -> Vec<cluster::Floor> {
    let floor = |id: PeerId| cluster::Floor { node: id.node.0, incarnation: id.incarnation };
    table.standing().floors().map(floor).collect()
}

fn learn(table: &Table, floors: &[cluster::Floor]) {
    for floor in floors {
        table.learn(PeerId { node: NodeId(floor.node), incarnation: floor.incarnation });
    }
}
