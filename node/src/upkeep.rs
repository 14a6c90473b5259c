//! Chores that run now and then: samples for the metrics, space given back, certificates read again.

#![allow(clippy::cast_precision_loss, reason = "metrics are floating point")]

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use supervision::{ChildSpec, QueueMonitor};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{error, info, warn};

use crate::config::NodeConfig;
use crate::links::Links;
use crate::observe::notices::{
    ClockNews, ClockNotice, Disk, DiskNews, Due, Joining, Leadership, Renewal, difference,
};
use crate::observe::output;
use crate::observe::telemetry::Metrics;
use crate::parts::Node;
use crate::tls::Certificates;
use actors::user::Users;
use consensus::Groups;
use links::Peers;
use membership::clocks::{Clocks, Standing};
use membership::{Cluster, Place};
use sessions::Sessions;
use storage::Storage;

/// How often message queues are sampled.
const SAMPLE: Duration = Duration::from_secs(1);

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Looks between two requests to storage to give space back, which costs the disk some work.
const MAINTAIN_LOOKS: u32 = 3;

/// What is sampled.
#[derive(Clone)]
struct Sampled {
    storage: Storage,
    groups: Groups,
    sessions: Sessions,
    users: Users,
    peers: Peers,
    clocks: Clocks,
    links: Links,
    cluster: Cluster,
    certificates: Arc<Certificates>,
    data_dir: String,
}

/// Samples message queues, storage and the cluster once a second, and says what shows in that.
pub(crate) fn telemetry(config: &NodeConfig, node: &Node, cluster: &Cluster) -> ChildSpec {
    let parts = &node.parts;
    let sampled = Sampled {
        storage: parts.storage.clone(),
        groups: parts.groups.clone(),
        sessions: parts.sessions.clone(),
        users: parts.users.users.clone(),
        peers: parts.peers.clone(),
        clocks: parts.clocks.clone(),
        links: node.links.clone(),
        cluster: cluster.clone(),
        certificates: node.certificates.clone(),
        data_dir: config.node.data_dir.clone(),
    };
    let metrics = node.metrics.clone();
    ChildSpec::task("telemetry", move |stopping| {
        let (sampled, metrics) = (sampled.clone(), metrics.clone());
        async move {
            tokio::select! {
                () = stopping.wait() => {}
                () = sampled.sample() => {}
                () = Metrics::tidy(&metrics) => {}
            }
            Ok(())
        }
    })
}

