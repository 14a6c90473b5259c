//! What an operator should be told that no single event says: it shows in samples, over time.
//!
//! Kept by the tasks that take the samples (`upkeep.rs`, `boot.rs`). Pure: it is told what there is and what
//! time it is, and says whether that is news.
//!
//! **Invariant:** what lasts is said once, or again after a pause, and never with every sample.

use std::time::Duration;

use membership::Place;
use membership::clocks::{Report, Standing};
use tokio::time::Instant;

use crate::tls::Term;

/// How long nodes may answer a node that joins before it is said that none lets it in. Who asks
/// waits 6 s for an answer, and 10 s for what the cluster knows once it has been let in.
const LET_IN_WAIT: Duration = Duration::from_secs(10);

/// How often that is said again.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// How long a node may be without any majority before clients are sent elsewhere: elections are shorter.
const ELECTION_WAIT: Duration = Duration::from_secs(5);

/// How long there must be space before that is said: a disk at its limit comes and goes.
const SPACE_FOR: Duration = Duration::from_secs(10);

/// How long before its end a certificate should have been renewed: a tenth of its term, this at most.
const RENEWED_BEFORE_S: u64 = 14 * 24 * 60 * 60;

/// How often it is said that a certificate must be renewed.
const RENEW_AGAIN: Duration = Duration::from_hours(24);

/// The disk of this node.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    is_full: bool,
    space_since: Option<Instant>,
}

/// What became of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskNews {
    /// It is nearly full now.
    Full,
    /// There is space again, and has been for a while.
    Space,
}

impl Disk {
    /// What is to be said now, if anything.
    pub(crate) fn news(&mut self, nearly_full: bool, now: Instant) -> Option<DiskNews> {
        if nearly_full {
            self.space_since = None;
            return (!std::mem::replace(&mut self.is_full, true)).then_some(DiskNews::Full);
        }
        let since = *self.space_since.get_or_insert(now);
        let stays = self.is_full && now.duration_since(since) >= SPACE_FOR;
        self.is_full &= !stays;
        stays.then_some(DiskNews::Space)
    }
}

/// A node that looks for its cluster, and whom others answer.
#[derive(Debug, Default)]
pub(crate) struct Joining {
    answered_since: Option<Instant>,
    said: Option<Instant>,
}

impl Joining {
    /// Whether to say now that others answer and none lets this node in. `answering`: how many do; 0
    /// also if the node does not look for a cluster.
    pub(crate) fn is_news(&mut self, answering: usize, now: Instant) -> bool {
        if answering == 0 {
            *self = Self::default();
            return false;
        }
        let since = *self.answered_since.get_or_insert(now);
        let waits = now.duration_since(since) >= LET_IN_WAIT;
        let quiet = self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if waits && quiet {
            self.said = Some(now);
        }
        waits && quiet
    }
}

/// The certificate that clients see.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    said: Option<(Due, Instant)>,
}

/// How urgent it is to renew a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// It ends soon.
    Soon,
    /// It has ended.
    Over,
}

impl Renewal {
    /// What is to be said now, if anything. `now_s`: Unix time.
    pub(crate) fn news(&mut self, term: Term, now_s: u64, now: Instant) -> Option<Due> {
        let tenth_s = term.until_s.saturating_sub(term.from_s) / 10;
        let soon_s = term.until_s.saturating_sub(tenth_s.min(RENEWED_BEFORE_S));
        if now_s <= soon_s {
            self.said = None;
            return None;
        }
        let due = if now_s > term.until_s { Due::Over } else { Due::Soon };
        let known = |(said, at)| said == due && now.duration_since(at) < RENEW_AGAIN;
        if self.said.is_some_and(known) {
            return None;
        }
        self.said = Some((due, now));
        Some(due)
    }
}

/// What is said of this node's clock.
#[derive(Debug, Default)]
pub(crate) struct ClockNotice {
    said: Option<Standing>,
}

/// What became of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockNews {
    /// It is wrong, or may be.
    Wrong(Standing),
    /// It is right again.
    Right,
}

impl ClockNotice {
    /// What is to be said now, if anything.
    pub(crate) fn news(&mut self, now: Standing) -> Option<ClockNews> {
        let wrong = (now != Standing::Right).then_some(now);
        if self.said == wrong {
            return None;
        }
        self.said = wrong;
        Some(wrong.map_or(ClockNews::Right, ClockNews::Wrong))
    }
}

/// Why a clock keeps clients away, if it does.
pub(crate) fn clock_trouble(report: &Report) -> Option<String> {
    match report.standing {
        Standing::Astray => Some(format!("its clock is {}", difference(report.offset_ms))),
        // Somebody must serve, and loses nothing: nothing expires meanwhile.
        Standing::Right | Standing::Differs | Standing::Jumped => None,
    }
}

