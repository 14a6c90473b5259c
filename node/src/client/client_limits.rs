//! The limits of a client's connection, from the settings.

use std::time::Duration;

use crate::config::NodeConfig;

/// The limits of a connection, as they were when it came.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Time limits.
    pub times: Times,
    /// What strangers may send.
    pub strangers: Strangers,
}

impl ClientLimits {
    /// Those of the settings.
    pub fn of(config: &NodeConfig) -> Self {
        let limits = &config.limits;
        Self {
            times: Times {
                handshake: limits.handshake_timeout,
                login: limits.login_timeout,
                heartbeat: limits.heartbeat,
                write: limits.write_timeout,
            },
            strangers: Strangers {
                frames: limits.frames_before_login,
                bytes: limits.bytes_before_login.0,
            },
        }
    }
}

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For a proxy's header and the handshakes of TLS and WebSocket.
    pub handshake: Duration,
    /// Until a login.
    pub login: Duration,
    /// Silence after which the node asks.
    pub heartbeat: Duration,
    /// One write.
    pub write: Duration,
}

/// What a connection may send before it is logged in.
#[derive(Clone, Copy, Debug)]
pub struct Strangers {
    /// Frames.
    pub frames: u32,
    /// Bytes.
    pub bytes: u64,
}
