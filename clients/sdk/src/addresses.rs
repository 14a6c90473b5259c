//! Which nodes to try, and in which order. Pure.
//!
//! **Invariant:** every configured address stays in the order, whatever a node recommends.

use std::collections::VecDeque;

/// Addresses that a node may recommend; further ones are ignored.
const RECOMMENDED_MAX: usize = 16;

/// The addresses of a client, the one to try first in front.
#[derive(Debug)]
pub(crate) struct Addresses {
    configured: Vec<String>,
    order: VecDeque<String>,
}

impl Addresses {
    pub(crate) fn new(configured: Vec<String>) -> Self {
        Self { order: configured.iter().cloned().collect(), configured }
    }

    pub(crate) fn in_order(&self) -> Vec<String> {
        self.order.iter().cloned().collect()
    }

    /// The node at `address` answered: it is the one in use.
    pub(crate) fn using(&mut self, address: &str) {
        if let Some(place) = self.order.iter().position(|known| known == address) {
            self.order.rotate_left(place);
        }
    }

    /// The node in use is left: it comes last now, and what it recommends first.
    pub(crate) fn leave(&mut self, recommended: &[String]) {
        if recommended.is_empty() {
            self.order.rotate_left(usize::from(!self.order.is_empty()));
            return;
        }
        let recommended = || recommended.iter().take(RECOMMENDED_MAX);
        let known = self.configured.iter().filter(|known| !recommended().any(|it| it == *known));
        self.order = recommended().chain(known).cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Addresses {
        Addresses::new(["a", "b", "c"].map(str::to_owned).into())
    }

    #[test]
    fn a_node_that_is_left_comes_last_and_its_neighbor_first() {
        let mut addresses = three();
        addresses.using("b");
        assert_eq!(addresses.in_order(), ["b", "c", "a"]);
        addresses.leave(&[]);
        assert_eq!(addresses.in_order(), ["c", "a", "b"]);
    }

    #[test]
    fn what_a_node_recommends_comes_first_and_nothing_configured_is_forgotten() {
        let mut addresses = three();
        addresses.leave(&["x".to_owned(), "c".to_owned()]);
        assert_eq!(addresses.in_order(), ["x", "c", "a", "b"]);
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        addresses.leave(&many);
        assert_eq!(addresses.in_order().len(), RECOMMENDED_MAX + 3);
        Addresses::new(Vec::new()).leave(&[]);
    }
}
