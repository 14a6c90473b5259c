//! What one device has been sent and has not acknowledged. A pure core.
//!
//! ```text
//!   seq:  1 ... acknowledged ......... sent ......... head
//!              |      in flight       |  read later  |
//! ```
//!
//! # Invariants
//! 1. A place is sent once, and never before a lower one that the device may see.
//! 2. At most [`WINDOW_MESSAGES`] and [`WINDOW_BYTES`] are in flight, but always one.
//! 3. What is not for the device counts as acknowledged as soon as everything before it is.

use crate::shard::Fault;
use proto::Seq;
use proto::limits::{WINDOW_BYTES, WINDOW_MESSAGES};
use std::collections::VecDeque;

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Send it. `after` is set if the entry before it, for this device, is not its neighbor.
    Deliver {
        /// The last place the device has seen.
        after: Option<Seq>,
    },
    /// Nothing: it was sent before, or it is not for this device.
    Skip,
    /// Nothing now: it will be read from the shard when there is room.
    Later,
}

/// An entry in flight.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// Everything up to here comes before it.
    before: Seq,
    seq: Seq,
    bytes: usize,
    /// Someone waits to hear that it arrived.
    awaited: bool,
}

/// How the window stands to the mailbox behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Nothing was asked for.
    None,
    /// A page was asked for.
    Asked,
    /// The last page did not fit: wait for an acknowledgement.
    TooLong,
    /// The last page could not be read: wait for [`Window::try_again`].
    Failed,
}

/// What an entry is to the window.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// It is for this device.
    pub visible: bool,
    /// Someone waits to hear that it arrived.
    pub awaited: bool,
    /// Its length.
    pub bytes: usize,
}

/// What the shard must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// The device has everything up to here.
    pub seq: Seq,
    /// Someone waits to hear of it.
    pub awaited: bool,
}

/// One device's window.
#[derive(Clone, Debug)]
pub struct Window {
    /// The device says that it has everything up to here.
    acknowledged: Seq,
    /// The shard was told so up to here.
    recorded: Seq,
    sent: Seq,
    /// The last place the device has seen.
    shown: Seq,
    head: Seq,
    /// `head` when the page was asked for.
    head_then: Seq,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    page: Page,
    /// Something that someone waits to hear of was acknowledged and not recorded.
    awaited: bool,
    /// A push was lost: there may be more than `head` says.
    hinted: bool,
    announced: bool,
    fault: Option<Fault>,
}

impl Window {
    /// The shard has recorded `recorded`; the device says it has everything up to `acknowledged`
    /// and has seen everything up to `shown` on this connection; the mailbox ends with `head`.
    pub fn new(recorded: Seq, acknowledged: Seq, shown: Seq, head: Seq) -> Self {
        let acknowledged = acknowledged.min(head).max(recorded);
        let sent = shown.min(head).max(acknowledged);
        let unknown = InFlight { before: acknowledged, seq: sent, bytes: 0, awaited: true };
        Self {
            acknowledged,
            recorded,
            sent,
            shown,
            head,
            head_then: head,
            in_flight: (sent > acknowledged).then_some(unknown).into_iter().collect(),
            bytes: 0,
            page: Page::None,
            awaited: true,
            hinted: false,
            announced: false,
            fault: None,
        }
    }

