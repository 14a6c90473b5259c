//! Rates at which one user, and one address, may ask and store. A pure core, by the generic cell rate algorithm:
//! of each bucket only the time is kept at which it will be full.
//!
//! # Invariants
//! 1. The buckets belong to the node: a new connection or a new user actor finds them as they were.
//! 2. The table is bounded. A bucket that is forgotten is a full one, so nobody is ever locked out by it.
//! 3. A clock that is set back empties a bucket at most; it fills at its rate from then on.

use parking_lot::{Mutex, RwLock};
use proto::UserId;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use membership::units::{format_duration, parse_duration};

/// Parts of the table, so that threads seldom wait for each other.
const PARTS: usize = 64;

/// Buckets in one part that are not full: 65,536 in all, three for each of 19,000 connections, in 4 MiB. A
/// bucket of bytes is full again after half a minute.
const PART_BUCKETS: usize = 1_024;

/// Most requests that a bucket may hold.
const COUNT_MAX: u32 = 1_000_000;

/// Shortest and longest time in which a bucket fills.
const WHOLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(30 * 24));

/// A bucket of bytes holds those of so many seconds: a device that was offline sends what it has written.
const BYTES_BURST: Duration = Duration::from_secs(32);

/// A bucket of so many requests, or bytes, and the time in which all of it fills again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    whole: Duration,
}

/// A text is no [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rate; write for example \"120/60s\": 1 to 1000000 requests in 1s to 30days")]
pub struct NoRate;

impl FromStr for Rate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let (count, whole) = text.split_once('/').ok_or(NoRate)?;
        let count = count.trim().parse().map_err(|_| NoRate)?;
        let whole = parse_duration(whole.trim()).ok_or(NoRate)?;
        let fits = (1..=COUNT_MAX).contains(&count) && (WHOLE.0..=WHOLE.1).contains(&whole);
        if fits { Ok(Self { count, whole }) } else { Err(NoRate) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, format_duration(self.whole))
    }
}

impl Rate {
    /// The time in which an empty bucket fills, in microseconds.
    fn whole_us(self) -> u64 {
        u64::try_from(self.whole.as_micros()).unwrap_or(u64::MAX)
    }

    /// So many bytes a second in the long run, and those of [`BYTES_BURST`] at once; `None` for 0: no limit.
    pub fn of_bytes(per_second: u64) -> Option<Self> {
        let count = per_second.saturating_mul(BYTES_BURST.as_secs()).min(u32::MAX.into());
        let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
        Some(Self { count, whole: BYTES_BURST })
    }

    /// The time in which so many come back, in microseconds.
    fn some_us(self, some: u64) -> u64 {
        let us = u128::from(self.whole_us()) * u128::from(some) / u128::from(self.count);
        u64::try_from(us).unwrap_or(u64::MAX)
    }
}

/// Requests that share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `Send`.
    Send,
    /// `Signal`.
    Signal,
    /// `Lookup`, and a `Send` to an alias whose owner is not known: both say who exists.
    Lookup,
    /// The same in a day.
    LookupDaily,
    /// `Subscribe`, either way.
    Subscribe,
    /// Changes of the account.
    Change,
    /// `SetPresence`.
    Presence,
    /// `MarkRead`.
    Read,
    /// The rest.
    Other,
    /// Frames that ask for nothing and say nothing new: an `Ack` of what was acknowledged before or never
    /// delivered, a `Pong` that answers no `Ping`, pings of WebSocket.
    Needless,
    /// Good logins and resumptions of one user.
    Login,
    /// Tries to log in or to resume from one address.
    LoginAddress,
    /// Devices that ask to be linked to one user's account.
    Link,
    /// The same from one address.
    LinkAddress,
    /// Bytes of bodies that are sent; their rate comes with each send.
    Bytes,
}

/// The rates that an operator has set; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// [`Kind::Send`]
    pub sends: Option<Rate>,
    /// [`Kind::Signal`]
    pub signals: Option<Rate>,
    /// [`Kind::Lookup`]
    pub lookups: Option<Rate>,
    /// [`Kind::LookupDaily`]
    pub lookups_daily: Option<Rate>,
    /// [`Kind::Subscribe`]
    pub subscribes: Option<Rate>,
    /// [`Kind::Change`]
    pub changes: Option<Rate>,
    /// [`Kind::Presence`]
    pub presence: Option<Rate>,
    /// [`Kind::Read`]
    pub reads: Option<Rate>,
    /// [`Kind::Other`]
    pub other: Option<Rate>,
    /// [`Kind::Needless`]
    pub needless: Option<Rate>,
    /// [`Kind::Login`]
    pub logins: Option<Rate>,
    /// [`Kind::LoginAddress`]
    pub logins_per_address: Option<Rate>,
    /// [`Kind::Link`]
    pub links: Option<Rate>,
    /// [`Kind::LinkAddress`]
    pub links_per_address: Option<Rate>,
}

