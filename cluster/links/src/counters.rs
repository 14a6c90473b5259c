//! What the links count. Read as plain data by whoever publishes metrics.
//!
//! **Invariant:** counts only grow, but for `links_up`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::door::Lane;
use crate::lanes::parcel::lane_index;

/// Counts since the start, but for `links_up`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sent, heartbeats too.
    pub packets_sent: u64,
    /// Packets received, heartbeats too.
    pub packets_received: u64,
    /// Bytes of packets sent.
    pub bytes_sent: u64,
    /// Bytes of packets received.
    pub bytes_received: u64,
    /// Parcels that were not taken because too much waited, or they were too large: `Urgent`.
    pub refused_urgent: u64,
    /// The same: `Normal`.
    pub refused_normal: u64,
    /// The same: `Bulk`.
    pub refused_bulk: u64,
    /// Calls that were not made because too many were open.
    pub refused_calls: u64,
    /// Packets that were no packets.
    pub undecodable: u64,
    /// Packets of a connection that is not there, of another incarnation, or before a hello.
    pub unknown: u64,
    /// Parcels that arrived in part.
    pub incomplete: u64,
    /// TLS handshakes that failed.
    pub handshakes_failed: u64,
    /// Of them because the cookie differs.
    pub cookies_differed: u64,
    /// Links that went down.
    pub links_ended: u64,
    /// Links that are up now.
    pub links_up: u64,
}

/// The counters behind [`Counts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) packets_sent: AtomicU64,
    pub(crate) packets_received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) refused: [AtomicU64; 3],
    pub(crate) refused_calls: AtomicU64,
    pub(crate) undecodable: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) incomplete: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) cookies_differed: AtomicU64,
    pub(crate) links_ended: AtomicU64,
    pub(crate) links_up: AtomicU64,
}

impl Counters {
    pub(crate) fn refused(&self, lane: Lane) -> &AtomicU64 {
        &self.refused[lane_index(lane)]
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            packets_sent: read(&self.packets_sent),
            packets_received: read(&self.packets_received),
            bytes_sent: read(&self.bytes_sent),
            bytes_received: read(&self.bytes_received),
            refused_urgent: read(self.refused(Lane::Urgent)),
            refused_normal: read(self.refused(Lane::Normal)),
            refused_bulk: read(self.refused(Lane::Bulk)),
            refused_calls: read(&self.refused_calls),
            undecodable: read(&self.undecodable),
            unknown: read(&self.unknown),
            incomplete: read(&self.incomplete),
            handshakes_failed: read(&self.handshakes_failed),
            cookies_differed: read(&self.cookies_differed),
            links_ended: read(&self.links_ended),
            links_up: read(&self.links_up),
        }
    }
}

/// Adds `count`.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
