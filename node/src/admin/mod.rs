//! The admin API: HTTP on the Unix socket of a running node, and `natter admin`, its client.
//!
//! ```text
//!   natter admin ... --> DATA/admin.sock --> server.rs --> routes.rs --> answer.rs --> control.rs
//!   client.rs, print.rs                      connections   HTTP, JSON    decides       the node
//! ```
//!
//! # Invariants
//! 1. The node serves only the user that runs it, and root: the socket's mode says so, and the system tells which
//!    user has connected.
//! 2. Connections, requests, answers and time are bounded.
//! 3. A client may leave at any time: the node finishes what it has begun.

mod answer;
mod call;
mod client;
mod control;
mod join;
mod print;
mod routes;
mod server;
mod socket;
mod stalls;
#[cfg(test)]
mod tests;

pub use call::{CallError, status};
pub use client::run;
pub use consensus::GroupStatus;
pub use control::{Control, MemberStatus, ReplicaStatus, SessionsStatus, Status};
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
        /// The new value.
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
    /// True: wait until it is done.
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
    /// True: wait until it is done.
    #[serde(default)]
    pub wait: bool,
}

/// The body of a request to remove a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Its id, the beginning of it, or its name.
    pub node: String,
    /// True: wait until it is done.
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

/// One line of a streamed answer; the last line is an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The steps that are left.
    Progress(Vec<String>),
    /// It is done; this is the outcome.
    Done(serde_json::Value),
    /// It was not done.
    Failed(Failure),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people.
    pub text: String,
}

impl Failure {
    fn new(code: FailureCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// The reason of a failure, for programs. Each has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The request makes no sense in the present state of the cluster.
    Refused,
    /// No member has that name or id, or several have.
    UnknownNode,
    /// The cluster has no setting of that name.
    UnknownSetting,
    /// There is no such route.
    UnknownRoute,
    /// The route exists, but not with that method.
    MethodNotAllowed,
    /// No majority answers. Try again.
    NoMajority,
    /// The client runs as another user.
    NotPermitted,
    /// Too many requests at once. Try again.
    Busy,
    /// The body or the path was not understood.
    Malformed,
    /// The body is too long.
    TooLarge,
    /// The body did not come in time.
    TooSlow,
    /// The node goes on, but no longer tells how far it is.
    StillGoing,
    /// A fault of the node.
    Internal,
}

impl FailureCode {
    fn status(self) -> StatusCode {
        match self {
            Self::Refused => StatusCode::CONFLICT,
            Self::UnknownNode | Self::UnknownSetting | Self::UnknownRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoMajority => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotPermitted => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::StillGoing => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
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
