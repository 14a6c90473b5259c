//! Becoming a user: ask for a PIN, prove it, hand in the device's key.
//!
//! Each step has a connection of its own, so the person may take all the time the PIN allows.

use crate::{
    addresses::Addresses,
    backoff::Backoff,
    error::ConnectError,
    key::{DeviceKey, Identity},
    options::ClientOptions,
    transport::Link,
};
use bytes::Bytes;
use proto::{
    Alias, Code, DeviceId, UserId,
    wire::{RegisterProve, RegisterStart, client_frame, server_frame},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A PIN is on its way to the owner of the alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinSent {
    /// How long it is valid.
    pub expires: Duration,
    /// How many digits it has.
    pub digits: u32,
    /// Goes with the PIN into [`register_prove`]. Keep it if that comes after a restart.
    pub token: Bytes,
}

/// What proves that an alias is this person's.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    /// The PIN as the person typed it.
    pub pin: &'a str,
    /// [`PinSent::token`] of the [`register_start`] that asked for it.
    pub token: &'a [u8],
    /// The registration lock of the alias's account; empty for none.
    pub lock: &'a str,
}

/// Asks the node to send a PIN to `alias`. Asked again, for as long as
/// [`ClientOptions::request_timeout`], while the cluster is not ready to answer.
///
/// # Errors
/// [`ConnectError::Refused`] with `TooFast` or `PinNotSent`: wait and ask again. Any other: it is not
/// known that a PIN was sent.
pub async fn register_start(
    options: &ClientOptions,
    alias: &Alias,
) -> Result<PinSent, ConnectError> {
    let start = RegisterStart { alias: alias.as_str().to_owned() };
    let answer = patiently(options, |_| client_frame::Kind::RegisterStart(start.clone())).await?;
    let server_frame::Kind::PinSent(sent) = answer else { return Err(ConnectError::Unexpected) };
    let expires = Duration::from_secs(u64::from(sent.expires_s));
    Ok(PinSent { expires, digits: sent.digits, token: sent.token })
}

/// Proves the PIN and makes this device one of the user's. Save `key` before the call: if the
/// answer is lost, the same call with the same key may be made again; while the cluster is not ready
/// to answer, the call does so itself, for as long as [`ClientOptions::request_timeout`].
///
/// # Errors
/// [`ConnectError::Refused`] with `WrongPin` (ask the person again), `WrongLock` (the account has a
/// registration lock: ask for it) or `NoPin` (start over).
pub async fn register_prove(
    options: &ClientOptions,
    alias: &Alias,
    proof: Proof<'_>,
    key: DeviceKey,
    device_name: &str,
) -> Result<Identity, ConnectError> {
    let prove = |nonce: &[u8]| {
        client_frame::Kind::RegisterProve(Box::new(RegisterProve {
            alias: alias.as_str().to_owned(),
            pin: proof.pin.trim().to_owned(),
            token: Bytes::copy_from_slice(proof.token),
            lock: proof.lock.to_owned(),
            device_key: key.public().to_vec().into(),
            signature: key.sign_register(nonce, alias).into(),
            device_name: device_name.to_owned(),
            // The client logs in next.
            away: true,
        }))
    };
    let answer = patiently(options, prove).await?;
    let server_frame::Kind::Registered(who) = answer else { return Err(ConnectError::Unexpected) };
    Ok(Identity { user: UserId(who.user), device: DeviceId(who.device), key })
}

/// Asks any node what `question` makes of the nonce of its `Welcome`, and waits out that the
/// cluster has no majority for it.
pub(crate) async fn patiently(
    options: &ClientOptions,
    question: impl Fn(&[u8]) -> client_frame::Kind,
) -> Result<server_frame::Kind, ConnectError> {
    let begun = Instant::now();
    let mut addresses = Addresses::new(options.addresses.clone());
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    loop {
        let (mut link, address) = Link::open_first(options, &addresses.in_order()).await?;
        let question = question(&link.welcome.nonce);
        let refusal = match link.ask(1, question, options.request_timeout).await {
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::Unavailable => refusal,
            answer => return answer,
        };
        let wait = refusal.retry_after.max(backoff.next(rand::random()));
        if begun.elapsed() + wait > options.request_timeout {
            return Err(ConnectError::Refused(refusal));
        }
        addresses.using(&address);
        addresses.leave(&[]);
        sleep(wait).await;
    }
}
