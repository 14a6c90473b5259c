//! Questions about the state of a shard, and their answers.

use super::AccountView;
use super::core::Token;
use super::reads::{Attached, Page};
use proto::{Alias, DeviceId, Seq, UserId};
use std::sync::Arc;

/// A question about the applied state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Who a user is.
    Account(UserId),
    /// Whose alias this is.
    Owner(Alias),
    /// Where a device stands.
    Attach(UserId, DeviceId),
    /// Entries of a mailbox.
    Page {
        /// Whose mailbox.
        user: UserId,
        /// Entries after this place.
        after: Seq,
        /// So many at most.
        limit: usize,
        /// So many bytes of bodies, but at least one entry.
        bytes_max: usize,
    },
}

impl Ask {
    /// Whether a beginning of the answer, as it was a moment ago, does no harm.
    pub fn is_page(&self) -> bool {
        matches!(self, Self::Page { .. })
    }
}

/// An answer to the question of the same name.
#[derive(Clone, Debug)]
pub enum Answered {
    /// `None`: no such user.
    Account(Option<Arc<AccountView>>),
    /// `None`: nobody's.
    Owner(Option<UserId>),
    /// `None`: no such user or device.
    Attached(Option<Attached>),
    /// The entries.
    Page(Page),
}

/// A question of this node on its way to the leader.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What is asked.
    pub ask: Ask,
    /// Who waits.
    pub token: Token,
    /// The tick of this replica in which it came.
    pub since: u64,
}
