//! The judge: is told what senders sent and were answered and what devices saw, and finds what is
//! wrong. It knows nothing of how the server works, and no clock.
//!
//! **Invariant:** it is told facts by clients only, so a server cannot talk itself out of a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One device of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    /// The user's id.
    pub user: u64,
    /// The device's id.
    pub device: u32,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.device)
    }
}

/// A message by the name its sender gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The sending device.
    pub from: Who,
    /// Its send id.
    pub id: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of {}", self.id, self.from)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Wrong {
    /// Accepted, but a device of the recipient has not seen it.
    #[error("lost: {0} was accepted and {1} has not seen it")]
    Lost(Name, Who),
    /// A device saw it twice.
    #[error("doubled: {0} was seen twice by {1}")]
    Doubled(Name, Who),
    /// A device saw it after one that was sent later.
    #[error("disordered: {0} was seen by {1} after a later one")]
    Disordered(Name, Who),
    /// Seen with other bytes than were sent, or by a stranger, or never sent.
    #[error("invented: {0} was seen by {1} and was not sent so")]
    Invented(Name, Who),
    /// Seen although the sender was told that nothing was stored.
    #[error("refused, but seen: {0} by {1}")]
    RefusedButSeen(Name, Who),
    /// No answer came to a send.
    #[error("no answer: {0}")]
    Unanswered(Name),
    /// A second answer on one connection, or one to a send that never was.
    #[error("an answer too many: {0}")]
    StrayAnswer(Name),
    /// The place in a mailbox held something else before.
    #[error("place {1} of {0} changed its content")]
    PlaceChanged(Who, u64),
    /// An entry came with a hole before it.
    #[error("hole before place {1} of {0}")]
    Hole(Who, u64),
    /// Two ticks before every device had it.
    #[error("two ticks too early: {0}")]
    TickTooEarly(Name),
    /// Two ticks more than once at one device of the sender.
    #[error("two ticks twice: {0}")]
    TickTwice(Name),
    /// Everyone has it and the sending device was never told.
    #[error("two ticks missing: {0}")]
    TickMissing(Name),
    /// Something that is allowed was refused with a code that says never to try again.
    #[error("refused for good: {0} with code {1}")]
    ForGood(Who, u32),
}

#[derive(Debug)]
struct Sent {
    to: u64,
    order: u64,
    digest: u64,
    answer: Option<bool>,
    ticks: u32,
}

/// Collects facts; [`Checker::verdict`] judges them.
#[derive(Debug, Default)]
pub struct Checker {
    devices: BTreeMap<u64, BTreeSet<u32>>,
    sent: BTreeMap<Name, Sent>,
    places: BTreeMap<(Who, u64), Name>,
    seen: BTreeMap<Who, BTreeSet<Name>>,
    last_seen: BTreeMap<(Who, Who), u64>,
    shown: BTreeMap<Who, Vec<Name>>,
    kept: BTreeMap<Who, BTreeSet<Name>>,
    wrong: BTreeSet<Wrong>,
    orders: u64,
}

impl Checker {
    /// A device that is to see everything sent to its user from now on.
    pub fn device(&mut self, who: Who) {
        self.devices.entry(who.user).or_default().insert(who.device);
    }

    /// A device sends for the first time; retries are not told.
    pub fn sent(&mut self, name: Name, to: u64, body: &[u8]) {
        self.orders += 1;
        let sent = Sent { to, order: self.orders, digest: digest(body), answer: None, ticks: 0 };
        self.sent.insert(name, sent);
    }

    /// A send was answered: stored, or nothing stored. Not told for `Unavailable`, which is neither.
    pub fn answered(&mut self, name: Name, accepted: bool) {
        match self.sent.get_mut(&name) {
            Some(sent) if sent.answer.is_none() => sent.answer = Some(accepted),
            Some(_) | None => drop(self.wrong.insert(Wrong::StrayAnswer(name))),
        }
    }

    /// A message came to a device, for the first time or again.
    pub fn came(&mut self, who: Who, seq: u64, name: Name) {
        if *self.places.entry((who, seq)).or_insert(name) != name {
            self.wrong.insert(Wrong::PlaceChanged(who, seq));
        }
    }

