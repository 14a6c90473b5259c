//! The checker: what was lost, seen twice, or out of order. A pure core.

use std::collections::BTreeSet;

use crate::hot::{Place, put_ack};

/// What has been seen of one stream of messages numbered 0, 1, 2 and so on.
#[derive(Debug, Default)]
pub(crate) struct Order {
    next: u64,
    missing: BTreeSet<u64>,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// After all before it that came at all.
    InOrder,
    /// After a later one.
    Late,
    /// Once more.
    Twice,
}

impl Order {
    /// Notes message `number`.
    pub(crate) fn see(&mut self, number: u64) -> Seen {
        if number >= self.next {
            self.missing.extend(self.next..number);
            self.next = number + 1;
            return Seen::InOrder;
        }
        if self.missing.remove(&number) { Seen::Late } else { Seen::Twice }
    }

    /// The numbers below `sent` that were never seen.
    pub(crate) fn unseen(&self, sent: u64) -> impl Iterator<Item = u64> + '_ {
        self.missing.iter().copied().chain(self.next..sent.max(self.next))
    }

    /// How many different messages were seen.
    pub(crate) fn seen(&self) -> u64 {
        self.next - self.missing.len() as u64
    }
}

/// Counts of what must not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) disordered: u64,
    /// Deliveries whose `after` is not the entry seen before.
    pub(crate) seq_breaks: u64,
}

impl Faults {
    /// Counts how a message came.
    pub(crate) fn count(&mut self, seen: Seen) {
        match seen {
            Seen::InOrder => {}
            Seen::Late => self.disordered += 1,
            Seen::Twice => self.doubled += 1,
        }
    }
}

/// A device's place in its mailbox.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    seq: u64,
    acknowledged: u64,
}

impl Cursor {
    /// Notes an entry; `false` if it does not follow the one before.
    pub(crate) fn see(&mut self, place: Place) -> bool {
        let follows = place.after == self.seq && place.seq > place.after;
        self.seq = self.seq.max(place.seq);
        follows
    }

    /// Appends an acknowledgement for everything seen since the last one.
    pub(crate) fn acknowledge(&mut self, out: &mut Vec<u8>) {
        if self.seq > self.acknowledged {
            put_ack(out, self.seq);
            self.acknowledged = self.seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seen::{InOrder, Late, Twice};
    use super::*;

    #[test]
    fn each_fault_is_told_from_the_others() {
        let mut order = Order::default();
        let seen = [0, 1, 3, 2, 3, 6].map(|number| order.see(number));
        assert_eq!(seen, [InOrder, InOrder, InOrder, Late, Twice, InOrder]);
        assert_eq!(order.unseen(9).collect::<Vec<_>>(), [4, 5, 7, 8]);
        assert_eq!(order.seen(), 5);
    }

    #[test]
    fn a_hole_in_the_mailbox_is_noticed_and_an_announced_one_is_not() {
        let mut cursor = Cursor::default();
        assert!(cursor.see(Place { seq: 1, after: 0 }));
        assert!(cursor.see(Place { seq: 5, after: 1 }));
        assert!(!cursor.see(Place { seq: 7, after: 6 }));
        assert!(!cursor.see(Place { seq: 7, after: 6 }));
        let mut out = Vec::new();
        cursor.acknowledge(&mut out);
        cursor.acknowledge(&mut out);
        let mut once = Vec::new();
        put_ack(&mut once, 7);
        assert_eq!(out, once, "acknowledged once");
    }
}
