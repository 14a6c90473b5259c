//! Stories of attacks on a real node beside honest people. In each of them memory, disk and
//! descriptors stay within a budget, honest people are served, and the attacker is refused by code or
//! cut off.

mod connections;
mod malformed;
mod messages;
mod registration;
mod requests;

use crate::people::node;
use tests::hostile::budget::Bounds;
use tests::hostile::siege::Siege;

/// What an attack may take if nothing that it sends is kept: buffers, and the honest people's own
/// messages. Descriptors are a few dozen of a node at rest, and one for each connection.
const BOUNDS: Bounds = Bounds { memory_kib: 64 * 1024, disk_bytes: 64 << 20, descriptors: 400 };

/// Honest people on a node with these further settings.
async fn siege(more: &str) -> Siege {
    Siege::lay(node(more).await).await.unwrap()
}
