//! Becoming a user: a PIN is asked for, proven, and makes an account or finds it.
//!
//! ```text
//!  client                         node                      alias's shard   user's shard
//!    | RegisterStart{alias} ----->| StartRegistration -------->|               |
//!    |<---------- PinSent{token}  | (PIN goes out by SMS ...)  |               |
//!    | RegisterProve{pin, key} -->| ProvePin ----------------->|               |
//!    |                            | KeepAccount, if there is an owner -------->|
//!    |                            | ClaimAlias, if it is not theirs >|         |
//!    |                            |                            | OpenAccount ->|
//!    |<------------- Registered   | (user actor attaches the connection)       |
//! ```
//!
//! Each step can be repeated: a proof that was right is right again for the same key, and names the
//! same new user. So a client whose answer was lost, or whose node died between two steps, sends the
//! same `RegisterProve` again, on any node.

use super::UserContext;
use super::login::{Admission, refused};
use crate::connection::Refusal;
use crate::secrets::PinToken;
use crate::shard::{Command, Outcome};
use membership::ClusterSettings;
use proto::limits::{DEVICE_NAME_BYTES_MAX, LOCK_BYTES_MAX, LOCK_BYTES_MIN};
use proto::stored::{self, AliasClaim, AliasOwner};
use proto::wire::{self, RegisterProve};
use proto::{Alias, Code, DeviceId, Seq, UserId, signed};
use std::net::IpAddr;
use std::time::Duration;
use tracing::info;

/// Digits of a long PIN: a million guesses open one alias of ten thousand.
const LONG_DIGITS: u32 = 10;

/// Longest text that can be a PIN, in bytes.
const PIN_BYTES_MAX: usize = 16;

/// What a registration lock is.
pub(super) const LOCK_RULE: &str = "a registration lock has 4 to 64 bytes";

const _: () = assert!(LOCK_BYTES_MIN == 4 && LOCK_BYTES_MAX == 64, "LOCK_RULE says so");

/// Pause between two looks whether a new account is there.
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// Looks: five seconds in all. A client waits ten.
const OPEN_LOOKS: u32 = 250;

/// A registration that was begun.
#[derive(Debug)]
pub struct Asked {
    /// The alias in its stored spelling.
    pub alias: Alias,
    /// The PIN that has to go out; `None` if the one that was sent before stands.
    pub pin: Option<String>,
    /// The answer, once it went out.
    pub sent: wire::PinSent,
}

/// Begins a registration. The PIN in the answer is to be sent to the alias.
///
/// # Errors
/// [`Code::TooFast`]: too many were sent to this alias. [`Code::PinNotSent`]: too many were sent to all.
/// Both say when the next one may be sent. [`Code::Unavailable`].
pub async fn register_start(context: &UserContext, alias: Alias) -> Result<Asked, Refusal> {
    let settings = context.settings();
    let pin = |digits| random_pin(context, digits);
    let (short, long) = (pin(settings.pin_digits), pin(LONG_DIGITS));
    let digest = |pin: &str| context.secrets.pin_digest(&alias, pin).to_vec().into();
    let start = stored::StartRegistration {
        alias: alias.as_str().to_owned(),
        short_digest: digest(&short),
        long_digest: digest(&long),
        ttl_s: settings.pin_ttl_s,
        limits: Some(limits(&settings)),
    };
    let outcome =
        context.shards.call(alias.shard(), Command::StartRegistration(start.into())).await;
    let Outcome::Pin { grant, send } = outcome else { return Err(refused(&outcome)) };
    let left_ms = grant.expires_ms.saturating_sub(context.clock.now_ms());
    let mut id = [0; 16];
    context.secrets.fill(&mut id);
    let digits = if grant.long { LONG_DIGITS } else { settings.pin_digits };
    let pin = send.then_some(if grant.long { long } else { short });
    let token = context.secrets.seal_pin_token(&alias, &PinToken { id, grant });
    let expires_s = u32::try_from(left_ms / 1000).unwrap_or(u32::MAX);
    Ok(Asked { alias, pin, sent: wire::PinSent { expires_s, digits, token: token.into() } })
}

