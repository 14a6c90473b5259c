//! Requests against their rates, before anything is done for them. Sends are counted by the user's actor,
//! which keeps their order.

use std::net::IpAddr;

use actors::rates::{Kind, TooFast, Who};
use actors::user::UserContext;
use proto::UserId;
use proto::wire::client_frame::Kind as Ask;

use crate::listener::source_of;

/// The rates that a frame of someone who is logged in counts against. `None`: a kind that this node does not
/// know.
fn kinds(ask: Option<&Ask>) -> &'static [Kind] {
    match ask {
        // Sends are counted with their order; the other two by `take_needless`, where they are.
        Some(Ask::Send(_) | Ask::Ack(_) | Ask::Pong(_)) => &[],
        Some(Ask::Signal(_)) => &[Kind::Signal],
        Some(Ask::Lookup(_)) => &[Kind::Lookup, Kind::LookupDaily],
        Some(Ask::Subscribe(_)) => &[Kind::Subscribe],
        Some(
            Ask::Block(_)
            | Ask::SetPrivacy(_)
            | Ask::SetContact(_)
            | Ask::SetRegistrationLock(_)
            | Ask::LinkDevice(_)
            | Ask::UnlinkDevice(_)
            | Ask::DeleteAccount(_),
        ) => &[Kind::Change],
        Some(Ask::SetPresence(_)) => &[Kind::Presence],
        Some(Ask::MarkRead(_)) => &[Kind::Read],
        Some(
            Ask::Ping(_)
            | Ask::GetAccount(_)
            | Ask::Logout(_)
            | Ask::Login(_)
            | Ask::Resume(_)
            | Ask::RegisterStart(_)
            | Ask::RegisterProve(_)
            | Ask::RequestLink(_),
        )
        | None => &[Kind::Other],
    }
}

/// Counts a frame of `user`.
///
/// # Errors
/// [`TooFast`]: it is not to be carried out.
pub(crate) fn take(context: &UserContext, user: UserId, ask: Option<&Ask>) -> Result<(), TooFast> {
    take_all(context, Who::User(user), kinds(ask)).inspect_err(|_| match ask {
        Some(Ask::Signal(_)) => context.metrics.signals_dropped.increment(1),
        Some(_) | None => context.metrics.too_fast.increment(1),
    })
}

/// Counts a frame of `user` that asks for nothing and says nothing new.
///
/// # Errors
/// [`TooFast`]: it cannot be refused, for it has no id, so the connection must end.
pub(crate) fn take_needless(context: &UserContext, user: UserId) -> Result<(), TooFast> {
    take_all(context, Who::User(user), &[Kind::Needless])
        .inspect_err(|_| context.metrics.too_fast.increment(1))
}

/// The rates that a frame of a stranger counts against. What registration counts, it counts itself.
fn kinds_of_stranger(ask: Option<&Ask>) -> &'static [Kind] {
    match ask {
        Some(Ask::Login(_) | Ask::Resume(_)) => &[Kind::LoginAddress],
        Some(Ask::RequestLink(_)) => &[Kind::LinkAddress],
        Some(_) | None => &[],
    }
}

/// Counts a try to log in, to resume or to be linked, before its proof is looked at. Only for its address:
/// whoever names a user without a proof must not use up what that user may.
///
/// # Errors
/// [`TooFast`].
pub(crate) fn take_try(
    context: &UserContext,
    address: IpAddr,
    ask: Option<&Ask>,
) -> Result<(), TooFast> {
    take_all(context, Who::Address(source_of(address)), kinds_of_stranger(ask))
        .inspect_err(|_| context.metrics.too_fast.increment(1))
}

/// Counts a good login or resumption, before a session opens.
///
/// # Errors
/// [`TooFast`].
pub(crate) fn take_login(context: &UserContext, user: UserId) -> Result<(), TooFast> {
    take_all(context, Who::User(user), &[Kind::Login])
        .inspect_err(|_| context.metrics.too_fast.increment(1))
}

fn take_all(context: &UserContext, who: Who, kinds: &[Kind]) -> Result<(), TooFast> {
    if kinds.is_empty() {
        return Ok(()); // The clock is not read for nothing: most frames are sends and acknowledgments.
    }
    let now_ms = context.clock.now_ms();
    kinds.iter().try_for_each(|kind| context.rates.take(who, *kind, now_ms))
}
