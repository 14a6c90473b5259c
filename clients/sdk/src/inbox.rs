//! What came and what is acknowledged: each entry once, in order, holes found. Pure.

use proto::Seq;
use std::time::Duration;
use tokio::time::Instant;

/// Acknowledgements are sent no closer together than this, unless [`ACK_ENTRIES`] wait.
const ACK_PAUSE: Duration = Duration::from_millis(20);

/// Entries that are acknowledged without a pause: a quarter of the node's window, so that it never
/// runs dry.
const ACK_ENTRIES: u64 = 32;

/// What to do with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Show it.
    New,
    /// Shown before; drop it.
    Again,
    /// Something before it is missing: end the connection.
    Hole,
}

/// When to send the next `Ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckDue {
    Never,
    At(Instant),
    Now(Seq),
}

/// The reading side of one device's mailbox.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Highest entry shown to the application.
    seen: u64,
    /// Highest entry the application has acknowledged; never above `seen`.
    acknowledged: u64,
    /// Highest entry received on this connection.
    position: u64,
    /// Highest entry this connection's node was told.
    told: u64,
    told_at: Option<Instant>,
}

impl Inbox {
    pub(crate) fn new(acknowledged: Seq) -> Self {
        Self { seen: acknowledged.0, acknowledged: acknowledged.0, ..Self::default() }
    }

    pub(crate) fn acknowledged(&self) -> Seq {
        Seq(self.acknowledged)
    }

    /// A login succeeded; the node goes on after `base`, the higher of what the login said and what
    /// the node had recorded. What the application acknowledged meanwhile is still to be told.
    pub(crate) fn connected(&mut self, base: Seq) {
        self.acknowledged = self.acknowledged.max(base.0);
        self.seen = self.seen.max(self.acknowledged);
        self.position = base.0;
        self.told = base.0;
        self.told_at = None;
    }

    /// Entry `seq` came, and the node says that the one before it was `after`.
    pub(crate) fn deliver(&mut self, seq: u64, after: Option<u64>) -> Arrival {
        if seq <= self.position {
            return Arrival::Again;
        }
        if after.unwrap_or(seq - 1) > self.position {
            return Arrival::Hole;
        }
        self.position = seq;
        if seq <= self.seen {
            return Arrival::Again;
        }
        self.seen = seq;
        Arrival::New
    }

    /// The application has everything up to `seq`. Returns whether that is news.
    pub(crate) fn acknowledge(&mut self, seq: Seq) -> bool {
        let news = seq.0 > self.acknowledged && seq.0 <= self.seen;
        if news {
            self.acknowledged = seq.0;
        }
        news
    }

    pub(crate) fn ack_due(&self, now: Instant) -> AckDue {
        // Entries beyond `position` have not come on this connection: the node has yet to send them.
        let upto = self.acknowledged.min(self.position);
        if upto <= self.told {
            return AckDue::Never;
        }
        let pause_ends = self.told_at.map(|at| at + ACK_PAUSE);
        match pause_ends {
            Some(at) if at > now && upto - self.told < ACK_ENTRIES => AckDue::At(at),
            _ => AckDue::Now(Seq(upto)),
        }
    }

    pub(crate) fn ack_written(&mut self, seq: Seq, now: Instant) {
        self.told = seq.0;
        self.told_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_shown_once_even_when_it_comes_again_after_a_reconnect() {
        let mut inbox = Inbox::new(Seq(0));
        inbox.connected(Seq(0));
        assert_eq!(inbox.deliver(1, None), Arrival::New);
        assert_eq!(inbox.deliver(1, None), Arrival::Again);
        assert_eq!(inbox.deliver(2, None), Arrival::New);
        inbox.acknowledge(Seq(1));
        inbox.connected(Seq(1));
        assert_eq!(inbox.deliver(2, None), Arrival::Again);
        assert_eq!(inbox.deliver(3, None), Arrival::New);
    }

    #[test]
    fn what_is_acknowledged_during_a_login_is_told_when_it_has_come_again() {
        let now = Instant::now();
        let mut inbox = Inbox::new(Seq(0));
        inbox.connected(Seq(0));
        inbox.deliver(1, None);
        inbox.acknowledge(Seq(1));
        inbox.connected(Seq(0));
        assert_eq!(inbox.ack_due(now), AckDue::Never, "the node has not sent it yet");
        assert_eq!(inbox.deliver(1, None), Arrival::Again);
        assert_eq!(inbox.ack_due(now), AckDue::Now(Seq(1)));
    }

    #[test]
    fn a_hole_is_told_from_a_gap_that_was_never_meant_for_this_device() {
        let mut inbox = Inbox::new(Seq(0));
        inbox.connected(Seq(4));
        assert_eq!(inbox.deliver(6, None), Arrival::Hole);
        assert_eq!(inbox.deliver(6, Some(5)), Arrival::Hole);
        assert_eq!(inbox.deliver(6, Some(4)), Arrival::New);
        assert_eq!(inbox.deliver(9, Some(3)), Arrival::New, "the node knew less than we have");
    }

    #[test]
    fn acknowledgements_are_cumulative_and_paused() {
        let now = Instant::now();
        let mut inbox = Inbox::new(Seq(0));
        inbox.connected(Seq(0));
        for seq in 1..=100 {
            inbox.deliver(seq, None);
        }
        assert_eq!(inbox.ack_due(now), AckDue::Never);
        assert!(inbox.acknowledge(Seq(2)));
        assert!(!inbox.acknowledge(Seq(1)), "what is acknowledged stays so");
        assert!(!inbox.acknowledge(Seq(101)), "what was not shown cannot be acknowledged");
        assert_eq!(inbox.ack_due(now), AckDue::Now(Seq(2)));
        inbox.ack_written(Seq(2), now);
        inbox.acknowledge(Seq(3));
        assert_eq!(inbox.ack_due(now), AckDue::At(now + ACK_PAUSE));
        inbox.acknowledge(Seq(2 + ACK_ENTRIES));
        assert_eq!(inbox.ack_due(now), AckDue::Now(Seq(2 + ACK_ENTRIES)));
    }
}
