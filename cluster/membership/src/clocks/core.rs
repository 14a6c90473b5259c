//! Judges this node's clock by the clocks of the other members. A pure core.
//!
//! A node has two clocks: one that says what time it is, which may jump, and one that counts on and
//! cannot (`mono`). A clock is kept here as its *lead*: what it says, less our `mono`. A lead that stays
//! the same is a clock that goes right.
//!
//! ```text
//! a majority of clocks agrees      their median is the time; a clock far from it is astray
//! none does, or nobody is heard    the time goes on from what was agreed last
//! a node alone                     its clock, unless that jumped: see [`Held`]
//! ```
//!
//! # Invariants
//! 1. No single clock moves the time of a cluster.
//! 2. Nothing may expire unless a majority of the members' clocks say the same as this one; on a node
//!    alone, unless its clock did not jump.

use proto::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Age up to which a reading of another clock counts, in ms. Each member is asked once a second.
const FRESH_MS: u64 = 5_000;

/// Longest time for which a node alone distrusts its clock after a jump, in ms. It distrusts it for as
/// long as the jump was, up to this. Long enough for somebody to see it, or for time synchronization
/// to correct it.
const HELD_MS_MAX: u64 = 24 * 3_600_000;

/// Largest lead of the clock over the last stored time that is trusted at a start, in ms: a node may be
/// down for a day.
const OFF_MS: u64 = 24 * 3_600_000;

/// The two clocks of this node at one moment, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Unix time, as this node's clock says.
    pub(super) wall_ms: u64,
    /// Counts on since some moment before.
    pub(super) mono_ms: u64,
}

impl Reading {
    fn lead(self) -> i64 {
        lead(self.wall_ms, self.mono_ms)
    }
}

fn lead(wall_ms: u64, mono_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(wall_ms).saturating_sub(signed(mono_ms))
}

/// The last reading of another member's clock.
#[derive(Clone, Copy, Debug)]
struct Heard {
    lead: i64,
    /// Largest error of the reading: half of the round trip.
    error_ms: u64,
    at_ms: u64,
}

/// A node alone does not believe its clock yet.
#[derive(Clone, Copy, Debug)]
struct Held {
    until_ms: u64,
    /// The lead to which it jumped.
    to: i64,
}

/// The judgment of this node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Lead of this node's clock over the agreed time, in ms; negative: behind.
    pub(super) offset_ms: i64,
    /// A majority says that this clock is wrong.
    pub(super) astray: bool,
    /// Enough clocks agree for something to end by them.
    pub(super) may_expire: bool,
    /// The lead of the time.
    pub(super) trusted: i64,
    /// Nobody else is a member.
    pub(super) alone: bool,
}

/// The clocks of the members.
#[derive(Debug)]
pub(super) struct Clocks {
    limit_ms: u64,
    others: BTreeMap<NodeId, Option<Heard>>,
    /// The lead of the time.
    trusted: i64,
    held: Option<Held>,
}

impl Clocks {
    /// `limit_ms`: how far clocks may differ. `recorded_ms`: the time when something was stored last; 0
    /// if nothing was.
    pub(super) fn new(limit_ms: u64, recorded_ms: u64, now: Reading) -> Self {
        let off_ms = now.wall_ms.saturating_sub(recorded_ms);
        let is_doubtful = off_ms > OFF_MS || recorded_ms > now.wall_ms.saturating_add(limit_ms);
        let trusted = if recorded_ms > 0 && is_doubtful {
            lead(recorded_ms, now.mono_ms)
        } else {
            now.lead()
        };
        Self { limit_ms, others: BTreeMap::new(), trusted, held: None }
    }

    /// Who the other members are.
    pub(super) fn set_members(&mut self, others: &BTreeSet<NodeId>) {
        self.others.retain(|node, _| others.contains(node));
        for node in others {
            self.others.entry(*node).or_default();
        }
    }

    /// Another member answered that its clock says `theirs_ms`; it was asked and has answered when our
    /// `mono` said so.
    pub(super) fn heard(&mut self, node: NodeId, theirs_ms: u64, (asked, answered): (u64, u64)) {
        let error_ms = answered.saturating_sub(asked) / 2;
        if let Some(place) = self.others.get_mut(&node).filter(|_| error_ms <= self.limit_ms) {
            let lead = lead(theirs_ms.saturating_add(error_ms), answered);
            *place = Some(Heard { lead, error_ms, at_ms: answered });
        }
    }

