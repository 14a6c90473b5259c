//! What an operator does: `natter admin` on one side, the socket of a running node on the other.
//!
//! ```text
//!   natter admin ... --> DATA/admin.sock --> node        one line of JSON each way:
//!     {"do":"drain","node":"ada","wait":true}
//!                            {"progress":["leads 3 groups"]}
//!                            {"done":{"node":"00f1..","name":"ada"}}
//!                            {"failed":{"kind":"no_majority","text":".."}}
//! ```
//!
//! # Invariants
//! 1. Only the user that runs the node, and root, are heard: by the mode of the socket and by what
//!    the system says of who has connected.
//! 2. Connections, lines and time are bounded.
//! 3. Who asks may leave at any time: what was begun goes on.

mod answer;
mod client;
mod control;
mod join;
mod print;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use client::run;
pub use control::{Control, GroupStatus, MemberStatus, SessionsStatus, Status};
pub use join::{joins, seeds};
pub use socket::socket_path;

use std::sync::Arc;

use membership::Cluster;
use serde::{Deserialize, Serialize};
use supervision::ChildSpec;

use crate::config::NodeConfig;
use crate::parts::Node;
use control::NodeControl;
use socket::Socket;

/// What can be asked of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    /// How things stand.
    Status,
    /// Join the cluster of a seed.
    Join {
        /// HOST:PORT.
        seed: String,
    },
    /// This node gives up what it holds and leaves.
    Leave {
        /// Whether to wait until it is done.
        wait: bool,
    },
    /// A node hands over what it leads.
    Drain {
        /// Its id, the beginning of it, or its name.
        node: String,
        /// It may lead again.
        undo: bool,
        /// Also if too few are left that lead.
        force: bool,
        /// Whether to wait until it is done.
        wait: bool,
    },
    /// Everything goes where it should be.
    Rebalance {
        /// Whether to wait until it is done.
        wait: bool,
    },
    /// A node that will not come back is replaced.
    Remove {
        /// Its id, the beginning of it, or its name.
        node: String,
        /// Whether to wait until it is done.
        wait: bool,
    },
    /// Set a setting for the whole cluster.
    Set {
        /// As in `node.toml`.
        key: String,
        /// As in `node.toml`; empty takes it back.
        value: String,
    },
    /// The settings of the cluster.
    Get {
        /// Only this one.
        key: Option<String>,
    },
}

/// What a node says.
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