impl RateLimits {
    fn of(&self, kind: Kind) -> Option<Rate> {
        match kind {
            Kind::Send => self.sends,
            Kind::Signal => self.signals,
            Kind::Lookup => self.lookups,
            Kind::LookupDaily => self.lookups_daily,
            Kind::Subscribe => self.subscribes,
            Kind::Change => self.changes,
            Kind::Presence => self.presence,
            Kind::Read => self.reads,
            Kind::Other => self.other,
            Kind::Needless => self.needless,
            Kind::Login => self.logins,
            Kind::LoginAddress => self.logins_per_address,
            Kind::Link => self.links,
            Kind::LinkAddress => self.links_per_address,
            Kind::Bytes => None,
        }
    }
}

/// Whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A user, over all devices.
    User(UserId),
    /// An address, or for IPv6 the network of one subscriber.
    Address(IpAddr),
}

impl Who {
    /// The part of the table that holds this one's buckets.
    fn part(self) -> usize {
        let number = match self {
            Self::User(user) => user.0,
            Self::Address(IpAddr::V4(address)) => address.to_bits().into(),
            Self::Address(IpAddr::V6(address)) => {
                u64::try_from(address.to_bits() >> 64).unwrap_or(0)
            }
        };
        // The upper bits of a product with an odd constant depend on all bits of the number.
        usize::try_from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).unwrap_or(0) % PARTS
    }
}

/// A request came too fast. It passes after so many ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFast {
    /// At least 1.
    pub after_ms: u32,
}

/// When each bucket that is not full will be, in microseconds.
type Part = BTreeMap<(Who, Kind), u64>;

/// The buckets of all users and addresses of a node.
#[derive(Debug)]
pub struct Rates {
    limits: RwLock<RateLimits>,
    parts: Vec<Mutex<Part>>,
}

impl Rates {
    /// All buckets are full.
    pub fn new(limits: RateLimits) -> Self {
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        Self { limits: RwLock::new(limits), parts }
    }

    /// Other rates from now on.
    pub fn set_limits(&self, limits: RateLimits) {
        *self.limits.write() = limits;
    }

    /// Counts one request, unless it comes too fast.
    ///
    /// # Errors
    /// [`TooFast`].
    pub fn take(&self, who: Who, kind: Kind, now_ms: u64) -> Result<(), TooFast> {
        let rate = self.limits.read().of(kind);
        rate.map_or(Ok(()), |rate| self.take_some(who, kind, (rate, 1), now_ms))
    }

    /// Counts so many bytes that are sent, unless they come too fast. A full bucket has room for one body,
    /// however long it is.
    ///
    /// # Errors
    /// [`TooFast`].
    pub fn take_bytes(
        &self,
        who: Who,
        rate: Option<Rate>,
        bytes: u64,
        now_ms: u64,
    ) -> Result<(), TooFast> {
        rate.map_or(Ok(()), |rate| self.take_some(who, Kind::Bytes, (rate, bytes), now_ms))
    }

    fn take_some(
        &self,
        who: Who,
        kind: Kind,
        (rate, some): (Rate, u64),
        now_ms: u64,
    ) -> Result<(), TooFast> {
        let Some(part) = self.parts.get(who.part()) else { return Ok(()) };
        let mut part = part.lock();
        let time_us = now_ms.saturating_mul(1_000);
        let empty_us = time_us.saturating_add(rate.whole_us());
        let known = part.get_mut(&(who, kind));
        let before_us = known.as_deref().map_or(0, |full_us| (*full_us).min(empty_us));
        let full_us = before_us.max(time_us).saturating_add(rate.some_us(some));
        let passes = full_us <= empty_us || before_us <= time_us;
        if let Some(known) = known {
            *known = if passes { full_us.min(empty_us) } else { before_us };
        } else if passes {
            if part.len() >= PART_BUCKETS {
                make_room(&mut part, time_us);
            }
            part.insert((who, kind), full_us.min(empty_us));
        }
        if passes {
            return Ok(());
        }
        let after_ms = (full_us - empty_us).div_ceil(1_000);
        Err(TooFast { after_ms: u32::try_from(after_ms).unwrap_or(u32::MAX) })
    }
}

