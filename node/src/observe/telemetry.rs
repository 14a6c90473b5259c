//! What a running node says: events on standard error, and metrics for Prometheus.
//!
//! Started once, before anything else. [`Metrics::tidy`] runs beside the node.
//!
//! **Invariant:** every metric of this crate is described here, so that `promtool check metrics`
//! has nothing to say.

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::error;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry, reload};

use crate::config::{Log, LogFormat, parse_filter};
use crate::listener::{LISTENERS, Refusal};
use crate::observe::{output, process};

/// How often samples of histograms are folded, so that they do not pile up when nobody asks.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Bounds of histograms in seconds: from a hundred microseconds to ten seconds.
const SECONDS: [f64; 11] = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("log.filter {0:?}: not a filter; write for example \"info\"")]
    Filter(String),
    /// It runs already in this process.
    #[error("telemetry was started twice")]
    Twice,
    /// The bounds of histograms are none.
    #[error("the metrics recorder cannot be built")]
    Recorder(#[source] metrics_exporter_prometheus::BuildError),
}

/// The node's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Changes which events are written, once that has begun.
type SetFilter = Box<dyn Fn(Targets) -> bool + Send + Sync>;

static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Writes other events from now on. False if nothing is written yet.
pub(crate) fn set_filter(filter: Targets) -> bool {
    FILTER.get().is_some_and(|set| set(filter))
}

/// Begins to write events to standard error and to count. A panic is an event too, for the usual
/// message would wait for a pipe that nobody reads.
///
/// # Errors
/// [`TelemetryError`]; once in a process.
pub fn start(log: &Log) -> Result<Metrics, TelemetryError> {
    let filter =
        parse_filter(&log.filter).map_err(|_| TelemetryError::Filter(log.filter.clone()))?;
    let (filter, handle) = reload::Layer::new(filter);
    let events =
        fmt::layer().with_writer(output::stderr()).with_ansi(std::io::stderr().is_terminal());
    let begun = match log.format {
        LogFormat::Text => registry().with(filter).with(events).try_init(),
        LogFormat::Json => {
            registry().with(filter).with(events.json().flatten_event(true)).try_init()
        }
    };
    let set: SetFilter = Box::new(move |filter| handle.reload(filter).is_ok());
    begun.map_err(|_| TelemetryError::Twice)?;
    FILTER.set(set).map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(|panic| error!(%panic, "panicked")));
    let recorder = builder()?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Twice)?;
    describe();
    begin_at_zero();
    Ok(Metrics(handle))
}

impl Metrics {
    /// All metrics in Prometheus' text form.
    pub fn render(&self) -> String {
        self.0.render() + &process::page()
    }

    /// Folds samples, for ever. Without it a node that nobody watches grows. Cancel safe.
    pub async fn tidy(&self) {
        let mut ticks = tokio::time::interval(TIDY_EVERY);
        loop {
            ticks.tick().await;
            self.0.run_upkeep();
        }
    }

    /// Metrics of a recorder that nobody feeds.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self(builder().unwrap().build_recorder().handle())
    }
}

fn builder() -> Result<PrometheusBuilder, TelemetryError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .map_err(TelemetryError::Recorder)
}

/// The commit that was built, if the build said so: `NATTER_COMMIT=$(git rev-parse HEAD) cargo build`.
const COMMIT: Option<&str> = option_env!("NATTER_COMMIT");

/// What counts events is there from the start: an alarm on a counter that appears with its first event misses it.
fn begin_at_zero() {
    let version = env!("CARGO_PKG_VERSION");
    gauge!("natter_build_info", "version" => version, "commit" => COMMIT.unwrap_or("unknown"))
        .set(1);
    gauge!("natter_connections").set(0);
    gauge!("natter_connections_unauthenticated").set(0);
    for listener in LISTENERS {
        counter!("natter_connections_accepted_total", "listener" => listener).increment(0);
        counter!("natter_handshakes_failed_total", "listener" => listener).increment(0);
    }
    for refusal in Refusal::ALL {
        counter!("natter_connections_refused_total", "reason" => refusal.name()).increment(0);
    }
    for name in [
        "natter_pins_sent_total",
        "natter_pins_failed_total",
        "natter_pins_wrong_total",
        "natter_connections_evicted_total",
    ] {
        counter!(name).increment(0);
    }
    for output in [output::stderr(), output::stdout()] {
        counter!("natter_output_lines_dropped_total", "output" => output.name()).increment(0);
    }
}

