//! Asking for a PIN and proving it: limits for each address, and sending.
//!
//! What an alias's shard counts is in `actors::shard`; here it is what one address may do on this node.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use actors::connection::Refusal;
use actors::rates::TooFast;
use actors::user::{self, Admission, UserContext};
use metrics::counter;
use proto::{Alias, Code, Fault, wire};
use supervision::Paced;
use tokio::time::Instant;
use tracing::warn;

use crate::listener::source_of;
use crate::pins::PinSender;

/// Time over which an address's requests are counted, in ms.
const HOUR_MS: u64 = 3_600_000;

/// Addresses remembered at most. Beyond it those with the fewest requests are forgotten: who has more
/// addresses than this is held back by the limits of aliases and shards.
const ADDRESSES: usize = 100_000;

/// How often the addresses are gone through for those whose hour has ended, in ms.
const SWEEP_MS: u64 = 60_000;

/// Wrong PINs that an address may send for each PIN that it may ask for: a person mistypes.
const WRONG_PER_PIN: u32 = 5;

/// How aliases are proven on this node.
#[derive(Debug)]
pub struct Registration {
    sender: PinSender,
    per_hour: u32,
    asked: Mutex<Counts>,
    wrong: Mutex<Counts>,
}

/// Requests of each address in its current hour. A pure core.
#[derive(Debug, Default)]
struct Counts {
    addresses: BTreeMap<IpAddr, (u32, u64)>,
    swept_ms: u64,
}

impl Counts {
    /// How many requests an address has made in its hour.
    fn of(&self, address: IpAddr, now_ms: u64) -> u32 {
        let counted =
            self.addresses.get(&address).filter(|(_, since_ms)| !ended(*since_ms, now_ms));
        counted.map_or(0, |(count, _)| *count)
    }

    /// True if an address has made fewer than `most` requests.
    ///
    /// # Errors
    /// [`TooFast`]: its hour ends after that time.
    fn check(&self, address: IpAddr, most: u32, now_ms: u64) -> Result<(), TooFast> {
        if self.of(address, now_ms) < most {
            return Ok(());
        }
        let since_ms = self.addresses.get(&address).map_or(now_ms, |(_, since_ms)| *since_ms);
        let after_ms = (since_ms + HOUR_MS).saturating_sub(now_ms).max(1);
        Err(TooFast { after_ms: u32::try_from(after_ms).unwrap_or(u32::MAX) })
    }

    /// Counts one.
    fn add(&mut self, address: IpAddr, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.addresses.retain(|_, (_, since_ms)| !ended(*since_ms, now_ms));
        }
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&address) {
            self.evict();
        }
        let (count, since_ms) = self.addresses.entry(address).or_insert((0, now_ms));
        if ended(*since_ms, now_ms) {
            (*count, *since_ms) = (0, now_ms);
        }
        *count = count.saturating_add(1);
    }

    /// Takes one back.
    fn take_back(&mut self, address: IpAddr) {
        if let Some((count, _)) = self.addresses.get_mut(&address) {
            *count = count.saturating_sub(1);
        }
    }

    /// Forgets an eighth: those with the fewest requests, of them the oldest.
    fn evict(&mut self) {
        let each =
            self.addresses.iter().map(|(address, (count, since))| (*count, *since, *address));
        let mut each: Vec<_> = each.collect();
        each.sort_unstable();
        for (_, _, address) in each.into_iter().take(ADDRESSES / 8) {
            self.addresses.remove(&address);
        }
    }
}

fn ended(since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) >= HOUR_MS
}

impl Registration {
    /// Sends PINs by `sender`, at most so many an hour for each address.
    pub fn new(sender: PinSender, per_hour: u32) -> Self {
        Self { sender, per_hour, asked: Mutex::default(), wrong: Mutex::default() }
    }

