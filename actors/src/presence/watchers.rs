//! Who watches whom. A pure core.

use proto::UserId;
use proto::limits::SUBSCRIPTIONS_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// Subscriptions, both ways round.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    of: BTreeMap<UserId, BTreeSet<UserId>>,
    by: BTreeMap<UserId, BTreeSet<UserId>>,
}

impl Watchers {
    /// Adds a subscription; false if `watcher` has as many as allowed.
    pub(super) fn add(&mut self, watcher: UserId, user: UserId) -> bool {
        let by = self.by.entry(watcher).or_default();
        if by.len() >= SUBSCRIPTIONS_MAX && !by.contains(&user) {
            return false;
        }
        by.insert(user);
        self.of.entry(user).or_default().insert(watcher);
        true
    }

    pub(super) fn remove(&mut self, watcher: UserId, user: UserId) {
        unlink(&mut self.by, watcher, user);
        unlink(&mut self.of, user, watcher);
    }

    pub(super) fn forget(&mut self, watcher: UserId) {
        for user in self.by.remove(&watcher).unwrap_or_default() {
            unlink(&mut self.of, user, watcher);
        }
    }

    pub(super) fn of(&self, user: UserId) -> impl Iterator<Item = UserId> {
        self.of.get(&user).into_iter().flatten().copied()
    }
}

fn unlink(map: &mut BTreeMap<UserId, BTreeSet<UserId>>, key: UserId, value: UserId) {
    if let Some(set) = map.get_mut(&key) {
        set.remove(&value);
        if set.is_empty() {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_who_leaves_leaves_nothing_behind() {
        let mut watchers = Watchers::default();
        let (ada, bob, eve) = (UserId(1), UserId(2), UserId(3));
        assert!(watchers.add(ada, bob) && watchers.add(ada, eve) && watchers.add(eve, bob));
        assert_eq!(watchers.of(bob).collect::<Vec<_>>(), [ada, eve]);
        watchers.forget(ada);
        watchers.remove(eve, bob);
        assert!(watchers.of.is_empty() && watchers.by.is_empty());
    }

    #[test]
    fn nobody_watches_more_than_allowed() {
        let mut watchers = Watchers::default();
        let many = SUBSCRIPTIONS_MAX as u64;
        assert!((1..=many).all(|user| watchers.add(UserId(0), UserId(user))));
        assert!(!watchers.add(UserId(0), UserId(many + 1)));
        assert!(watchers.add(UserId(0), UserId(1)), "a second time is no news");
    }
}