    /// Builds a fault in, to see whether a simulation finds it.
    pub(super) fn build_in(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// With the fault there is always room.
    fn overruns(&self) -> bool {
        self.fault == Some(Fault::WindowOverrun)
    }

    /// An entry of the mailbox.
    pub fn offer(&mut self, seq: Seq, weight: Weight) -> Offer {
        self.head = self.head.max(seq);
        if seq <= self.sent {
            return Offer::Skip;
        }
        if seq != self.sent.next()
            || (weight.visible && !self.has_room(weight.bytes))
            || self.page == Page::Asked
        {
            return Offer::Later;
        }
        self.take(seq, weight)
    }

    /// Whether the mailbox has let go of entries that this device was never sent: it was set aside.
    pub fn misses(&self, released: Seq) -> bool {
        released > self.sent
    }

    /// An entry of a page that was asked for by [`Self::wants_page`].
    pub fn offer_from_page(&mut self, seq: Seq, weight: Weight) -> Offer {
        if seq <= self.sent {
            return Offer::Skip;
        }
        if weight.visible && !self.has_room(weight.bytes) {
            return Offer::Later;
        }
        self.take(seq, weight)
    }

    fn take(&mut self, seq: Seq, weight: Weight) -> Offer {
        let Weight { visible, awaited, bytes } = weight;
        self.sent = seq;
        if !visible {
            self.awaited |= awaited;
            return Offer::Skip;
        }
        let after = (self.shown.next() != seq).then_some(self.shown);
        self.shown = seq;
        let before = Seq(seq.0 - 1);
        self.in_flight.push_back(InFlight { before, seq, bytes, awaited });
        self.bytes += bytes;
        Offer::Deliver { after }
    }

    /// The page has ended: it was complete up to `up_to`, and the mailbox ends with `last`.
    /// `whole`: every entry of it was taken.
    pub fn page_ended(&mut self, up_to: Seq, last: Seq, whole: bool) {
        self.page = if whole { Page::None } else { Page::TooLong };
        if whole {
            self.sent = self.sent.max(up_to);
        }
        let no_news = self.head == self.head_then;
        self.head = if no_news && whole { last.max(self.sent) } else { self.head.max(last) };
    }

    /// After which place to read on, and how many entries and bytes, if there is more and room for
    /// it. The answer must be given back by [`Self::offer_from_page`] and [`Self::page_ended`].
    pub fn wants_page(&mut self) -> Option<(Seq, usize, usize)> {
        let (in_flight, bytes) =
            if self.overruns() { (0, 0) } else { (self.in_flight.len(), self.bytes) };
        let free = WINDOW_MESSAGES.saturating_sub(in_flight);
        let room = free >= WINDOW_MESSAGES / 4 && bytes < WINDOW_BYTES;
        if self.page != Page::None || self.is_current() || !room {
            return None;
        }
        self.page = Page::Asked;
        self.head_then = self.head;
        self.hinted = false;
        Some((self.sent, free, WINDOW_BYTES - bytes))
    }

    /// The page could not be read.
    pub fn page_failed(&mut self) {
        self.page = Page::Failed;
    }

    /// Some time after a failure: what was not recorded or read may be tried again.
    pub fn try_again(&mut self) {
        self.recorded = Seq(0);
        self.awaited = true;
        if self.page == Page::Failed {
            self.page = Page::None;
            self.hinted = true;
        }
    }

    /// The mailbox has grown to here, without saying by what.
    pub fn grown_to(&mut self, seq: Seq) {
        self.head = self.head.max(seq);
    }

    /// A push was lost.
    pub fn more_waits(&mut self) {
        self.hinted = true;
    }

    /// The device has everything up to `seq`, as far as it was sent.
    pub fn acknowledge(&mut self, seq: Seq) {
        self.acknowledged = self.acknowledged.max(seq.min(self.sent));
        while let Some(entry) = self.in_flight.pop_front_if(|entry| entry.seq <= seq) {
            self.bytes -= entry.bytes;
            self.awaited |= entry.awaited;
            if self.page == Page::TooLong {
                self.page = Page::None;
            }
        }
        if self.in_flight.is_empty() {
            self.in_flight.shrink_to(4);
        }
    }

    /// A place up to which the shard must be told that the device has everything, if that is news.
    pub fn take_news(&mut self) -> Option<News> {
        let done = self.in_flight.front().map_or(self.sent, |entry| entry.before);
        self.acknowledged = self.acknowledged.max(done);
        let news = self.acknowledged > self.recorded;
        self.recorded = self.acknowledged;
        news.then(|| News { seq: self.recorded, awaited: std::mem::take(&mut self.awaited) })
    }

    /// The last place, once: when everything there is has been sent after the device came.
    pub fn caught_up(&mut self) -> Option<Seq> {
        let now = !self.announced && self.page != Page::Asked && self.is_current();
        self.announced |= now;
        now.then_some(self.sent)
    }

    fn is_current(&self) -> bool {
        self.sent >= self.head && !self.hinted
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.overruns()
            || self.in_flight.is_empty()
            || (self.in_flight.len() < WINDOW_MESSAGES && self.bytes + bytes <= WINDOW_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weight(visible: bool, bytes: usize) -> Weight {
        Weight { visible, awaited: true, bytes }
    }

    #[test]
    fn only_what_someone_waits_for_is_urgent() {
        let mut window = fresh(0);
        window.take_news();
        window.acknowledge(Seq(0));
        window.awaited = false;
        let quiet = Weight { visible: true, awaited: false, bytes: 1 };
        window.offer(Seq(1), quiet);
        window.acknowledge(Seq(1));
        assert_eq!(window.take_news(), Some(News { seq: Seq(1), awaited: false }));
        window.offer(Seq(2), quiet);
        window.offer(Seq(3), weight(true, 1));
        window.acknowledge(Seq(3));
        assert_eq!(window.take_news(), Some(News { seq: Seq(3), awaited: true }));
    }

    fn fresh(head: u64) -> Window {
        Window::new(Seq(0), Seq(0), Seq(0), Seq(head))
    }

    #[test]
    fn neighbors_are_sent_at_once_and_holes_are_read() {
        let mut window = fresh(0);
        assert_eq!(window.offer(Seq(1), weight(true, 10)), Offer::Deliver { after: None });
        assert_eq!(window.offer(Seq(1), weight(true, 10)), Offer::Skip);
        assert_eq!(window.offer(Seq(3), weight(true, 10)), Offer::Later);
        assert_eq!(window.wants_page().map(|(after, ..)| after), Some(Seq(1)));
        assert_eq!(window.wants_page(), None, "one page at a time");
        assert_eq!(
            window.offer_from_page(Seq(3), weight(true, 10)),
            Offer::Deliver { after: Some(Seq(1)) }
        );
        window.page_ended(Seq(3), Seq(3), true);
        assert_eq!(window.wants_page(), None);
        window.acknowledge(Seq(3));
        assert_eq!(
            window.take_news().map(|news| news.seq),
            Some(Seq(3)),
            "the hole is acknowledged with its neighbor"
        );
    }

    #[test]
    fn what_is_not_for_the_device_is_acknowledged_in_its_turn() {
        let mut window = fresh(0);
        assert_eq!(window.offer(Seq(1), weight(false, 10)), Offer::Skip);
        assert_eq!(window.take_news().map(|news| news.seq), Some(Seq(1)));
        assert_eq!(window.offer(Seq(2), weight(true, 10)), Offer::Deliver { after: Some(Seq(0)) });
        assert_eq!(window.offer(Seq(3), weight(false, 10)), Offer::Skip);
        assert_eq!(window.take_news(), None);
        window.acknowledge(Seq(2));
        assert_eq!(window.take_news().map(|news| news.seq), Some(Seq(3)));
    }

    #[test]
    fn a_full_window_waits_for_the_device() {
        let mut window = fresh(0);
        for seq in 1..=WINDOW_MESSAGES as u64 {
            assert!(matches!(window.offer(Seq(seq), weight(true, 1)), Offer::Deliver { .. }));
        }
        assert_eq!(window.offer(Seq(WINDOW_MESSAGES as u64 + 1), weight(true, 1)), Offer::Later);
        assert_eq!(window.wants_page(), None);
        window.acknowledge(Seq(WINDOW_MESSAGES as u64 / 2));
        assert!(window.wants_page().is_some());
    }

    #[test]
    fn a_body_that_does_not_fit_waits_but_never_for_ever() {
        let mut window = fresh(0);
        assert!(matches!(
            window.offer(Seq(1), weight(true, WINDOW_BYTES - 1)),
            Offer::Deliver { .. }
        ));
        assert_eq!(window.offer(Seq(2), weight(true, 100)), Offer::Later);
        assert!(window.wants_page().is_some());
        assert_eq!(window.offer_from_page(Seq(2), weight(true, 100)), Offer::Later);
        window.page_ended(Seq(2), Seq(2), false);
        assert_eq!(window.wants_page(), None, "it is not read again and again");
        window.acknowledge(Seq(1));
        assert!(window.wants_page().is_some());
        assert!(matches!(
            window.offer_from_page(Seq(2), weight(true, WINDOW_BYTES * 2)),
            Offer::Deliver { .. }
        ));
    }

    #[test]
    fn a_hole_before_a_restart_is_told_after_it() {
        let mut window = Window::new(Seq(6), Seq(6), Seq(5), Seq(6));
        assert_eq!(window.offer(Seq(7), weight(true, 1)), Offer::Deliver { after: Some(Seq(5)) });
    }

    #[test]
    fn what_failed_is_tried_again() {
        let mut window = fresh(3);
        assert!(window.wants_page().is_some());
        window.page_failed();
        assert_eq!(window.wants_page(), None, "not at once");
        window.try_again();
        assert!(window.wants_page().is_some());
        window.page_ended(Seq(0), Seq(0), true);
        assert_eq!(window.wants_page(), None, "the mailbox is gone: it is not read in a loop");
    }

    #[test]
    fn a_successor_goes_on_where_the_connection_stands() {
        let mut window = Window::new(Seq(2), Seq(4), Seq(9), Seq(9));
        assert_eq!(window.take_news().map(|news| news.seq), Some(Seq(4)));
        assert_eq!(window.offer(Seq(9), weight(true, 1)), Offer::Skip);
        window.acknowledge(Seq(7));
        assert_eq!(window.take_news().map(|news| news.seq), Some(Seq(7)));
        assert_eq!(window.offer(Seq(10), weight(true, 1)), Offer::Deliver { after: None });
        window.acknowledge(Seq(10));
        assert_eq!(window.take_news().map(|news| news.seq), Some(Seq(10)));
    }

    proptest! {
        /// Whatever is pushed, lost or read, each visible place comes once and in order, and what
        /// the shard is told never exceeds what the device said.
        #[test]
        fn each_place_once_and_in_order(
            steps in prop::collection::vec((0u8..4, 1u64..30, any::<bool>()), 1..200),
        ) {
            let mut window = fresh(0);
            let hidden = |seq: u64| seq.is_multiple_of(7);
            let (mut last, mut seen, mut acked) = (0u64, Vec::new(), 0u64);
            let mut deliver = |offer, seq: u64| if matches!(offer, Offer::Deliver { .. }) { seen.push(seq) };
            for (step, n, lost) in steps {
                match step {
                    0 | 1 => {
                        last += 1;
                        if lost { window.more_waits() }
                        else { deliver(window.offer(Seq(last), weight(!hidden(last), 10)), last) }
                    }
                    2 => if let Some((after, limit, _)) = window.wants_page() {
                        let up_to = last.min(after.0 + limit as u64);
                        for seq in after.0 + 1..=up_to {
                            deliver(window.offer_from_page(Seq(seq), weight(!hidden(seq), 10)), seq);
                        }
                        window.page_ended(Seq(up_to), Seq(last), true);
                    },
                    _ => {
                        acked = acked.max((acked + n).min(window.shown.0));
                        window.acknowledge(Seq(acked));
                        if let Some(told) = window.take_news() {
                            prop_assert!((acked + 1..=told.seq.0).all(hidden));
                        }
                    }
                }
            }
            prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
            let all: Vec<u64> = (1..=window.shown.0).filter(|seq| !hidden(*seq)).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
