//! SIGHUP: the settings file and the certificate are read again, and one line says what changed and
//! what waits for a restart. SIGUSR1 and SIGUSR2 end nothing.
//!
//! # Invariants
//! 1. A file that is wrong changes nothing.
//! 2. A setting either holds after the line that names it, or that line says that it needs a restart.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use membership::Cluster;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::client::client_limits::ClientLimits;
use crate::config::{ConfigError, NodeConfig, parse_filter};
use crate::files;
use crate::observe::telemetry;
use crate::parts::Node;
use crate::tls::Certificates;

/// Settings that hold at once; all of a section if they end with a dot. Others need a restart.
const LIVE: [&str; 7] = [
    "limits.",
    "rates.",
    "log.filter",
    "registration.pin_digits",
    "registration.pin_ttl",
    "registration.attempts",
    "registration.requests_per_alias_per_hour",
];

/// Signals that would end a process that does not catch them, and that end no node.
#[derive(Debug)]
pub(crate) struct HangUp {
    terminal: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl HangUp {
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminal: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Returns when SIGHUP comes. Cancel safe.
    async fn next(&mut self) {
        loop {
            let signal = tokio::select! {
                _ = self.terminal.recv() => return,
                _ = self.user_1.recv() => "SIGUSR1",
                _ = self.user_2.recv() => "SIGUSR2",
            };
            info!(
                signal,
                "signal ignored; SIGHUP reads the settings again, SIGTERM stops the node"
            );
        }
    }
}

/// What is read again, and who is told.
pub(crate) struct Reload {
    hang_up: HangUp,
    /// The settings that hold, those included that will hold after a restart.
    config: NodeConfig,
    file: Option<PathBuf>,
    /// How many files may be open.
    files: u64,
}

impl Reload {
    pub(crate) fn new(
        hang_up: HangUp,
        config: NodeConfig,
        file: Option<PathBuf>,
        files: u64,
    ) -> Self {
        Self { hang_up, config, file, files }
    }

    /// Reads again at each SIGHUP, for ever. Cancel safe between two of them.
    pub(crate) async fn run(mut self, node: &Node, cluster: &Cluster) -> Infallible {
        loop {
            self.hang_up.next().await;
            self.read_again(node, cluster).await;
        }
    }

    async fn read_again(&mut self, node: &Node, cluster: &Cluster) {
        let (file, data_dir) = (self.file.clone(), PathBuf::from(&self.config.node.data_dir));
        let certificates = node.certificates.clone();
        let read = move || {
            (NodeConfig::load(file.as_deref(), Some(&data_dir)), certificate(&certificates))
        };
        let Ok((loaded, certificate)) = tokio::task::spawn_blocking(read).await else { return };
        let mut config = match loaded {
            Ok(config) => config,
            Err(error) => return say_wrong(&error, certificate),
        };
        files::fit(&mut config, self.files);
        let Changes { now, after_restart } = changes(&self.config, &config);
        if let Ok(filter) = parse_filter(&config.log.filter) {
            telemetry::set_filter(filter);
        }
        node.gate.set_limits(&config.limits);
        node.parts.users.rates.set_limits(config.rates.limits());
        node.reception.set_limits(ClientLimits::of(&config));
        cluster.set_own(config.cluster_settings());
        let (changed, needs_restart) = (now.join(" "), after_restart.join(" "));
        info!(changed, needs_restart, certificate, "settings read again");
        self.config = config;
    }
}

fn say_wrong(error: &ConfigError, certificate: &str) {
    warn!(%error, certificate, "settings not read again: those from before hold");
}

/// Reads the certificate again if its files changed; what became of it.
fn certificate(certificates: &Arc<Certificates>) -> &'static str {
    match certificates.reload() {
        Ok(true) => "changed",
        Ok(false) => "the same",
        Err(error) => {
            warn!(%error, "the old certificate stays");
            "wrong, the old one stays"
        }
    }
}

/// Keys of settings that changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    now: Vec<String>,
    after_restart: Vec<String>,
}

fn changes(before: &NodeConfig, after: &NodeConfig) -> Changes {
    let is_live = |key: &String| {
        LIVE.iter().any(|live| key == live || (live.ends_with('.') && key.starts_with(live)))
    };
    let (now, after_restart) = before.differences(after).into_iter().partition(is_live);
    Changes { now, after_restart }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_change_holds_at_once_or_is_said_to_need_a_restart() {
        let before = NodeConfig::default();
        let mut after = before.clone();
        assert_eq!(changes(&before, &after), Changes::default());
        after.limits.unauthenticated = 7;
        after.log.filter = "debug".to_owned();
        after.tls.names = vec!["ada.example".to_owned()];
        after.registration.webhook.secret = Secret::new("another secret, also not shown".into());
        let Changes { now, after_restart } = changes(&before, &after);
        assert_eq!(now, ["limits.unauthenticated", "log.filter"]);
        assert_eq!(after_restart, ["tls.names", "registration.webhook.secret"]);
    }
}
