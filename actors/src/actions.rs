//! Actions that a core has decided and nobody has carried out yet. A pure core.
//!
//! # Invariants
//! 1. Actions are carried out in the order in which a step decided them.
//! 2. A step that answers an action comes before what was decided later: its actions go to the front.

use std::collections::VecDeque;

/// Actions in the order in which they are carried out. The room is used again by the next step.
#[derive(Debug)]
pub(crate) struct Actions<A>(VecDeque<A>);

impl<A> Default for Actions<A> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<A> Actions<A> {
    /// The number of actions.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// One more, after all others.
    pub(crate) fn push(&mut self, action: A) {
        self.0.push_back(action);
    }

    /// A step is over that began when there were `before`: what it decided comes first.
    pub(crate) fn put_first(&mut self, before: usize) {
        if before != 0 && before < self.0.len() {
            self.0.rotate_left(before);
        }
    }

    /// Takes the first.
    pub(crate) fn next(&mut self) -> Option<A> {
        self.0.pop_front()
    }

    /// Keeps no room, if there is none.
    pub(crate) fn give_back(&mut self) {
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}

impl<A> Extend<A> for Actions<A> {
    fn extend<I: IntoIterator<Item = A>>(&mut self, actions: I) {
        self.0.extend(actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_an_action_comes_before_what_was_decided_later() {
        let mut actions = Actions::default();
        actions.extend([1, 2, 3]);
        actions.put_first(0);
        assert_eq!(actions.next(), Some(1));
        let before = actions.len();
        actions.extend([10, 11]);
        actions.put_first(before);
        actions.put_first(actions.len());
        let rest: Vec<_> = std::iter::from_fn(|| actions.next()).collect();
        assert_eq!(rest, [10, 11, 2, 3]);
    }
}
