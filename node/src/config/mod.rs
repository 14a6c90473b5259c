//! Every setting of a node: its meaning, unit, default and range.
//!
//! Read once at start by [`NodeConfig::load`]; a subsystem is given its section, never the whole.
//! Defaults come first, then the file, then environment variables named `NATTER_SECTION__KEY`.
//!
//! # Invariants
//! 1. No settings at all start one node on localhost.
//! 2. The text of a setting's documentation is the text of [`NodeConfig::print_defaults`], which is
//!    `deploy/node.toml`.
//! 3. Secrets are never printed.

mod cluster;
mod exposed;
mod forms;
mod load;
mod units;
mod validate;

use std::time::Duration;

use actors::rates::RateLimits;
pub(crate) use cluster::is_host_port;
pub use cluster::{Cluster, CookieError};
pub(crate) use forms::{host_of, parse_filter, parse_network};
pub use load::ConfigError;
use membership::ClusterSettings;
pub use units::{Address, ByteSize, RateLimit, Secret};
use units::{Setting, choice, print_line, section};

choice! {
    /// How PINs reach people.
    Sender {
        /// A line on standard output; for development.
        Log = "log",
        /// An HTTP POST to an operator's gateway.
        Webhook = "webhook",
        /// An e-mail.
        Smtp = "smtp",
    }
}

