//! Who may connect: counts of open and of unauthenticated connections, in all and for each address.
//!
//! A newcomer takes the place of the oldest unauthenticated connection of the heaviest source rather
//! than being refused, so that whoever only holds connections open locks out nobody but himself.
//! The core is pure; [`Gate`] shares it, and a [`Permit`] gives its place back when it is dropped.
//!
//! **Invariant:** the counts are those of the permits that live and were not evicted, and an address
//! without a connection takes no memory. A connection that is logged in is never evicted.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::crowd::{Crowd, source_of};
use crate::config;

/// How long a connection is safe from newcomers that weigh as much as it does: a handshake and a
/// login are done by then. Without it a crowd that comes at once, as after a restart of the node,
/// would push itself out before anybody is logged in.
const SETTLING: Duration = Duration::from_secs(1);

/// One in so many places for unauthenticated connections may be held while a person reads a PIN.
const WAITING_SHARE: u32 = 4;

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

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client's: the limits of its address hold.
    Client,
    /// A proxy's that has not named its client yet: all clients come from its address.
    Proxy,
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

#[derive(Debug, Default)]
struct Core {
    limits: Bounds,
    total: Counts,
    by_source: BTreeMap<IpAddr, Counts>,
    strangers: BTreeMap<u64, Stranger>,
    crowd: Crowd,
    /// Those of the crowd that wait for a person to read a PIN.
    waiting: Crowd,
    next: u64,
}

/// A connection that is not logged in.
#[derive(Debug)]
struct Stranger {
    source: IpAddr,
    since: Instant,
    evicted: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    total: Counts,
    source: Counts,
}

impl Bounds {
    fn of(limits: &config::Limits) -> Self {
        let or_unlimited = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        Self {
            total: Counts { open: limits.connections, unauthenticated: limits.unauthenticated },
            source: Counts {
                open: or_unlimited(limits.connections_per_address),
                unauthenticated: or_unlimited(limits.unauthenticated_per_address),
            },
        }
    }
}

impl Core {
    /// A place for a connection from `source`, and who must leave for it.
    fn admit(
        &mut self,
        source: IpAddr,
        caller: Caller,
        now: Instant,
    ) -> Result<(u64, Arc<Notify>), Refusal> {
        if let Some(victim) = self.who_must_leave(source, caller, now)? {
            self.evict(victim);
        }
        self.total.add();
        self.by_source.entry(source).or_default().add();
        self.next += 1;
        let evicted = Arc::new(Notify::new());
        let stranger = Stranger { source, since: now, evicted: evicted.clone() };
        self.strangers.insert(self.next, stranger);
        self.crowd.insert(source, self.next);
        Ok((self.next, evicted))
    }

    fn who_must_leave(
        &self,
        source: IpAddr,
        caller: Caller,
        now: Instant,
    ) -> Result<Option<u64>, Refusal> {
        let here = self.by_source.get(&source).copied().unwrap_or_default();
        let Bounds { total, source: each } = self.limits;
        let limited = caller == Caller::Client;
        if limited && here.open >= each.open {
            return self.oldest_of(source, source, now).ok_or(Refusal::AddressFull).map(Some);
        }
        if limited && here.unauthenticated >= each.unauthenticated {
            let oldest = self.oldest_of(source, source, now);
            return oldest.ok_or(Refusal::TooManyStrangersHere).map(Some);
        }
        let refusal = if self.total.open >= total.open {
            Refusal::Full
        } else if self.total.unauthenticated >= total.unauthenticated {
            Refusal::TooManyStrangers
        } else {
            return Ok(None);
        };
        let heaviest = self.crowd.heaviest().ok_or(refusal)?;
        self.oldest_of(heaviest, source, now).ok_or(refusal).map(Some)
    }

    /// Who of `source` leaves for a newcomer. First who waits for a person: the PIN may be brought on
    /// another connection.
    fn oldest_of(&self, source: IpAddr, newcomer: IpAddr, now: Instant) -> Option<u64> {
        if let Some(waiting) = self.waiting.oldest_of(source) {
            return Some(waiting);
        }
        let oldest = self.crowd.oldest_of(source)?;
        let settled = self.strangers.get(&oldest)?.since + SETTLING <= now;
        let lighter = self.crowd.is_lighter(newcomer, source);
        (settled || lighter).then_some(oldest)
    }

    fn evict(&mut self, number: u64) {
        if let Some(Stranger { source, evicted, .. }) = self.forget(number) {
            self.leave(source, false);
            evicted.notify_one();
        }
    }

    /// Takes a connection off the lists of those that are not logged in.
    fn forget(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.strangers.remove(&number)?;
        self.crowd.remove(stranger.source, number);
        self.waiting.remove(stranger.source, number);
        Some(stranger)
    }

    /// False if it was evicted.
    fn log_in(&mut self, number: u64) -> bool {
        let Some(Stranger { source, .. }) = self.forget(number) else { return false };
        self.total.log_in();
        if let Some(here) = self.by_source.get_mut(&source) {
            here.log_in();
        }
        true
    }

