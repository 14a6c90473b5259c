//! Who may connect: counts of open and of unauthenticated connections, in all and for each address.
//!
//! The core is pure; [`Gate`] shares it, and a [`Permit`] gives its place back when it is dropped.
//!
//! **Invariant:** the counts are those of the permits that live, and an address without a connection
//! takes no memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};

use crate::config;

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections` are open.
    Full,
    /// `limits.connections_per_address` are open from this address.
    AddressFull,
    /// `limits.unauthenticated` are not logged in.
    TooManyStrangers,
    /// `limits.unauthenticated_per_address` from this address are not logged in.
    TooManyStrangersHere,
}

impl Refusal {
    /// All there are.
    pub(crate) const ALL: [Self; 4] =
        [Self::Full, Self::AddressFull, Self::TooManyStrangers, Self::TooManyStrangersHere];

    /// A name for metrics, from a closed set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "connections",
            Self::AddressFull => "connections_per_address",
            Self::TooManyStrangers => "unauthenticated",
            Self::TooManyStrangersHere => "unauthenticated_per_address",
        }
    }
}

/// Connections that are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open, logged in or not.
    pub open: u32,
    /// Of them not logged in, including those in their handshake.
    pub unauthenticated: u32,
}

impl Counts {
    fn add(&mut self) {
        self.open += 1;
        self.unauthenticated += 1;
    }

    fn log_in(&mut self) {
        self.unauthenticated -= 1;
    }

    fn remove(&mut self, is_authenticated: bool) {
        self.open -= 1;
        self.unauthenticated -= u32::from(!is_authenticated);
    }
}

#[derive(Debug)]
struct Core {
    limits: Bounds,
    total: Counts,
    by_source: BTreeMap<IpAddr, Counts>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    total: Counts,
    source: Counts,
}

impl Core {
    fn admit(&mut self, source: IpAddr) -> Result<(), Refusal> {
        let here = self.by_source.get(&source).copied().unwrap_or_default();
        let Bounds { total, source: each } = self.limits;
        if self.total.open >= total.open {
            return Err(Refusal::Full);
        }
        if here.open >= each.open {
            return Err(Refusal::AddressFull);
        }
        if here.unauthenticated >= each.unauthenticated {
            return Err(Refusal::TooManyStrangersHere);
        }
        if self.total.unauthenticated >= total.unauthenticated {
            return Err(Refusal::TooManyStrangers);
        }
        self.total.add();
        self.by_source.entry(source).or_default().add();
        Ok(())
    }

    fn log_in(&mut self, source: IpAddr) {
        self.total.log_in();
        if let Some(here) = self.by_source.get_mut(&source) {
            here.log_in();
        }
    }

    fn remove(&mut self, source: IpAddr, is_authenticated: bool) {
        self.total.remove(is_authenticated);
        if let Some(here) = self.by_source.get_mut(&source) {
            here.remove(is_authenticated);
            if here.open == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

/// The node's gate, shared by its listeners. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Mutex<Core>>);

impl Gate {
    /// A gate with nobody in.
    pub fn new(limits: &config::Limits) -> Self {
        let or_unlimited = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        let total = Counts { open: limits.connections, unauthenticated: limits.unauthenticated };
        let source = Counts {
            open: or_unlimited(limits.connections_per_address),
            unauthenticated: or_unlimited(limits.unauthenticated_per_address),
        };
        let limits = Bounds { total, source };
        let core = Core { limits, total: Counts::default(), by_source: BTreeMap::new() };
        Self(Arc::new(Mutex::new(core)))
    }

    /// Lets a connection from `address` in, as one that is not logged in.
    ///
    /// # Errors
    /// [`Refusal`]: the limit that is reached.
    pub fn admit(&self, address: IpAddr) -> Result<Permit, Refusal> {
        let source = source_of(address);
        self.core().admit(source).inspect_err(|refusal| {
            counter!("natter_connections_refused_total", "reason" => refusal.name()).increment(1);
        })?;
        gauge!("natter_connections").increment(1);
        gauge!("natter_connections_unauthenticated").increment(1);
        Ok(Permit { gate: self.clone(), source, is_authenticated: false })
    }

    /// How many are in.
    pub fn counts(&self) -> Counts {
        self.core().total
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to be connected, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    source: IpAddr,
    is_authenticated: bool,
}

impl Permit {
    /// The connection logged in and no longer counts as a stranger's.
    pub fn authenticated(&mut self) {
        if !self.is_authenticated {
            self.is_authenticated = true;
            self.gate.core().log_in(self.source);
            gauge!("natter_connections_unauthenticated").decrement(1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.core().remove(self.source, self.is_authenticated);
        gauge!("natter_connections").decrement(1);
        if !self.is_authenticated {
            gauge!("natter_connections_unauthenticated").decrement(1);
        }
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which one subscriber has whole.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn gate(change: impl FnOnce(&mut config::Limits)) -> Gate {
        let mut limits = config::Limits::default();
        change(&mut limits);
        Gate::new(&limits)
    }

    #[test]
    fn a_place_is_given_back_when_its_permit_goes() {
        let gate = gate(|limits| limits.connections = 2);
        let first = gate.admit(ADA).unwrap();
        let mut second = gate.admit(BOB).unwrap();
        second.authenticated();
        second.authenticated();
        assert_eq!(gate.counts(), Counts { open: 2, unauthenticated: 1 });
        assert_eq!(gate.admit(ADA).unwrap_err(), Refusal::Full);
        drop((first, second));
        assert_eq!(gate.counts(), Counts::default());
        assert!(gate.core().by_source.is_empty(), "an address without connections takes no memory");
    }

    #[test]
    fn one_address_cannot_keep_the_others_out() {
        let gate = gate(|limits| limits.unauthenticated_per_address = 1);
        let mut first = gate.admit(ADA).unwrap();
        assert_eq!(gate.admit(ADA).unwrap_err(), Refusal::TooManyStrangersHere);
        let _bob = gate.admit(BOB).unwrap();
        first.authenticated();
        gate.admit(ADA).unwrap();
    }

    #[test]
    fn each_limit_is_kept() {
        let busy = gate(|limits| limits.connections_per_address = 1);
        let _in = busy.admit(ADA).unwrap();
        assert_eq!(busy.admit(ADA).unwrap_err(), Refusal::AddressFull);
        let strange = gate(|limits| limits.unauthenticated = 1);
        let _in = strange.admit(ADA).unwrap();
        assert_eq!(strange.admit(BOB).unwrap_err(), Refusal::TooManyStrangers);
    }

    #[test]
    fn a_subscriber_is_one_source() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), ADA);
    }
}