fn describe() {
    describe_gauge!(
        "natter_build_info",
        Unit::Count,
        "Always 1; the labels are the version and the commit of this program."
    );
    describe_gauge!(
        "natter_connections",
        Unit::Count,
        "Open client connections, logged in or not."
    );
    describe_gauge!(
        "natter_connections_unauthenticated",
        Unit::Count,
        "Open client connections that are not logged in."
    );
    describe_counter!(
        "natter_connections_accepted_total",
        Unit::Count,
        "Client connections that were let in, by listener."
    );
    describe_counter!(
        "natter_connections_refused_total",
        Unit::Count,
        "Client connections that were closed at once, by the limit that was reached."
    );
    describe_counter!(
        "natter_connections_evicted_total",
        Unit::Count,
        "Client connections not logged in that were closed to make room for others."
    );
    describe_counter!(
        "natter_output_lines_dropped_total",
        Unit::Count,
        "Lines that were not written because nobody read them or the disk was full, by output."
    );
    describe_counter!(
        "natter_handshakes_failed_total",
        Unit::Count,
        "TLS and WebSocket handshakes of clients that failed or took too long, by listener."
    );
    describe_counter!(
        "natter_pins_sent_total",
        Unit::Count,
        "PINs that the sender of the settings took."
    );
    describe_counter!("natter_pins_failed_total", Unit::Count, "PINs that could not be sent.");
    describe_counter!(
        "natter_pins_wrong_total",
        Unit::Count,
        "Wrong PINs that clients of this node sent."
    );
}

/// The page of a recorder that `work` feeds.
#[cfg(test)]
pub(crate) fn page_of(work: impl FnOnce()) -> String {
    let recorder = builder().unwrap().build_recorder();
    metrics::with_local_recorder(&recorder, work);
    recorder.handle().render()
}

/// How many samples a page has. Each must be as promtool wants it: HELP and TYPE before it, `_total`
/// on counters alone.
#[cfg(test)]
pub(crate) fn described(page: &str) -> usize {
    let samples = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let check = |sample: &str| {
        let name = sample.split(['{', ' ']).next().unwrap();
        assert!(page.contains(&format!("# HELP {name} ")), "{page}");
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert!(page.contains(&format!("# TYPE {name} {kind}")), "{page}");
    };
    samples.map(check).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::listener::{Caller, Gate};
    use std::collections::BTreeSet;

    #[test]
    fn metrics_are_as_promtool_wants_them() {
        let page = page_of(|| {
            describe();
            let gate = Gate::new(&Limits { connections: 1, ..Limits::default() });
            let _permit = gate.admit([127, 0, 0, 1].into(), Caller::Client).unwrap();
            gate.admit([127, 0, 0, 1].into(), Caller::Client).unwrap_err();
            metrics::counter!("natter_pins_sent_total").increment(1);
        });
        assert_eq!(described(&page), 4, "{page}");
    }

    #[test]
    fn counters_are_there_before_their_first_event() {
        let page = page_of(|| {
            describe();
            begin_at_zero();
        });
        assert_eq!(described(&page), 19, "{page}");
        for sample in [
            "natter_pins_wrong_total 0\n",
            "natter_connections_refused_total{reason=\"unauthenticated\"} 0\n",
            "natter_handshakes_failed_total{listener=\"websocket\"} 0\n",
        ] {
            assert!(page.contains(sample), "{page}");
        }
    }

    #[test]
    fn each_help_stands_alone() {
        let page = page_of(|| {
            describe();
            begin_at_zero();
            crate::upkeep::describe();
            actors::metrics::Metrics::default();
        });
        let helps: Vec<&str> = page.lines().filter(|line| line.starts_with("# HELP ")).collect();
        assert!(helps.len() > 10);
        for help in helps {
            let words = help.splitn(4, ' ').nth(3).unwrap_or_default();
            assert!(words.ends_with('.') && words.contains(' '), "{help}");
            for leaning in ["Of them", "of them", " it ", "from them", "to them"] {
                assert!(!words.contains(leaning), "{help} leans on another");
            }
        }
    }

    #[test]
    fn every_metric_is_in_the_runbook() {
        let sources = [
            include_str!("telemetry.rs"),
            include_str!("../upkeep.rs"),
            include_str!("process.rs"),
            include_str!("../../../actors/src/metrics.rs"),
            include_str!("../../../cluster/consensus/src/proposals.rs"),
            include_str!("../../../cluster/links/src/counters.rs"),
        ];
        let runbook = include_str!("../../../deploy/RUNBOOK.md");
        let product = |text: &'static str| text.split("#[cfg(test)]").next().unwrap_or_default();
        let words = sources.into_iter().flat_map(|text| product(text).split('"'));
        let names: BTreeSet<_> = words
            .filter(|word| word.starts_with("natter_") || word.starts_with("process_"))
            .collect();
        assert!(names.len() > 30, "{names:?}");
        let missing = names.iter().filter(|name| !runbook.contains(&format!("`{name}`")));
        let missing: Vec<_> = missing.collect();
        assert!(missing.is_empty(), "deploy/RUNBOOK.md has no row for {missing:?}");
    }
}
