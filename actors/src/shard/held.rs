//! Which sends wait for an earlier one of their device that was refused. A pure core.
//!
//! A client that is told to try again sends the same id once more. Until then, or until it has had
//! its time, later ids of that device to the same user are refused alike, so that none overtakes it.

use proto::limits::UNANSWERED_MAX;
use proto::{Code, Retry, stored};
use std::collections::BTreeMap;

/// How long a refused send is waited for, in ticks of the shard (seconds).
const HELD_TICKS: u64 = 10;

/// Conversations that are held back at once; beyond that all are let go.
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
    /// And the tick in which each was refused last.
    send_ids: BTreeMap<u64, u64>,
    code: Code,
}

impl Refused {
    fn note(&mut self, send_id: u64, tick: u64) {
        if self.send_ids.len() < UNANSWERED_MAX || self.send_ids.contains_key(&send_id) {
            self.send_ids.insert(send_id, tick);
        }
    }
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
        let fresh = || Refused { send_ids: BTreeMap::new(), code };
        self.0.entry(name.conversation).or_insert_with(fresh).note(name.send_id, tick);
    }

    /// Why a send must wait for an earlier one, if it must. It counts as refused then, and later ones
    /// wait for it as well.
    pub(super) fn holds_back(&mut self, name: Name, tick: u64) -> Option<Code> {
        let refused = self.0.get_mut(&name.conversation)?;
        refused.send_ids.remove(&name.send_id);
        refused.send_ids.retain(|_, since| tick < *since + HELD_TICKS);
        let first = refused.send_ids.first_key_value().map(|(first, _)| *first);
        if first.is_some_and(|first| first < name.send_id) {
            refused.note(name.send_id, tick);
            return Some(refused.code);
        }
        if first.is_none() {
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

    #[test]
    fn one_that_never_comes_again_does_not_let_others_overtake_each_other() {
        let mut held = Held::default();
        let send = |send_id| Name { conversation: (1, 1, 2), send_id };
        held.refused(send(5), Code::Unavailable, 1);
        assert_eq!(held.holds_back(send(6), HELD_TICKS), Some(Code::Unavailable));
        let later = 1 + HELD_TICKS;
        assert_eq!(held.holds_back(send(7), later), Some(Code::Unavailable), "6 comes first");
        assert_eq!(held.holds_back(send(6), later), None, "nobody waits for 5 any longer");
        assert_eq!(held.holds_back(send(7), later), None);
    }
}