/// How far a clock is from the time, in words.
pub(crate) fn difference(offset_ms: i64) -> String {
    let way = if offset_ms < 0 { "behind" } else { "ahead" };
    let seconds = offset_ms.unsigned_abs() / 1000;
    let amount = match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        172_800.. => format!("{} days", seconds / 86_400),
    };
    format!("{amount} {way}")
}

/// Whether a node is of use to clients.
#[derive(Debug, Default)]
pub(crate) struct UseOfNode {
    led_by_nobody_since: Option<Instant>,
}

impl UseOfNode {
    /// Why clients are better off elsewhere, if they are. `groups`: how those stand of which it has a
    /// replica.
    pub(crate) fn none_because(
        &mut self,
        place: Place,
        groups: impl Iterator<Item = consensus::GroupStatus>,
        now: Instant,
    ) -> Option<&'static str> {
        match place {
            Place::Starting => return Some("it is no member of a cluster yet"),
            Place::Joining => return Some("it joins the cluster"),
            Place::Removed => return Some("it was removed from the cluster"),
            Place::Member => {}
        }
        let mut groups = groups.filter(|group| !group.voters.is_empty()).peekable();
        if groups.peek().is_none() || groups.any(|group| group.is_led()) {
            self.led_by_nobody_since = None;
            return None;
        }
        let since = *self.led_by_nobody_since.get_or_insert(now);
        (now.duration_since(since) >= ELECTION_WAIT).then_some("no majority")
    }
}

/// Whether this node was last said to be ready.
#[derive(Debug, Default)]
pub(crate) struct Readied {
    was_ready: bool,
    /// The reason that was told; `None` while it is ready, or was never.
    told: Option<&'static str>,
}

/// A change of a node's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadyNews {
    /// For the first time.
    Ready,
    /// It was not for a while.
    ReadyAgain,
    /// It no longer is.
    NotReady(&'static str),
}

impl Readied {
    /// What is to be said now, if anything. `reason`: why clients are better off elsewhere.
    pub(crate) fn news(&mut self, reason: Option<&'static str>) -> Option<ReadyNews> {
        let news = match (self.was_ready, reason) {
            // A node that joins has said so; it is not ready yet.
            (false, Some(_)) => return None,
            (false, None) => ReadyNews::Ready,
            (true, reason) if self.told == reason => return None,
            (true, None) => ReadyNews::ReadyAgain,
            (true, Some(reason)) => ReadyNews::NotReady(reason),
        };
        (self.was_ready, self.told) = (true, reason);
        Some(news)
    }
}

/// How often it is said that leadership has changed.
const LEADERSHIP_AGAIN: Duration = Duration::from_secs(10);

/// The groups that this node leads, as far as an operator was told.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    told: u32,
    changed: Option<Instant>,
}

