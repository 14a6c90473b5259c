//! Which sends wait for an earlier one of their device that was refused. A pure core.
//!
//! A client that is told to try again sends the same id once more. Until then, or until it has had
//! its time, later ids of that device to the same user are refused alike, so that none overtakes it.

use proto::limits::UNANSWERED_MAX;
use proto::{Code, Retry, stored};
use std::collections::{BTreeMap, BTreeSet};

/// How long a refused send is waited for, in ticks of the shard (seconds).
const HELD_TICKS: u64 = 10;

/// Devices that are held back at once; the oldest are let go.
const HELD_MAX: usize = 100_000;

/// Sender, device and recipient.
pub(super) type Conversation = (u64, u32, u64);

/// The conversation of a send.
pub(super) fn conversation(append: &stored::Append) -> Conversation {
    (append.from, append.from_device, append.to)
}

/// What a send is called: its conversation and its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    conversation: Conversation,
    send_id: u64,
}

impl Name {
    pub(super) fn of(append: &stored::Append) -> Self {
        Self { conversation: conversation(append), send_id: append.send_id }
    }
}

/// The refused sends of each conversation that have not come again.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<Conversation, Refused>);

#[derive(Debug)]
struct Refused {
    send_ids: BTreeSet<u64>,
    code: Code,
    tick: u64,
}

impl Held {
    /// Notes that a send was refused, if its sender is to try again.
    pub(super) fn refused(&mut self, name: Name, code: Code, tick: u64) {
        if code.retry() == Retry::Never {
            return;
        }
        if self.0.len() >= HELD_MAX {
            self.0.clear();
        }
        let fresh = || Refused { send_ids: BTreeSet::new(), code, tick };
        let refused = self.0.entry(name.conversation).or_insert_with(fresh);
        refused.tick = tick;
        if refused.send_ids.len() < UNANSWERED_MAX {
            refused.send_ids.insert(name.send_id);
        }
    }

    /// Why a send must wait for an earlier one, if it must.
    pub(super) fn holds_back(&mut self, name: Name, tick: u64) -> Option<Code> {
        let refused = self.0.get_mut(&name.conversation)?;
        refused.send_ids.remove(&name.send_id);
        let first = refused.send_ids.first().copied();
        let waits = first.is_some_and(|first| first < name.send_id);
        if waits && tick < refused.tick + HELD_TICKS {
            let code = refused.code;
            refused.send_ids.insert(name.send_id);
            return Some(code);
        }
        if first.is_none() || waits {
            self.0.remove(&name.conversation);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_send_waits_until_the_refused_one_comes_again() {
        let mut held = Held::default();
        let send = |send_id| Name { conversation: (1, 1, 2), send_id };
        held.refused(send(5), Code::Unavailable, 1);
        held.refused(send(6), Code::Unavailable, 1);
        assert_eq!(held.holds_back(send(7), 2), Some(Code::Unavailable));
        assert_eq!(held.holds_back(Name { conversation: (1, 1, 3), send_id: 7 }, 2), None);
        assert_eq!(held.holds_back(send(5), 2), None);
        assert_eq!(held.holds_back(send(8), 2), Some(Code::Unavailable));
        assert_eq!(held.holds_back(send(6), 2), None);
        assert_eq!(held.holds_back(send(7), 2), None);
        assert_eq!(held.holds_back(send(8), 2), None);
        assert_eq!(held.holds_back(send(9), 2), None);
    }

    #[test]
    fn nobody_waits_for_ever_and_what_cannot_be_retried_holds_nothing() {
        let mut held = Held::default();
        let send = |send_id| Name { conversation: (1, 1, 2), send_id };
        held.refused(send(5), Code::Unavailable, 1);
        assert_eq!(held.holds_back(send(7), 1 + HELD_TICKS), None);
        held.refused(send(8), Code::UnknownUser, 1);
        assert_eq!(held.holds_back(send(9), 1), None);
    }
}
