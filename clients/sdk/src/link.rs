//! Linking a device: it shows a short code, and a device that is logged in links it when its person types
//! the code there.
//!
//! The code comes from the key, so nobody on the way, not even the node, can put another key in its place:
//! one of the same code takes 2^50 tries of 100,000 hashes each, for one alias.

use crate::{
    error::ConnectError,
    key::{DeviceKey, Identity},
    options::ClientOptions,
    register::patiently,
};
use aws_lc_rs::pbkdf2;
use proto::{
    Alias, Code, DeviceId, UserId, signed,
    wire::{RequestLink, client_frame, server_frame},
};
use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};
use tokio::time::{Instant, sleep};

/// Digits of a code: 32 that no reader takes for each other.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Digits of a code, five bits each.
const CODE_DIGITS: usize = 10;

/// Hashes for one code: some hundredths of a second.
const ITERATIONS: NonZeroU32 = match NonZeroU32::new(100_000) {
    Some(iterations) => iterations,
    None => NonZeroU32::MIN,
};

/// Pause between two requests of a device that waits to be linked.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// What a person reads on the new device and types on another one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LinkCode([u8; CODE_DIGITS]);

/// A text is no [`LinkCode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a code has ten letters and digits, like k7fm2-9pqx4")]
pub struct NoLinkCode;

impl LinkCode {
    /// The code of a device's public key, for the account of an alias. Takes some hundredths of a second.
    pub fn of(alias: &Alias, key: &[u8]) -> Self {
        let salt = [signed::LINK_CONTEXT, alias.as_str().as_bytes()].concat();
        let mut hash = [0; 8];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, key, &mut hash);
        let bits = u64::from_be_bytes(hash);
        let mut shift = 64;
        Self(std::array::from_fn(|_| {
            shift -= 5;
            DIGITS[usize::try_from((bits >> shift) & 31).unwrap_or(0)]
        }))
    }
}

impl fmt::Display for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, digit) in self.0.iter().enumerate() {
            if place == CODE_DIGITS / 2 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*digit))?;
        }
        Ok(())
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkCode({self})")
    }
}

/// Understands capital letters, and letters that look like digits.
impl FromStr for LinkCode {
    type Err = NoLinkCode;

    fn from_str(text: &str) -> Result<Self, NoLinkCode> {
        let typed =
            text.bytes().filter(|byte| *byte != b'-').map(|byte| match byte.to_ascii_lowercase() {
                b'o' => b'0',
                b'i' | b'l' => b'1',
                byte => byte,
            });
        let typed: Vec<u8> = typed.collect();
        let known = typed.iter().all(|byte| DIGITS.contains(byte));
        let digits = <[u8; CODE_DIGITS]>::try_from(typed).map_err(|_| NoLinkCode)?;
        if known { Ok(Self(digits)) } else { Err(NoLinkCode) }
    }
}

/// Asks the devices of `alias`'s account to link this one, until one of them has done so. Save `key` before
/// the call: when it is broken off, the same call with the same key goes on. Show the person
/// [`LinkCode::of`] meanwhile.
///
/// # Errors
/// [`ConnectError::TimedOut`]: nobody has linked it in all of `patience`. Others as for
/// [`crate::register_start`].
pub async fn request_link(
    options: &ClientOptions,
    alias: &Alias,
    key: DeviceKey,
    device_name: &str,
    patience: Duration,
) -> Result<Identity, ConnectError> {
    let request = |nonce: &[u8]| {
        client_frame::Kind::RequestLink(Box::new(RequestLink {
            alias: alias.as_str().to_owned(),
            device_key: key.public().to_vec().into(),
            signature: key.sign_link(nonce, alias).into(),
            device_name: device_name.to_owned(),
            // The client logs in next.
            away: true,
        }))
    };
    let begun = Instant::now();
    loop {
        let wait = match patiently(options, request).await {
            Ok(server_frame::Kind::Registered(who)) => {
                return Ok(Identity { user: UserId(who.user), device: DeviceId(who.device), key });
            }
            Ok(server_frame::Kind::Done(_)) => ASK_AGAIN,
            Ok(_) => return Err(ConnectError::Unexpected),
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::TooFast => {
                refusal.retry_after.max(ASK_AGAIN)
            }
            Err(error) => return Err(error),
        };
        if begun.elapsed() + wait > patience {
            return Err(ConnectError::TimedOut(patience));
        }
        sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(alias: &str, key: u8) -> LinkCode {
        LinkCode::of(&Alias::parse(alias).unwrap(), &[key; 32])
    }

    #[test]
    fn a_code_is_typed_as_people_type_and_belongs_to_one_key_and_one_alias() {
        let ada = code("ada", 1);
        let shown = ada.to_string();
        assert_eq!(shown.len(), CODE_DIGITS + 1, "{shown}");
        for typed in [shown.clone(), shown.replace('-', ""), shown.to_uppercase()] {
            assert_eq!(typed.parse(), Ok(ada), "{typed}");
        }
        assert_eq!("oOiIl-00000".parse::<LinkCode>(), "00111-00000".parse());
        assert_ne!(ada, code("ada", 2));
        assert_ne!(ada, code("bob", 1));
        for wrong in ["", "k7fm2", "k7fm2-9pqx45", "k7fm2-9pq!4", "k7fm2-9pqxu", "ä7fm2-9pqx"] {
            assert_eq!(wrong.parse::<LinkCode>(), Err(NoLinkCode), "{wrong}");
        }
    }

    #[test]
    fn the_codes_of_the_page_for_writers_of_clients_are_true() {
        let page = include_str!("../../../proto/PROTOCOL.md");
        let key = (0..32).map(|byte| {
            let hex = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";
            u8::from_str_radix(&hex[2 * byte..2 * byte + 2], 16).unwrap()
        });
        let alias = Alias::parse("+4915112345678").unwrap();
        let code = LinkCode::of(&alias, &key.collect::<Vec<u8>>());
        assert!(page.contains(&format!("its code for that alias is `{code}`")), "{code}");
    }
}