impl Leadership {
    /// Whether to say now that this node leads `leads` groups. What changes again within some seconds is said
    /// once, as it is then.
    pub(crate) fn observe(&mut self, leads: u32, now: Instant) -> bool {
        if leads == self.told {
            self.changed = None;
            return false;
        }
        let since = *self.changed.get_or_insert(now);
        let due = now.duration_since(since) >= LEADERSHIP_AGAIN;
        if due {
            (self.told, self.changed) = (leads, None);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::NodeId;
    use std::collections::BTreeSet;

    #[test]
    fn a_wrong_clock_is_told_once_and_once_when_it_is_right() {
        use Standing::{Astray, Differs, Right};
        let mut clock = ClockNotice::default();
        let mut said = Vec::new();
        for standing in [Right, Astray, Astray, Differs, Right, Right, Astray] {
            said.extend(clock.news(standing));
        }
        let wrong = ClockNews::Wrong;
        assert_eq!(said, [wrong(Astray), wrong(Differs), ClockNews::Right, wrong(Astray)]);
    }

    #[test]
    fn how_far_a_clock_is_off_is_said_in_words() {
        for (ms, words) in [
            (-5_900, "5 s behind"),
            (130_000, "2 min ahead"),
            (3 * 3_600_000, "3 h ahead"),
            (-31 * 24 * 3_600_000, "31 days behind"),
        ] {
            assert_eq!(difference(ms), words);
        }
    }

    #[test]
    fn a_node_is_of_no_use_if_no_group_has_a_majority_for_longer_than_an_election() {
        let (mut node, start) = (UseOfNode::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let voters: BTreeSet<_> = [NodeId(1), NodeId(2)].into();
        let leaderless = || consensus::GroupStatus {
            voters: voters.clone(),
            ..consensus::GroupStatus::default()
        };
        let unseen = || consensus::GroupStatus { leader: Some(NodeId(2)), ..leaderless() };
        let led = || consensus::GroupStatus { quorum_seen: true, ..unseen() };
        let mut ask = |groups: [consensus::GroupStatus; 2], second| {
            node.none_because(Place::Member, groups.into_iter(), at(second))
        };
        assert_eq!(ask([unseen(), led()], 0), None, "it serves half of them");
        assert_eq!(ask([unseen(), leaderless()], 1), None, "there may be an election");
        assert_eq!(ask([led(), leaderless()], 5), None);
        assert_eq!(ask([unseen(), leaderless()], 6), None);
        assert_eq!(ask([unseen(), leaderless()], 11), Some("no majority"));
        assert_eq!(ask([led(), leaderless()], 12), None);
        let removed = node.none_because(Place::Removed, [led()].into_iter(), at(13));
        assert!(removed.is_some_and(|reason| reason.contains("removed")));
        assert_eq!(node.none_because(Place::Member, std::iter::empty(), at(14)), None);
        let starting = node.none_because(Place::Starting, std::iter::empty(), at(15));
        assert!(starting.is_some(), "it leads nothing and knows no leader");
    }

    #[test]
    fn a_disk_that_fills_is_told_once_and_once_more_when_it_has_had_space_for_a_while() {
        let (mut disk, start) = (Disk::default(), Instant::now());
        let is_full = |second| matches!(second, 5..20 | 22..30 | 60..);
        let mut said = Vec::new();
        for second in 0..=70 {
            let news = disk.news(is_full(second), start + Duration::from_secs(second));
            said.extend(news.map(|news| (second, news)));
        }
        assert_eq!(said, [(5, DiskNews::Full), (40, DiskNews::Space), (60, DiskNews::Full)]);
    }

    #[test]
    fn a_certificate_is_to_be_renewed_once_a_day_in_the_last_tenth_of_its_term() {
        const DAY: u64 = 24 * 60 * 60;
        let (mut renewal, start) = (Renewal::default(), Instant::now());
        let mut said = |days: u64| {
            let term = Term { from_s: 0, until_s: days * DAY };
            let mut said = Vec::new();
            for hour in 0..=(days + 2) * 24 {
                let now = start + Duration::from_hours(hour);
                let due = renewal.news(term, hour * 60 * 60, now);
                said.extend(due.map(|due| (hour, due)));
            }
            said
        };
        let week = [(152, Due::Soon), (169, Due::Over), (193, Due::Over)];
        assert_eq!(said(7), week, "two days after it ended");
        assert_eq!(said(400)[..2], [(386 * 24 + 1, Due::Soon), (387 * 24 + 1, Due::Soon)]);
    }

    #[test]
    fn a_node_is_said_to_be_ready_when_it_is_and_again_only_after_it_was_not() {
        let mut told = Readied::default();
        assert_eq!(told.news(Some("it joins the cluster")), None);
        assert_eq!(told.news(None), Some(ReadyNews::Ready));
        assert_eq!(told.news(None), None);
        let lost = Some("no majority");
        assert_eq!(told.news(lost), Some(ReadyNews::NotReady("no majority")));
        assert_eq!(told.news(lost), None);
        assert_eq!(told.news(None), Some(ReadyNews::ReadyAgain));
    }

    #[test]
    fn leadership_that_moves_to_and_fro_is_told_once() {
        let (mut leadership, start) = (Leadership::default(), Instant::now());
        let leads = |second| if second < 5 { second } else { 6 };
        let told: Vec<_> = (0..60)
            .filter(|second| {
                let now = start + Duration::from_secs(u64::from(*second));
                leadership.observe(leads(*second), now)
            })
            .collect();
        assert_eq!(told, [11]);
    }

    #[test]
    fn a_node_that_nobody_lets_in_says_so_after_a_while_and_then_now_and_then() {
        let (mut joining, start) = (Joining::default(), Instant::now());
        let mut said = Vec::new();
        for second in 0..=75 {
            if joining.is_news(2, start + Duration::from_secs(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [10, 40, 70]);
    }

    #[test]
    fn a_node_that_is_let_in_or_hears_nobody_begins_to_wait_anew() {
        let (mut joining, start) = (Joining::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert!(!joining.is_news(1, at(0)) && !joining.is_news(1, at(9)));
        assert!(!joining.is_news(0, at(10)) && !joining.is_news(1, at(11)));
        assert!(!joining.is_news(1, at(20)), "it has waited for 9 s");
        assert!(joining.is_news(1, at(21)));
    }
}
