//! Every metric that actors count: name, unit, meaning.

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

/// All that is counted often, looked up once.
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
    /// `natter_signals_dropped_total`
    pub signals_dropped: Counter,
    /// `natter_requests_too_fast_total`
    pub too_fast: Counter,
    /// `natter_wrong_pins_alarms_total`
    pub wrong_pins_alarms: Counter,
    /// `natter_pins_used_up_total`
    pub pins_used_up: Counter,
    /// `natter_user_restarts_total`
    pub user_restarts: Counter,
    /// `natter_send_seconds`
    pub send_seconds: Histogram,
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
        let (name, help) = (
            "natter_send_seconds",
            "Time from a client's send to the answer that the message is accepted.",
        );
        describe_histogram!(name, Unit::Seconds, help);
        consensus::describe_metrics();
        Self {
            sends: named("natter_sends_total", "Sends that were proposed to a shard."),
            sends_refused: named("natter_sends_refused_total", "Sends that a shard refused."),
            delivered: named(
                "natter_deliveries_total",
                "Mailbox entries that were sent to devices.",
            ),
            hints_dropped: named(
                "natter_hints_dropped_total",
                "Typing and presence that were dropped because too much waited.",
            ),
            signals_dropped: named(
                "natter_signals_dropped_total",
                "Signals that were dropped because their user sent too many.",
            ),
            too_fast: named(
                "natter_requests_too_fast_total",
                "Requests and logins that were refused because of a rate.",
            ),
            user_restarts: named(
                "natter_user_restarts_total",
                "Restarts of user actors that failed.",
            ),
            wrong_pins_alarms: named(
                "natter_wrong_pins_alarms_total",
                "Hours in which a shard met so many wrong PINs that only long ones count.",
            ),
            pins_used_up: named(
                "natter_pins_used_up_total",
                "PINs that were not sent because those of the hour for all aliases are used up.",
            ),
            send_seconds: histogram!(name),
        }
    }
}
