//! One conversation: its lines, bounded, and their ticks.

use crate::tick::Tick;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Lines that are kept of one conversation, on screen and on disk.
pub(crate) const LINES_MAX: usize = 1_000;

/// Who wrote a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    Mine { device: u32, send_id: u64, tick: Tick },
    Theirs { device: u32, send_id: u64, read: bool },
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Unix time in ms.
    pub(crate) at_ms: u64,
    pub(crate) text: String,
    pub(crate) side: Side,
}

/// Everything with one person.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) user: u64,
    pub(crate) lines: VecDeque<Line>,
    /// They are typing until then.
    pub(crate) typing_until_ms: u64,
    /// Whether they are there, and when they last were (0: unknown).
    pub(crate) presence: Option<(bool, u64)>,
}

impl Line {
    fn same_message(&self, other: &Self) -> bool {
        match (&self.side, &other.side) {
            (
                Side::Mine { device: a, send_id: x, .. },
                Side::Mine { device: b, send_id: y, .. },
            )
            | (
                Side::Theirs { device: a, send_id: x, .. },
                Side::Theirs { device: b, send_id: y, .. },
            ) => (a, x) == (b, y),
            (Side::Mine { .. }, Side::Theirs { .. }) | (Side::Theirs { .. }, Side::Mine { .. }) => {
                false
            }
        }
    }
}

impl Conversation {
    pub(crate) fn new(user: u64) -> Self {
        Self { user, lines: VecDeque::new(), typing_until_ms: 0, presence: None }
    }

    pub(crate) fn unread(&self) -> usize {
        let unread = |line: &&Line| matches!(line.side, Side::Theirs { read: false, .. });
        self.lines.iter().filter(unread).count()
    }

    /// Whether the line is new.
    pub(crate) fn add(&mut self, line: Line) -> bool {
        if self.lines.iter().rev().any(|known| known.same_message(&line)) {
            return false;
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        true
    }

    pub(crate) fn ticked(&mut self, device: u32, send_ids: &[u64], reached: &Tick) {
        for line in self.lines.iter_mut().rev() {
            if let Side::Mine { device: from, send_id, tick } = &mut line.side
                && *from == device
                && send_ids.contains(send_id)
                && *tick < *reached
            {
                *tick = reached.clone();
            }
        }
    }

    pub(crate) fn set_read(&mut self, device: u32, send_ids: &[u64], now: bool) {
        for line in self.lines.iter_mut().rev() {
            if let Side::Theirs { device: from, send_id, read } = &mut line.side
                && *from == device
                && send_ids.contains(send_id)
            {
                *read = now;
            }
        }
    }

    /// What was unread and is read now, by the device that sent it.
    pub(crate) fn take_unread(&mut self) -> BTreeMap<u32, Vec<u64>> {
        let mut taken: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for line in &mut self.lines {
            if let Side::Theirs { device, send_id, read: read @ false } = &mut line.side {
                *read = true;
                taken.entry(*device).or_default().push(*send_id);
            }
        }
        taken
    }
}