    /// A device shows a message to its person: after leaving out what it has by `seq`.
    pub fn seen(&mut self, who: Who, name: Name, body: &[u8]) {
        let Some(sent) = self.sent.get(&name) else {
            self.wrong.insert(Wrong::Invented(name, who));
            return;
        };
        if sent.to != who.user || sent.digest != digest(body) {
            self.wrong.insert(Wrong::Invented(name, who));
        }
        if !self.seen.entry(who).or_default().insert(name) {
            self.wrong.insert(Wrong::Doubled(name, who));
            return;
        }
        self.shown.entry(who).or_default().push(name);
        let last = self.last_seen.entry((who, name.from)).or_insert(sent.order);
        if *last > sent.order {
            self.wrong.insert(Wrong::Disordered(name, who));
        }
        *last = sent.order.max(*last);
    }

    /// A device acknowledges what it has seen. Told before the acknowledgement is sent.
    pub fn acknowledged(&mut self, who: Who) {
        let shown = self.shown.remove(&who).unwrap_or_default();
        self.kept.entry(who).or_default().extend(shown);
    }

    /// A device was refused something that is allowed, with a code that says never to try again.
    pub fn refused_for_good(&mut self, who: Who, code: u32) {
        self.wrong.insert(Wrong::ForGood(who, code));
    }

    /// Forgets what is over, so that a long run needs no more memory than a short one. What comes of
    /// it again later counts as invented or stray. Only while everything is settled.
    pub fn forget(&mut self) {
        self.sent.clear();
        self.places.clear();
        self.seen.clear();
        self.last_seen.clear();
        self.shown.clear();
        self.kept.clear();
    }

    /// An entry came that says more entries must have come before it.
    pub fn hole(&mut self, who: Who, seq: u64) {
        self.wrong.insert(Wrong::Hole(who, seq));
    }

    /// The sending device itself is told that every device of the recipient has the message.
    pub fn ticked(&mut self, name: Name) {
        let Some(sent) = self.sent.get_mut(&name) else {
            self.wrong.insert(Wrong::StrayAnswer(name));
            return;
        };
        sent.ticks += 1;
        let (to, ticks) = (sent.to, sent.ticks);
        if ticks > 1 {
            self.wrong.insert(Wrong::TickTwice(name));
        }
        let kept = |who| self.kept.get(&who).is_some_and(|kept| kept.contains(&name));
        if !self.devices_of(to).all(kept) {
            self.wrong.insert(Wrong::TickTooEarly(name));
        }
    }

    fn devices_of(&self, user: u64) -> impl Iterator<Item = Who> {
        let devices = self.devices.get(&user).into_iter().flatten();
        devices.map(move |device| Who { user, device: *device })
    }

    /// Whether nothing more is to come: every send answered, seen and ticked.
    pub fn settled(&self) -> bool {
        self.open().is_empty()
    }

    /// What would be wrong if nothing more came.
    fn open(&self) -> Vec<Wrong> {
        let mut open = Vec::new();
        for (name, sent) in &self.sent {
            match sent.answer {
                None => open.push(Wrong::Unanswered(*name)),
                Some(false) => {}
                Some(true) => {
                    let lost = |who: &Who| !self.seen.get(who).is_some_and(|s| s.contains(name));
                    open.extend(
                        self.devices_of(sent.to).filter(lost).map(|w| Wrong::Lost(*name, w)),
                    );
                    if sent.ticks == 0 {
                        open.push(Wrong::TickMissing(*name));
                    }
                }
            }
        }
        open
    }

    /// Everything that is wrong, in order; empty if nothing is.
    pub fn verdict(&self) -> Vec<Wrong> {
        let mut wrong = self.wrong.clone();
        wrong.extend(self.open());
        for (who, names) in &self.seen {
            let refused = |n: &&Name| self.sent.get(n).is_some_and(|s| s.answer == Some(false));
            wrong.extend(names.iter().filter(refused).map(|n| Wrong::RefusedButSeen(*n, *who)));
        }
        wrong.into_iter().collect()
    }

    /// How many sends were accepted so far.
    pub fn accepted(&self) -> usize {
        self.sent.values().filter(|sent| sent.answer == Some(true)).count()
    }
}

