//! Every bound of a link, with its reason.

use std::time::Duration;

/// Newest version of `cluster.proto` that this program speaks.
pub const SCHEMA: u32 = 1;

/// Oldest version of `cluster.proto` that this program speaks.
pub const SCHEMA_MIN: u32 = 1;

/// How long a peer may be silent before it counts as down. Several heartbeats, for a busy machine
/// skips some.
pub const SILENCE: Duration = Duration::from_millis(1500);

/// Longest time for which nothing is sent on a link.
pub const HEARTBEAT: Duration = Duration::from_millis(200);

/// Largest parcel in bytes. Snapshots come in pieces of 256 KiB; a Raft batch is far below.
pub const PARCEL_BYTES_MAX: usize = 8 << 20;

/// Largest piece of a parcel in bytes: two fit into a packet, so that lanes share it.
pub const PIECE_BYTES_MAX: usize = 32 << 10;

/// Largest packet in bytes, encoded. What is urgent waits for one of them at most: 0.5 ms at
/// 1 Gbit/s.
pub const PACKET_BYTES_MAX: usize = 64 << 10;

/// What may wait in lane `Urgent`, in bytes: votes and heartbeats of 17 groups are a few KiB; more
/// than this has waited too long to be urgent.
pub const URGENT_BYTES_MAX: usize = 1 << 20;

/// What may wait in lane `Normal`, in bytes: a tenth of a second at 1 Gbit/s, and two parcels of the
/// largest size.
pub const NORMAL_BYTES_MAX: usize = 16 << 20;

/// What may wait in lane `Bulk`, in bytes. Whoever sends in bulk asks piece by piece; one parcel of
/// the largest size still goes in when the lane is empty.
pub const BULK_BYTES_MAX: usize = 4 << 20;

/// Bytes that may be under way to a peer without its acknowledgement: what a hung peer costs beside
/// the lanes. 8 Gbit/s at 1 ms.
pub const WINDOW_BYTES: usize = 1 << 20;

/// How far `Urgent` may exceed the window.
pub const URGENT_EXTRA_BYTES: usize = 256 << 10;

/// Of the window what `Bulk` may take, for what is urgent queues behind it in the sockets: 20 ms at
/// 100 Mbit/s.
pub const BULK_WINDOW_BYTES: usize = 256 << 10;

/// Bytes taken after which an acknowledgement is sent at once: often enough that `Bulk` never waits.
pub const ACKNOWLEDGE_BYTES: usize = 64 << 10;

/// What a parcel or a piece counts beside its bytes, so that many empty ones are bounded too. A
/// piece's fields take at most 43 bytes.
pub const OVERHEAD_BYTES: usize = 64;

/// Shares of `Normal` to `Bulk` when both wait.
pub const NORMAL_SHARE: u64 = 4;

/// Calls that may wait for the answer of one peer.
pub const CALLS_MAX: usize = 16 << 10;

/// Of these what is left to urgent and vital calls, of which each group has a few at a time: users may
/// ask by the thousand.
pub const CALLS_KEPT: usize = CALLS_MAX / 4;

/// Packets within which reordering and duplicates are seen; older ones are dropped.
pub const REORDER_PACKETS: usize = 1024;

/// Parcels of one lane that may be incomplete on arrival at the same time.
pub const INCOMPLETE_MAX: usize = 64;

/// Bytes of incomplete parcels in one lane.
pub const INCOMPLETE_BYTES_MAX: usize = PARCEL_BYTES_MAX + WINDOW_BYTES;

/// Packets that are written at once: what is urgent waits for so many at most.
pub const PACKETS_AT_ONCE: usize = 2;

/// Largest frame that is taken from a connection: a packet, or some bytes of `ractor_cluster`'s.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Handshakes under way on the listener. Each costs a file descriptor and some KiB.
pub const HANDSHAKES_MAX: usize = 64;

/// Of these those of one address: nodes behind one address that start together are a few.
pub const HANDSHAKES_OF_SOURCE_MAX: usize = 8;

/// Longest time for a TCP connection and a TLS handshake.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(3);

/// Longest time from a connection until both have said hello.
pub const GREETING_WAIT: Duration = Duration::from_secs(5);

const _: () = {
    assert!(2 * PIECE_BYTES_MAX <= PACKET_BYTES_MAX);
    assert!(PACKET_BYTES_MAX < FRAME_BYTES_MAX && FRAME_BYTES_MAX < 1 << 24);
    assert!(ACKNOWLEDGE_BYTES + PACKET_BYTES_MAX < BULK_WINDOW_BYTES);
    assert!(BULK_WINDOW_BYTES < WINDOW_BYTES);
    assert!(2 * PARCEL_BYTES_MAX <= NORMAL_BYTES_MAX);
    assert!(HANDSHAKES_OF_SOURCE_MAX < HANDSHAKES_MAX / 4);
};
