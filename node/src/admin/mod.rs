//! What an operator does: an HTTP API on the Unix socket of a running node, and `natter admin`, one client of it.
//!
//! ```text
//!   natter admin ... --> DATA/admin.sock --> node        HTTP: the routes and their JSON are in `routes.rs`
//! ```
//!
//! //! # Invariants
//! 1. Only the user that runs the node, and root, are heard: by the mode of the socket and by what
//!    the system says of who has connected.
//! 2. Connections, requests and time are bounded.
//! 3. Who asks may leave at any time: what was begun goes on.

mod answer;
mod call;
mod client;
mod control;
mod join;
mod print;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use call::{CallError, status};
pub use client::run;
pub use control::{Control, GroupStatus, MemberStatus, SessionsStatus, Status};
pub use join::{joins, seeds};
pub use socket::socket_path;

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use membership::Cluster;
use serde::{Deserialize, Serialize};
use supervision::ChildSpec;

use crate::config::NodeConfig;
use crate::parts::Node;
use control::NodeControl;
use socket::Socket;

/// What can be asked of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// How things stand.
    Status,
    /// Join the cluster of a seed.
    Join(Join),
    /// This node gives up what it holds and leaves.
    Leave(Wait),
    /// A node hands over what it leads.
    Drain(Drain),
    /// Everything goes where it should be.
    Rebalance(Wait),
    /// A node that will not come back is replaced.
    Remove(Remove),
    /// Set a setting for the whole cluster.
    Set {
        /// As in `node.toml`.
        key: String,
        /// What it is from now on.
        set: Set,
    },
    /// The settings of the cluster.
    Get {
        /// Only this one.
        key: Option<String>,
    },
}

/// The body of a request to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// HOST:PORT.
    pub seed: String,
}

/// The body of a request that takes its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wait {
    /// Whether to wait until it is done.
    pub wait: bool,
}

/// The body of a request to drain a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Its id, the beginning of it, or its name.
    pub node: String,
    /// It may lead again.
    #[serde(default)]
    pub undo: bool,
    /// Also if too few are left that lead.
    #[serde(default)]
    pub force: bool,
    /// Whether to wait until it is done.
    #[serde(default)]
    pub wait: bool,
}

/// The body of a request to remove a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Its id, the beginning of it, or its name.
    pub node: String,
    /// Whether to wait until it is done.
    #[serde(default)]
    pub wait: bool,
}

/// The body of a request to set a setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// As in `node.toml`; empty takes it back.
    pub value: String,
}

impl Request {
    /// Method, path and body of the request; see `routes.rs`.
    fn as_http(&self) -> (Method, String, Vec<u8>) {
        // No key of these structs is anything but a string.
        let body = |body: serde_json::Result<Vec<u8>>| body.unwrap_or_default();
        let post = |path: &str, bytes| (Method::POST, path.to_owned(), body(bytes));
        match self {
            Self::Status => (Method::GET, "/cluster".to_owned(), Vec::new()),
            Self::Join(join) => post("/cluster/join", serde_json::to_vec(join)),
            Self::Leave(wait) => post("/cluster/leave", serde_json::to_vec(wait)),
            Self::Drain(drain) => post("/cluster/drain", serde_json::to_vec(drain)),
            Self::Rebalance(wait) => post("/cluster/rebalance", serde_json::to_vec(wait)),
            Self::Remove(remove) => post("/cluster/remove", serde_json::to_vec(remove)),
            Self::Set { key, set } => {
                (Method::PUT, setting_path(key), body(serde_json::to_vec(set)))
            }
            Self::Get { key: Some(key) } => (Method::GET, setting_path(key), Vec::new()),
            Self::Get { key: None } => (Method::GET, "/settings".to_owned(), Vec::new()),
        }
    }
}

/// The path of a setting; whatever cannot stand in a path is escaped.
fn setting_path(key: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    format!("/settings/{}", key.bytes().map(escape).collect::<String>())
}

/// What a node says to whoever waits; the last line is an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// This is left to do.
    Progress(Vec<String>),
    /// It is done, and this is the outcome.
    Done(serde_json::Value),
    /// It is not.
    Failed(Failure),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind of reason.
    pub kind: FailureKind,
    /// For people.
    pub text: String,
}

impl Failure {
    fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// Which kind of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It makes no sense as things stand.
    Refused,
    /// No member is meant by that, or several are.
    UnknownNode,
    /// No majority answers: to be tried again.
    NoMajority,
    /// Another user.
    NotPermitted,
    /// Too many ask.
    Busy,
    /// The request was not understood.
    Malformed,
    /// It goes on, but nobody waits for it any longer.
    StillGoing,
}

impl FailureKind {
    /// The HTTP status that says it.
    fn status(self) -> StatusCode {
        match self {
            Self::Refused => StatusCode::CONFLICT,
            Self::UnknownNode => StatusCode::NOT_FOUND,
            Self::NoMajority => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotPermitted => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::StillGoing => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// The child that serves the socket of a node.
///
/// # Errors
/// If another process serves it, or it cannot be made.
pub(crate) fn child(
    config: &NodeConfig,
    node: &Node,
    cluster: Cluster,
) -> anyhow::Result<ChildSpec> {
    let socket = Socket::open(config.node.data_dir.as_ref())?;
    let parts = &node.parts;
    let data_dir = config.node.data_dir.clone().into();
    let control: Arc<dyn Control> = Arc::new(NodeControl {
        shards: parts.shards.shards.clone(),
        sessions: parts.sessions.clone(),
        peers: parts.peers.clone(),
        clocks: parts.clocks.clone(),
        vitals: parts.vitals(),
        incarnation: parts.incarnation,
        cluster,
        data_dir,
    });
    Ok(ChildSpec::task("admin", move |stopping| {
        server::serve(socket.clone(), control.clone(), stopping)
    }))
}
