//! What a parcel is, before it is cut and after it is put together.

use bytes::Bytes;
use proto::cluster::piece;

use crate::door::Lane;

/// Something for a peer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// What it is.
    pub kind: Kind,
    /// What it says.
    pub bytes: Bytes,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may be lost.
    Cast,
    /// It is answered.
    Request {
        /// Its number.
        call: u64,
        /// It ends at this time, in milliseconds of the sender's clock; on arrival: of the receiver's.
        deadline_ms: u64,
    },
    /// The answer to a request.
    Response {
        /// The request's number.
        call: u64,
    },
}

impl Kind {
    /// Kind, call and time left, as the first piece says them.
    pub(crate) fn to_wire(self, now_ms: u64) -> (piece::Kind, u64, u32) {
        match self {
            Self::Cast => (piece::Kind::Cast, 0, 0),
            Self::Request { call, deadline_ms } => {
                let left = u32::try_from(deadline_ms.saturating_sub(now_ms)).unwrap_or(u32::MAX);
                (piece::Kind::Request, call, left)
            }
            Self::Response { call } => (piece::Kind::Response, call, 0),
        }
    }

    /// The other way; `None` if it is of a later schema.
    pub(crate) fn from_wire(kind: i32, call: u64, left_ms: u32, now_ms: u64) -> Option<Self> {
        Some(match piece::Kind::try_from(kind).ok()? {
            piece::Kind::Cast => Self::Cast,
            piece::Kind::Request => {
                Self::Request { call, deadline_ms: now_ms + u64::from(left_ms) }
            }
            piece::Kind::Response => Self::Response { call },
        })
    }
}

/// All lanes, the first goes first.
pub(crate) const LANES: [Lane; 3] = [Lane::Urgent, Lane::Normal, Lane::Bulk];

/// The lane's number on the wire and in tables.
pub(crate) fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Normal => 1,
        Lane::Bulk => 2,
    }
}

/// The lane of a number on the wire.
pub(crate) fn lane_of(number: u32) -> Option<Lane> {
    LANES.get(usize::try_from(number).ok()?).copied()
}
