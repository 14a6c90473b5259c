//! Error codes: numbers that never change meaning.
//!
//! The tens say whose turn it is: 1x handshake, 2x who you are, 3x what you asked, 4x how much,
//! 5x us.

/// Who must change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client's code or its user.
    Client,
    /// The node or its operator.
    Server,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It will be refused again.
    Never,
    /// On this connection, as soon as you like.
    SameConnection,
    /// On a new connection.
    Reconnect,
    /// Not before `Refused.retry_after_ms`.
    After,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $fault:ident, $retry:ident;)+) => {
        /// Why a request was refused or a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
            /// A number from a newer peer. Treat it like [`Code::Internal`].
            Unknown(u32),
        }

        impl Code {
            /// Every code this version knows.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The number on the wire.
            pub fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)+
                    Self::Unknown(number) => number,
                }
            }

            /// The code with this number.
            pub fn from_number(number: u32) -> Self {
                match number {
                    $($number => Self::$name,)+
                    other => Self::Unknown(other),
                }
            }

            /// A name for logs and metrics, from a closed set.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Unknown(_) => "Unknown",
                }
            }

            /// Who must change something.
            pub fn fault(self) -> Fault {
                match self {
                    $(Self::$name => Fault::$fault,)+
                    Self::Unknown(_) => Fault::Server,
                }
            }

            /// Whether to try again.
            pub fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)+
                    Self::Unknown(_) => Retry::Reconnect,
                }
            }
        }
    };
}

codes! {
    /// The bytes are no frame of this protocol. The connection ends.
    BadFrame = 10, Client, Never;
    /// The frame is longer than the limit in `Welcome`. The connection ends.
    FrameTooLarge = 11, Client, Never;
    /// No login came in time, or the peer fell silent. The connection ends.
    TimedOut = 12, Client, Reconnect;
    /// The node is shutting down; the connection ends.
    GoingAway = 13, Server, Reconnect;
    /// Too many connections from this address or on this node.
    TooManyConnections = 14, Client, After;

    /// This request needs a login first.
    NotLoggedIn = 20, Client, SameConnection;
    /// No such user or device, or the signature does not prove its key.
    BadCredentials = 21, Client, Never;
    /// The ticket is forged, too old, or was used before. Log in with the key.
    BadTicket = 22, Client, SameConnection;
    /// The PIN is wrong.
    WrongPin = 23, Client, SameConnection;
    /// No PIN is pending for this alias, or it expired, or was tried too often. Ask for a new one.
    NoPin = 24, Client, Never;
    /// The PIN could not be sent.
    PinNotSent = 25, Server, After;
    /// This connection is logged in already.
    AlreadyLoggedIn = 26, Client, Never;
    /// The same device logged in elsewhere; this connection ends.
    Replaced = 27, Client, Never;
    /// This device was unlinked or its account deleted; the connection ends.
    Unlinked = 28, Client, Never;
    /// This device was away for too long or far behind, and the mailbox no longer waits for it; the
    /// connection ends. Log in again, and fetch what is missing from another device.
    SetAside = 29, Client, Reconnect;

    /// A field is missing or outside its range.
    BadRequest = 30, Client, Never;
    /// No such user or alias.
    UnknownUser = 31, Client, Never;
    /// No such device of this user.
    UnknownDevice = 32, Client, Never;
    /// The recipient takes no messages from you.
    Blocked = 33, Client, Never;
    /// This node does not know the request.
    NotSupported = 35, Client, Never;
    /// The account of this alias has a registration lock, and none or a wrong one came.
    WrongLock = 36, Client, SameConnection;

    /// Too many requests; wait.
    TooFast = 40, Client, After;
    /// The recipient's devices are too far behind; nothing was stored.
    MailboxFull = 41, Client, After;
    /// The body is longer than its limit.
    BodyTooLarge = 42, Client, Never;
    /// More devices, blocks or subscriptions than one user may have.
    TooMany = 43, Client, Never;

    /// Not stored, or not known whether stored. Send it again with the same id.
    Unavailable = 50, Server, After;
    /// The node's disk is nearly full; reading and acknowledging still work.
    StorageFull = 51, Server, After;
    /// A fault of the node.
    Internal = 52, Server, Reconnect;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_code_has_a_number_of_its_own_and_comes_back() {
        let numbers: BTreeSet<u32> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), *code);
        }
        assert_eq!(Code::from_number(999), Code::Unknown(999));
    }
}
