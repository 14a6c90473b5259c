//! Becoming a user: ask for a PIN, prove it, hand in the device's key.
//!
//! Each step has a connection of its own, so the person may take all the time the PIN allows.

use crate::{
    error::ConnectError,
    key::{DeviceKey, Identity},
    options::ClientOptions,
    transport::Link,
};
use proto::{
    Alias, DeviceId, UserId,
    wire::{RegisterProve, RegisterStart, client_frame, server_frame},
};
use std::time::Duration;

/// A PIN is on its way to the owner of the alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinSent {
    /// How long it is valid.
    pub expires: Duration,
    /// How many digits it has.
    pub digits: u32,
}

/// Asks the node to send a PIN to `alias`.
///
/// # Errors
/// [`ConnectError::Refused`] with `TooFast` or `PinNotSent`: wait and ask again. Any other: no PIN
/// was sent.
pub async fn register_start(
    options: &ClientOptions,
    alias: &Alias,
) -> Result<PinSent, ConnectError> {
    let (mut link, _) = Link::open_first(options, &options.addresses).await?;
    let start = RegisterStart { alias: alias.as_str().to_owned() };
    let kind = client_frame::Kind::RegisterStart(start);
    let answer = link.ask(1, kind, options.request_timeout).await?;
    let server_frame::Kind::PinSent(sent) = answer else { return Err(ConnectError::Unexpected) };
    let expires = Duration::from_secs(u64::from(sent.expires_s));
    Ok(PinSent { expires, digits: sent.digits })
}

/// Proves the PIN and makes this device one of the user's. Save `key` before the call: if the
/// answer is lost, the same call with the same key may be made again.
///
/// # Errors
/// [`ConnectError::Refused`] with `WrongPin` (ask the person again) or `NoPin` (start over).
pub async fn register_prove(
    options: &ClientOptions,
    alias: &Alias,
    pin: &str,
    key: DeviceKey,
    device_name: &str,
) -> Result<Identity, ConnectError> {
    let (mut link, _) = Link::open_first(options, &options.addresses).await?;
    let prove = RegisterProve {
        alias: alias.as_str().to_owned(),
        pin: pin.trim().to_owned(),
        device_key: key.public().to_vec().into(),
        signature: key.sign_register(&link.welcome.nonce, alias).into(),
        device_name: device_name.to_owned(),
    };
    let kind = client_frame::Kind::RegisterProve(prove);
    let answer = link.ask(1, kind, options.request_timeout).await?;
    let server_frame::Kind::Registered(who) = answer else { return Err(ConnectError::Unexpected) };
    Ok(Identity { user: UserId(who.user), device: DeviceId(who.device), key })
}
