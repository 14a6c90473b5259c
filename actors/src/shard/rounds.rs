//! Which shards of a node propose when: together, in rounds. A pure core.
//!
//! What a batch costs is hardly its commands: it is a flush on each replica, packets to and fro, and
//! processes that are woken for them. Batches that set off together share all of that. So the shards
//! that a node leads propose together, and what comes meanwhile goes with the next round, as within a
//! shard it goes with the next batch. A node with little to do has no round under way, and nothing
//! waits.
//!
//! ```text
//! shard 1   |--batch--|         |--batch----|
//! shard 4   |--batch-----|      |--batch--|
//! shard 9       wants ......... |--batch-----|
//!           round                round
//! ```
//!
//! A round that took long shows that the machine is busy. The next begins later then, so that more travels
//! together, and the time that many small batches would take is there for everybody else. Not so on a node
//! alone: its next round begins when this one is on disk.
//!
//! A shard with nothing but what can wait, such as acknowledgments, leaves out one round: what hurries
//! takes it along, more often than not.
//!
//! # Invariants
//! 1. A round holds nobody back longer than [`ROUND_MAX`], whether one of its shards is slow, or without a
//!    majority, or the machine is busy.
//! 2. Whoever waits is told when its round begins.

use proto::ShardId;
use std::time::Duration;
use tokio::time::Instant;

/// How long a round holds back those who are not in it: more than a batch takes, most of the time.
pub(super) const ROUND_MAX: Duration = Duration::from_millis(10);

/// What a round may take on a machine that is not busy. So long as it takes less, the next begins at once;
/// the time over it is waited once more.
const QUICK: Duration = Duration::from_millis(3);

/// Who had to take a batch before it was through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takers {
    /// A majority of several nodes.
    Several,
    /// This node alone: how long that takes says how slow its disk is, not how busy it is.
    Alone,
}

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u64);

impl Set {
    fn bit(shard: ShardId) -> u64 {
        1 << (shard.0 % 64)
    }

    fn has(self, shard: ShardId) -> bool {
        self.0 & Self::bit(shard) != 0
    }

    fn put(&mut self, shard: ShardId) {
        self.0 |= Self::bit(shard);
    }

    fn remove(&mut self, shard: ShardId) {
        self.0 &= !Self::bit(shard);
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..64).map(ShardId).filter(move |shard| self.has(*shard))
    }
}

/// How much a shard wants to propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Somebody waits for it.
    Hurried,
    /// It can wait a little.
    Patient,
}

/// What became of a wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Whether the shard may propose.
    pub mine: bool,
    /// Who else may, from here on; they must be told.
    pub others: Vec<ShardId>,
}

/// The rounds of a node.
#[derive(Debug, Default)]
pub struct Rounds {
    under_way: Set,
    waiting: Set,
    /// Those that can wait, since this round and since the one before.
    patient: [Set; 2],
    /// The next round begins no earlier: until this one is over, [`ROUND_MAX`] after it began.
    next: Option<Instant>,
}

impl Rounds {
    /// A shard wants to propose.
    pub fn wants(&mut self, shard: ShardId, wish: Wish, now: Instant) -> Turn {
        if self.under_way.has(shard) {
            return Turn { mine: true, others: Vec::new() };
        }
        self.note(shard, wish);
        self.begin_if_due(Some(shard), now)
    }

    /// A shard's batch is through or has failed, or it was not its turn after all; it may want the
    /// next round.
    pub fn ended(
        &mut self,
        (shard, takers): (ShardId, Takers),
        wish: Option<Wish>,
        now: Instant,
    ) -> Turn {
        let was_in_it = self.under_way.has(shard);
        self.under_way.remove(shard);
        if was_in_it && self.under_way.is_empty() {
            self.over(takers, now);
        }
        if let Some(wish) = wish {
            self.note(shard, wish);
        }
        self.begin_if_due(Some(shard), now)
    }

    /// The last batch of the round is through.
    fn over(&mut self, takers: Takers, now: Instant) {
        self.next = self.next.filter(|_| takers == Takers::Several).map(|latest| {
            let took = ROUND_MAX.saturating_sub(latest.saturating_duration_since(now));
            latest.min(now + took.saturating_sub(QUICK))
        });
    }

    fn note(&mut self, shard: ShardId, wish: Wish) {
        match wish {
            Wish::Hurried => self.waiting.put(shard),
            Wish::Patient if self.patient[1].has(shard) => {}
            Wish::Patient => self.patient[0].put(shard),
        }
    }

    /// Time has passed.
    pub fn looked_at(&mut self, now: Instant) -> Turn {
        self.begin_if_due(None, now)
    }

