//! Who watches whom, who may see what, and what each watcher was told. A pure core.
//!
//! It knows states, not events: whatever happened, and in whatever order, the shell computes how a
//! watched user stands now, and each watcher is told if that differs from what they were told last.
//!
//! # Invariants
//! 1. What a watcher was told last, unless it was lost, is [`shown`] of the account and the rows that
//!    were looked at last.
//! 2. A watcher is told nothing before it is known what they may see.

use crate::shard::{AccountView, Audience};
use proto::limits::SUBSCRIPTIONS_MAX;
use proto::stored::Session;
use proto::{DeviceId, UserId, wire};
use std::collections::{BTreeMap, BTreeSet};

/// How a user stands, by all their sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the person is there, on any device.
    pub online: bool,
    /// When the person left the last device, Unix time in ms; 0: never was there. While the person is
    /// there, when they left the last time before.
    pub last_seen_ms: u64,
}

impl Seen {
    /// From the rows of a user's devices as they read here.
    pub fn of(rows: impl IntoIterator<Item = Session>) -> Self {
        let mut seen = Self::default();
        let mut left_ms = 0;
        for row in rows.into_iter().filter(|row| !row.gone) {
            let is_there = row.online && !row.away;
            seen.online |= is_there;
            seen.last_seen_ms = seen.last_seen_ms.max(row.last_seen_ms);
            if !is_there {
                left_ms = left_ms.max(row.since_ms);
            }
        }
        // A session that broke off with its node left no time, nor does one that ends while the person
        // is there on another device: its beginning is known.
        if !seen.online {
            seen.last_seen_ms = seen.last_seen_ms.max(left_ms);
        }
        seen
    }
}

/// What a watcher may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    online: bool,
    last_seen: bool,
}

impl View {
    fn of(account: Option<&AccountView>, watcher: UserId) -> Self {
        let Some(account) = account.filter(|account| !account.blocked.contains(&watcher)) else {
            return Self { online: false, last_seen: false };
        };
        let own = account.user == watcher;
        let admits = |audience: Audience| own || audience.admits(watcher, &account.contacts);
        let privacy = account.privacy;
        Self { online: admits(privacy.online), last_seen: admits(privacy.last_seen) }
    }

    fn shown(self, user: UserId, seen: Seen) -> wire::Presence {
        wire::Presence {
            user: user.0,
            online: self.online && seen.online,
            last_seen_ms: if self.last_seen { seen.last_seen_ms } else { 0 },
        }
    }
}

/// What `watcher` is shown of a user; `account` is `None` if there is no such account.
#[cfg(test)]
pub(super) fn shown(
    user: UserId,
    account: Option<&AccountView>,
    watcher: UserId,
    seen: Seen,
) -> wire::Presence {
    View::of(account, watcher).shown(user, seen)
}

#[derive(Debug, Default)]
struct Watcher {
    /// `None`: not known yet.
    view: Option<View>,
    /// `None`: nothing, or it was lost.
    told: Option<wire::Presence>,
}

/// Someone who is watched.
#[derive(Debug, Default)]
struct Watched {
    devices: Vec<DeviceId>,
    watchers: BTreeMap<UserId, Watcher>,
}

/// All subscriptions of this node.
#[derive(Debug, Default)]
pub struct Subscriptions {
    of: BTreeMap<UserId, Watched>,
    by: BTreeMap<UserId, BTreeSet<UserId>>,
}

impl Subscriptions {
    /// Adds a subscription; false if `watcher` has as many as allowed.
    pub fn add(&mut self, watcher: UserId, user: UserId) -> bool {
        let by = self.by.entry(watcher).or_default();
        if by.len() >= SUBSCRIPTIONS_MAX && !by.contains(&user) {
            return false;
        }
        by.insert(user);
        self.of.entry(user).or_default().watchers.entry(watcher).or_default();
        true
    }

    /// Ends a subscription.
    pub fn remove(&mut self, watcher: UserId, user: UserId) {
        if let Some(by) = self.by.get_mut(&watcher) {
            by.remove(&user);
            if by.is_empty() {
                self.by.remove(&watcher);
            }
        }
        if let Some(watched) = self.of.get_mut(&user) {
            watched.watchers.remove(&watcher);
            if watched.watchers.is_empty() {
                self.of.remove(&user);
            }
        }
    }

    /// Ends all subscriptions of a watcher. Whom they watched.
    pub fn forget(&mut self, watcher: UserId) -> BTreeSet<UserId> {
        let users = self.by.get(&watcher).cloned().unwrap_or_default();
        for user in &users {
            self.remove(watcher, *user);
        }
        users
    }

    /// Whether anybody here watches a user.
    pub fn is_watched(&self, user: UserId) -> bool {
        self.of.contains_key(&user)
    }

    /// Whether `watcher` watches `user`.
    pub fn watches(&self, watcher: UserId, user: UserId) -> bool {
        self.by.get(&watcher).is_some_and(|users| users.contains(&user))
    }

    /// All who are watched.
    pub fn users(&self) -> impl Iterator<Item = UserId> {
        self.of.keys().copied()
    }

    /// The devices of a watched user, as of the last [`Self::account_read`].
    pub fn devices(&self, user: UserId) -> &[DeviceId] {
        self.of.get(&user).map_or(&[], |watched| &watched.devices)
    }

    /// A watched user's account is so now; `None`: there is none.
    pub fn account_read(&mut self, user: UserId, account: Option<&AccountView>) {
        let Some(watched) = self.of.get_mut(&user) else { return };
        watched.devices = account.map(|a| a.devices.keys().copied().collect()).unwrap_or_default();
        for (watcher, state) in &mut watched.watchers {
            state.view = Some(View::of(account, *watcher));
        }
    }

    /// What is to be told now that a user stands like this; it counts as told.
    pub fn news(&mut self, user: UserId, seen: Seen) -> Vec<(UserId, wire::Presence)> {
        let Some(watched) = self.of.get_mut(&user) else { return Vec::new() };
        let mut news = Vec::new();
        for (watcher, state) in &mut watched.watchers {
            let Some(view) = state.view else { continue };
            let presence = view.shown(user, seen);
            if state.told != Some(presence) {
                state.told = Some(presence);
                news.push((*watcher, presence));
            }
        }
        news
    }

    /// What one watcher is to be told, whatever was told before; it counts as told.
    pub fn standing(
        &mut self,
        watcher: UserId,
        user: UserId,
        seen: Seen,
    ) -> Option<wire::Presence> {
        let state = self.of.get_mut(&user)?.watchers.get_mut(&watcher)?;
        let presence = state.view?.shown(user, seen);
        state.told = Some(presence);
        Some(presence)
    }

    /// What was told last was lost on its way.
    pub fn lost(&mut self, watcher: UserId, user: UserId) {
        let states = self.of.get_mut(&user).map(|watched| &mut watched.watchers);
        if let Some(state) = states.and_then(|states| states.get_mut(&watcher)) {
            state.told = None;
        }
    }
}
