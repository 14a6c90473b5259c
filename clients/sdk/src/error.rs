//! What can go wrong, one type for each door.

use crate::words::explain;
use proto::{Code, Retry, wire};
use std::{fmt, io, path::PathBuf, time::Duration};

/// A node's refusal of one request, or of the connection. Shown as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// The node's words, for developers.
    pub text: String,
    /// How long to wait where the code says to wait; zero if the node named no time.
    pub retry_after: Duration,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(explain(self.code))?;
        if self.retry_after >= WORTH_TELLING {
            write!(f, " (in {})", in_words(self.retry_after))?;
        }
        if self.text.is_empty() || self.text == self.code.name() {
            return Ok(());
        }
        let text: String = self.text.chars().filter(|c| !c.is_control()).take(200).collect();
        write!(f, " ({text})")
    }
}

impl std::error::Error for Refusal {}

/// Shortest wait that a person is told: less is over when they have read it.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// A wait as a person says it, never shorter than it is.
fn in_words(wait: Duration) -> String {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let (count, unit) = match seconds {
        0..=90 => (seconds, "second"),
        91..=5_400 => (seconds.div_ceil(60), "minute"),
        _ => (seconds.div_ceil(3_600), "hour"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

impl From<wire::Refused> for Refusal {
    fn from(refused: wire::Refused) -> Self {
        Self {
            code: Code::from_number(refused.code),
            text: refused.text,
            retry_after: Duration::from_millis(u64::from(refused.retry_after_ms)),
        }
    }
}

/// Why there is no connection, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `host:port`, or its host is no name TLS can check.
    #[error("not a host:port address: {0}")]
    Address(String),
    /// The socket or TLS failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// A certificate could not be read or TLS not be set up.
    #[error("TLS set-up failed")]
    Tls(#[from] rustls::Error),
    /// A PEM file could not be read.
    #[error("no certificate in {path}: {reason}")]
    Certificate {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// The node said nothing in time.
    #[error("the node did not answer within {0:?}")]
    TimedOut(Duration),
    /// The node sent bytes that are no frame of this protocol.
    #[error("the node sent what is no frame")]
    Frame(#[from] proto::frame::FrameError),
    /// The node sent a frame that has no place here.
    #[error("the node answered with another frame than expected")]
    Unexpected,
    /// The node refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ConnectError {
    /// The node's code, if it was the node that refused.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Address(_)
            | Self::Io(_)
            | Self::Tls(_)
            | Self::Certificate { .. }
            | Self::TimedOut(_)
            | Self::Frame(_)
            | Self::Unexpected => None,
        }
    }
}

/// Why a message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// [`crate::ClientOptions::outbox_max`] messages wait already; nothing was queued.
    #[error("{waiting} messages wait to be sent already")]
    QueueFull {
        /// Messages that wait.
        waiting: usize,
    },
    /// The body is longer than the protocol allows; nothing was queued.
    #[error("a body of {bytes} bytes, {limit} allowed")]
    TooLarge {
        /// Bytes of the body.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The store could not keep it; nothing was queued.
    #[error("the message could not be kept")]
    Store(#[from] StoreError),
    /// The node refused it for good, or for longer than it is worth to repeat. After a code whose
    /// fault is the server's it is not known whether the message was stored.
    #[error(transparent)]
    Refused(Refusal),
    /// The session ended for good; the message stays in the store.
    #[error("the session ended: {}", explain(*.0))]
    Ended(Code),
    /// The client was closed before the answer came; the message stays in the store.
    #[error("the client was closed")]
    Closed,
}

impl SendError {
    /// The node's code, if there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Ended(code) => Some(*code),
            Self::QueueFull { .. } | Self::TooLarge { .. } | Self::Store(_) | Self::Closed => None,
        }
    }

    /// Whether sending the same message again, as a new one, makes sense.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(refusal) => refusal.code.retry(),
            Self::QueueFull { .. } => Retry::After,
            Self::Ended(_) | Self::TooLarge { .. } | Self::Store(_) | Self::Closed => Retry::Never,
        }
    }
}

/// Why a request got no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The node refused it.
    #[error(transparent)]
    Refused(Refusal),
    /// No answer in time, or no connection in all that time. It is not known whether the node did
    /// it.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection was lost before the answer and the request is not safe to repeat.
    #[error("the connection was lost before the answer")]
    Disconnected,
    /// An argument is out of its range; nothing was sent.
    #[error("out of range: {0}")]
    BadArgument(&'static str),
    /// The node answered with a frame that does not fit.
    #[error("the node answered with another frame than expected")]
    Unexpected,
    /// The session ended for good.
    #[error("the session ended: {}", explain(*.0))]
    Ended(Code),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl RequestError {
    /// The node's code, if there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Ended(code) => Some(*code),
            Self::TimedOut(_)
            | Self::Disconnected
            | Self::BadArgument(_)
            | Self::Unexpected
            | Self::Closed => None,
        }
    }

    /// Whether the same request may be made again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(refusal) => refusal.code.retry(),
            Self::TimedOut(_) | Self::Disconnected => Retry::Reconnect,
            Self::BadArgument(_) | Self::Unexpected | Self::Ended(_) | Self::Closed => Retry::Never,
        }
    }
}

/// Why state could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("{path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file holds what this version did not write.
    #[error("{path} is damaged or from a newer version: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a device key could not be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The cryptographic library found no randomness.
    #[error("no key could be generated")]
    Generate,
    /// The bytes are no Ed25519 key in PKCS#8.
    #[error("not an Ed25519 key in PKCS#8")]
    Parse,
}