/// Tells bodies apart.
fn digest(body: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: Who = Who { user: 1, device: 1 };
    const BOB: Who = Who { user: 2, device: 1 };
    const BOB_TABLET: Who = Who { user: 2, device: 2 };

    fn name(id: u64) -> Name {
        Name { from: ADA, id }
    }

    /// Ada has sent Bob `count` messages and each was accepted.
    fn accepted(count: u64) -> Checker {
        let mut checker = Checker::default();
        checker.device(ADA);
        checker.device(BOB);
        for id in 1..=count {
            checker.sent(name(id), BOB.user, b"hello");
            checker.answered(name(id), true);
        }
        checker
    }

    fn deliver(checker: &mut Checker, seq: u64, id: u64) {
        checker.came(BOB, seq, name(id));
        checker.seen(BOB, name(id), b"hello");
        checker.acknowledged(BOB);
        checker.ticked(name(id));
    }

    #[test]
    fn a_clean_history_has_nothing_wrong() {
        let mut checker = accepted(2);
        assert!(!checker.settled());
        deliver(&mut checker, 1, 1);
        checker.came(BOB, 1, name(1)); // again after a reconnect: not shown
        deliver(&mut checker, 2, 2);
        assert!(checker.settled());
        assert_eq!(checker.verdict(), []);
    }

    #[test]
    fn a_lost_message_is_found() {
        assert_eq!(accepted(1).verdict(), [Wrong::Lost(name(1), BOB), Wrong::TickMissing(name(1))]);
    }

    #[test]
    fn a_message_that_only_one_device_saw_is_lost_and_ticked_too_early() {
        let mut checker = accepted(1);
        checker.device(BOB_TABLET);
        deliver(&mut checker, 1, 1);
        let wrong = [Wrong::Lost(name(1), BOB_TABLET), Wrong::TickTooEarly(name(1))];
        assert_eq!(checker.verdict(), wrong);
    }

    #[test]
    fn a_doubled_message_is_found() {
        let mut checker = accepted(1);
        deliver(&mut checker, 1, 1);
        checker.seen(BOB, name(1), b"hello");
        assert_eq!(checker.verdict(), [Wrong::Doubled(name(1), BOB)]);
    }

    #[test]
    fn disorder_is_found() {
        let mut checker = accepted(2);
        deliver(&mut checker, 1, 2);
        deliver(&mut checker, 2, 1);
        assert_eq!(checker.verdict(), [Wrong::Disordered(name(1), BOB)]);
    }

    #[test]
    fn an_invented_or_altered_or_misdirected_message_is_found() {
        let mut checker = accepted(1);
        checker.seen(BOB, name(1), b"hellO");
        checker.acknowledged(BOB);
        checker.ticked(name(1));
        checker.seen(BOB, name(9), b"hello");
        checker.seen(ADA, name(1), b"hello");
        let wrong = [
            Wrong::Invented(name(1), ADA),
            Wrong::Invented(name(1), BOB),
            Wrong::Invented(name(9), BOB),
        ];
        assert_eq!(checker.verdict(), wrong);
    }

    #[test]
    fn a_refused_message_that_is_seen_is_found() {
        let mut checker = accepted(0);
        checker.sent(name(1), BOB.user, b"hello");
        checker.answered(name(1), false);
        assert_eq!(checker.verdict(), []);
        checker.seen(BOB, name(1), b"hello");
        assert_eq!(checker.verdict(), [Wrong::RefusedButSeen(name(1), BOB)]);
    }

    #[test]
    fn missing_and_surplus_answers_are_found() {
        let mut checker = accepted(0);
        checker.sent(name(1), BOB.user, b"hello");
        assert_eq!(checker.verdict(), [Wrong::Unanswered(name(1))]);
        checker.answered(name(1), false);
        checker.answered(name(1), true);
        checker.answered(name(2), true);
        assert_eq!(checker.verdict(), [Wrong::StrayAnswer(name(1)), Wrong::StrayAnswer(name(2))]);
    }

    #[test]
    fn ticks_too_early_twice_or_for_nothing_are_found() {
        let mut checker = accepted(1);
        checker.ticked(name(1));
        assert!(checker.verdict().contains(&Wrong::TickTooEarly(name(1))));
        deliver(&mut checker, 1, 1);
        assert!(checker.verdict().contains(&Wrong::TickTwice(name(1))));
        checker.ticked(name(7));
        assert!(checker.verdict().contains(&Wrong::StrayAnswer(name(7))));
    }

    #[test]
    fn a_place_with_new_content_and_a_hole_are_found() {
        let mut checker = accepted(2);
        deliver(&mut checker, 1, 1);
        deliver(&mut checker, 1, 2);
        checker.hole(BOB, 4);
        assert_eq!(checker.verdict(), [Wrong::PlaceChanged(BOB, 1), Wrong::Hole(BOB, 4)]);
    }
}
