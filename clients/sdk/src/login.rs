//! Opening a session: resume with the ticket, or log in with the key.

use crate::{error::ConnectError, key::Identity, transport::Link};
use bytes::Bytes;
use proto::{
    Code, Seq,
    wire::{Login, Resume, client_frame, server_frame},
};
use std::time::Duration;

/// A connection that is logged in.
pub(crate) struct Opened {
    pub(crate) link: Link,
    /// For the next resume.
    pub(crate) ticket: Bytes,
    /// Deliveries go on after this entry.
    pub(crate) base: Seq,
    /// This device knows entries that the mailbox never held: its count begins anew at `base`.
    pub(crate) anew: bool,
    /// What came before `base` and is not on this device is on another one.
    pub(crate) resync: bool,
}

/// What a device says of itself when it comes back.
pub(crate) struct Returning {
    /// Empty: none.
    pub(crate) ticket: Bytes,
    pub(crate) acknowledged: Seq,
    /// Its person is not there.
    pub(crate) away: bool,
}

/// Request ids of the opening; no request of the session has them.
const RESUME_ID: u64 = crate::requests::REQUEST_IDS - 2;
const LOGIN_ID: u64 = crate::requests::REQUEST_IDS - 1;

/// Logs in on `link`. A ticket that is refused costs one more round trip.
pub(crate) async fn open(
    mut link: Link,
    identity: Identity,
    returning: Returning,
    wait: Duration,
) -> Result<Opened, ConnectError> {
    let Returning { ticket, acknowledged, away } = returning;
    if !ticket.is_empty() {
        let resume = Resume { ticket, acknowledged: acknowledged.0, away };
        match link.ask(RESUME_ID, client_frame::Kind::Resume(resume), wait).await {
            Err(ConnectError::Refused(refusal)) if refusal.code == Code::BadTicket => {}
            answer => return opened(link, answer?, acknowledged),
        }
    }
    let nonce = link.welcome.nonce.clone();
    let login = Login {
        user: identity.user.0,
        device: identity.device.0,
        signature: identity.key.sign_login(&nonce, identity.user, identity.device).into(),
        acknowledged: acknowledged.0,
        away,
    };
    let answer = link.ask(LOGIN_ID, client_frame::Kind::Login(login), wait).await?;
    opened(link, answer, acknowledged)
}

fn opened(
    link: Link,
    answer: server_frame::Kind,
    acknowledged: Seq,
) -> Result<Opened, ConnectError> {
    let server_frame::Kind::LoggedIn(logged_in) = answer else {
        return Err(ConnectError::Unexpected);
    };
    let recorded = Seq(logged_in.acknowledged);
    let anew = logged_in.resync && acknowledged > recorded;
    let base = if anew { recorded } else { acknowledged.max(recorded) };
    Ok(Opened { link, ticket: logged_in.ticket, base, anew, resync: logged_in.resync })
}
