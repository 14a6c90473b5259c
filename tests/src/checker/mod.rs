//! The judge: is told what senders sent and were answered and what devices saw, and finds what is
//! wrong. It knows nothing of how the server works, and no clock.
//!
//! **Invariant:** it is told facts by clients only, so a server cannot talk itself out of a fault.

mod sessions;

use sessions::Sessions;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use sessions::{Shown, Standing};

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
    /// Two ticks, and no device of the recipient has ever acknowledged it.
    #[error("two ticks for what nobody has: {0}")]
    TickForNobody(Name),
    /// Everyone has it and the sending device was never told.
    #[error("two ticks missing: {0}")]
    TickMissing(Name),
    /// Told as not delivered though a device of the recipient is there to take it.
    #[error("returned, though {1} is there to take it: {0}")]
    Returned(Name, Who),
    /// Something that is allowed was refused with a code that says never to try again.
    #[error("refused for good: {0} with code {1}")]
    ForGood(Who, u32),
    /// Sends to a user were refused for longer than a refusal may last, and nothing was wrong.
    #[error("refusals that do not end: of {0} to {1}")]
    HeldBack(Who, u64),
    /// One ticket opened two sessions.
    #[error("a ticket opened twice: {0}")]
    OpenedTwice(Who),
    /// After quiet a subscriber sees someone as there who is not, or the other way round.
    #[error("{0} is shown a user as online ({2}), and it is not so: {1}")]
    StalePresence(Who, u64, bool),
    /// After quiet, subscribers see different times at which somebody left who stays away, or none.
    #[error("no one time at which {0} was last seen")]
    LastSeen(u64),
}

#[derive(Debug)]
struct Sent {
    to: u64,
    order: u64,
    digest: u64,
    answer: Option<bool>,
    ticks: u32,
    returned: bool,
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
    sessions: Sessions,
    /// People who stay away: what is sent to them waits.
    absent: BTreeSet<u64>,
    accepted: usize,
    wrong: BTreeSet<Wrong>,
    orders: u64,
}

impl Checker {
    /// A device that is to see everything sent to its user from now on.
    pub fn device(&mut self, who: Who) {
        self.devices.entry(who.user).or_default().insert(who.device);
    }

    /// A device was unlinked, or its account taken over: what it has not acknowledged it need not see,
    /// and what no other device takes may go back to its sender.
    pub fn left(&mut self, who: Who) {
        if let Some(devices) = self.devices.get_mut(&who.user) {
            devices.remove(&who.device);
        }
        self.sessions.told(who, Standing::Gone);
    }

    /// All devices of a user stay away from now on, once they have lost their connection.
    pub fn stays_away(&mut self, user: u64) {
        self.absent.insert(user);
    }

    /// Everyone who stayed away comes back: now they must get what was sent to them meanwhile.
    pub fn come_back(&mut self) {
        self.absent.clear();
    }

    /// Whether a user stays away.
    pub fn is_away(&self, user: u64) -> bool {
        self.absent.contains(&user)
    }

    /// A device sends for the first time; retries are not told.
    pub fn sent(&mut self, name: Name, to: u64, body: &[u8]) {
        self.orders += 1;
        let sent = Sent {
            to,
            order: self.orders,
            digest: digest(body),
            answer: None,
            ticks: 0,
            returned: false,
        };
        self.sent.insert(name, sent);
    }

    /// A send was answered: stored, or nothing stored. Not told for `Unavailable`, which is neither.
    pub fn answered(&mut self, name: Name, accepted: bool) {
        match self.sent.get_mut(&name) {
            Some(sent) if sent.answer.is_none() => {
                sent.answer = Some(accepted);
                self.accepted += usize::from(accepted);
            }
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
    /// it again later counts as invented or stray. Only while everything is settled. What people who
    /// stay away have sent, or are still to get, is not over.
    pub fn forget(&mut self) {
        let Self { absent, sent, places, seen, last_seen, shown, kept, .. } = self;
        sent.retain(|name, sent| absent.contains(&sent.to) || absent.contains(&name.from.user));
        places.retain(|_, name| sent.contains_key(name));
        last_seen
            .retain(|(who, from), _| absent.contains(&who.user) || absent.contains(&from.user));
        for names in seen.values_mut().chain(kept.values_mut()) {
            names.retain(|name| sent.contains_key(name));
        }
        for names in shown.values_mut() {
            names.retain(|name| sent.contains_key(name));
        }
        self.accepted = 0;
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
        // Devices that have left count: one of them may have had it.
        let mut ever = self.kept.iter().filter(|(who, _)| who.user == to);
        if !ever.any(|(_, kept)| kept.contains(&name)) {
            self.wrong.insert(Wrong::TickForNobody(name));
        }
    }

    /// The sending device is told that a message comes back: no device will ever take it.
    pub fn returned(&mut self, name: Name) {
        let Some(sent) = self.sent.get_mut(&name) else {
            self.wrong.insert(Wrong::StrayAnswer(name));
            return;
        };
        if std::mem::replace(&mut sent.returned, true) || sent.ticks > 0 {
            self.wrong.insert(Wrong::TickTwice(name));
        }
        let to = sent.to;
        let there = self.devices_of(to).next();
        if let Some(who) = there {
            self.wrong.insert(Wrong::Returned(name, who));
        }
    }

    /// A ticket let a device in that had let it in before.
    pub fn opened_twice(&mut self, who: Who) {
        self.wrong.insert(Wrong::OpenedTwice(who));
    }

    /// A device says of itself whether its person is there. Told after the node has confirmed it.
    pub fn stands(&mut self, who: Who, standing: Standing) {
        self.sessions.told(who, standing);
    }

    /// A device sees someone as there, or not; `None`: it sees nothing of them any longer.
    pub fn sees(&mut self, viewer: Who, user: u64, shown: Option<Shown>) {
        self.sessions.shown(viewer, user, shown);
    }

    fn devices_of(&self, user: u64) -> impl Iterator<Item = Who> {
        let devices = self.devices.get(&user).into_iter().flatten();
        devices.map(move |device| Who { user, device: *device })
    }

    /// Whether nothing more is to come: every send answered, seen and ticked, but for what waits for
    /// people who stay away.
    pub fn settled(&self) -> bool {
        self.open().is_empty()
    }

    /// What would be wrong if nothing more came.
    fn open(&self) -> Vec<Wrong> {
        let mut open = Vec::new();
        for (name, sent) in &self.sent {
            let sender_is_away = self.is_away(name.from.user);
            match sent.answer {
                None if sender_is_away => {}
                None => open.push(Wrong::Unanswered(*name)),
                Some(false) => {}
                Some(true) if self.is_away(sent.to) => {}
                Some(true) if sent.returned => {}
                Some(true) => {
                    let lost = |who: &Who| !self.seen.get(who).is_some_and(|s| s.contains(name));
                    open.extend(
                        self.devices_of(sent.to).filter(lost).map(|w| Wrong::Lost(*name, w)),
                    );
                    if sent.ticks == 0 && !sender_is_away {
                        open.push(Wrong::TickMissing(*name));
                    }
                }
            }
        }
        open.extend(self.sessions.stale(&self.absent));
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

    /// How many sends were refused for good so far.
    pub fn refused(&self) -> usize {
        self.sent.values().filter(|sent| sent.answer == Some(false)).count()
    }

    /// How many sends were accepted since [`Checker::forget`].
    pub fn accepted(&self) -> usize {
        self.accepted
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
mod tests;