    fn wait_for_pin(&mut self, number: u64) {
        let Some(stranger) = self.strangers.get(&number) else { return };
        let source = stranger.source;
        let share = |limit: u32| usize::try_from((limit / WAITING_SHARE).max(1)).unwrap_or(1);
        let Bounds { total, source: each } = self.limits;
        let oldest = if self.waiting.weight(source).source >= share(each.unauthenticated) {
            self.waiting.oldest_of(source)
        } else if self.waiting.len() >= share(total.unauthenticated) {
            self.waiting.heaviest().and_then(|source| self.waiting.oldest_of(source))
        } else {
            None
        };
        self.waiting.insert(source, number);
        if let Some(oldest) = oldest.filter(|oldest| *oldest != number) {
            self.evict(oldest);
        }
    }

    fn leave(&mut self, source: IpAddr, is_authenticated: bool) {
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
pub struct Gate {
    core: Arc<Mutex<Core>>,
    /// Whether metrics show what happens here.
    is_counted: bool,
}

impl Gate {
    /// A gate with nobody in.
    pub fn new(limits: &config::Limits) -> Self {
        let core = Core { limits: Bounds::of(limits), ..Core::default() };
        Self { core: Arc::new(Mutex::new(core)), is_counted: true }
    }

    /// A gate for connections that never log in and are no clients: at most `connections`, and so many
    /// from one address. Metrics do not count them.
    pub fn for_pages(connections: u32, per_address: u32) -> Self {
        let limits = config::Limits {
            connections,
            unauthenticated: connections,
            unauthenticated_per_address: per_address,
            ..config::Limits::default()
        };
        Self { is_counted: false, ..Self::new(&limits) }
    }

    /// Other limits from now on. Who is in stays.
    pub fn set_limits(&self, limits: &config::Limits) {
        self.core().limits = Bounds::of(limits);
    }

    /// Lets a connection from `address` in, as one that is not logged in.
    ///
    /// # Errors
    /// [`Refusal`]: the limit that is reached while nobody can be evicted.
    pub fn admit(&self, address: IpAddr, caller: Caller) -> Result<Permit, Refusal> {
        let source = source_of(address);
        let admitted = {
            let mut core = self.core();
            let before = core.strangers.len();
            let admitted = core.admit(source, caller, Instant::now());
            if self.is_counted && admitted.is_ok() && core.strangers.len() == before {
                counter!("natter_connections_evicted_total").increment(1);
            }
            self.record(core.total);
            admitted
        };
        let (number, evicted) = admitted.inspect_err(|refusal| {
            if self.is_counted {
                let reason = refusal.name();
                counter!("natter_connections_refused_total", "reason" => reason).increment(1);
            }
        })?;
        let gate = self.clone();
        Ok(Permit { gate, source, number, evicted, is_authenticated: false })
    }

    /// How many are in.
    pub fn counts(&self) -> Counts {
        self.core().total
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    fn record(&self, counts: Counts) {
        if self.is_counted {
            gauge!("natter_connections").set(counts.open);
            gauge!("natter_connections_unauthenticated").set(counts.unauthenticated);
        }
    }
}

/// The right to be connected, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    source: IpAddr,
    number: u64,
    evicted: Arc<Notify>,
    is_authenticated: bool,
}

impl Permit {
    /// The connection logged in and no longer counts as a stranger's. False if it was evicted: it must
    /// close.
    #[must_use]
    pub fn log_in(&mut self) -> bool {
        if !self.is_authenticated {
            let mut core = self.gate.core();
            self.is_authenticated = core.log_in(self.number);
            self.gate.record(core.total);
        }
        self.is_authenticated
    }

    /// The connection waits for a person to read a PIN. Such connections hold one place in four at
    /// most; the oldest of the heaviest source leaves for this one.
    pub fn wait_for_pin(&self) {
        self.gate.core().wait_for_pin(self.number);
    }

    /// Returns when the place was given to another, and before a login only. Cancel safe.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut core = self.gate.core();
        if self.is_authenticated {
            core.leave(self.source, true);
        } else {
            core.evict(self.number);
        }
        self.gate.record(core.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn core(change: impl FnOnce(&mut config::Limits)) -> Core {
        let mut limits = config::Limits::default();
        change(&mut limits);
        Core { limits: Bounds::of(&limits), ..Core::default() }
    }

    fn source(network: u8, host: u8) -> IpAddr {
        IpAddr::from([10, 0, network, host])
    }

    #[test]
    fn a_place_is_given_back_when_its_permit_goes() {
        let gate = Gate::new(&config::Limits { connections: 2, ..config::Limits::default() });
        let mut first = gate.admit(ADA, Caller::Client).unwrap();
        let mut second = gate.admit(BOB, Caller::Client).unwrap();
        assert!(second.log_in() && second.log_in() && first.log_in());
        assert_eq!(gate.counts(), Counts { open: 2, unauthenticated: 0 });
        assert_eq!(gate.admit(ADA, Caller::Client).unwrap_err(), Refusal::Full);
        drop((first, second));
        assert_eq!(gate.counts(), Counts::default());
        assert!(gate.core().by_source.is_empty(), "an address without connections takes no memory");
    }

    #[test]
    fn four_thousand_silent_connections_from_four_addresses_keep_nobody_out() {
        let mut core = core(|_| {});
        let begun = Instant::now();
        let mut refused = 0;
        for number in 0..12_000_u64 {
            // 400 a second, each held as long as the gate lets it.
            let now = begun + Duration::from_micros(2_500 * number);
            let silent = source(0, u8::try_from(number % 4).unwrap());
            refused += u32::from(core.admit(silent, Caller::Client, now).is_err());
            if number % 40 == 0 {
                let (honest, _) = core.admit(source(9, 9), Caller::Client, now).unwrap();
                assert!(core.log_in(honest), "at {number}");
                core.leave(source(9, 9), true);
            }
        }
        assert_eq!(refused, 0, "each took the place of one of its own address");
        let share = config::Limits::default().unauthenticated_per_address;
        assert_eq!(core.total.unauthenticated, 4 * share);
    }

    #[test]
    fn when_all_places_are_held_the_heaviest_network_gives_one() {
        let mut core = core(|limits| limits.unauthenticated = 10);
        let now = Instant::now();
        let (light, _) = core.admit(source(1, 1), Caller::Client, now).unwrap();
        for host in 0..9 {
            core.admit(source(0, host), Caller::Client, now).unwrap();
        }
        // Another one of the heavy network weighs as much and must wait until the others settled.
        let late = core.admit(source(0, 99), Caller::Client, now);
        assert_eq!(late.unwrap_err(), Refusal::TooManyStrangers);
        core.admit(source(2, 1), Caller::Client, now).unwrap();
        core.admit(source(0, 99), Caller::Client, now + SETTLING).unwrap();
        assert!(core.strangers.contains_key(&light));
        assert_eq!(core.total.unauthenticated, 10);
    }

    #[test]
    fn a_crowd_that_comes_at_once_does_not_push_itself_out() {
        let mut core = core(|limits| limits.unauthenticated_per_address = 2);
        let now = Instant::now();
        let (first, _) = core.admit(ADA, Caller::Client, now).unwrap();
        core.admit(ADA, Caller::Client, now).unwrap();
        let third = core.admit(ADA, Caller::Client, now).unwrap_err();
        assert_eq!(third, Refusal::TooManyStrangersHere);
        assert!(core.log_in(first), "whoever was first is let in");
        core.admit(ADA, Caller::Client, now).unwrap();
    }

    #[test]
    fn an_evicted_connection_is_told_and_cannot_log_in() {
        let mut core = core(|limits| limits.connections_per_address = 1);
        let now = Instant::now();
        let (first, told) = core.admit(ADA, Caller::Client, now).unwrap();
        assert_eq!(core.admit(ADA, Caller::Client, now).unwrap_err(), Refusal::AddressFull);
        core.admit(ADA, Caller::Client, now + SETTLING).unwrap();
        assert!(!core.log_in(first));
        let mut notified = std::pin::pin!(told.notified());
        assert!(notified.as_mut().enable(), "it is woken");
        assert_eq!(core.total, Counts { open: 1, unauthenticated: 1 });
    }

    #[test]
    fn who_is_logged_in_is_never_evicted() {
        let mut core = core(|limits| limits.connections = 1);
        let now = Instant::now();
        let (first, _) = core.admit(ADA, Caller::Client, now).unwrap();
        assert!(core.log_in(first));
        let later = now + Duration::from_hours(1);
        assert_eq!(core.admit(BOB, Caller::Client, later).unwrap_err(), Refusal::Full);
    }

    #[test]
    fn who_waits_for_a_pin_leaves_first_and_few_may_wait() {
        let mut core = core(|limits| limits.unauthenticated_per_address = 8);
        let now = Instant::now();
        let numbers: Vec<u64> =
            (0..8).map(|_| core.admit(ADA, Caller::Client, now).unwrap().0).collect();
        for number in &numbers[3..6] {
            core.wait_for_pin(*number);
        }
        assert!(!core.strangers.contains_key(&numbers[3]), "two of eight may wait");
        core.admit(ADA, Caller::Client, now).unwrap();
        core.admit(ADA, Caller::Client, now).unwrap();
        assert!(!core.strangers.contains_key(&numbers[4]), "the place of one that waits");
        assert!(core.strangers.contains_key(&numbers[0]));
    }

    #[test]
    fn the_limits_of_an_address_do_not_hold_for_a_proxy() {
        let mut core = core(|limits| {
            limits.connections_per_address = 1;
            limits.unauthenticated_per_address = 1;
        });
        for _ in 0..100 {
            core.admit(ADA, Caller::Proxy, Instant::now()).unwrap();
        }
    }
}
