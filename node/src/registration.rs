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

/// Addresses remembered before the silent ones are forgotten.
const ADDRESSES: usize = 10_000;

/// How aliases are proven on this node.
#[derive(Debug)]
pub struct Registration {
    sender: PinSender,
    per_hour: u32,
    asked: Mutex<Asked>,
}

/// Requests of each address in its current hour. A pure core.
#[derive(Debug, Default)]
struct Asked(BTreeMap<IpAddr, (u32, u64)>);

impl Asked {
    fn allows(&mut self, address: IpAddr, now_ms: u64, per_hour: u32) -> bool {
        if self.0.len() >= ADDRESSES {
            self.0.retain(|_, (_, since_ms)| now_ms.saturating_sub(*since_ms) < HOUR_MS);
        }
        let (count, since_ms) = self.0.entry(address).or_insert((0, now_ms));
        if now_ms.saturating_sub(*since_ms) >= HOUR_MS {
            (*count, *since_ms) = (0, now_ms);
        }
        *count = count.saturating_add(1);
        *count <= per_hour
    }
}

impl Registration {
    /// Sends PINs by `sender`, at most so many an hour for each address.
    pub fn new(sender: PinSender, per_hour: u32) -> Self {
        Self { sender, per_hour, asked: Mutex::default() }
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
        let now_ms = context.clock.now_ms();
        let allowed = self.asked.lock().unwrap_or_else(PoisonError::into_inner).allows(
            source_of(address),
            now_ms,
            self.per_hour,
        );
        if !allowed {
            return Err(Code::TooFast);
        }
        let (alias, pin) = user::register_start(context, alias).await?;
        if let Err(error) = self.sender.send(&alias, &pin).await {
            warn!(%error, "PIN not sent");
            return Err(Code::PinNotSent);
        }
        let settings = &context.settings;
        Ok(wire::PinSent { expires_s: settings.pin_ttl_s, digits: settings.pin_digits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_asks_too_often_waits_for_the_hour() {
        let mut asked = Asked::default();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        assert!((0..3).all(|_| asked.allows(here, 1_000, 3)));
        assert!(!asked.allows(here, 2_000, 3));
        assert!(asked.allows(there, 2_000, 3));
        assert!(asked.allows(here, 1_000 + HOUR_MS, 3));
    }
}
