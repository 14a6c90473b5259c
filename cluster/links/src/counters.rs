//! What the links count: one table of counts, with the metric that shows each. Read as plain data by whoever
//! publishes metrics.
//!
//! **Invariant:** counts only grow, but for `links_up`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::door::Lane;

/// A count as a metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name; several counts share one, and differ in their labels.
    pub name: &'static str,
    /// Its labels.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it says.
    pub help: &'static str,
    /// Reads it.
    pub value: fn(&Counts) -> u64,
}

/// The table: for each count what is counted, its name here, its metric with a label, and the help of that.
macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $count:ident: $name:literal $({$label:literal: $value:literal})?, $help:literal;)+) => {
        /// Counts since the start, but for `links_up`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[doc = $doc])+ pub $count: u64,)+
            /// Links that are up now.
            pub links_up: u64,
        }

        /// The counters behind [`Counts`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $count: AtomicU64,)+
            pub(crate) links_up: AtomicU64,
        }

        impl Counters {
            pub(crate) fn counts(&self) -> Counts {
                Counts { $($count: read(&self.$count),)+ links_up: read(&self.links_up) }
            }
        }

        /// All counts that grow, as metrics.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            labels: &[$(($label, $value))?],
            help: $help,
            value: |counts| counts.$count,
        }),+];
    };
}

counts! {
    /// Packets sent, heartbeats too.
    packets_sent: "natter_link_sent_packets_total", "Packets sent to other nodes.";
    /// Packets received, heartbeats too.
    packets_received: "natter_link_received_packets_total", "Packets received from other nodes.";
    /// Bytes of packets sent.
    bytes_sent: "natter_link_sent_bytes_total", "Bytes sent to other nodes.";
    /// Bytes of packets received.
    bytes_received: "natter_link_received_bytes_total", "Bytes received from other nodes.";
    /// Parcels that were not taken because too much waited, or they were too large: `Urgent`.
    refused_urgent: "natter_link_parcels_refused_total" {"lane": "urgent"},
        "Parcels to other nodes that were not taken, by lane: too much waited, or too large.";
    /// The same: `Normal`.
    refused_normal: "natter_link_parcels_refused_total" {"lane": "normal"},
        "Parcels to other nodes that were not taken, by lane: too much waited, or too large.";
    /// The same: `Bulk`.
    refused_bulk: "natter_link_parcels_refused_total" {"lane": "bulk"},
        "Parcels to other nodes that were not taken, by lane: too much waited, or too large.";
    /// Calls that were not made because too many were open.
    refused_calls: "natter_link_calls_refused_total",
        "Calls to other nodes that were not made, because too many were open.";
    /// Packets that were no packets.
    undecodable: "natter_link_packets_dropped_total" {"reason": "undecodable"},
        "Packets and parcels of other nodes that were of no use, by reason.";
    /// Packets of a connection that is not there, of another incarnation, or before a hello.
    unknown: "natter_link_packets_dropped_total" {"reason": "unknown"},
        "Packets and parcels of other nodes that were of no use, by reason.";
    /// Parcels that arrived in part.
    incomplete: "natter_link_packets_dropped_total" {"reason": "incomplete"},
        "Packets and parcels of other nodes that were of no use, by reason.";
    /// TLS handshakes that failed.
    handshakes_failed: "natter_link_handshakes_failed_total",
        "TLS handshakes with other nodes that failed.";
    /// Of them because the cookie differs.
    cookies_differed: "natter_link_cookies_differed_total",
        "TLS handshakes with other nodes that failed because the cookie differs.";
    /// Links that went down.
    links_ended: "natter_links_ended_total", "Links to other nodes that went down.";
}

impl Counters {
    pub(crate) fn refused(&self, lane: Lane) -> &AtomicU64 {
        match lane {
            Lane::Urgent => &self.refused_urgent,
            Lane::Normal => &self.refused_normal,
            Lane::Bulk => &self.refused_bulk,
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
