//! How far a message of one's own has come, and the sign for it: the one piece of code for the screen, the
//! plain lines and the demo.

use serde::{Deserialize, Serialize};

/// How far a message of one's own has come; later ones are higher.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tick {
    /// It waits for a connection.
    Waiting,
    /// On the disk of the node, or of a majority of the cluster.
    Accepted,
    /// On every device of the recipient.
    Delivered,
    /// Seen by a person.
    Read,
    /// It was refused, or did not arrive; the reason.
    Failed(String),
}

impl Tick {
    /// The sign beside a message on a screen with colors; there `Read` differs from `Delivered` by its color.
    pub fn sign(&self) -> &'static str {
        match self {
            Self::Waiting => "\u{25f7}",
            Self::Accepted => "\u{2713}",
            Self::Delivered | Self::Read => "\u{2713}\u{2713}",
            Self::Failed(_) => "\u{2717}",
        }
    }

    /// The sign where there are no colors.
    pub fn plain(&self) -> &'static str {
        match self {
            Self::Read => "\u{2713}\u{2713} read",
            Self::Waiting | Self::Accepted | Self::Delivered | Self::Failed(_) => self.sign(),
        }
    }
}
