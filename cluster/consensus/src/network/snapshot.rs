//! Snapshots on their way: read from the tables here, sent in pieces, received into a file there.
//!
//! ```text
//! leader                                         member
//!   | piece id, offset 0, bytes                     |  a new file
//!   |---------------------------------------------->|
//!   |                             next offset 262144|
//!   |<----------------------------------------------|
//!   | piece id, offset 262144, bytes                |
//!   |---------------------------------------------->|
//!   | ...                                           |
//!   | piece id, offset N, empty, done               |
//!   |---------------------------------------------->|  checks the file, replaces its tables
//!   |                                  next offset N|
//!   |<----------------------------------------------|
//! ```
//!
//! # Invariants
//! 1. One piece is under way at a time; a piece that was lost comes again.
//! 2. A member that lost what it received says so, and the leader begins anew later.
//! 3. A member that has the entry at which the snapshot was taken takes none: nothing is lost with
//!    the records after it.

use crate::Inner;
use crate::convert;
use crate::log::journal::Journal;
use crate::network::link::{LinkError, Wire};
use crate::types::{Ballot, Id, SnapshotData, Types};
use bytes::Bytes;
use links::{CallError, Lane};
use openraft::{Snapshot, SnapshotMeta};
use proto::cluster::{self, request, response};
use proto::{NodeId, ShardId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage::{Export, Import, StorageError};
use tracing::{debug, warn};

/// Bytes of a piece.
const PIECE_BYTES: usize = 256 * 1024;

/// Times that one piece is sent before the snapshot is given up for now.
const TRIES: u32 = 5;

/// Wait before a piece is sent again to a peer that could not be asked.
const PAUSE: Duration = Duration::from_millis(300);

/// How long any piece but the last may take.
const PIECE_WITHIN: Duration = Duration::from_secs(10);

/// The answer to a first piece by a member that needs none: beyond every offset.
const NOT_NEEDED: u64 = u64::MAX;

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the tables cannot be read")]
    Read(#[from] StorageError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// The tables of a group as of now; `None` if there is nothing in them yet.
pub(crate) async fn open(
    journal: &Journal,
    group: ShardId,
) -> Result<Option<Export>, StorageError> {
    let export = move |storage: &storage::Storage| match storage.applied(group)? {
        None => Ok(None),
        Some(_) => storage.export(group).map(Some),
    };
    journal.outlast(export).await
}

/// Sends a snapshot and waits until it is installed. Answers with the member's vote, which is
/// higher than ours if it follows another leader.
pub(crate) async fn send(
    wire: &Wire,
    target: NodeId,
    (vote, snapshot): (Ballot, Snapshot<Types>),
    within: Duration,
) -> Result<Ballot, SendError> {
    /// So that each sending has a name of its own.
    static SENDINGS: AtomicU64 = AtomicU64::new(0);
    let SnapshotData::Tables(mut export) = *snapshot.snapshot else {
        return Err(LinkError::NotTaken.into());
    };
    let me = wire.peers.me();
    let sending = SENDINGS.fetch_add(1, Ordering::Relaxed);
    let meta = &snapshot.meta;
    let mut piece = cluster::SnapshotPiece {
        group: u32::from(wire.group.0),
        vote: Some(convert::stored_vote(&vote)),
        id: format!("{}.{}.{sending}", me.node, me.incarnation),
        last: meta.last_log_id.as_ref().map(convert::stored_id),
        membership: Some(convert::stored_membership(meta.last_membership.membership())),
        membership_at: meta.last_membership.log_id().as_ref().map(convert::stored_id),
        ..cluster::SnapshotPiece::default()
    };
    loop {
        let (bytes, rest) = next(export).await?;
        export = rest;
        piece.done = bytes.is_none();
        piece.bytes = bytes.unwrap_or_default();
        let wanted = piece.offset + piece.bytes.len() as u64;
        let answer = send_piece(wire, target, &piece, within).await?;
        let theirs = answer.vote.as_ref().map(convert::vote).ok_or(LinkError::Unexpected)?;
        // `>` is no total order here: a vote that cannot be compared is not ours to heed.
        if theirs > vote || answer.next_offset == NOT_NEEDED {
            return Ok(theirs);
        }
        if answer.next_offset != wanted {
            return Err(LinkError::NotTaken.into());
        }
        wire.pieces.fetch_add(1, Ordering::Relaxed);
        let (shard, peer) = (wire.group, target);
        if piece.offset == 0 {
            debug!(%shard, %peer, up_to = ?meta.last_log_id, "sending a snapshot");
        }
        if piece.done {
            debug!(%shard, %peer, bytes = wanted, "snapshot installed");
            return Ok(theirs);
        }
        piece.offset = wanted;
    }
}

async fn next(mut export: Box<Export>) -> Result<(Option<Bytes>, Box<Export>), StorageError> {
    let read = move || export.next(PIECE_BYTES).map(|bytes| (bytes, export));
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(StorageError::Closed))
}

async fn send_piece(
    wire: &Wire,
    target: NodeId,
    piece: &cluster::SnapshotPiece,
    within: Duration,
) -> Result<cluster::SnapshotAnswer, LinkError> {
    let within = if piece.done { within } else { within.min(PIECE_WITHIN) };
    let mut tries = 1;
    loop {
        let question = request::Kind::Snapshot(piece.clone());
        match wire.ask((target, Lane::Bulk), question, within).await {
            Ok(response::Kind::Snapshot(answer)) => return Ok(answer),
            Ok(_) => return Err(LinkError::Unexpected),
            Err(LinkError::Call(CallError::TimedOut)) if tries < TRIES => {}
            Err(LinkError::Call(_)) if tries < TRIES => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
        tries += 1;
    }
}

/// What this node has received of a snapshot.
#[derive(Default)]
pub(crate) struct Receiving {
    under_way: Option<UnderWay>,
    /// The one that was installed last: its last piece may come twice.
    installed: Option<(String, u64)>,
}

struct UnderWay {
    id: String,
    offset: u64,
    import: Import,
}

/// A piece arrived. `None`: nothing is said, and the piece will come again.
pub(crate) async fn receive(
    inner: &Inner,
    piece: cluster::SnapshotPiece,
) -> Option<cluster::SnapshotAnswer> {
    let vote = convert::vote(piece.vote.as_ref()?);
    let last = convert::id(piece.last.as_ref()?);
    let mine = inner.raft.server_metrics().borrow().vote;
    let answer = |vote: &Ballot, next_offset| {
        Some(cluster::SnapshotAnswer { vote: Some(convert::stored_vote(vote)), next_offset })
    };
    if mine > vote {
        return answer(&mine, 0);
    }
    inner.contact.heard(&vote);
    let mut receiving = inner.receiving.lock().await;
    if let Some((id, offset)) = &receiving.installed
        && *id == piece.id
    {
        return answer(&vote, *offset);
    }
    if inner.journal.id_at(last.index) == Some(last) {
        receiving.under_way = None;
        return answer(&vote, NOT_NEEDED);
    }
    let under_way = take(inner, &mut receiving, &piece).await;
    let Some(under_way) = under_way else { return answer(&vote, 0) };
    if piece.offset != under_way.offset {
        let offset = under_way.offset;
        receiving.under_way = Some(under_way);
        return answer(&vote, offset);
    }
    if !piece.done {
        let written = write(under_way, piece.bytes).await?;
        let offset = written.offset;
        receiving.under_way = Some(written);
        return answer(&vote, offset);
    }
    let offset = under_way.offset;
    let theirs = install(inner, under_way, (vote, last)).await?;
    receiving.installed = Some((piece.id, offset));
    answer(&theirs, offset)
}

/// The file that this piece belongs to; a new one for a first piece.
async fn take(
    inner: &Inner,
    receiving: &mut Receiving,
    piece: &cluster::SnapshotPiece,
) -> Option<UnderWay> {
    let known = receiving.under_way.take().filter(|under_way| under_way.id == piece.id);
    if known.is_some() || piece.offset > 0 {
        return known;
    }
    let (storage, group) = (inner.storage.clone(), inner.group);
    let import = tokio::task::spawn_blocking(move || storage.import(group)).await;
    match import.unwrap_or(Err(StorageError::Closed)) {
        Ok(import) => Some(UnderWay { id: piece.id.clone(), offset: 0, import }),
        Err(error) => {
            warn!(shard = %inner.group, %error, "no file for a snapshot");
            None
        }
    }
}

async fn write(mut under_way: UnderWay, bytes: Bytes) -> Option<UnderWay> {
    let write = move || {
        under_way.import.write(&bytes)?;
        under_way.offset += bytes.len() as u64;
        Ok(under_way)
    };
    let written = tokio::task::spawn_blocking(write).await;
    match written.unwrap_or(Err(StorageError::Closed)) {
        Ok(under_way) => Some(under_way),
        Err(error) => {
            warn!(%error, "a piece of a snapshot was not written");
            None
        }
    }
}

async fn install(inner: &Inner, received: UnderWay, (vote, last): (Ballot, Id)) -> Option<Ballot> {
    let finished = tokio::task::spawn_blocking(move || received.import.finish()).await;
    let row = match finished.unwrap_or(Err(StorageError::Closed)) {
        Ok(row) => row,
        Err(error) => {
            warn!(shard = %inner.group, %error, "a snapshot cannot be used");
            return None;
        }
    };
    if row.id.as_ref().map(convert::id) != Some(last) {
        warn!(shard = %inner.group, "a snapshot is of another place than it was said to be");
        return None;
    }
    // No append comes in between: an entry that follows the snapshot would be lost with the log.
    let _appends = inner.appends.write().await;
    if inner.journal.id_at(last.index) == Some(last) {
        return Some(vote);
    }
    let last_membership = convert::members(row.membership_at.as_ref(), row.membership.as_ref());
    let snapshot_id = last.to_string();
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership, snapshot_id };
    let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotData::Elsewhere) };
    let installed = inner.raft.install_full_snapshot(vote, snapshot).await;
    inner.contact.heard(&vote);
    match installed {
        Ok(response) => Some(response.vote),
        Err(error) => {
            warn!(shard = %inner.group, %error, "snapshot not installed");
            None
        }
    }
}
