//! Connections that are not logged in, in the order they came, by address and by network. A pure core.
//!
//! **Invariant:** an address or a network without such a connection takes no memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Leading bits of an IPv6 address that one subscriber has whole.
const SUBSCRIBER_BITS: u32 = 64;

/// Leading bits of IPv6 addresses that one site usually has.
const SITE_BITS: u32 = 48;

/// Leading bits of IPv4 addresses that are handed out together.
const IPV4_NETWORK_BITS: u32 = 24;

/// Numbers of connections; a lower one came earlier.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    networks: BTreeMap<IpAddr, Network>,
    by_weight: BTreeSet<(usize, IpAddr)>,
    total: usize,
}

#[derive(Debug, Default)]
struct Network {
    sources: BTreeMap<IpAddr, BTreeSet<u64>>,
    by_weight: BTreeSet<(usize, IpAddr)>,
    total: usize,
}

/// Connections of a network, and of one address in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) network: usize,
    pub(super) source: usize,
}

impl Crowd {
    pub(super) fn len(&self) -> usize {
        self.total
    }

    pub(super) fn insert(&mut self, source: IpAddr, number: u64) {
        self.change(source, |numbers| numbers.insert(number));
    }

    pub(super) fn remove(&mut self, source: IpAddr, number: u64) {
        self.change(source, |numbers| numbers.remove(&number));
    }

    pub(super) fn weight(&self, source: IpAddr) -> Weight {
        let Some(network) = self.networks.get(&network_of(source)) else {
            return Weight::default();
        };
        let here = network.sources.get(&source).map_or(0, BTreeSet::len);
        Weight { network: network.total, source: here }
    }

    /// Whether `newcomer`, with one connection more, still weighs less than `other`: as a network, or as
    /// an address of the same one.
    pub(super) fn is_lighter(&self, newcomer: IpAddr, other: IpAddr) -> bool {
        let (mine, theirs) = (self.weight(newcomer), self.weight(other));
        if network_of(newcomer) == network_of(other) {
            mine.source + 1 < theirs.source
        } else {
            mine.network + 1 < theirs.network
        }
    }

    /// The connection of `source` that came first.
    pub(super) fn oldest_of(&self, source: IpAddr) -> Option<u64> {
        self.networks.get(&network_of(source))?.sources.get(&source)?.first().copied()
    }

    /// The address with the most connections in the network with the most.
    pub(super) fn heaviest(&self) -> Option<IpAddr> {
        let (_, network) = self.by_weight.last()?;
        let (_, source) = self.networks.get(network)?.by_weight.last()?;
        Some(*source)
    }

    fn change(&mut self, source: IpAddr, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let key = network_of(source);
        let network = self.networks.entry(key).or_default();
        let numbers = network.sources.entry(source).or_default();
        let (here, there, all) = (numbers.len(), network.total, self.total);
        change(numbers);
        let now = numbers.len();
        network.by_weight.remove(&(here, source));
        self.by_weight.remove(&(there, key));
        network.total = there - here + now;
        self.total = all - here + now;
        if now == 0 {
            network.sources.remove(&source);
        } else {
            network.by_weight.insert((now, source));
        }
        if network.total == 0 {
            self.networks.remove(&key);
        } else {
            self.by_weight.insert((network.total, key));
        }
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which one subscriber has whole.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(leading(address, SUBSCRIBER_BITS)),
    }
}

/// What counts as one network: an IPv4 /24, an IPv6 /48.
fn network_of(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(address) => {
            let mask = u32::MAX << (u32::BITS - IPV4_NETWORK_BITS);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => IpAddr::V6(leading(address, SITE_BITS)),
    }
}

fn leading(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (u128::BITS - bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        source_of(text.parse().unwrap())
    }

    #[test]
    fn a_subscriber_is_one_source() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    }

    #[test]
    fn the_heaviest_address_of_the_heaviest_network_is_found() {
        let mut crowd = Crowd::default();
        for number in 0..6 {
            crowd.insert(address("10.0.0.1"), number);
        }
        // A site of many subscribers with one connection each weighs more than one address with six.
        for subscriber in 0..7 {
            crowd.insert(address(&format!("2001:db8:0:{subscriber}::1")), 10 + subscriber);
        }
        crowd.insert(address("2001:db8:0:3::1"), 20);
        assert_eq!(crowd.heaviest(), Some(address("2001:db8:0:3::")));
        assert_eq!(crowd.oldest_of(address("2001:db8:0:3::5")), Some(13));
        assert_eq!(crowd.weight(address("2001:db8:0:3::1")), Weight { network: 8, source: 2 });
        assert_eq!(crowd.weight(address("2001:db8:0:99::1")), Weight { network: 8, source: 0 });
        assert_eq!(crowd.weight(address("10.0.1.1")), Weight::default());
        assert_eq!(crowd.len(), 14);
        let is_lighter = |one, other| crowd.is_lighter(address(one), address(other));
        assert!(is_lighter("10.0.0.9", "10.0.0.1") && !is_lighter("10.0.0.1", "10.0.0.9"));
        assert!(is_lighter("10.0.0.1", "2001:db8:0:3::1"));
        assert!(!is_lighter("2001:db8:0:99::1", "2001:db8:0:1::1"), "one of the same site");
    }

    #[test]
    fn who_is_gone_leaves_nothing() {
        let mut crowd = Crowd::default();
        for number in 0..100 {
            crowd.insert(address(&format!("10.0.{}.1", number % 7)), number);
        }
        for number in 0..100 {
            crowd.insert(address("10.0.0.2"), 100);
            crowd.remove(address(&format!("10.0.{}.1", number % 7)), number);
            crowd.remove(address("10.9.9.9"), number);
        }
        let network = &crowd.networks[&network_of(address("10.0.0.2"))];
        assert_eq!((network.sources.len(), network.by_weight.len()), (1, 1), "one is still there");
        crowd.remove(address("10.0.0.2"), 100);
        assert!(crowd.networks.is_empty() && crowd.by_weight.is_empty() && crowd.len() == 0);
    }
}
