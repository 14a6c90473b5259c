//! What a replica that was stopped in the middle leaves to the one that is read again from the tables and the
//! log: what is in neither. A part of the core.

use super::core::{ReplicaCore, Token};
use super::proposals::Proposals;
use proto::NodeId;
use std::collections::BTreeSet;

/// Commands that wait, the order of their retries, and who leads elsewhere.
#[derive(Default)]
pub struct Inheritance {
    proposals: Proposals,
    hint: Option<(u64, NodeId)>,
    ticks: u64,
}

impl std::fmt::Debug for Inheritance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inheritance")
    }
}

impl ReplicaCore {
    /// This core ends. The actions that nobody has taken are lost with it.
    pub fn leave(&mut self) -> Inheritance {
        let proposals = std::mem::take(&mut self.proposals).left();
        Inheritance { proposals, hint: self.hint, ticks: self.ticks }
    }

    /// Goes on with what another core has left; its tokens keep their meaning. Returns those that are told
    /// later: whoever waits for another token must be told that nobody knows.
    pub fn inherit(&mut self, left: Inheritance) -> BTreeSet<Token> {
        let Inheritance { proposals, hint, ticks } = left;
        (self.proposals, self.hint, self.ticks) = (proposals, hint, ticks);
        self.proposals.callers().collect()
    }
}
