//! A device asks to be linked to an account, and is let in once another device has linked its key.
//!
//! ```text
//!  new device              node                          a device of the account
//!    | RequestLink{alias} -->| LinkRequested{key, name} ----->|   does the person know this key's code?
//!    |<-------------- Done --|                                |
//!    |                       |<-------- LinkDevice{key, name} |   yes
//!    | RequestLink{alias} -->|                                |
//!    |<-------- Registered --| (user actor attaches the connection)
//! ```
//!
//! Nothing is kept between two requests: the new device asks until its key is linked, and whoever does
//! not wait for a code forgets what is asked.

use super::UserContext;
use super::login::Admission;
use super::register::{admission, check_device};
use crate::connection::Refusal;
use crate::rates::{Kind, Who};
use proto::wire::{self, RequestLink};
use proto::{Alias, Code, signed};

/// Tells the devices of an alias's account that another one asks to be linked. Its admission, if its key
/// is linked already; `None` also if nobody has the alias, or is not there.
///
/// # Errors
/// [`Code::BadRequest`], [`Code::BadCredentials`] if the signature does not prove the key,
/// [`Code::Unavailable`].
pub async fn request_link(
    context: &UserContext,
    nonce: &[u8],
    request: RequestLink,
) -> Result<Option<Admission>, Refusal> {
    let alias = Alias::parse(&request.alias).map_err(|why| Refusal::field("alias", why))?;
    let RequestLink { device_key, device_name, signature, away, .. } = request;
    check_device(&device_key, &device_name)?;
    if !context.secrets.verify(&device_key, &signed::link(nonce, &alias), &signature) {
        return Err(Code::BadCredentials.into());
    }
    let Some(user) = context.shards.owner(alias).await? else { return Ok(None) };
    let Some(account) = context.shards.account(user).await? else { return Ok(None) };
    let linked = account.devices.iter().find(|(_, device)| device.key == device_key);
    if let Some((device, _)) = linked {
        return Ok(Some(admission(user, *device, away)));
    }
    // A flood of requests must not become a flood to somebody's devices. Who asks hears nothing of it.
    if context.rates.take(Who::User(user), Kind::Link, context.clock.now_ms()).is_ok() {
        let asked = wire::LinkRequested { device_key, device_name };
        context.signals.link_requested(user, &asked);
    }
    Ok(None)
}