/// Gives space back and reads changed certificates.
pub(crate) fn storage(node: &Node) -> ChildSpec {
    let (storage, certificates) = (node.parts.storage.clone(), node.certificates.clone());
    ChildSpec::task("storage", move |stopping| {
        let (storage, certificates) = (storage.clone(), certificates.clone());
        async move {
            // Nodes that start together do not tidy together.
            let begin = Instant::now() + LOOK.mul_f64(rand::random_range(0.0..1.0));
            let mut ticks = interval_at(begin, LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for look in (0..MAINTAIN_LOOKS).cycle() {
                tokio::select! {
                    () = stopping.wait() => return Ok(()),
                    _ = ticks.tick() => {}
                }
                let (storage, certificates) = (storage.clone(), certificates.clone());
                tokio::task::spawn_blocking(move || {
                    if look + 1 == MAINTAIN_LOOKS
                        && let Err(error) = storage.maintain(false)
                    {
                        warn!(%error, "storage not tidied");
                    }
                    match certificates.reload() {
                        Ok(true) => info!("certificate read again"),
                        Ok(false) => {}
                        Err(error) => warn!(%error, "the old certificate stays"),
                    }
                })
                .await?;
            }
            Ok(())
        }
    })
}

impl Sampled {
    async fn sample(&self) {
        let mut monitor = QueueMonitor::new();
        let (mut disk, mut joining) = (Disk::default(), Joining::default());
        let (mut renewal, mut clock) = (Renewal::default(), ClockNotice::default());
        let mut leadership = Leadership::default();
        let mut ticks = interval(SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            record_queues(&mut monitor, now);
            let usage = self.storage.usage();
            gauge!("natter_log_bytes").set(usage.log_bytes as f64);
            gauge!("natter_log_segments").set(usage.log_segments as f64);
            gauge!("natter_disk_free_bytes").set(usage.free_bytes as f64);
            counter!("natter_log_flushes_total").absolute(usage.flushes);
            counter!("natter_log_records_total").absolute(usage.appended_records);
            gauge!("natter_users_connected").set(self.users.count() as f64);
            let leads = self.record_cluster();
            if leadership.observe(leads, now) {
                info!(groups = leads, "leads");
            }
            for output in [output::stderr(), output::stdout()] {
                let (name, dropped) = (output.name(), output.dropped());
                counter!("natter_output_lines_dropped_total", "output" => name).absolute(dropped);
            }
            self.say_how_full_it_is(&mut disk, now);
            self.say_if_nobody_lets_it_in(&mut joining, now);
            self.say_when_to_renew(&mut renewal, now);
            self.say_if_the_clock_is_wrong(&mut clock);
        }
    }

    /// Publishes how the cluster stands; how many groups this node leads.
    fn record_cluster(&self) -> u32 {
        let statuses = self.groups.all().map(|(_, group)| group.status());
        let (mut leads, mut leaderless) = (0, 0);
        for status in statuses {
            leads += u32::from(status.me_leads);
            leaderless += u32::from(!status.voters.is_empty() && !status.is_led());
        }
        gauge!("natter_groups_led").set(f64::from(leads));
        gauge!("natter_groups_leaderless").set(f64::from(leaderless));
        gauge!("natter_peers_up").set(self.peers.up().len() as f64);
        gauge!("natter_members").set(self.cluster.meta().members.len() as f64);
        record_links(&self.links.counts());
        let sessions = self.sessions.figures();
        let rows = sessions.rows.saturating_sub(sessions.tombstones);
        gauge!("natter_session_rows").set(rows as f64);
        gauge!("natter_sessions_online").set(sessions.online as f64);
        leads
    }

    fn say_how_full_it_is(&self, disk: &mut Disk, now: Instant) {
        let (storage, data_dir) = (&self.storage, &self.data_dir);
        let free_bytes = storage.usage().free_bytes;
        match disk.news(storage.nearly_full(), now) {
            Some(DiskNews::Full) => warn!(
                file = data_dir,
                free_bytes,
                "the disk of the data directory is nearly full: less is free than \
                 storage.free_bytes_min; until there is space nothing new is stored here"
            ),
            Some(DiskNews::Space) => {
                info!(file = data_dir, free_bytes, "there is space on the disk again");
            }
            None => {}
        }
    }

    fn say_if_the_clock_is_wrong(&self, clock: &mut ClockNotice) {
        let report = self.clocks.report();
        gauge!("natter_clock_offset_seconds").set(report.offset_ms as f64 / 1000.0);
        let difference = difference(report.offset_ms);
        match clock.news(report.standing) {
            Some(ClockNews::Wrong(Standing::Astray)) => error!(
                difference,
                "this node's clock is wrong, a majority of the nodes says: it leads nothing and lets \
                 nothing expire; set the clock"
            ),
            Some(ClockNews::Wrong(Standing::Differs)) => error!(
                difference,
                "clocks differ, and no majority says which is right: nothing expires; set the clocks"
            ),
            Some(ClockNews::Wrong(Standing::Jumped)) => warn!(
                difference,
                "the clock has jumped, or is far from the time when something was stored last: nothing \
                 expires for as long as that, a day at most; set the clock if it is wrong"
            ),
            Some(ClockNews::Right | ClockNews::Wrong(Standing::Right)) => {
                info!("this node's clock is right again");
            }
            None => {}
        }
    }

    fn say_if_nobody_lets_it_in(&self, joining: &mut Joining, now: Instant) {
        let looks = self.cluster.place() == Place::Joining;
        let nodes = if looks { self.peers.up().len() } else { 0 };
        if joining.is_news(nodes, now) {
            warn!(
                nodes,
                "nodes answer but none lets this node in: they are joining too, or have no \
                 majority; one node must start without cluster.seeds to found the cluster"
            );
        }
    }

    fn say_when_to_renew(&self, renewal: &mut Renewal, now: Instant) {
        let Some(term) = self.certificates.term() else { return };
        gauge!("natter_certificate_end_timestamp_seconds").set(term.until_s as f64);
        let Some(due) = renewal.news(term, self.clocks.now_ms() / 1000, now) else { return };
        let (until, file) = (term.until(), self.certificates.file().display());
        match due {
            Due::Soon => warn!(%until, %file, "the certificate ends soon; renew it"),
            Due::Over => error!(%until, %file, "the certificate has ended: clients refuse it"),
        }
    }
}

fn record_links(counts: &links::Counts) {
    for metric in links::METRICS {
        counter!(metric.name, metric.labels).absolute((metric.value)(counts));
    }
}

fn record_queues(monitor: &mut QueueMonitor, now: Instant) {
    for (kind, queues) in monitor.sample(now.into_std()).kinds {
        gauge!("natter_queue_items", "kind" => kind).set(queues.len as f64);
        gauge!("natter_queue_longest_items", "kind" => kind).set(queues.longest as f64);
        gauge!("natter_queues", "kind" => kind).set(queues.queues as f64);
        gauge!("natter_queues_high", "kind" => kind).set(queues.high as f64);
        counter!("natter_queue_entered_total", "kind" => kind).absolute(queues.counts.enqueued);
        counter!("natter_queue_left_total", "kind" => kind).absolute(queues.counts.dequeued);
    }
}

/// What the metrics of this file, and those of storage, mean.
pub(crate) fn describe() {
    use metrics::Unit::{Bytes, Count, Seconds};
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("natter_log_bytes", Bytes, "Bytes of the records in the log.");
    describe_gauge!("natter_log_segments", Count, "Segments of the log on disk.");
    describe_gauge!(
        "natter_disk_free_bytes",
        Bytes,
        "Bytes that are free on the disk of the data directory."
    );
    describe_counter!("natter_log_flushes_total", Count, "Flushes of the log to disk.");
    describe_counter!("natter_log_records_total", Count, "Records that were appended to the log.");
    describe_histogram!(
        storage::FLUSH_SECONDS,
        Seconds,
        "Time to write a block to the log and flush it to disk."
    );
    describe_gauge!("natter_users_connected", Count, "Users with a device connected to this node.");
    describe_gauge!("natter_groups_led", Count, "Raft groups that this node leads.");
    describe_gauge!(
        "natter_groups_leaderless",
        Count,
        "Raft groups in which this node votes and that have no leader, or none that a majority follows."
    );
    describe_gauge!(
        "natter_clock_offset_seconds",
        Seconds,
        "How far this node's clock is ahead of the time that the members agree on; negative: behind."
    );
    describe_gauge!("natter_peers_up", Count, "Other nodes that are connected and answer.");
    describe_gauge!("natter_members", Count, "Members of the cluster, this node among them.");
    describe_gauge!(
        "natter_certificate_end_timestamp_seconds",
        Seconds,
        "When the certificate that clients see ends, in seconds of Unix time."
    );
    describe_links();
    describe_gauge!("natter_session_rows", Count, "Rows of the sessions table on this node.");
    describe_gauge!(
        "natter_sessions_online",
        Count,
        "Devices that are connected anywhere in the cluster, by the sessions table."
    );
    describe_gauge!("natter_queue_items", Count, "Items in all message queues, by kind of actor.");
    describe_gauge!(
        "natter_queue_longest_items",
        Count,
        "Items in the longest message queue, by kind of actor."
    );
    describe_gauge!("natter_queues", Count, "Message queues that exist, by kind of actor.");
    describe_gauge!(
        "natter_queues_high",
        Count,
        "Message queues at or over their high mark, by kind of actor."
    );
    describe_counter!(
        "natter_queue_entered_total",
        Count,
        "Items that entered message queues, by kind of actor."
    );
    describe_counter!(
        "natter_queue_left_total",
        Count,
        "Items that left message queues, by kind of actor."
    );
}

fn describe_links() {
    use metrics::Unit::{Bytes, Count};
    for metric in links::METRICS {
        let unit = if metric.name.contains("_bytes_") { Bytes } else { Count };
        metrics::describe_counter!(metric.name, unit, metric.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::telemetry::{described, page_of};

    #[test]
    fn what_the_links_count_is_published_and_described() {
        let counts = links::Counts { refused_bulk: 3, links_ended: 2, ..links::Counts::default() };
        let page = page_of(|| {
            describe();
            record_links(&counts);
        });
        assert_eq!(described(&page), 14, "{page}");
        for sample in [
            "natter_link_parcels_refused_total{lane=\"bulk\"} 3\n",
            "natter_links_ended_total 2\n",
            "natter_link_cookies_differed_total 0\n",
        ] {
            assert!(page.contains(sample), "{page}");
        }
    }
}