    /// Whether there are members of whose clock nothing fresh is known.
    pub(super) fn lacks_some(&self, mono_ms: u64) -> bool {
        self.fresh(mono_ms).count() < self.others.len()
    }

    fn fresh(&self, mono_ms: u64) -> impl Iterator<Item = Heard> {
        let is_fresh = move |heard: &Heard| mono_ms.saturating_sub(heard.at_ms) <= FRESH_MS;
        self.others.values().copied().flatten().filter(is_fresh)
    }

    /// How far the others' clocks are ahead of the time, in ms.
    pub(super) fn offsets(&self, mono_ms: u64) -> BTreeMap<NodeId, i64> {
        let is_fresh = |heard: &Heard| mono_ms.saturating_sub(heard.at_ms) <= FRESH_MS;
        let of =
            |heard: &Option<Heard>| heard.filter(is_fresh).map(|heard| heard.lead - self.trusted);
        self.others.iter().filter_map(|(node, heard)| Some((*node, of(heard)?))).collect()
    }

    /// What to make of all that now.
    pub(super) fn judge(&mut self, now: Reading) -> Verdict {
        if self.others.is_empty() { self.judge_alone(now) } else { self.judge_among(now) }
    }

    fn judge_alone(&mut self, now: Reading) -> Verdict {
        let own = now.lead();
        let far = |from: i64| own.abs_diff(from) > self.limit_ms;
        let held = match self.held {
            _ if !far(self.trusted) => None,
            Some(held) if now.mono_ms >= held.until_ms => None,
            Some(held) if !far(held.to) => Some(held),
            // It has jumped now, perhaps once more.
            Some(_) | None => {
                let wait_ms = own.abs_diff(self.trusted).min(HELD_MS_MAX);
                Some(Held { until_ms: now.mono_ms.saturating_add(wait_ms), to: own })
            }
        };
        self.held = held;
        if held.is_none() {
            self.trusted = own;
        }
        Verdict {
            offset_ms: own - self.trusted,
            astray: false,
            may_expire: held.is_none(),
            trusted: self.trusted,
            alone: true,
        }
    }

    fn judge_among(&mut self, now: Reading) -> Verdict {
        self.held = None;
        let (own, members) = (now.lead(), self.others.len() + 1);
        let mine = Heard { lead: own, error_ms: 0, at_ms: now.mono_ms };
        let mut known: Vec<Heard> = self.fresh(now.mono_ms).chain([mine]).collect();
        known.sort_by_key(|heard| heard.lead);
        let median = median(&known, self.trusted);
        let is_near = |heard: &Heard, to: i64| heard.lead.abs_diff(to) <= self.limit_ms;
        let near = |to: i64| known.iter().filter(|heard| is_near(heard, to)).count();
        let majority_agrees = 2 * near(median.lead) > members;
        let far =
            |from: Heard| own.abs_diff(from.lead).saturating_sub(from.error_ms) > self.limit_ms;
        let astray = majority_agrees && far(median);
        if majority_agrees {
            self.trusted = if astray { median.lead } else { own };
        }
        let limit_ms = self.limit_ms;
        let agrees = |heard: &&Heard| own.abs_diff(heard.lead) + heard.error_ms <= limit_ms;
        Verdict {
            offset_ms: own - self.trusted,
            astray,
            may_expire: 2 * known.iter().filter(agrees).count() > members,
            trusted: self.trusted,
            alone: false,
        }
    }
}

/// The one in the middle; of two the one that is nearer to what was the time.
fn median(sorted: &[Heard], trusted: i64) -> Heard {
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    if low.lead.abs_diff(trusted) <= high.lead.abs_diff(trusted) { low } else { high }
}

/// The time by what was judged last: `now` is cheap to read, and jumps are seen at once.
pub(super) fn time_ms(now: Reading, trusted: i64, alone: bool, limit_ms: u64) -> u64 {
    let own = now.lead();
    // A node alone follows its clock forward: nothing ends by it until it is believed. Backward it would
    // give new messages times that are over too soon.
    if own.abs_diff(trusted) <= limit_ms || (alone && own > trusted) {
        return now.wall_ms;
    }
    now.mono_ms.saturating_add_signed(trusted)
}
