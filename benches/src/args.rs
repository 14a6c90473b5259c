//! The command line of `natter-load`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::hot::MARKER_BYTES;

/// Puts load on a natter node and prints how it went: a table on a terminal, otherwise one line of JSON.
#[derive(Debug, Parser)]
#[command(name = "natter-load", version)]
pub(crate) struct Command {
    #[command(subcommand)]
    pub(crate) mode: Mode,
    #[command(flatten)]
    pub(crate) common: Common,
}

impl Command {
    /// What clap cannot see.
    pub(crate) fn check(&self) -> Result<()> {
        if let Mode::Pairs(PairsArgs { kills, join, .. }) = self.mode
            && (kills > 0 || join)
            && self.common.nodes < 3
        {
            bail!(
                "--kills and --join need a cluster that goes on without a node: --spawn --nodes 3"
            );
        }
        Ok(())
    }
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Mode {
    /// N users are logged in and say nothing: memory for each
    Idle { users: usize },
    /// N pairs; in each, A writes to B: throughput, latency, CPU
    Pairs(PairsArgs),
    /// USERS are away while EACH messages are stored for every one of them; then they fetch them
    Offline { users: usize, each: usize },
    /// N users log in with their keys, over new connections
    Login { users: usize },
    /// N users resume with their tickets, over new connections
    Resume { users: usize },
}

impl Mode {
    /// Its name in the result.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Pairs(_) => "pairs",
            Self::Offline { .. } => "offline",
            Self::Login { .. } => "login",
            Self::Resume { .. } => "resume",
        }
    }
}

/// Options of `pairs`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PairsArgs {
    /// How many pairs
    pub(crate) pairs: usize,
    /// Messages a second, over all pairs, evenly spaced and sent whether or not answers came
    /// (as far as the window allows); or `max`: each pair keeps its window full
    #[arg(long, default_value = "max")]
    pub(crate) rate: Rate,
    /// How long to measure, after the warm-up
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Seconds before that, not counted
    #[arg(long, default_value_t = 2)]
    pub(crate) warm_up: u64,
    /// Sends of each pair that may wait for their Accepted
    #[arg(long, default_value_t = 4)]
    pub(crate) window: usize,
    /// Wait for and measure the second tick too
    #[arg(long)]
    pub(crate) receipts: bool,
    /// With --nodes 3 or more: the last node, to which nobody connects, is killed by SIGKILL so many times and
    /// started again 5 s later; decides --seconds
    #[arg(long, default_value_t = 0)]
    pub(crate) kills: u64,
    /// With --nodes 3 or more: one more node joins (after the kills); decides --seconds
    #[arg(long)]
    pub(crate) join: bool,
}

/// How fast `pairs` sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    Max,
    PerSecond(f64),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse() {
            Ok(rate) if rate > 0.0 && rate < 1e7 => Ok(Self::PerSecond(rate)),
            _ => Err("messages a second, above 0, or `max`".into()),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::PerSecond(rate) => rate.fmt(f),
        }
    }
}

/// Options of every mode.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Plain TCP instead of TLS
    #[arg(long, global = true)]
    pub(crate) plain: bool,
    /// Bytes of each body
    #[arg(long, global = true, default_value_t = 100, value_parser = body_bytes)]
    pub(crate) body: usize,
    /// One line of JSON, also on a terminal
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Words to keep in the result, such as `machine=D`
    #[arg(long, global = true, value_name = "NAME=TEXT", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Start a fresh server: the `natter` beside this program, in a temporary directory
    #[arg(long, global = true, conflicts_with_all = ["server", "server_pid", "ca", "pins"])]
    pub(crate) spawn: bool,
    /// With --spawn: so many nodes, one cluster; connections are spread over them in turn, so that the
    /// two of a pair are on different nodes
    #[arg(long, global = true, default_value_t = 1, requires = "spawn",
          value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// With --spawn: where the temporary directory is made [default: beside this program]
    #[arg(long, global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Address of a server that runs already
    #[arg(long, global = true, requires = "server_pid")]
    pub(crate) server: Option<SocketAddr>,
    /// Its process, for CPU and memory
    #[arg(long, global = true)]
    pub(crate) server_pid: Option<u32>,
    /// The certificate to trust, PEM
    #[arg(long, global = true)]
    pub(crate) ca: Option<PathBuf>,
    /// The name in its certificate
    #[arg(long, global = true, default_value = "localhost")]
    pub(crate) server_name: String,
    /// File to which the server writes its PINs (standard output with `sender = "log"`)
    #[arg(long, global = true)]
    pub(crate) pins: Option<PathBuf>,
    /// Registrations and logins under way at once
    #[arg(long, global = true, default_value_t = 64)]
    pub(crate) parallel: usize,
    /// Seconds to wait, after the last send, for everything that is still to come
    #[arg(long, global = true, default_value_t = 30)]
    pub(crate) patience: u64,
}

fn label(text: &str) -> std::result::Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("write NAME=TEXT")?;
    Ok((name.to_owned(), text.to_owned()))
}

fn body_bytes(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (MARKER_BYTES..=proto::limits::BODY_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{MARKER_BYTES} to {} bytes", proto::limits::BODY_BYTES_MAX)),
    }
}
