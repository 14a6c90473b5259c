//! Who may shake hands on the cluster port at the same time. A pure core.
//!
//! A stranger can open connections and say nothing. So each source has few places, and one that wants
//! more loses its own oldest; when all are taken, the source that has most loses its oldest. A node
//! needs its place for some milliseconds, so it is through long before it is the oldest.
//!
//! # Invariants
//! 1. There are at most [`HANDSHAKES_MAX`], and at most [`HANDSHAKES_OF_SOURCE_MAX`] of one source.
//! 2. A newcomer always gets a place.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use crate::limits::{HANDSHAKES_MAX, HANDSHAKES_OF_SOURCE_MAX};

/// Whom an address belongs to: an IPv4 address, or the first 64 bits of an IPv6 address, of which a
/// single machine has all the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// The places, each with what ends its handshake when it is dropped.
#[derive(Debug)]
pub(crate) struct Places<T> {
    next: u64,
    taken: BTreeMap<u64, (Source, T)>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { next: 0, taken: BTreeMap::new() }
    }
}

impl<T> Places<T> {
    /// Gives a place to somebody from `source`: its number, and what was in the place of who had to
    /// go.
    pub(crate) fn take(&mut self, source: Source, place: T) -> (u64, Option<T>) {
        let of_source = self.taken.values().filter(|(other, _)| *other == source).count();
        let loser = if of_source >= HANDSHAKES_OF_SOURCE_MAX {
            self.oldest_of(source)
        } else if self.taken.len() >= HANDSHAKES_MAX {
            self.heaviest().and_then(|heaviest| self.oldest_of(heaviest))
        } else {
            None
        };
        let lost = loser.and_then(|number| self.taken.remove(&number)).map(|(_, lost)| lost);
        self.next += 1;
        self.taken.insert(self.next, (source, place));
        (self.next, lost)
    }

    /// A handshake is over.
    pub(crate) fn leave(&mut self, number: u64) {
        self.taken.remove(&number);
    }

    fn oldest_of(&self, source: Source) -> Option<u64> {
        self.taken.iter().find(|(_, (other, _))| *other == source).map(|(number, _)| *number)
    }

    fn heaviest(&self) -> Option<Source> {
        let mut counts: BTreeMap<Source, usize> = BTreeMap::new();
        for (source, _) in self.taken.values() {
            *counts.entry(*source).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(source, _)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> Source {
        Source::of(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn a_source_that_wants_more_loses_its_own_oldest() {
        let mut places = Places::default();
        let (mine, _) = places.take(from(1), "mine");
        for number in 0..HANDSHAKES_OF_SOURCE_MAX {
            assert_eq!(places.take(from(2), if number == 0 { "first" } else { "later" }).1, None);
        }
        for lost in ["first", "later", "later"] {
            assert_eq!(places.take(from(2), "more").1, Some(lost));
        }
        assert_eq!(places.taken.get(&mine).map(|(_, place)| *place), Some("mine"));
        places.leave(mine);
        assert_eq!(places.taken.len(), HANDSHAKES_OF_SOURCE_MAX);
    }

    #[test]
    fn when_all_are_taken_the_heaviest_source_makes_room() {
        let mut places = Places::default();
        for number in 0..HANDSHAKES_OF_SOURCE_MAX {
            places.take(from(1), number);
        }
        for other in 2.. {
            if places.taken.len() == HANDSHAKES_MAX {
                break;
            }
            assert_eq!(places.take(from(other), 99).1, None);
        }
        assert_eq!(places.take(from(250), 99).1, Some(0), "the oldest of the first source");
        assert_eq!(places.taken.len(), HANDSHAKES_MAX);
    }

    #[test]
    fn a_network_of_64_bits_is_one_source() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), from(1));
        assert_ne!(from(1), from(2));
    }
}
