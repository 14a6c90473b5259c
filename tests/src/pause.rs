//! How long people wait around a fault: for each message between people on untouched nodes, the time
//! to its tick and to the recipient's screen.
//!
//! **Invariant:** a message that still waits when the measurement ends counts with its age.

use crate::checker::{Name, Who};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// The longest waits of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Messages that were measured.
    pub messages: usize,
    /// From the send to its tick.
    pub accepted: Duration,
    /// From the send to the recipient's screen.
    pub delivered: Duration,
    /// From the loss of a connection to the next login, of anyone.
    pub away: Duration,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (accepted, delivered) = (self.accepted.as_secs_f64(), self.delivered.as_secs_f64());
        write!(
            f,
            "longest wait of {} messages: {accepted:.2} s to the tick, {delivered:.2} s to the screen; \
             nobody without a connection for more than {:.2} s",
            self.messages,
            self.away.as_secs_f64()
        )
    }
}

#[derive(Debug)]
struct Open {
    to: u64,
    at: Instant,
    accepted: bool,
    delivered: bool,
}

#[derive(Debug)]
struct Window {
    calm: BTreeSet<u64>,
    longest: Pause,
}

/// Follows messages; measures while it is told to.
#[derive(Debug, Default)]
pub struct Meter {
    homes: BTreeMap<Who, usize>,
    open: BTreeMap<Name, Open>,
    window: Option<Window>,
}

impl Meter {
    /// A device is served by node `home` from now on, after it was `away` for so long.
    pub fn moved(&mut self, who: Who, home: usize, away: Duration) {
        self.homes.insert(who, home);
        if let Some(window) = &mut self.window {
            window.longest.away = window.longest.away.max(away);
        }
    }

    /// How many devices node `home` serves, as far as they have moved.
    pub fn at(&self, home: usize) -> usize {
        self.homes.values().filter(|at| **at == home).count()
    }

    /// Users all of whose devices node `home` serves.
    pub fn only_at(&self, home: usize) -> BTreeSet<u64> {
        let elsewhere: BTreeSet<u64> =
            self.homes.iter().filter(|(_, at)| **at != home).map(|(who, _)| who.user).collect();
        let here = self.homes.iter().filter(|(_, at)| **at == home).map(|(who, _)| who.user);
        here.filter(|user| !elsewhere.contains(user)).collect()
    }

    /// A user stays away, and nobody waits for them until they come back.
    pub fn stays_away(&mut self, user: u64) {
        self.homes.retain(|who, _| who.user != user);
    }

    /// A device sends for the first time.
    pub fn sent(&mut self, name: Name, to: u64, now: Instant) {
        self.open.insert(name, Open { to, at: now, accepted: false, delivered: false });
    }

    /// The sender was told that nothing was stored, and will not try again.
    pub fn given_up(&mut self, name: Name) {
        self.open.remove(&name);
    }

    /// The sender has its tick.
    pub fn accepted(&mut self, name: Name, now: Instant) {
        self.step(name, now, |open| open.accepted = true);
    }

    /// A device of the recipient shows it.
    pub fn seen(&mut self, name: Name, now: Instant) {
        self.step(name, now, |open| open.delivered = true);
    }

    fn step(&mut self, name: Name, now: Instant, step: impl Fn(&mut Open)) {
        let Some(open) = self.open.get_mut(&name) else { return };
        let before = (open.accepted, open.delivered);
        step(open);
        let done = open.accepted && open.delivered;
        if let Some(window) = &mut self.window {
            window.count(name, open, before, now);
            window.longest.messages += usize::from(done && window.cares(name, open));
        }
        if done {
            self.open.remove(&name);
        }
    }

    /// Begins to measure people none of whose devices is served by a node of `touched`.
    pub fn begin(&mut self, touched: &BTreeSet<usize>) {
        let mut calm: BTreeSet<u64> = self.homes.keys().map(|who| who.user).collect();
        for (who, home) in &self.homes {
            if touched.contains(home) {
                calm.remove(&who.user);
            }
        }
        self.window = Some(Window { calm, longest: Pause::default() });
    }

    /// Ends the measurement.
    pub fn end(&mut self, now: Instant) -> Pause {
        let Some(mut window) = self.window.take() else { return Pause::default() };
        for (name, open) in &self.open {
            let late = Open { accepted: true, delivered: true, ..*open };
            window.count(*name, &late, (open.accepted, open.delivered), now);
        }
        window.longest
    }
}

impl Window {
    fn cares(&self, name: Name, open: &Open) -> bool {
        self.calm.contains(&name.from.user) && self.calm.contains(&open.to)
    }

    /// Takes account of what has become true of `open` since `before`.
    fn count(&mut self, name: Name, open: &Open, before: (bool, bool), now: Instant) {
        if !self.cares(name, open) {
            return;
        }
        let age = now.duration_since(open.at);
        if open.accepted && !before.0 {
            self.longest.accepted = self.longest.accepted.max(age);
        }
        if open.delivered && !before.1 {
            self.longest.delivered = self.longest.delivered.max(age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: Who = Who { user: 1, device: 1 };
    const BOB: Who = Who { user: 2, device: 1 };
    const EVE: Who = Who { user: 3, device: 1 };

    fn name(from: Who, id: u64) -> Name {
        Name { from, id }
    }

    /// Ada and Bob on node 0, Eve on node 1; node 1 is touched after a second.
    fn meter() -> (Meter, Instant) {
        let (mut meter, begun) = (Meter::default(), Instant::now());
        meter.moved(ADA, 0, Duration::ZERO);
        meter.moved(BOB, 0, Duration::ZERO);
        meter.moved(EVE, 1, Duration::ZERO);
        (meter, begun)
    }

    #[test]
    fn the_longest_wait_counts_from_the_send_also_if_it_still_waits() {
        let (mut meter, begun) = meter();
        let after = |seconds| begun + Duration::from_secs(seconds);
        meter.sent(name(ADA, 1), BOB.user, begun);
        meter.begin(&BTreeSet::from([1]));
        meter.accepted(name(ADA, 1), after(2));
        meter.seen(name(ADA, 1), after(3));
        meter.sent(name(ADA, 2), BOB.user, after(4));
        meter.accepted(name(ADA, 2), after(5));
        let expected = Pause {
            messages: 1,
            accepted: Duration::from_secs(2),
            delivered: Duration::from_secs(6),
            away: Duration::ZERO,
        };
        assert_eq!(meter.end(after(10)), expected);
    }

    #[test]
    fn people_on_touched_nodes_may_wait() {
        let (mut meter, begun) = meter();
        meter.begin(&BTreeSet::from([1]));
        meter.sent(name(ADA, 1), EVE.user, begun);
        meter.sent(name(EVE, 1), BOB.user, begun);
        meter.moved(EVE, 0, Duration::ZERO);
        meter.accepted(name(EVE, 1), begun + Duration::from_secs(9));
        assert_eq!(meter.end(begun + Duration::from_secs(10)), Pause::default());
    }
}
