//! Later sends wait for an earlier one that was refused. A pure core.
//!
//! A client that is told to try again sends the same id once more. Until then, or until
//! [`HOLD_MS`] after the refusal, later ids of that conversation are refused with the same code,
//! so that none overtakes the refused one. Sends that are refused only because they wait do not
//! prolong the hold, so it ends however many of them come.

use proto::Code;
use proto::limits::{HOLD_S, UNANSWERED_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// Time for which later sends are held back after a refusal, in ms.
const HOLD_MS: u64 = HOLD_S * 1000;

/// The refused sends of each conversation that have not come again. `K` names a conversation.
#[derive(Clone, Debug)]
pub(crate) struct RetryOrder<K> {
    holds: BTreeMap<K, Hold>,
    /// The same conversations, the oldest hold first.
    by_age: BTreeSet<(u64, K)>,
    /// Conversations held back at once. Beyond it the hold that began first ends.
    holds_max: usize,
}

#[derive(Clone, Debug)]
struct Hold {
    /// Refused and not sent again since, at most as many as a device may have unanswered.
    waiting: BTreeSet<u64>,
    code: Code,
    /// When the last refusal came that had another reason than this hold, in ms.
    began_ms: u64,
}

impl Hold {
    /// A clock that was set back or ahead ends a hold rather than prolonging it.
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.abs_diff(self.began_ms) >= HOLD_MS
    }
}

/// Whether a refusal with this code holds later sends back.
fn holds(code: Code) -> bool {
    matches!(code, Code::TooFast | Code::MailboxFull | Code::Unavailable | Code::StorageFull)
}

impl<K: Ord + Clone> RetryOrder<K> {
    pub(crate) fn new(holds_max: usize) -> Self {
        Self { holds: BTreeMap::new(), by_age: BTreeSet::new(), holds_max }
    }

    /// Notes that a send was refused for another reason than a hold.
    pub(crate) fn refused(&mut self, conversation: K, send_id: u64, code: Code, now_ms: u64) {
        if !holds(code) {
            return;
        }
        let mut hold = match self.end(&conversation) {
            Some(hold) if !hold.is_over(now_ms) => Hold { code, began_ms: now_ms, ..hold },
            Some(_) | None => Hold { waiting: BTreeSet::new(), code, began_ms: now_ms },
        };
        hold.note(send_id);
        if self.holds.len() >= self.holds_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.holds.remove(&oldest);
        }
        self.by_age.insert((now_ms, conversation.clone()));
        self.holds.insert(conversation, hold);
    }

    /// The code with which a send must be refused because an earlier one has not come again.
    pub(crate) fn holds_back(
        &mut self,
        conversation: &K,
        send_id: u64,
        now_ms: u64,
    ) -> Option<Code> {
        if self.holds.is_empty() {
            return None;
        }
        let hold = self.holds.get_mut(conversation)?;
        if hold.is_over(now_ms) {
            self.end(conversation);
            return None;
        }
        hold.waiting.remove(&send_id);
        match hold.waiting.first() {
            Some(first) if *first < send_id => {
                hold.note(send_id);
                Some(hold.code)
            }
            Some(_) => None,
            None => {
                self.end(conversation);
                None
            }
        }
    }

    /// Forgets all holds.
    pub(crate) fn clear(&mut self) {
        self.holds.clear();
        self.by_age.clear();
    }

    fn end(&mut self, conversation: &K) -> Option<Hold> {
        let hold = self.holds.remove(conversation)?;
        self.by_age.remove(&(hold.began_ms, conversation.clone()));
        Some(hold)
    }
}

impl Hold {
    fn note(&mut self, send_id: u64) {
        if self.waiting.len() < UNANSWERED_MAX {
            self.waiting.insert(send_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> RetryOrder<u8> {
        RetryOrder::new(3)
    }

    #[test]
    fn a_later_send_waits_until_the_refused_one_comes_again() {
        let mut order = order();
        order.refused(1, 5, Code::Unavailable, 1);
        order.refused(1, 6, Code::Unavailable, 1);
        assert_eq!(order.holds_back(&1, 7, 2), Some(Code::Unavailable));
        assert_eq!(order.holds_back(&2, 7, 2), None, "another conversation");
        assert_eq!(order.holds_back(&1, 5, 2), None);
        assert_eq!(order.holds_back(&1, 8, 2), Some(Code::Unavailable));
        for send_id in [6, 7, 8, 9] {
            assert_eq!(order.holds_back(&1, send_id, 2), None, "in their order");
        }
    }

    #[test]
    fn a_hold_ends_ten_seconds_after_the_refusal_however_many_sends_it_refuses() {
        for code in [Code::TooFast, Code::MailboxFull, Code::Unavailable, Code::StorageFull] {
            let mut order = order();
            order.refused(1, 5, code, 1_000);
            for second in 1..10 {
                let held = order.holds_back(&1, 5 + second, 1_000 + second * 1_000);
                assert_eq!(held, Some(code), "{second}");
            }
            assert_eq!(order.holds_back(&1, 99, 1_000 + HOLD_MS), None);
        }
    }

    #[test]
    fn a_send_that_comes_again_and_is_refused_again_is_waited_for_again() {
        let mut order = order();
        order.refused(1, 5, Code::MailboxFull, 0);
        assert_eq!(order.holds_back(&1, 5, 9_000), None);
        order.refused(1, 5, Code::MailboxFull, 9_000);
        assert_eq!(order.holds_back(&1, 6, 18_000), Some(Code::MailboxFull));
        assert_eq!(order.holds_back(&1, 6, 19_000), None);
    }

    #[test]
    fn a_refusal_that_is_final_holds_nothing_and_a_clock_that_is_set_back_frees() {
        let mut order = order();
        order.refused(1, 5, Code::UnknownUser, 1);
        order.refused(1, 5, Code::Internal, 1);
        assert_eq!(order.holds_back(&1, 6, 1), None);
        order.refused(1, 5, Code::TooFast, 100_000);
        assert_eq!(order.holds_back(&1, 6, 5), None);
    }

    #[test]
    fn of_too_many_holds_the_oldest_ends() {
        let mut order = order();
        for (conversation, at_ms) in [(1, 20), (2, 10), (3, 30), (4, 40)] {
            order.refused(conversation, 5, Code::MailboxFull, at_ms);
        }
        assert_eq!(order.holds_back(&2, 6, 50), None);
        for conversation in [1, 3, 4] {
            assert!(order.holds_back(&conversation, 6, 50).is_some(), "{conversation}");
        }
    }
}
