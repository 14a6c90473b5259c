//! What travels on a wire: the schema, the frame codec, ids, error codes and limits.
//!
//! A frame is a length and a protobuf message, which any delimited-protobuf reader understands:
//!
//! ```text
//! +----------------+------------------------------+
//! | length: varint | ClientFrame or ServerFrame   |
//! | 1 to 3 bytes   | `length` bytes, at most 256K |
//! +----------------+------------------------------+
//! ```
//!
//! **Invariant:** this crate knows no runtime, no clock and no disk.

pub mod codes;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod names;
mod phone;
pub mod signed;

pub use codes::{Code, Fault, Retry};
pub use ids::{Alias, AliasError, DeviceId, NodeId, SendId, Seq, ShardId, UserId};

/// The client protocol, generated from `schema/client.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/natter.v1.rs"));
}

/// What shards log and tables hold, generated from `schema/stored.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod stored {
    include!(concat!(env!("OUT_DIR"), "/natter.stored.v1.rs"));
}

/// What nodes say to each other, generated from `schema/cluster.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/natter.cluster.v1.rs"));
}