/// Forgets the buckets that are full, or else the one that will be full first.
fn make_room(part: &mut Part, time_us: u64) {
    part.retain(|_, full_us| *full_us > time_us);
    let first = part.iter().min_by_key(|(_, full_us)| **full_us).map(|(key, _)| *key);
    if part.len() >= PART_BUCKETS
        && let Some(first) = first
    {
        part.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: Who = Who::User(UserId(1));
    const NOW: u64 = 1_700_000_000_000;

    fn lookups(rate: &str) -> Rates {
        let lookups = Some(rate.parse().unwrap());
        Rates::new(RateLimits { lookups, ..RateLimits::default() })
    }

    fn look(rates: &Rates, who: Who, now_ms: u64) -> Result<(), u32> {
        rates.take(who, Kind::Lookup, now_ms).map_err(|TooFast { after_ms }| after_ms)
    }

    #[test]
    fn a_bucket_empties_and_fills_at_its_rate() {
        let rates = lookups("3/6s");
        for _ in 0..3 {
            assert_eq!(look(&rates, ADA, NOW), Ok(()));
        }
        assert_eq!(look(&rates, ADA, NOW), Err(2_000));
        assert_eq!(look(&rates, ADA, NOW + 1_500), Err(500), "a refusal costs nothing");
        assert_eq!(look(&rates, ADA, NOW + 2_000), Ok(()));
        assert_eq!(look(&rates, ADA, NOW + 2_000), Err(2_000));
        for _ in 0..3 {
            assert_eq!(look(&rates, ADA, NOW + 60_000), Ok(()), "full, and no fuller");
        }
        assert_eq!(look(&rates, ADA, NOW + 60_000), Err(2_000));
    }

    #[test]
    fn users_and_kinds_are_counted_apart_and_no_rate_is_no_limit() {
        let rates = lookups("1/60s");
        assert_eq!(look(&rates, ADA, NOW), Ok(()));
        assert_eq!(look(&rates, ADA, NOW), Err(60_000));
        assert_eq!(look(&rates, Who::User(UserId(2)), NOW), Ok(()));
        assert_eq!(look(&rates, Who::Address([127, 0, 0, 1].into()), NOW), Ok(()));
        for _ in 0..1_000 {
            assert_eq!(rates.take(ADA, Kind::Send, NOW), Ok(()));
        }
        rates.set_limits(RateLimits::default());
        assert_eq!(look(&rates, ADA, NOW), Ok(()), "the operator took it away");
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let rates = lookups("2/10s");
        assert_eq!(look(&rates, ADA, NOW), Ok(()));
        let before = NOW - 3_600_000;
        assert_eq!(look(&rates, ADA, before), Err(5_000));
        assert_eq!(look(&rates, ADA, before + 5_000), Ok(()));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_full_buckets_first() {
        let rates = lookups("2/10s");
        for user in 0..90_000 {
            assert_eq!(look(&rates, Who::User(UserId(user)), NOW + user / 45), Ok(()));
        }
        let buckets =
            |rates: &Rates| rates.parts.iter().map(|part| part.lock().len()).sum::<usize>();
        assert_eq!(buckets(&rates), PARTS * PART_BUCKETS, "users fall into all parts");
        let last = Who::User(UserId(89_999));
        assert_eq!(look(&rates, last, NOW + 2_000), Ok(()), "one of two was left");
        assert!(look(&rates, last, NOW + 2_000).is_err(), "the newest was kept");
        for user in 200_000..201_000 {
            assert_eq!(look(&rates, Who::User(UserId(user)), NOW + 60_000), Ok(()));
        }
        assert_eq!(buckets(&rates), 1_000, "nobody else's bucket was less than full");
    }

    #[test]
    fn bytes_go_through_in_a_burst_and_then_at_their_rate() {
        let (rates, rate) = (Rates::new(RateLimits::default()), Rate::of_bytes(1_000));
        let house = Who::Address([127, 0, 0, 1].into());
        let stored = |who, now_ms, count| {
            let takes = |_: &i32| rates.take_bytes(who, rate, 1_000, now_ms).is_ok();
            (0..count).filter(takes).count()
        };
        assert_eq!(stored(ADA, NOW, 100), 32);
        assert_eq!(stored(house, NOW, 100), 32, "others have their own");
        assert_eq!(stored(ADA, NOW + 5_000, 100), 5);
        assert_eq!(
            rates.take_bytes(ADA, rate, 3_000, NOW + 5_000),
            Err(TooFast { after_ms: 3_000 })
        );
        assert_eq!(rates.take_bytes(ADA, Rate::of_bytes(0), 1 << 40, NOW), Ok(()), "no limit");
        let bob = Who::User(UserId(2));
        assert_eq!(rates.take_bytes(bob, rate, 100_000, NOW), Ok(()), "a long body fits once");
        assert!(rates.take_bytes(bob, rate, 1, NOW + 31_999).is_ok());
        assert!(rates.take_bytes(bob, rate, 40_000, NOW + 32_000).is_err(), "not full");
    }

    #[test]
    fn a_rate_is_written_as_it_is_read() {
        for text in ["120/1m", "2000/1day", "1/1s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "0", "5", "0/1s", "1/0s", "-1/5s", "1/5", "1000001/1s", "1/31days"] {
            assert_eq!(text.parse::<Rate>(), Err(NoRate), "{text}");
        }
    }
}
