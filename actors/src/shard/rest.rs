//! A replica that is about to be forgotten: this node is no member of the group any longer.
//!
//! # Invariants
//! 1. From [`Item::Rest`](super::Item::Rest) until the emptied tables are loaded nothing is
//!    applied and no checkpoint is begun: it would bring back rows of what was forgotten.

use super::core::{Action, ReplicaCore, Token};

/// Whether the replica waits to be forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Rest {
    #[default]
    No,
    /// A checkpoint is still being written.
    WhenWritten(Token),
    Yes,
    /// The emptied tables are read.
    Loading,
}

impl Rest {
    pub(super) fn is_on(self) -> bool {
        match self {
            Self::No => false,
            Self::WhenWritten(_) | Self::Yes | Self::Loading => true,
        }
    }

    /// The tables are read. A read that was begun before the rest does not count.
    pub(super) fn reload(&mut self) {
        if self.is_on() {
            *self = Self::Loading;
        }
    }

    /// The tables were read; says whether that counts, and ends the rest if so.
    pub(super) fn loaded(&mut self) -> bool {
        let counts = matches!(self, Self::No | Self::Loading);
        if counts {
            *self = Self::No;
        }
        counts
    }
}

impl ReplicaCore {
    pub(super) fn rest(&mut self, token: Token) {
        let deferred = std::mem::take(&mut self.deferred);
        self.actions.extend(deferred.into_iter().map(|(_, token)| Action::Forget(token)));
        if self.chores.is_writing() {
            self.rest = Rest::WhenWritten(token);
        } else {
            self.rest = Rest::Yes;
            self.actions.push(Action::Done(token));
        }
    }

    /// The checkpoint that was being written is, or was given up. Says whether that was all.
    pub(super) fn rests_when_written(&mut self) -> bool {
        let rests = self.rest.is_on();
        if let Rest::WhenWritten(token) = std::mem::take(&mut self.rest) {
            self.chores.snapshot_taken();
            self.actions.push(Action::Done(token));
        }
        if rests {
            self.rest = Rest::Yes;
        }
        rests
    }
}