/// The PIN could not be sent, so it does not count.
pub async fn register_not_sent(context: &UserContext, alias: &Alias, pin: &str) {
    let not_sent = stored::PinNotSent {
        alias: alias.as_str().to_owned(),
        digest: context.secrets.pin_digest(alias, pin).to_vec().into(),
        limits: Some(limits(&context.settings())),
    };
    context.shards.call(alias.shard(), Command::PinNotSent(not_sent)).await;
}

/// Checks PIN and key and makes the account or finds it. An account stays with its alias if the key is
/// one of its devices' or the registration lock is right; then its other devices are unlinked.
/// Otherwise the alias goes to a new user. `from` is the network from which it is asked for, by which
/// wrong locks are counted.
///
/// # Errors
/// [`Code::BadRequest`], [`Code::BadCredentials`] if the signature does not prove the key,
/// [`Code::WrongPin`], [`Code::NoPin`], [`Code::WrongLock`], [`Code::TooFast`] after too many wrong
/// locks, [`Code::Unavailable`].
pub async fn register_prove(
    context: &UserContext,
    nonce: &[u8],
    from: IpAddr,
    prove: RegisterProve,
) -> Result<Admission, Refusal> {
    let alias = check(context, nonce, &prove)?;
    let (owner, new) = prove_pin(context, &alias, &prove).await?;
    if let Some(owner) = owner.filter(|owner| *owner != new)
        && let Some(device) = keep_account(context, (&alias, owner), from, &prove).await?
    {
        info!(user = owner.user, device = device.0, "device registered, all others unlinked");
        return Ok(admission(UserId(owner.user), device, prove.away));
    }
    let claim = stored::ClaimAlias {
        alias: alias.as_str().to_owned(),
        from: owner,
        to: Some(new),
        key: prove.device_key.clone(),
        name: prove.device_name,
    };
    let outcome = context.shards.call(alias.shard(), Command::ClaimAlias(claim.into())).await;
    if outcome != Outcome::Done {
        return Err(refused(&outcome));
    }
    let device = opened(context, UserId(new.user), &prove.device_key).await?;
    let taken_over = owner.is_some_and(|owner| owner != new);
    info!(user = new.user, device = device.0, taken_over, "user registered");
    Ok(admission(UserId(new.user), device, prove.away))
}

fn check(context: &UserContext, nonce: &[u8], prove: &RegisterProve) -> Result<Alias, Refusal> {
    let alias = Alias::parse(&prove.alias).map_err(|why| Refusal::field("alias", why))?;
    check_device(&prove.device_key, &prove.device_name)?;
    if !(prove.lock.is_empty() || is_lock(&prove.lock)) {
        return Err(Refusal::field("lock", LOCK_RULE));
    }
    if prove.pin.len() > PIN_BYTES_MAX {
        return Err(Refusal::field("pin", "it is longer than any PIN"));
    }
    let message = signed::register(nonce, &alias);
    let proven = context.secrets.verify(&prove.device_key, &message, &prove.signature);
    if proven { Ok(alias) } else { Err(Code::BadCredentials.into()) }
}

/// Checks what a new device says of itself.
pub(super) fn check_device(key: &[u8], name: &str) -> Result<(), Refusal> {
    if !signed::is_device_key(key) {
        return Err(Refusal::field(
            "device_key",
            "it is no Ed25519 public key that proves something",
        ));
    }
    if name.len() > DEVICE_NAME_BYTES_MAX {
        let rule = format!("more than {DEVICE_NAME_BYTES_MAX} bytes");
        return Err(Refusal::field("device_name", rule));
    }
    if !proto::names::is_shown_safely(name) {
        return Err(Refusal::field("device_name", "it has control or direction signs"));
    }
    Ok(())
}

/// Whether a text can be a registration lock.
pub(super) fn is_lock(text: &str) -> bool {
    (LOCK_BYTES_MIN..=LOCK_BYTES_MAX).contains(&text.len())
}

