//! Proving who one is, before there is a user actor: registration, login, resumption.
//!
//! ```text
//!  client                         node                     alias's shard   user's shard
//!    | RegisterStart{alias}  ------>| StartRegistration ------->|               |
//!    |<--------------- PinSent      | (PIN goes out by SMS ...) |               |
//!    | RegisterProve{pin, key} ---->| ProvePin ---------------->|               |
//!    |                              | AdmitDevice ------------------------------>|
//!    |<------------- Registered     | (user actor attaches the connection)      |
//! ```

use crate::context::Context;
use crate::shard::{Command, Outcome};
use proto::limits::DEVICE_NAME_BYTES_MAX;
use proto::wire;
use proto::{Alias, Code, DeviceId, Seq, UserId, signed, stored};

/// Bytes of an Ed25519 public key.
const KEY_BYTES: usize = 32;

/// Who a connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The user.
    pub user: UserId,
    /// Their device.
    pub device: DeviceId,
    /// What the device says it has.
    pub acknowledged: Seq,
    /// The number of the ticket it came with, if any.
    pub ticket: Option<u64>,
    /// The number of the ticket for the next time; 0 until the session is open.
    pub next: u64,
    /// Only the device comes: its person is not there.
    pub away: bool,
    /// Whether it has just been registered.
    pub registered: bool,
}

/// Makes a PIN for the alias and returns it, to be sent to its owner.
///
/// # Errors
/// [`Code::BadRequest`]: no alias. [`Code::TooFast`]: asked too often. [`Code::Unavailable`].
pub async fn register_start(context: &Context, alias: &str) -> Result<(Alias, String), Code> {
    let alias = Alias::parse(alias).map_err(|_| Code::BadRequest)?;
    let settings = context.settings();
    let pin = random_pin(context, settings.pin_digits);
    let start = stored::StartRegistration {
        alias: alias.as_str().to_owned(),
        digest: context.secrets.pin_digest(&alias, &pin).to_vec().into(),
        ttl_s: settings.pin_ttl_s,
        requests_max: settings.pin_requests_per_hour,
    };
    let outcome = context.shards.call(alias.shard(), Command::StartRegistration(start)).await;
    if outcome == Outcome::Done { Ok((alias, pin)) } else { Err(refused(&outcome)) }
}

/// Checks PIN and key and makes the account or finds it. A registration of an alias that has an
/// account takes that account over: its other devices are unlinked.
///
/// # Errors
/// [`Code::BadRequest`], [`Code::BadCredentials`] if the signature does not prove the key,
/// [`Code::WrongPin`], [`Code::NoPin`], [`Code::Unavailable`].
pub async fn register_prove(
    context: &Context,
    nonce: &[u8],
    prove: wire::RegisterProve,
) -> Result<Admission, Code> {
    let alias = Alias::parse(&prove.alias).map_err(|_| Code::BadRequest)?;
    let name_fits = prove.device_name.len() <= DEVICE_NAME_BYTES_MAX;
    if prove.device_key.len() != KEY_BYTES || !name_fits || prove.pin.len() > 16 {
        return Err(Code::BadRequest);
    }
    let message = signed::register(nonce, &alias);
    if !context.secrets.verify(&prove.device_key, &message, &prove.signature) {
        return Err(Code::BadCredentials);
    }
    let proof = stored::ProvePin {
        alias: alias.as_str().to_owned(),
        digest: context.secrets.pin_digest(&alias, &prove.pin).to_vec().into(),
        user_if_new: random_user(context).0,
        attempts_max: context.settings().pin_attempts,
    };
    let outcome = context.shards.call(alias.shard(), Command::ProvePin(proof)).await;
    let Outcome::Proven(user) = outcome else { return Err(refused(&outcome)) };
    let admit = stored::AdmitDevice {
        user: user.0,
        key: prove.device_key,
        name: prove.device_name,
        registration: true,
        alias: alias.as_str().to_owned(),
    };
    let outcome = context.shards.call(user.shard(), Command::AdmitDevice(admit)).await;
    let Outcome::Admitted(device) = outcome else { return Err(refused(&outcome)) };
    let (acknowledged, away) = (Seq(0), prove.away);
    Ok(Admission { user, device, acknowledged, ticket: None, next: 0, away, registered: true })
}

/// Checks a login's signature over this connection's nonce.
///
/// # Errors
/// [`Code::BadCredentials`] whether user, device or signature is wrong; [`Code::Unavailable`].
pub async fn login(
    context: &Context,
    nonce: &[u8],
    login: &wire::Login,
) -> Result<Admission, Code> {
    let (user, device) = (UserId(login.user), DeviceId(login.device));
    let account = context.shards.account(user).await?.ok_or(Code::BadCredentials)?;
    let key = &account.devices.get(&device).ok_or(Code::BadCredentials)?.key;
    if !context.secrets.verify(key, &signed::login(nonce, user, device), &login.signature) {
        return Err(Code::BadCredentials);
    }
    let (acknowledged, away) = (Seq(login.acknowledged), login.away);
    Ok(Admission { user, device, acknowledged, ticket: None, next: 0, away, registered: false })
}

/// Opens a ticket. Whether it is the good one of a device that is still linked, is decided when the
/// session opens.
///
/// # Errors
/// [`Code::BadTicket`].
pub fn resume(context: &Context, resume: &wire::Resume) -> Result<Admission, Code> {
    let now_ms = context.clock.now_ms();
    let ticket = context.secrets.open_ticket(&resume.ticket, now_ms).ok_or(Code::BadTicket)?;
    if ticket.number == 0 {
        return Err(Code::BadTicket);
    }
    Ok(Admission {
        user: ticket.user,
        device: ticket.device,
        acknowledged: Seq(resume.acknowledged),
        ticket: Some(ticket.number),
        next: 0,
        away: resume.away,
        registered: false,
    })
}

fn refused(outcome: &Outcome) -> Code {
    match outcome {
        Outcome::Refused(code) => *code,
        Outcome::Elsewhere => Code::Unavailable,
        Outcome::Done | Outcome::Accepted { .. } | Outcome::Proven(_) | Outcome::Admitted(_) => {
            Code::Internal
        }
    }
}

fn random_user(context: &Context) -> UserId {
    let mut bytes = [0; 8];
    context.secrets.fill(&mut bytes);
    UserId::from_random(u64::from_le_bytes(bytes))
}

fn random_pin(context: &Context, digits: u32) -> String {
    let mut bytes = [0; 8];
    context.secrets.fill(&mut bytes);
    let pin = u64::from_le_bytes(bytes) % 10u64.pow(digits);
    format!("{pin:0width$}", width = digits as usize)
}
