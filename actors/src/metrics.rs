//! Every metric that actors count: name, unit, meaning.

use metrics::{Counter, Unit, counter, describe_counter};

/// All counters, looked up once.
#[derive(Clone)]
pub struct Metrics {
    /// `natter_sends_total`
    pub sends: Counter,
    /// `natter_sends_refused_total`
    pub sends_refused: Counter,
    /// `natter_deliveries_total`
    pub delivered: Counter,
    /// `natter_hints_dropped_total`
    pub hints_dropped: Counter,
    /// `natter_user_restarts_total`
    pub user_restarts: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    /// Call after the recorder was installed.
    fn default() -> Self {
        let named = |name: &'static str, help: &'static str| {
            describe_counter!(name, Unit::Count, help);
            counter!(name)
        };
        Self {
            sends: named("natter_sends_total", "Sends proposed to a shard"),
            sends_refused: named("natter_sends_refused_total", "Sends a shard refused"),
            delivered: named("natter_deliveries_total", "Mailbox entries sent to devices"),
            hints_dropped: named("natter_hints_dropped_total", "Signals and presence dropped"),
            user_restarts: named("natter_user_restarts_total", "Restarts of user actors"),
        }
    }
}
