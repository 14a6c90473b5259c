//! One sending device: its window, what waits for a tick, when each was sent. A pure core.
//!
//! **Invariant:** message `n` has the send id `FIRST_ID + n`, whatever becomes of the ones before.

use std::collections::{BTreeSet, VecDeque};

use proto::Code;

use crate::clock::MS_NS;
use crate::cold::Refusal;
use crate::hot::{Marker, put_send};

/// Send id of message 0; requests of the opening use smaller ones.
pub(crate) const FIRST_ID: u64 = 1_000;

/// Shortest wait after a refusal.
const PAUSE_MS_MIN: u32 = 20;

/// A send that still waits for a tick.
#[derive(Clone, Copy, Debug)]
struct Open {
    sent_ns: u64,
    answered: bool,
    received: bool,
}

/// A sending device.
#[derive(Debug)]
pub(crate) struct Sender {
    /// The number of the next message.
    pub(crate) next: u64,
    /// Messages that may be sent now, as far as the window allows.
    pub(crate) owed: u64,
    pub(crate) unanswered: usize,
    /// Messages that were not accepted.
    pub(crate) refused: BTreeSet<u64>,
    /// Messages that are to be sent again under their ids, before any other.
    again: BTreeSet<u64>,
    window: usize,
    receipts: bool,
    first: u64,
    open: VecDeque<Open>,
    not_before_ns: u64,
}

/// What a tick was for, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    pub(crate) after_ns: u64,
}

/// One message to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) user: u64,
    pub(crate) marker: Marker,
}

impl Sender {
    /// With `receipts` sends are remembered until their second tick.
    pub(crate) fn new(window: usize, receipts: bool) -> Self {
        Self {
            next: 0,
            owed: 0,
            unanswered: 0,
            refused: BTreeSet::new(),
            again: BTreeSet::new(),
            window,
            receipts,
            first: 0,
            open: VecDeque::new(),
            not_before_ns: 0,
        }
    }

    /// Appends what may be sent now. `plan` says to whom message `n` goes.
    pub(crate) fn pump(
        &mut self,
        now_ns: u64,
        body: &mut [u8],
        out: &mut Vec<u8>,
        mut plan: impl FnMut(u64) -> Planned,
    ) {
        if now_ns < self.not_before_ns {
            return;
        }
        while let Some(number) = self.again.pop_first() {
            let sent_ns = self.find(FIRST_ID + number).map_or(now_ns, |open| open.sent_ns);
            let Planned { user, marker } = plan(number);
            Marker { sent_ns, ..marker }.stamp(body);
            put_send(out, FIRST_ID + number, user, body);
        }
        while self.owed > 0 && self.unanswered < self.window {
            let planned = plan(self.next);
            planned.marker.stamp(body);
            put_send(out, FIRST_ID + self.next, planned.user, body);
            let sent_ns = planned.marker.sent_ns;
            self.open.push_back(Open { sent_ns, answered: false, received: false });
            self.next += 1;
            self.unanswered += 1;
            self.owed -= 1;
        }
    }

    /// Whether it waits for time to pass after a refusal.
    pub(crate) fn pauses(&self, now_ns: u64) -> bool {
        (self.owed > 0 || !self.again.is_empty()) && now_ns < self.not_before_ns
    }

    /// The first tick of a send; `None` if it was not waiting for one.
    pub(crate) fn accepted(&mut self, id: u64, now_ns: u64) -> Option<Tick> {
        let open = self.find(id).filter(|open| !open.answered)?;
        open.answered = true;
        let tick = Tick { after_ns: now_ns.saturating_sub(open.sent_ns) };
        self.unanswered -= 1;
        self.forget();
        Some(tick)
    }

    /// The second tick of a send; `None` if it was not waiting for one.
    pub(crate) fn received(&mut self, id: u64, now_ns: u64) -> Option<Tick> {
        let open = self.find(id).filter(|open| !open.received)?;
        open.received = true;
        let tick = Tick { after_ns: now_ns.saturating_sub(open.sent_ns) };
        self.forget();
        Some(tick)
    }

    /// A send was refused: all wait as the node asks, and it is sent again or given up.
    pub(crate) fn refuse(&mut self, refusal: &Refusal, now_ns: u64) -> Fate {
        let Some(open) = self.find(refusal.id).filter(|open| !open.answered) else {
            return Fate::Unknown;
        };
        let fate = fate(refusal.code);
        match fate {
            Fate::Again => drop(self.again.insert(refusal.id - FIRST_ID)),
            Fate::GivenUp => {
                (open.answered, open.received) = (true, true);
                self.unanswered -= 1;
                self.refused.insert(refusal.id - FIRST_ID);
            }
            Fate::Unknown => return fate,
        }
        let pause_ms = refusal.retry_after_ms.max(PAUSE_MS_MIN);
        self.not_before_ns = now_ns + u64::from(pause_ms) * MS_NS;
        self.forget();
        fate
    }

