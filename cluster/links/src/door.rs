//! What the rest of the house sees of other nodes.

use bytes::Bytes;
use proto::NodeId;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// One start of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// Which node.
    pub node: NodeId,
    /// Which start of it; grows with each.
    pub incarnation: u64,
}

/// What a peer said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who.
    pub id: PeerId,
    /// Its name, for people.
    pub name: String,
    /// Where nodes reach it, HOST:PORT.
    pub address: String,
    /// Where clients reach it, HOST:PORT.
    pub client_address: String,
    /// The same for clients that speak WebSocket.
    pub websocket_address: String,
    /// Which zone it is in; empty if none was told.
    pub zone: String,
    /// Version of its program.
    pub version: String,
    /// Version of `cluster.proto` that both speak.
    pub schema: u32,
}

/// Which parcels go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, votes and other small things on which time runs.
    Urgent,
    /// Messages, log entries, session rows.
    Normal,
    /// Snapshots, fetches of whole tables.
    Bulk,
}

/// Why a call has no answer. It may have taken effect all the same, but for [`CallError::NotUp`] and
/// [`CallError::Full`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no link to that node now.
    #[error("the peer is not connected")]
    NotUp,
    /// Too much waits for that node.
    #[error("too much waits for the peer")]
    Full,
    /// The link broke before the answer came.
    #[error("the link to the peer broke")]
    Broken,
    /// No answer in time.
    #[error("the peer did not answer in time")]
    TimedOut,
}

/// The answer to a call, or why there is none.
pub type Answered = Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send>>;

/// The links of this node.
pub trait Links: Send + Sync + std::fmt::Debug {
    /// This node.
    fn me(&self) -> PeerId;

    /// Tells a peer something; it may be lost. False if it is lost already: no link, or too much
    /// waits in this lane.
    fn cast(&self, to: NodeId, lane: Lane, parcel: Bytes) -> bool;

    /// Asks a peer. The peer is told how much time is left.
    fn call(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered;

    /// The same, for the few calls without which nothing goes on: there is room for them, and for all in
    /// lane [`Lane::Urgent`], when others have taken all of theirs.
    fn call_vital(&self, to: NodeId, lane: Lane, parcel: Bytes, within: Duration) -> Answered {
        self.call(to, lane, parcel, within)
    }

    /// The peers that are connected and alive.
    fn up(&self) -> Vec<PeerInfo>;

    /// Whether no peer is connected.
    fn is_alone(&self) -> bool {
        self.up().is_empty()
    }

    /// Whether this peer is connected and alive.
    fn is_up(&self, node: NodeId) -> bool {
        self.up().iter().any(|peer| peer.id.node == node)
    }

    /// Tells where nodes can be reached, beside the seeds. Replaces what was told before.
    fn learn(&self, addresses: Vec<(NodeId, String)>);
}

/// The door to all peers. Cheap to clone.
pub type Peers = Arc<dyn Links>;

/// Sends the answer to a call. Dropped unused, the caller waits until its time ends.
pub type Respond = Box<dyn FnOnce(Bytes) + Send>;

/// What a node does with what arrives. Called on the link's own task: must not block or take long.
pub trait Service: Send + Sync {
    /// A peer is there. Comes before its first parcel.
    fn up(&self, peer: PeerInfo);
    /// A peer has gone, or hangs. Also comes before the `up` of its next incarnation.
    fn down(&self, peer: PeerId);
    /// A cast arrived.
    fn cast(&self, from: PeerId, parcel: Bytes);
    /// A call arrived. Nobody waits for the answer any longer after `left`.
    fn call(&self, from: PeerId, parcel: Bytes, left: Duration, respond: Respond);
}