/// The alias's owner, if there is one, and whom the alias goes to if it changes hands.
async fn prove_pin(
    context: &UserContext,
    alias: &Alias,
    prove: &RegisterProve,
) -> Result<(Option<AliasOwner>, AliasOwner), Refusal> {
    let token = context.secrets.open_pin_token(alias, &prove.token).ok_or(Code::NoPin)?;
    let proof = stored::ProvePin {
        alias: alias.as_str().to_owned(),
        token: token.id.to_vec().into(),
        digest: context.secrets.pin_digest(alias, &prove.pin).to_vec().into(),
        grant: Some(token.grant),
        key: prove.device_key.clone(),
        user_if_new: UserId::from_random(random(context)).0,
        claim_if_new: random(context),
        limits: Some(limits(&context.settings())),
    };
    let outcome = context.shards.call(alias.shard(), Command::ProvePin(proof.into())).await;
    if let Outcome::Proven { owner, new } = outcome {
        return Ok((owner, new));
    }
    Err(refused(&outcome))
}

/// The device, if the account stays with its alias.
async fn keep_account(
    context: &UserContext,
    (alias, owner): (&Alias, AliasOwner),
    from: IpAddr,
    prove: &RegisterProve,
) -> Result<Option<DeviceId>, Refusal> {
    let user = UserId(owner.user);
    let lock = lock_digest(context, user, &prove.lock);
    let keep = stored::KeepAccount {
        user: owner.user,
        alias: Some(AliasClaim { alias: alias.as_str().to_owned(), claim: owner.claim }),
        key: prove.device_key.clone(),
        name: prove.device_name.clone(),
        lock,
        place: context.secrets.place_digest(user, from),
    };
    let outcome = context.shards.call(user.shard(), Command::KeepAccount(keep.into())).await;
    if let Outcome::Admitted(device) = outcome {
        return Ok(Some(device));
    }
    let theirs = !matches!(outcome, Outcome::NotTheirs | Outcome::Refused(Code::UnknownUser));
    if theirs { Err(refused(&outcome)) } else { Ok(None) }
}

/// What is stored instead of a registration lock; empty for none.
pub(super) fn lock_digest(context: &UserContext, user: UserId, lock: &str) -> bytes::Bytes {
    if lock.is_empty() {
        return bytes::Bytes::new();
    }
    context.secrets.lock_digest(user, lock).to_vec().into()
}

/// The alias's shard has told the user's: waits until it has heard.
async fn opened(context: &UserContext, user: UserId, key: &[u8]) -> Result<DeviceId, Code> {
    for _ in 0..OPEN_LOOKS {
        let account = context.shards.account(user).await?;
        let devices = account.iter().flat_map(|account| account.devices.iter());
        if let Some((id, _)) = devices.into_iter().find(|(_, device)| device.key == key) {
            return Ok(*id);
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
    Err(Code::Unavailable)
}

pub(super) fn admission(user: UserId, device: DeviceId, away: bool) -> Admission {
    let acknowledged = Seq(0);
    Admission { user, device, acknowledged, ticket: None, next: 0, away, registered: true }
}

fn limits(settings: &ClusterSettings) -> stored::PinLimits {
    stored::PinLimits {
        requests_per_hour: settings.pin_requests_per_hour,
        attempts: settings.pin_attempts,
        wrong_per_day: settings.wrong_pins_per_alias_per_day,
        wrong_per_hour: part_of(settings.wrong_pins_per_hour),
        sent_per_hour: part_of(settings.pins_per_hour),
    }
}

/// What one shard may of what all together may.
fn part_of(all: u32) -> u32 {
    (all / u32::from(proto::ids::SHARDS)).max(1)
}

fn random(context: &UserContext) -> u64 {
    let mut bytes = [0; 8];
    context.secrets.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn random_pin(context: &UserContext, digits: u32) -> String {
    let pin = random(context) % 10u64.pow(digits);
    format!("{pin:0width$}", width = digits as usize)
}
