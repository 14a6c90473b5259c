//! Questions about a shard's state, as user actors put them to its leader.

use actors::shard::{Attached, Page};
use proto::{DeviceId, Seq, UserId};

/// A question, and who waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) number: u64,
    pub(crate) node: usize,
    pub(crate) connection: u64,
    pub(crate) user: UserId,
    /// When it was first asked, in ticks of the asking shard.
    pub(crate) since: u64,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Attach(DeviceId),
    Page { after: Seq, limit: usize, bytes_max: usize },
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) enum Answered {
    /// `None`: no such user or device.
    Attached(Option<Attached>),
    Page(Page),
}
