//! Clocks that jump, on one node of several and on a node alone.

use super::core::{Clocks, Reading, time_ms};
use proto::NodeId;

const LIMIT: u64 = 5_000;
const DAY: u64 = 24 * 3_600_000;
const START: u64 = 1_800_000_000_000;

/// A node whose own clock is `ahead` of the right time.
struct Node {
    clocks: Clocks,
    mono_ms: u64,
    ahead: i64,
}

impl Node {
    fn new(others: u64, recorded_ms: u64) -> Self {
        let now = Reading { wall_ms: START, mono_ms: 0 };
        let mut clocks = Clocks::new(LIMIT, recorded_ms, now);
        clocks.set_members(&(2..2 + others).map(NodeId).collect());
        Self { clocks, mono_ms: 0, ahead: 0 }
    }

    fn reading(&self) -> Reading {
        let wall_ms = (START + self.mono_ms).saturating_add_signed(self.ahead);
        Reading { wall_ms, mono_ms: self.mono_ms }
    }

    /// Another node answers: its clock is `ahead` of the right time.
    fn hear(&mut self, node: u64, ahead: i64) {
        let theirs = (START + self.mono_ms).saturating_add_signed(ahead);
        self.mono_ms += 20;
        self.clocks.heard(NodeId(node), theirs + 10, (self.mono_ms - 20, self.mono_ms));
    }

    /// What it makes of it: whether it is astray, whether it may let something expire, and how far the
    /// time that it goes by is from the right one.
    fn judge(&mut self) -> (bool, bool, i64) {
        let now = self.reading();
        let verdict = self.clocks.judge(now);
        let time = time_ms(now, verdict.trusted, verdict.alone, LIMIT);
        let right = START + self.mono_ms;
        (
            verdict.astray,
            verdict.may_expire,
            i64::try_from(time).unwrap() - i64::try_from(right).unwrap(),
        )
    }
}

const MONTH: i64 = 31 * 24 * 3_600_000;

#[test]
fn three_clocks_that_agree_let_things_expire() {
    let mut node = Node::new(2, 0);
    assert_eq!(node.judge(), (false, false, 0), "it has heard nobody yet");
    node.hear(2, 40);
    assert_eq!(node.judge(), (false, true, 0), "two of three");
    node.hear(3, -1_000);
    assert_eq!(node.judge(), (false, true, 0));
    node.mono_ms += 6_000;
    assert_eq!(node.judge(), (false, false, 0), "what was heard is too old");
}

#[test]
fn a_clock_that_jumps_on_one_node_of_three_moves_no_time_and_ends_nothing() {
    for jump in [MONTH, -MONTH, 3_600_000, 6_000] {
        let mut node = Node::new(2, 0);
        node.hear(2, 0);
        node.hear(3, 0);
        assert_eq!(node.judge(), (false, true, 0));
        node.ahead = jump;
        let (astray, may_expire, off) = node.judge();
        assert!(astray && !may_expire && off.abs() <= 20, "{jump}: {off}, before it asks again");
        node.hear(2, 0);
        node.hear(3, 0);
        let (astray, may_expire, off) = node.judge();
        assert!(astray && !may_expire && off.abs() <= 20, "{jump}: {off}");
        node.ahead = 0;
        assert_eq!(node.judge(), (false, true, 0), "the clock is right again");
    }
}

#[test]
fn another_nodes_wrong_clock_does_not_matter_while_a_majority_agrees() {
    let mut node = Node::new(2, 0);
    node.hear(2, MONTH);
    assert_eq!(node.judge(), (false, false, 0), "one against one");
    node.hear(3, 0);
    assert_eq!(node.judge(), (false, true, 0));
    assert_eq!(node.clocks.offsets(node.mono_ms)[&NodeId(2)], MONTH);
}

#[test]
fn who_is_cut_off_goes_on_from_the_time_that_was_agreed() {
    let mut node = Node::new(2, 0);
    node.hear(2, 0);
    node.hear(3, 0);
    node.judge();
    node.mono_ms += 60_000;
    node.ahead = MONTH;
    assert_eq!(node.judge(), (false, false, 0), "nobody says that it is wrong, and it has jumped");
}

#[test]
fn of_two_nodes_none_is_astray_and_nothing_ends_while_they_differ() {
    for jump in [MONTH, -MONTH] {
        let mut node = Node::new(1, 0);
        node.hear(2, 0);
        assert_eq!(node.judge(), (false, true, 0));
        node.ahead = jump;
        node.hear(2, 0);
        let (astray, may_expire, off) = node.judge();
        assert!(
            !astray && !may_expire && off.abs() <= 20,
            "{jump}: it knows that it was its own: {off}"
        );
        let mut other = Node::new(1, 0);
        other.hear(2, 0);
        other.judge();
        other.hear(2, jump);
        assert_eq!(other.judge(), (false, false, 0), "{jump}: the other one jumped");
    }
}

#[test]
fn a_slow_answer_accuses_nobody() {
    let mut node = Node::new(2, 0);
    // As far ahead as clocks may be: with the time that the answers took it looks like more.
    node.ahead = 4_000;
    for other in [2, 3] {
        let theirs = START + node.mono_ms;
        // The answer took its time on one way alone.
        node.clocks.heard(NodeId(other), theirs, (node.mono_ms, node.mono_ms + 9_900));
    }
    node.mono_ms += 9_900;
    let (astray, may_expire, _) = node.judge();
    assert!(!astray && !may_expire);
    node.clocks.heard(
        NodeId(2),
        START + MONTH.unsigned_abs(),
        (node.mono_ms, node.mono_ms + 11_000),
    );
    assert!(!node.clocks.judge(node.reading()).astray, "slower than clocks may differ: no answer");
}

#[test]
fn a_node_alone_ends_nothing_for_as_long_as_its_clock_jumped_a_day_at_most() {
    for (jump, held_ms) in [(MONTH, DAY), (3_600_000, 3_600_000), (-3_600_000, 3_600_000)] {
        let mut node = Node::new(0, 0);
        assert_eq!(node.judge(), (false, true, 0));
        node.ahead = jump;
        let (_, may_expire, off) = node.judge();
        assert!(!may_expire);
        assert_eq!(off, jump.max(0), "forward it goes with its clock, backward it goes on");
        node.mono_ms += held_ms - 1;
        assert!(!node.judge().1, "{jump}");
        node.mono_ms += 1;
        assert_eq!(node.judge(), (false, true, jump), "{jump}: now it believes its clock");
    }
}

#[test]
fn a_node_alone_whose_clock_comes_back_goes_on_at_once() {
    let mut node = Node::new(0, 0);
    node.judge();
    for jump in [MONTH, -MONTH, 2 * MONTH] {
        node.ahead = jump;
        assert!(!node.judge().1);
    }
    node.ahead = 0;
    assert_eq!(node.judge(), (false, true, 0));
}

#[test]
fn a_node_alone_that_starts_far_from_what_it_stored_last_waits() {
    let mut fresh = Node::new(0, START - DAY);
    assert_eq!(fresh.judge(), (false, true, 0), "it was off for a day");
    let mut ahead = Node::new(0, START - MONTH.unsigned_abs());
    assert_eq!(ahead.judge(), (false, false, 0));
    ahead.mono_ms += DAY;
    assert_eq!(ahead.judge(), (false, true, 0));
    let mut behind = Node::new(0, START + 3_600_000);
    assert_eq!(behind.judge(), (false, false, 3_600_000), "it goes on from there");
    let mut new = Node::new(0, 0);
    assert_eq!(new.judge(), (false, true, 0));
}