    /// Makes a PIN for `alias` and sends it. What is no alias, and what the node could not send, does
    /// not count. What goes beyond the PINs of an hour for all aliases does: asking on costs the cluster.
    ///
    /// # Errors
    /// [`Code::TooFast`] for an address or an alias that asks too often, with the wait until it may again,
    /// [`Code::BadRequest`] for what is no alias, [`Code::PinNotSent`], [`Code::Unavailable`].
    pub async fn ask(
        &self,
        context: &UserContext,
        address: IpAddr,
        alias: &str,
    ) -> Result<wire::PinSent, Refusal> {
        let alias = Alias::parse(alias).map_err(|why| Refusal::field("alias", why))?;
        let (address, now_ms) = (source_of(address), context.clock.now_ms());
        lock(&self.asked).check(address, self.per_hour, now_ms)?;
        lock(&self.asked).add(address, now_ms);
        let asked = user::register_start(context, alias).await.inspect_err(|refusal| {
            if refusal.code.fault() == Fault::Server && refusal.code != Code::PinNotSent {
                lock(&self.asked).take_back(address);
            }
        })?;
        if let Some(pin) = &asked.pin
            && let Err(error) = self.sender.send(&asked.alias, pin).await
        {
            warn!(%error, "PIN not sent");
            user::register_not_sent(context, &asked.alias, pin).await;
            lock(&self.asked).take_back(address);
            return Err(Code::PinNotSent.into());
        }
        Ok(asked.sent)
    }

    /// Proves a PIN. Only wrong ones count.
    ///
    /// # Errors
    /// [`Code::TooFast`] for an address with too many wrong ones; else as
    /// [`user::register_prove`].
    pub async fn prove(
        &self,
        context: &UserContext,
        address: IpAddr,
        nonce: &[u8],
        prove: wire::RegisterProve,
    ) -> Result<Admission, Refusal> {
        let (address, now_ms) = (source_of(address), context.clock.now_ms());
        let wrong_max = self.per_hour.saturating_mul(WRONG_PER_PIN);
        lock(&self.wrong).check(address, wrong_max, now_ms)?;
        let admitted = user::register_prove(context, nonce, address, prove).await;
        if admitted.as_ref().is_err_and(|refusal| refusal.code == Code::WrongPin) {
            count_wrong_pin();
            lock(&self.wrong).add(address, now_ms);
        }
        admitted
    }
}

fn lock(counts: &Mutex<Counts>) -> parking_lot::MutexGuard<'_, Counts> {
    counts.lock()
}

/// How often wrong PINs are told: a person mistypes one, an attacker thousands.
const WRONG_PINS_AGAIN: Duration = Duration::from_mins(1);

fn count_wrong_pin() {
    static WRONG: Paced = Paced::new(WRONG_PINS_AGAIN);
    counter!("natter_pins_wrong_total").increment(1);
    if let Some(times) = WRONG.count(Instant::now()) {
        warn!(times, "wrong PINs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn an_hour_after_its_first_request_an_address_begins_anew() {
        let mut asked = Counts::default();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        (0..3).for_each(|_| asked.add(here, 1_000));
        assert_eq!((asked.of(here, 2_000), asked.of(there, 2_000)), (3, 0));
        asked.take_back(here);
        assert_eq!(asked.of(here, 2_000), 2);
        assert_eq!(asked.of(here, 1_000 + HOUR_MS), 0);
        assert_eq!(asked.check(here, 3, 2_000), Ok(()));
        assert_eq!(asked.check(here, 2, 2_000), Err(TooFast { after_ms: 3_599_000 }));
        assert_eq!(asked.check(here, 2, 1_000 + HOUR_MS), Ok(()), "that was the wait");
    }

    #[test]
    fn a_full_table_forgets_who_asked_least_and_takes_everybody() {
        let mut asked = Counts::default();
        let address = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
        let heavy = address(u32::MAX >> 8);
        (0..3).for_each(|_| asked.add(heavy, 0));
        for n in 0..150_000 {
            asked.add(address(n), 1);
            assert_eq!(asked.of(address(n), 1), 1, "a new address is counted");
        }
        assert!(asked.addresses.len() <= ADDRESSES);
        assert_eq!(asked.of(heavy, 1), 3, "who asks often is not forgotten");
    }
}