    /// Whether message `number` was accepted.
    pub(crate) fn was_accepted(&self, number: u64) -> bool {
        let answered = number
            .checked_sub(self.first)
            .is_none_or(|place| self.open.get(place as usize).is_some_and(|open| open.answered));
        number < self.next && answered && !self.refused.contains(&number)
    }

    fn find(&mut self, id: u64) -> Option<&mut Open> {
        let place = id.checked_sub(FIRST_ID)?.checked_sub(self.first)?;
        self.open.get_mut(usize::try_from(place).ok()?)
    }

    /// Forgets sends at the front that have all their ticks.
    fn forget(&mut self) {
        let receipts = self.receipts;
        while self.open.front().is_some_and(|open| open.answered && (open.received || !receipts)) {
            self.open.pop_front();
            self.first += 1;
        }
    }
}

/// What becomes of a send that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is sent again under its id: a cluster that has no leader now will have one.
    Again,
    /// It counts as refused: load that is too high is a result, not a mistake.
    GivenUp,
    /// It was not waiting for an answer, or the refusal is the sender's mistake.
    Unknown,
}

fn fate(code: Code) -> Fate {
    if matches!(code, Code::TooFast | Code::Unavailable) {
        Fate::Again
    } else if matches!(code, Code::MailboxFull | Code::StorageFull) {
        Fate::GivenUp
    } else {
        Fate::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(number: u64) -> Planned {
        Planned { user: 1, marker: Marker { stream: 0, number, sent_ns: 10 * number } }
    }

    fn refusal(id: u64) -> Refusal {
        Refusal { id, code: Code::MailboxFull, text: String::new(), retry_after_ms: 100 }
    }

    #[test]
    fn no_more_than_the_window_waits_for_an_answer() {
        let mut sender = Sender::new(2, true);
        sender.owed = 5;
        let (mut body, mut out) = ([0; 24], Vec::new());
        sender.pump(0, &mut body, &mut out, plan);
        assert_eq!((sender.next, sender.owed), (2, 3));
        assert_eq!(sender.accepted(FIRST_ID + 1, 25), Some(Tick { after_ns: 15 }));
        assert_eq!(sender.accepted(FIRST_ID + 1, 25), None, "one answer for each send");
        sender.pump(0, &mut body, &mut out, plan);
        assert_eq!((sender.next, sender.owed), (3, 2));
        assert_eq!(sender.received(FIRST_ID, 30), Some(Tick { after_ns: 30 }));
        assert!(!sender.was_accepted(0) && sender.was_accepted(1) && !sender.was_accepted(2));
        assert_eq!(sender.accepted(FIRST_ID, 40), Some(Tick { after_ns: 40 }));
        assert!(sender.was_accepted(0), "forgotten because it has both ticks");
    }

    #[test]
    fn a_refused_send_is_given_up_and_the_next_waits() {
        let mut sender = Sender::new(1, false);
        sender.owed = 2;
        let (mut body, mut out) = ([0; 24], Vec::new());
        sender.pump(0, &mut body, &mut out, plan);
        assert_eq!(sender.refuse(&refusal(FIRST_ID), 0), Fate::GivenUp);
        assert_eq!(sender.refuse(&refusal(FIRST_ID), 0), Fate::Unknown);
        sender.pump(99 * MS_NS, &mut body, &mut out, plan);
        assert!(sender.pauses(99 * MS_NS));
        assert_eq!(sender.next, 1);
        sender.pump(100 * MS_NS, &mut body, &mut out, plan);
        assert_eq!(sender.next, 2);
        assert!(!sender.was_accepted(0));
    }

    #[test]
    fn what_may_be_sent_again_goes_first_and_is_as_old_as_it_was() {
        let mut sender = Sender::new(2, false);
        sender.owed = 3;
        let (mut body, mut out) = ([0; 24], Vec::new());
        sender.pump(0, &mut body, &mut out, plan);
        let first = out.len() / 2;
        let refusal = Refusal { code: Code::Unavailable, ..refusal(FIRST_ID + 1) };
        assert_eq!(sender.refuse(&refusal, 0), Fate::Again);
        assert!(sender.accepted(FIRST_ID, 5).is_some());
        let begun = out.split_off(first);
        out.clear();
        sender.pump(99 * MS_NS, &mut body, &mut out, plan);
        assert!(out.is_empty() && sender.pauses(99 * MS_NS));
        sender.pump(100 * MS_NS, &mut body, &mut out, plan);
        assert_eq!(out[..first], begun, "the same frame");
        assert_eq!((out.len(), sender.next), (2 * first, 3), "and then the next");
    }
}
