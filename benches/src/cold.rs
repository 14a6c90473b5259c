//! The frames that are rare: opening, refusals, goodbyes. Read and written by the generated code.

use anyhow::{Result, bail};
use bytes::Bytes;
use proto::Code;
use proto::wire::{ClientFrame, ServerFrame, client_frame, server_frame::Kind};

/// A rare frame, as far as this program cares.
#[derive(Debug)]
pub(crate) enum Cold {
    Welcome {
        nonce: Bytes,
        unanswered_max: u32,
    },
    PinSent {
        token: Bytes,
    },
    /// Registered or logged in.
    In {
        user: u64,
        device: u32,
        ticket: Bytes,
    },
    Refused(Refusal),
    Ignored,
}

/// Why the node did not do what was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) id: u64,
    pub(crate) code: Code,
    pub(crate) text: String,
    pub(crate) retry_after_ms: u32,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused: {} ({}): {}", self.code.name(), self.code.number(), self.text)
    }
}

/// Decodes the content of a frame.
///
/// # Errors
/// If it is no frame, or says that the connection ends.
pub(crate) fn read(content: &[u8]) -> Result<Cold> {
    let content = Bytes::copy_from_slice(content);
    let frame: ServerFrame = proto::frame::decode_whole(content, proto::limits::FRAME_BYTES_MAX)?;
    let Some(kind) = frame.kind else { return Ok(Cold::Ignored) };
    Ok(match kind {
        Kind::Welcome(welcome) => {
            Cold::Welcome { nonce: welcome.nonce, unanswered_max: welcome.unanswered_max }
        }
        Kind::PinSent(sent) => Cold::PinSent { token: sent.token },
        Kind::Registered(done) => {
            Cold::In { user: done.user, device: done.device, ticket: done.ticket }
        }
        Kind::LoggedIn(done) => {
            Cold::In { user: done.user, device: done.device, ticket: done.ticket }
        }
        Kind::Refused(refused) => Cold::Refused(Refusal {
            id: frame.id,
            code: Code::from_number(refused.code),
            text: refused.text,
            retry_after_ms: refused.retry_after_ms,
        }),
        Kind::GoAway(away) => bail!("the node says go away: {:?}", Code::from_number(away.code)),
        Kind::Accepted(_)
        | Kind::Deliver(_)
        | Kind::Signaled(_)
        | Kind::CaughtUp(_)
        | Kind::Ping(_)
        | Kind::Pong(_)
        | Kind::Done(_)
        | Kind::Presence(_)
        | Kind::Linked(_)
        | Kind::LinkRequested(_)
        | Kind::Found(_)
        | Kind::Account(_) => Cold::Ignored,
    })
}

/// Appends a rare frame.
pub(crate) fn put(out: &mut Vec<u8>, id: u64, kind: client_frame::Kind) {
    proto::frame::encode(&ClientFrame { id, kind: Some(kind) }, out);
}
