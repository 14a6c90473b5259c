//! The judge of presence: each device says how it stands, each subscriber what it was shown, and after
//! quiet the second must be the function of the first.

use super::{Who, Wrong};
use std::collections::{BTreeMap, BTreeSet};

/// How a device stands, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Logged in, and its person is there.
    There,
    /// Logged in, and its person is away.
    Away,
    /// Not logged in.
    Gone,
    /// It has asked for something else and not heard yet.
    Unknown,
}

/// What a subscriber is shown of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// There, on any device.
    pub online: bool,
    /// When the user left, Unix time in ms; 0: not shown, or never there.
    pub last_seen_ms: u64,
}

/// What all devices said and saw.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    standing: BTreeMap<Who, Standing>,
    shown: BTreeMap<(Who, u64), Shown>,
}

impl Sessions {
    pub(super) fn told(&mut self, who: Who, standing: Standing) {
        self.standing.insert(who, standing);
    }

    pub(super) fn shown(&mut self, viewer: Who, user: u64, shown: Option<Shown>) {
        match shown {
            Some(shown) => drop(self.shown.insert((viewer, user), shown)),
            None => drop(self.shown.remove(&(viewer, user))),
        }
    }

    /// Whether the person is there: on any device. `None` while a device does not know.
    fn is_there(&self, user: u64) -> Option<bool> {
        let first = Who { user, device: 0 };
        let last = Who { user, device: u32::MAX };
        let all: Vec<Standing> = self.standing.range(first..=last).map(|(_, s)| *s).collect();
        if all.contains(&Standing::There) {
            return Some(true);
        }
        (!all.contains(&Standing::Unknown)).then_some(false)
    }

    /// Subscribers who see something else than is; of the `absent` all must see one time at which they
    /// left.
    pub(super) fn stale(&self, absent: &BTreeSet<u64>) -> BTreeSet<Wrong> {
        let stale = self.shown.iter().filter_map(|((viewer, user), shown)| {
            let there = self.is_there(*user)?;
            let online = shown.online;
            (there != online).then_some(Wrong::StalePresence(*viewer, *user, online))
        });
        let mut wrong: BTreeSet<Wrong> = stale.collect();
        for user in absent.iter().filter(|user| self.is_there(**user) == Some(false)) {
            let of_user = self.shown.iter().filter(|((_, of), shown)| of == user && !shown.online);
            let times: BTreeSet<u64> = of_user.map(|(_, shown)| shown.last_seen_ms).collect();
            if times.len() > 1 || times.contains(&0) {
                wrong.insert(Wrong::LastSeen(*user));
            }
        }
        wrong
    }
}
