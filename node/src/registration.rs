//! Asking for a PIN: limits for each address, then the PIN is made, stored and sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use actors::context::Context;
use actors::user;
use proto::{Code, wire};
use tracing::warn;

use crate::listener::source_of;
use crate::pins::PinSender;

/// Time over which an address's requests are counted, in ms.
const HOUR_MS: u64 = 3_600_000;

/// Addresses remembered at most; beyond it those that come new must wait.
const ADDRESSES: usize = 100_000;

/// How often the addresses are gone through for those whose hour has ended, in ms.
const SWEEP_MS: u64 = 60_000;

/// Proofs that an address may send for each PIN that it may ask for: a person mistypes.
const PROOFS_PER_PIN: u32 = 5;

/// How aliases are proven on this node.
#[derive(Debug)]
pub struct Registration {
    sender: PinSender,
    per_hour: u32,
    asked: Mutex<Counts>,
    proofs: Mutex<Counts>,
}

/// Requests of each address in its current hour. A pure core.
#[derive(Debug, Default)]
struct Counts {
    addresses: BTreeMap<IpAddr, (u32, u64)>,
    swept_ms: u64,
}

impl Counts {
    fn allows(&mut self, address: IpAddr, now_ms: u64, per_hour: u32) -> bool {
        let ended = |since_ms: u64| now_ms.saturating_sub(since_ms) >= HOUR_MS;
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.addresses.retain(|_, (_, since_ms)| !ended(*since_ms));
        }
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&address) {
            return false;
        }
        let (count, since_ms) = self.addresses.entry(address).or_insert((0, now_ms));
        if ended(*since_ms) {
            (*count, *since_ms) = (0, now_ms);
        }
        *count = count.saturating_add(1);
        *count <= per_hour
    }
}

impl Registration {
    /// Sends PINs by `sender`, at most so many an hour for each address.
    pub fn new(sender: PinSender, per_hour: u32) -> Self {
        Self { sender, per_hour, asked: Mutex::default(), proofs: Mutex::default() }
    }

    /// Whether `address` may try a PIN now.
    ///
    /// # Errors
    /// [`Code::TooFast`].
    pub fn allow_proof(&self, context: &Context, address: IpAddr) -> Result<(), Code> {
        let per_hour = self.per_hour.saturating_mul(PROOFS_PER_PIN);
        count(&self.proofs, context, address, per_hour)
    }

    /// Makes a PIN for `alias` and sends it.
    ///
    /// # Errors
    /// [`Code::TooFast`] for an address or an alias that asks too often, [`Code::BadRequest`] for
    /// what is no alias, [`Code::PinNotSent`], [`Code::Unavailable`].
    pub async fn ask(
        &self,
        context: &Context,
        address: IpAddr,
        alias: &str,
    ) -> Result<wire::PinSent, Code> {
        count(&self.asked, context, address, self.per_hour)?;
        let (alias, pin) = user::register_start(context, alias).await?;
        if let Err(error) = self.sender.send(&alias, &pin).await {
            warn!(%error, "PIN not sent");
            return Err(Code::PinNotSent);
        }
        let settings = context.settings();
        Ok(wire::PinSent { expires_s: settings.pin_ttl_s, digits: settings.pin_digits })
    }
}

fn count(
    counts: &Mutex<Counts>,
    context: &Context,
    address: IpAddr,
    per_hour: u32,
) -> Result<(), Code> {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = counts.allows(source_of(address), context.clock.now_ms(), per_hour);
    if allowed { Ok(()) } else { Err(Code::TooFast) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_asks_too_often_waits_for_the_hour() {
        let mut asked = Counts::default();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        assert!((0..3).all(|_| asked.allows(here, 1_000, 3)));
        assert!(!asked.allows(here, 2_000, 3));
        assert!(asked.allows(there, 2_000, 3));
        assert!(asked.allows(here, 1_000 + HOUR_MS, 3));
    }
}