    /// When the next round begins at the latest, if somebody waits for it.
    pub fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.all_waiting().is_empty())
    }

    fn all_waiting(&self) -> Set {
        let [new, old] = self.patient;
        self.waiting.with(new).with(old)
    }

    fn begin_if_due(&mut self, me: Option<ShardId>, now: Instant) -> Turn {
        let all = self.all_waiting();
        if all.is_empty() || self.next.is_some_and(|next| now < next) {
            return Turn::default();
        }
        let [new, old] = std::mem::take(&mut self.patient);
        let next = std::mem::take(&mut self.waiting).with(old);
        // Whoever takes longer than a round is forgotten, until its next wish.
        self.under_way = if next.is_empty() { all } else { next };
        self.patient[1] = new.without(self.under_way);
        self.next = Some(now + ROUND_MAX);
        let mine = me.is_some_and(|me| self.under_way.has(me));
        Turn { mine, others: self.under_way.iter().filter(|shard| Some(*shard) != me).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::Takers::{Alone, Several};
    use super::Wish::{Hurried, Patient};
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(7);
    const C: ShardId = ShardId(15);
    const MS: Duration = Duration::from_millis(1);

    impl Rounds {
        fn taken_by_all(&mut self, shard: ShardId, wish: Option<Wish>, now: Instant) -> Turn {
            self.ended((shard, Several), wish, now)
        }
    }

    fn mine(others: &[ShardId]) -> Turn {
        Turn { mine: true, others: others.to_vec() }
    }

    fn told(others: &[ShardId]) -> Turn {
        Turn { mine: false, others: others.to_vec() }
    }

    #[test]
    fn a_node_with_little_to_do_proposes_at_once() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        for (shard, wish) in [(A, Hurried), (B, Patient), (A, Patient)] {
            assert_eq!(rounds.wants(shard, wish, now), mine(&[]));
            assert_eq!(rounds.taken_by_all(shard, None, now), Turn::default());
        }
    }

    #[test]
    fn who_comes_while_a_round_is_under_way_goes_with_the_next() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, now).mine);
        assert_eq!(rounds.wants(B, Hurried, now), Turn::default());
        assert_eq!(rounds.wants(C, Hurried, now), Turn::default());
        assert_eq!(rounds.taken_by_all(A, Some(Hurried), now), mine(&[B, C]), "all go together");
        assert_eq!(rounds.taken_by_all(B, Some(Hurried), now), Turn::default());
        assert_eq!(rounds.taken_by_all(A, None, now), Turn::default());
        assert_eq!(rounds.taken_by_all(C, None, now), told(&[B]));
    }

    #[test]
    fn who_can_wait_leaves_out_one_round_and_no_more() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, now).mine);
        assert_eq!(rounds.wants(B, Patient, now), Turn::default());
        assert_eq!(rounds.taken_by_all(A, Some(Hurried), now), mine(&[]), "without B");
        assert_eq!(rounds.wants(B, Patient, now), Turn::default());
        assert_eq!(rounds.taken_by_all(A, Some(Hurried), now), mine(&[B]));
        assert_eq!(rounds.taken_by_all(A, None, now), Turn::default());
        assert_eq!(rounds.wants(C, Patient, now), Turn::default());
        assert_eq!(rounds.taken_by_all(B, None, now), told(&[C]), "nobody else wants it");
        assert_eq!(rounds.wants(A, Patient, now), Turn::default());
        assert_eq!(rounds.wants(A, Hurried, now), Turn::default());
        assert_eq!(rounds.taken_by_all(C, None, now), told(&[A]));
        assert_eq!(rounds.taken_by_all(A, None, now), Turn::default(), "once, for both wishes");
    }

    #[test]
    fn after_a_long_round_more_is_gathered_for_the_next() {
        let (mut rounds, begun) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, begun).mine);
        let over = begun + QUICK + MS;
        assert_eq!(rounds.taken_by_all(A, Some(Hurried), over), Turn::default());
        assert_eq!(rounds.wants(B, Hurried, over), Turn::default());
        assert_eq!(rounds.due(), Some(over + MS), "as long as it took too long");
        assert_eq!(rounds.looked_at(over + MS), told(&[A, B]), "together");

        let begun = over + MS;
        assert_eq!(rounds.taken_by_all(A, None, begun + QUICK), Turn::default());
        assert_eq!(rounds.taken_by_all(B, Some(Hurried), begun + ROUND_MAX - MS), Turn::default());
        assert_eq!(rounds.due(), Some(begun + ROUND_MAX), "nobody waits longer for that");
        assert_eq!(rounds.wants(C, Patient, begun + ROUND_MAX), told(&[B]));
    }

    #[test]
    fn a_node_alone_never_waits_for_longer_than_its_disk() {
        let (mut rounds, begun) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, begun).mine);
        assert_eq!(rounds.wants(B, Hurried, begun), Turn::default(), "the disk is busy");
        let over = begun + ROUND_MAX - MS;
        assert_eq!(rounds.ended((A, Alone), Some(Hurried), over), mine(&[B]), "at once");
    }

    #[test]
    fn a_batch_of_an_earlier_round_ends_no_later_one() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, now).mine);
        assert_eq!(rounds.wants(B, Hurried, now), Turn::default());
        let late = now + ROUND_MAX;
        assert_eq!(rounds.looked_at(late), told(&[B]));
        assert_eq!(rounds.taken_by_all(B, Some(Hurried), late), mine(&[]), "at once");
        assert_eq!(rounds.taken_by_all(B, None, late), Turn::default());
        assert_eq!(
            rounds.taken_by_all(A, Some(Hurried), late + 2 * QUICK),
            mine(&[]),
            "B is through"
        );
    }

    #[test]
    fn a_slow_batch_holds_the_others_back_for_a_while_and_no_longer() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(rounds.wants(A, Hurried, now).mine);
        assert_eq!(rounds.wants(B, Hurried, now), Turn::default());
        assert_eq!(rounds.due(), Some(now + ROUND_MAX));
        assert_eq!(rounds.looked_at(now + ROUND_MAX / 2), Turn::default());
        let late = now + ROUND_MAX;
        assert_eq!(rounds.looked_at(late), told(&[B]));
        assert_eq!(
            rounds.taken_by_all(A, Some(Hurried), late),
            Turn::default(),
            "it waits as others do"
        );
        assert_eq!(rounds.taken_by_all(B, None, late), told(&[A]));
    }
}