choice! {
    /// How the connection to a mail server is protected.
    Encryption {
        /// Plain first, then `STARTTLS`, which is required.
        StartTls = "starttls",
        /// TLS from the first byte.
        Tls = "tls",
        /// Not at all.
        Plain = "none",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// All settings of a node.
    NodeConfig {
        /// The node itself.
        node: Node = Node::default();
        /// Where the node listens: IP:PORT. Port 0 takes any free port; "" turns a listener off.
        listen: Listen = Listen::default();
        /// Other nodes. One node alone is a cluster of one and needs nothing of this.
        cluster: Cluster = Cluster::default();
        /// The certificate that clients see.
        tls: Tls = Tls::default();
        /// How people prove that an alias is theirs.
        registration: Registration = Registration::default();
        /// What one client, one address and all together may take.
        limits: Limits = Limits::default();
        /// How fast one user, over all devices, and one address may ask this node: "120/60s" is a bucket
        /// of 120 requests that fills again in 60 seconds. "" for no limit.
        rates: Rates = Rates::default();
        /// The disk.
        storage: Storage = Storage::default();
        /// What the node writes to standard error.
        log: Log = Log::default();
    }
}

section! {
    /// The node itself.
    Node {
        /// Where everything durable lives: keys, messages, the development certificate. Made at the
        /// first start. A node is its data directory; copy it and you have two of the same.
        data_dir: String = "natter-data".into();
        /// Threads that run actors and connections, up to 1024; 0 for one on each core. Nodes that
        /// share a machine wait less for each other if they share its cores out.
        worker_threads: u32 = 0;
    }
}

section! {
    /// Where the node listens.
    Listen {
        /// Clients, over TLS 1.3 (ALPN natter/1).
        client: Address = local(7400);
        /// Where clients reach this node, HOST:PORT: clients of a node that goes are sent there. Empty:
        /// where `client` listens, if that is an address for others.
        advertise: String = String::new();
        /// Clients in browsers: WebSocket over TLS (subprotocol natter.v1).
        websocket: Address = local(7401);
        /// Where clients reach the WebSocket of this node, HOST:PORT: those of a node that goes are sent
        /// there. Empty: where `websocket` listens, if that is an address for others.
        advertise_websocket: String = String::new();
        /// Clients without TLS. Only behind something that terminates TLS, or for tests.
        plain: Address = Address(None);
        /// Operators: /healthz, /readyz and /metrics. Not for the public.
        http: Address = local(7402);
        /// Networks of proxies that speak the PROXY protocol, version 1 or 2: "10.0.0.0/8".
        /// A client connection from there must begin with its header, which names the client for
        /// limits and logs; from elsewhere a header is an error. `http` takes connections from there
        /// with and without, for probes have none; it believes no header: its limits count the
        /// address that connected.
        proxy_from: Vec<String> = Vec::new();
        /// Pages whose scripts may open a WebSocket, each as scheme, host and port; "*" for all.
        /// Empty: pages of the same host name that the WebSocket is opened to. Programs that are no
        /// browser name no page and are let in.
        websocket_origins: Vec<String> = Vec::new();
    }
}

section! {
    /// The certificate that clients see.
    Tls {
        /// PEM file with the certificate and its chain, read again when it changes. Empty, together
        /// with the key: a development certificate, made in the data directory under tls/.
        certificate: String = String::new();
        /// PEM file with the private key.
        key: String = String::new();
        /// Host names and IP addresses in the development certificate. To change them later, delete
        /// tls/ in the data directory.
        names: Vec<String> = vec!["localhost".into(), "127.0.0.1".into()];
    }
}

section! {
    /// How people prove that an alias is theirs.
    Registration {
        /// How a PIN reaches a person: "log" (a line on standard output, for development), "webhook"
        /// or "smtp".
        sender: Sender = Sender::Log;
        /// Digits of a PIN, 5 to 8.
        pin_digits: u32 = 6;
        /// How long a PIN can be used, 1s to 1h.
        pin_ttl: Duration = Duration::from_mins(10);
        /// Wrong PINs that each asker may try, 1 to 10.
        attempts: u32 = 5;
        /// PINs that are sent to one alias in an hour, at least 1. Who asks beyond it proves the one
        /// that was sent last, as long as it is good.
        requests_per_alias_per_hour: u32 = 5;
        /// PINs that the cluster sends to all aliases together in an hour, 16 to 1000000000: what SMS
        /// can cost. Counted in 16 parts. Up to twice as many go out in the first hour of a flood.
        pins_per_hour: u32 = 8_000;
        /// Wrong PINs for one alias in a day after which only PINs of ten digits count for it, and those
        /// that were sent before to who asked, 1 to 1000. Nobody is locked out, but nobody guesses on.
        wrong_pins_per_alias_per_day: u32 = 20;
        /// Wrong PINs for all aliases in an hour after which only PINs of ten digits count, 16 to
        /// 10000000. Counted in 16 parts. With six digits one guess in a million opens an alias.
        wrong_pins_per_hour: u32 = 3_200;
        /// PINs that one address may ask for in an hour, at least 1. Many phones share an address.
        requests_per_address_per_hour: u32 = 30;
        /// An HTTP POST for each PIN, signed with HMAC-SHA256 (header x-natter-signature).
        webhook: Webhook = Webhook::default();
        /// An e-mail for each PIN; aliases that are no e-mail address cannot register.
        smtp: Smtp = Smtp::default();
    }
}

section! {
    /// Where PINs are posted.
    Webhook {
        /// The address that is posted to: https://, or http:// inside your own network.
        url: String = String::new();
        /// Key of the signature, at least 16 characters.
        secret: Secret = Secret::default();
        /// File with the key instead.
        secret_file: String = String::new();
        /// Longest wait for an answer, 100ms to 1m. Three tries are made.
        timeout: Duration = Duration::from_secs(5);
    }
}

section! {
    /// Which mail server takes PINs.
    Smtp {
        /// Name of the mail server.
        host: String = String::new();
        /// Its port: 587 as a rule for starttls, 465 for tls.
        port: u16 = 587;
        /// "starttls", "tls" or "none".
        encryption: Encryption = Encryption::StartTls;
        /// Login; empty for none.
        user: String = String::new();
        /// Password of the login.
        password: Secret = Secret::default();
        /// File with the password instead.
        password_file: String = String::new();
        /// The sender, such as "natter <pin@example.org>".
        from: String = String::new();
        /// Longest wait for the mail server, 100ms to 1m.
        timeout: Duration = Duration::from_secs(10);
    }
}

section! {
    /// What one client, one address and all together may take.
    Limits {
        /// Open connections, at least 1. Each needs a file descriptor: the process needs some hundred
        /// more than this (ulimit -n).
        connections: u32 = 19_000;
        /// Open connections from one address (for IPv6 a /64 network); 0 for no limit, because
        /// thousands of phones may share the address of their carrier.
        connections_per_address: u32 = 0;
        /// Connections that are not logged in yet, at least 1. For one more the oldest of the network
        /// and address with the most is closed.
        unauthenticated: u32 = 4_000;
        /// The same from one address; 0 for no limit. A tenth of all: phones behind one address that
        /// come back at once are in their handshake for a tenth of a second each.
        unauthenticated_per_address: u32 = 400;
        /// How long a connection may take for the header of a proxy, TLS and WebSocket, 100ms to 1m:
        /// three round trips, of which a bad mobile network needs a second each.
        handshake_timeout: Duration = Duration::from_secs(5);
        /// How long a connection may take to log in once it is open, 100ms to 10m. Registration waits for
        /// a person to read a PIN; asking for one gives a connection until the PIN's end.
        login_timeout: Duration = Duration::from_secs(10);
        /// Frames that a connection may send before it is logged in, at least 1.
        frames_before_login: u32 = 16;
        /// Bytes that a connection may send before it is logged in, at least 1KiB.
        bytes_before_login: ByteSize = ByteSize(16 << 10);
        /// After this silence the node asks whether the client is there; after half of it again
        /// without a sign the connection ends. Shorter than the minute after which common proxies and
        /// load balancers cut an idle connection. 100ms to 1h.
        heartbeat: Duration = Duration::from_secs(45);
        /// How long one write to a client may take, 100ms to 10m.
        write_timeout: Duration = Duration::from_secs(30);
        /// Undelivered messages that are kept for one user, at least 1. A sender beyond it is told.
        mailbox_messages: u64 = proto::limits::MAILBOX_MESSAGES;
        /// Their bytes, at least 256KiB.
        mailbox_bytes: ByteSize = ByteSize(proto::limits::MAILBOX_BYTES);
        /// Hundredths of a mailbox that one contact of its owner may fill, 1 to 100.
        contact_share: u32 = proto::limits::CONTACT_SHARE;
        /// Hundredths of it that one stranger (no contact of its owner) may fill, 1 to 100.
        stranger_share: u32 = proto::limits::STRANGER_SHARE;
        /// Hundredths of it that all strangers together may fill, 1 to 100.
        strangers_share: u32 = proto::limits::STRANGERS_SHARE;
        /// Bytes of bodies that one user may send through one node in a second, in the long run; 32 times
        /// that at once. Beyond it sends are refused with `TooFast`. 0B for no limit.
        stored_bytes_per_second: ByteSize = ByteSize(256 << 10);
        /// The same for one address (IPv6: a /64), whatever accounts send from it. An office or a village
        /// may share one.
        stored_bytes_per_second_per_address: ByteSize = ByteSize(4 << 20);
        /// A device for which something has waited this long is set aside if another device of the
        /// person has it: the mailbox waits for it no longer. 1s to 365days.
        device_idle_max: Duration = Duration::from_secs(proto::limits::DEVICE_IDLE_S_MAX.into());
        /// How long a message is kept at most for a device that does not come, 1m to 30days.
        message_ttl_max: Duration = Duration::from_secs(proto::limits::TTL_S_MAX.into());
    }
}

section! {
    /// How fast one user, over all devices, and one address may ask this node.
    Rates {
        /// Sends. A person pastes a hundred lines; a bot answers fifty people a second.
        sends: RateLimit = rate("1000/20s");
        /// Signals. Typing is said every few seconds, and a call begins with dozens at once. What comes
        /// faster is dropped.
        signals: RateLimit = rate("300/1m");
        /// Lookups, and sends to an alias whose owner is not known. A person looks up a few.
        lookups: RateLimit = rate("120/1m");
        /// The same in the long run: an address book in a day, all numbers of a city in years.
        lookups_daily: RateLimit = rate("2000/1day");
        /// Subscriptions, either way. A device subscribes to up to 256 people each time it connects.
        subscribes: RateLimit = rate("1000/1m");
        /// Changes of the account: block, privacy, contacts, registration lock, devices. Each is written by a
        /// majority. A list of contacts is brought in over minutes.
        changes: RateLimit = rate("120/1m");
        /// `SetPresence`, which reaches up to 256 people. An application is opened and closed this often.
        presence: RateLimit = rate("30/1m");
        /// `MarkRead`, each for up to 256 messages. A person scrolls.
        reads: RateLimit = rate("600/1m");
        /// All other requests: `GetAccount`, `Ping`, `Logout`.
        other: RateLimit = rate("120/1m");
        /// Frames that ask for nothing and say nothing new: an `Ack` of what was acknowledged before, a
        /// `Pong` that answers no `Ping`, pings of WebSocket. A library pings every half minute. What
        /// comes faster ends the connection.
        needless: RateLimit = rate("120/1m");
        /// Good logins and resumptions of one user. Eight devices on a bad network come back every few
        /// seconds.
        logins: RateLimit = rate("60/1m");
        /// Tries to log in or to resume from one address (for IPv6 a /64 network). Thousands of phones
        /// behind one address come back at once; a hundred signatures a second take a hundredth of a core.
        logins_per_address: RateLimit = rate("6000/1m");
        /// Devices that ask to be linked to one account, each again every three seconds. Those beyond it
        /// are not shown to the account's devices.
        links: RateLimit = rate("120/1m");
        /// The same from one address: three devices at once.
        links_per_address: RateLimit = rate("60/1m");
    }
}

section! {
    /// The disk.
    Storage {
        /// Size of a log segment, 64KiB to 1GiB. Space comes back a segment at a time.
        segment_bytes: ByteSize = ByteSize(16 << 20);
        /// How often undelivered messages move from the log to the tables, 100ms to 10m.
        checkpoint_every: Duration = Duration::from_secs(10);
        /// Free space below which nothing new is stored; reading and acknowledging go on.
        free_bytes_min: ByteSize = ByteSize(256 << 20);
    }
}

section! {
    /// What the node writes to standard error.
    Log {
        /// Levels for each part: error, warn, info, debug or trace, for example
        /// `info,actors::shard=debug`.
        filter: String = "info,ractor=warn,ractor_cluster=error,openraft=off".into();
        /// "text" for people, "json" for machines.
        format: LogFormat = LogFormat::Text;
    }
}

/// A default: always a rate.
fn rate(text: &str) -> RateLimit {
    RateLimit(text.parse().ok())
}

impl Rates {
    /// What actors and connections are told.
    pub fn limits(&self) -> RateLimits {
        RateLimits {
            sends: self.sends.0,
            signals: self.signals.0,
            lookups: self.lookups.0,
            lookups_daily: self.lookups_daily.0,
            subscribes: self.subscribes.0,
            changes: self.changes.0,
            presence: self.presence.0,
            reads: self.reads.0,
            other: self.other.0,
            needless: self.needless.0,
            logins: self.logins.0,
            logins_per_address: self.logins_per_address.0,
            links: self.links.0,
            links_per_address: self.links_per_address.0,
        }
    }
}

fn local(port: u16) -> Address {
    Address(Some(std::net::SocketAddr::from(([127, 0, 0, 1], port))))
}

impl NodeConfig {
    /// Time between two checkpoints of a shard, in ms.
    pub(crate) fn checkpoint_every_ms(&self) -> u64 {
        u64::try_from(self.storage.checkpoint_every.as_millis()).unwrap_or(u64::MAX)
    }

    /// What this node says of the settings that the cluster can set for all its nodes.
    pub fn cluster_settings(&self) -> ClusterSettings {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        ClusterSettings {
            mailbox_messages: self.limits.mailbox_messages,
            mailbox_bytes: self.limits.mailbox_bytes.0,
            contact_share: self.limits.contact_share,
            stranger_share: self.limits.stranger_share,
            strangers_share: self.limits.strangers_share,
            stored_bytes_per_second: self.limits.stored_bytes_per_second.0,
            stored_bytes_per_second_per_address: self.limits.stored_bytes_per_second_per_address.0,
            device_idle_max_s: seconds(self.limits.device_idle_max),
            message_ttl_max_s: seconds(self.limits.message_ttl_max),
            pin_digits: self.registration.pin_digits,
            pin_ttl_s: seconds(self.registration.pin_ttl),
            pin_attempts: self.registration.attempts,
            pin_requests_per_hour: self.registration.requests_per_alias_per_hour,
            pins_per_hour: self.registration.pins_per_hour,
            wrong_pins_per_alias_per_day: self.registration.wrong_pins_per_alias_per_day,
            wrong_pins_per_hour: self.registration.wrong_pins_per_hour,
        }
    }

    /// Keys of the settings that `other` has otherwise.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        self.differ(other, ("", ""), &mut keys);
        keys
    }

    /// The defaults as a documented settings file: what `natter serve --print-config` prints.
    pub fn print_defaults() -> String {
        let head = "# Settings of a natter node, with their defaults. Every line may be left out.\n\
                    # An environment variable NATTER_SECTION__KEY goes before the file.\n\
                    # Printed by `natter serve --print-config`.\n";
        let mut out = head.to_owned();
        Self::default().print(("", ""), &[], &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_what_the_defaults_print() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/node.toml");
        let file = std::fs::read_to_string(path).unwrap();
        assert!(
            file == NodeConfig::print_defaults(),
            "run: cargo run -p natter -- serve --print-config > deploy/node.toml"
        );
    }

    #[test]
    fn the_example_file_sets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        std::fs::write(&file, NodeConfig::print_defaults()).unwrap();
        assert_eq!(load::load_alone(Some(&file), None).unwrap(), NodeConfig::default());
    }
}
