//! What must hold between settings and cannot be said by a type: ranges, and settings that need
//! each other. Pure.

use std::time::Duration;

use super::cluster::is_host_port;
use super::forms::{is_origin, parse_filter, parse_network};
use super::load::Problem;
use super::units::Setting;
use super::{ByteSize, Limits, Listen, NodeConfig, Registration, Secret, Sender, Storage, Tls};

const TENTH: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// More than any machine has cores.
const WORKER_THREADS_MAX: u32 = 1_024;

/// Shortest key of a webhook's signature, in bytes: 128 bits if it is random.
pub(super) const SECRET_BYTES_MIN: usize = 16;

pub(super) type Checked = Result<(), Problem>;

impl NodeConfig {
    /// The first problem.
    pub(super) fn check(&self) -> Checked {
        let data_dir = &self.node.data_dir;
        given("node.data_dir", data_dir, "name a directory that this process may write")?;
        within("node.worker_threads", &self.node.worker_threads, &0, &WORKER_THREADS_MAX)?;
        self.listen.check()?;
        self.tls.check()?;
        self.cluster.check()?;
        self.registration.check()?;
        self.limits.check()?;
        self.check_cluster_settings()?;
        self.storage.check()?;
        parse_filter(&self.log.filter)
            .map(drop)
            .map_err(|problem| Problem { key: "log.filter", problem })
    }
}

impl NodeConfig {
    /// What the cluster can set has the same range there and here.
    fn check_cluster_settings(&self) -> Checked {
        let Err(error) = self.cluster_settings().check() else { return Ok(()) };
        let key = membership::keys().find(|key| *key == error.key()).unwrap_or_default();
        let text = error.to_string();
        let problem = text.trim_start_matches(key).trim_start_matches(": ").to_owned();
        Err(Problem { key, problem })
    }
}

impl Listen {
    fn check(&self) -> Checked {
        let clients = [self.client, self.websocket, self.plain];
        if clients.iter().all(|address| address.0.is_none()) {
            let problem =
                "\"\", and websocket and plain are off too; turn one of them on".to_owned();
            return Err(Problem { key: "listen.client", problem });
        }
        for network in &self.proxy_from {
            if parse_network(network).is_none() {
                let problem = format!("{network:?} is no network; write \"10.0.0.0/8\" or \"::1\"");
                return Err(Problem { key: "listen.proxy_from", problem });
            }
        }
        for origin in &self.websocket_origins {
            if !is_origin(origin) {
                let problem = format!(
                    "{origin:?} is no origin; write \"https://HOST\" as browsers do, or \"*\""
                );
                return Err(Problem { key: "listen.websocket_origins", problem });
            }
        }
        for (key, address) in [
            ("listen.advertise", &self.advertise),
            ("listen.advertise_websocket", &self.advertise_websocket),
        ] {
            if !address.is_empty() {
                host_port(key, address)?;
            }
        }
        Ok(())
    }
}

impl Tls {
    fn check(&self) -> Checked {
        let cure = "is needed with the other; set both tls.certificate and tls.key, or neither";
        match (self.certificate.is_empty(), self.key.is_empty()) {
            (true, false) => given("tls.certificate", &self.certificate, cure),
            (false, true) => given("tls.key", &self.key, cure),
            (true, true) if self.names.is_empty() => {
                let problem =
                    "[]; name at least one host for the development certificate".to_owned();
                Err(Problem { key: "tls.names", problem })
            }
            (true, true) | (false, false) => Ok(()),
        }
    }
}

impl Registration {
    fn check(&self) -> Checked {
        let per_address = &self.requests_per_address_per_hour;
        within("registration.requests_per_address_per_hour", per_address, &1, &u32::MAX)?;
        within("registration.webhook.timeout", &self.webhook.timeout, &TENTH, &MINUTE)?;
        within("registration.smtp.timeout", &self.smtp.timeout, &TENTH, &MINUTE)?;
        match self.sender {
            Sender::Log => Ok(()),
            Sender::Webhook => self.check_webhook(),
            Sender::Smtp => self.check_smtp(),
        }
    }

    fn check_webhook(&self) -> Checked {
        let url = &self.webhook.url;
        if !url.starts_with("https://") && !url.starts_with("http://") {
            let problem = format!("{url:?} is no address; begin it with https:// or http://");
            return Err(Problem { key: "registration.webhook.url", problem });
        }
        let secret = &self.webhook.secret;
        if secret.reveal().len() < SECRET_BYTES_MIN {
            let problem = format!("too short; at least {SECRET_BYTES_MIN} random characters");
            return Err(Problem { key: "registration.webhook.secret", problem });
        }
        Ok(())
    }

    fn check_smtp(&self) -> Checked {
        let smtp = &self.smtp;
        given("registration.smtp.host", &smtp.host, "name the mail server")?;
        if smtp.from.parse::<lettre::message::Mailbox>().is_err() {
            let problem = format!("{:?} is no sender; write \"Name <name@host>\"", smtp.from);
            return Err(Problem { key: "registration.smtp.from", problem });
        }
        if !smtp.user.is_empty() && smtp.password == Secret::default() {
            let problem =
                "none; a user needs registration.smtp.password or password_file".to_owned();
            return Err(Problem { key: "registration.smtp.password", problem });
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Checked {
        let ten_minutes = 10 * MINUTE;
        within("limits.connections", &self.connections, &1, &u32::MAX)?;
        within("limits.unauthenticated", &self.unauthenticated, &1, &u32::MAX)?;
        within("limits.handshake_timeout", &self.handshake_timeout, &TENTH, &MINUTE)?;
        within("limits.login_timeout", &self.login_timeout, &TENTH, &ten_minutes)?;
        within("limits.frames_before_login", &self.frames_before_login, &1, &u32::MAX)?;
        let bytes = &self.bytes_before_login;
        within("limits.bytes_before_login", bytes, &ByteSize(1 << 10), &ByteSize(1 << 30))?;
        within("limits.heartbeat", &self.heartbeat, &TENTH, &HOUR)?;
        within("limits.write_timeout", &self.write_timeout, &TENTH, &ten_minutes)
    }
}

impl Storage {
    fn check(&self) -> Checked {
        let (low, high) = (ByteSize(64 << 10), ByteSize(1 << 30));
        within("storage.segment_bytes", &self.segment_bytes, &low, &high)?;
        within("storage.checkpoint_every", &self.checkpoint_every, &TENTH, &(10 * MINUTE))
    }
}

pub(super) fn within<T: PartialOrd + Setting>(
    key: &'static str,
    value: &T,
    low: &T,
    high: &T,
) -> Checked {
    if low <= value && value <= high {
        return Ok(());
    }
    let (value, low, high) = (value.text(), low.text(), high.text());
    Err(Problem { key, problem: format!("{value} is out of range; write {low} to {high}") })
}

pub(super) fn host_port(key: &'static str, text: &str) -> Checked {
    if is_host_port(text) {
        return Ok(());
    }
    Err(Problem { key, problem: format!("{text:?} is no address; write HOST:PORT") })
}

fn given(key: &'static str, value: &str, cure: &str) -> Checked {
    if value.is_empty() {
        return Err(Problem { key, problem: format!("\"\": {cure}") });
    }
    Ok(())
}
