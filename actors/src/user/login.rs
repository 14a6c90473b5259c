//! Proving who one is, before there is a user actor: login and resumption.

use super::UserContext;
use crate::connection::Refusal;
use crate::shard::Outcome;
use proto::wire;
use proto::{Code, DeviceId, Seq, UserId, signed};

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

/// Checks a login's signature over this connection's nonce.
///
/// # Errors
/// [`Code::BadCredentials`] whether user, device or signature is wrong; [`Code::Unlinked`] for a device
/// that was unlinked and proves it; [`Code::Unavailable`].
pub async fn login(
    context: &UserContext,
    nonce: &[u8],
    login: &wire::Login,
) -> Result<Admission, Code> {
    let (user, device) = (UserId(login.user), DeviceId(login.device));
    let account = context.shards.account(user).await?.ok_or(Code::BadCredentials)?;
    let linked = account.devices.get(&device).map(|linked| &linked.key);
    let mut unlinked = account.unlinked.iter().filter(|unlinked| unlinked.device == device.0);
    let key = linked.or_else(|| unlinked.next().map(|unlinked| &unlinked.key));
    let message = signed::login(nonce, user, device);
    if !key.is_some_and(|key| context.secrets.verify(key, &message, &login.signature)) {
        return Err(Code::BadCredentials);
    }
    if linked.is_none() {
        return Err(Code::Unlinked);
    }
    let (acknowledged, away) = (Seq(login.acknowledged), login.away);
    Ok(Admission { user, device, acknowledged, ticket: None, next: 0, away, registered: false })
}

/// Opens a ticket. Whether it is the good one of a device that is still linked, is decided when the
/// session opens.
///
/// # Errors
/// [`Code::BadTicket`].
pub fn resume(context: &UserContext, resume: &wire::Resume) -> Result<Admission, Code> {
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

pub(super) fn refused(outcome: &Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(code) => (*code).into(),
        Outcome::Wait { code, after_ms } => Refusal::wait(*code, *after_ms),
        Outcome::Elsewhere => Code::Unavailable.into(),
        Outcome::Done
        | Outcome::Accepted { .. }
        | Outcome::Pin { .. }
        | Outcome::Proven { .. }
        | Outcome::NotTheirs
        | Outcome::Admitted(_) => Code::Internal.into(),
    }
}
