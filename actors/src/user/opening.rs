//! Opening a session, once a device has shown its ticket or proved its key.
//!
//! ```text
//!  client                     node                         user's shard
//!    | Resume{ticket n} ------->| OpenSession{n, next} ------->| is n the good one?
//!    |                          |                              | from now on it is `next`
//!    |<- LoggedIn{ticket next} -|<---------------------- Done -|
//! ```
//!
//! # Invariant
//! A ticket opens once: whether it is good is decided at one place of the log of the user's shard, and
//! there the next one takes its place.

use super::UserContext;
use super::login::Admission;
use crate::shard::{Command, Outcome};
use proto::{Code, stored};

/// Opens the session of a device that was admitted. With the number of its next ticket.
///
/// # Errors
/// [`Code::BadTicket`]: the ticket was used before. [`Code::Unlinked`]: the device is not linked any
/// longer, or its account is gone; a ticket that we sealed proves that it was a device of that user.
/// [`Code::Unavailable`]: the ticket may have been used up.
pub async fn open_session(context: &UserContext, admission: Admission) -> Result<Admission, Code> {
    let next = random_ticket(context);
    let (user, device) = (admission.user, admission.device);
    let ticket = admission.ticket.unwrap_or_default();
    let open = stored::OpenSession { user: user.0, device: device.0, ticket, next };
    let outcome = context.shards.call(user.shard(), Command::OpenSession(open)).await;
    done(&outcome).map(|()| Admission { next, ..admission })
}

/// Whether a command took effect that answers nothing else.
pub(super) fn done(outcome: &Outcome) -> Result<(), Code> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Refused(code) | Outcome::Wait { code, .. } => Err(*code),
        Outcome::Elsewhere => Err(Code::Unavailable),
        Outcome::Accepted { .. }
        | Outcome::Pin { .. }
        | Outcome::Proven { .. }
        | Outcome::NotTheirs
        | Outcome::Admitted(_) => Err(Code::Internal),
    }
}

/// A number that nobody guesses and that no crash brings back.
pub(super) fn random_ticket(context: &UserContext) -> u64 {
    let mut bytes = [0; 8];
    context.secrets.fill(&mut bytes);
    u64::from_le_bytes(bytes).max(1)
}
