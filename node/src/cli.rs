//! The command lines of `natter serve` and `natter admin`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// How a node is run.
#[derive(Args, Clone, Debug, Default)]
pub struct Serve {
    /// Settings file. Without one: a node on localhost with the defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of everything durable; goes before `node.data_dir` of the settings.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Check the settings, certificate and cookie, say what is wrong, and end. Writes nothing.
    #[arg(long)]
    pub check: bool,
    /// Print the default settings with their documentation, and end.
    #[arg(long, conflicts_with_all = ["config", "check"])]
    pub print_config: bool,
}

/// How `natter admin` ends; the numbers are in `admin/client.rs`.
const EXIT_STATUS: &str = "\
Exit status:
  0    done
  1    not done; standard error says why
  2    the command line was not understood
  3    no node runs in that directory
  4    this user may not ask the node
  5    no majority of the cluster answers; try again
  130  interrupted; what was begun goes on";

/// What an operator asks of a running node.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_STATUS)]
pub struct Admin {
    /// Data directory of the node that is asked.
    #[arg(long, global = true, value_name = "DIR", default_value = "natter-data")]
    pub data_dir: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: AdminCommand,
}

/// What an operator can do.
#[derive(Clone, Debug, Subcommand)]
pub enum AdminCommand {
    /// Members of the cluster and where its shards are.
    Cluster {
        /// What to do.
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Settings that hold for the whole cluster.
    Settings {
        /// What to do.
        #[command(subcommand)]
        command: SettingsCommand,
    },
}

/// What can be done with a cluster. NODE is an id, the beginning of one, or a name.
#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show members, groups and sessions.
    Status,
    /// Let this node, which is still empty, join the cluster of another.
    Join {
        /// A node of that cluster: HOST:PORT.
        seed: String,
    },
    /// Let this node give up what it holds and leave the cluster.
    Leave {
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a node lead nothing, before it is stopped for a while.
    Drain {
        /// Which.
        node: String,
        /// It may lead again. A drain survives a restart of the node, so undo it then.
        #[arg(long)]
        undo: bool,
        /// Also if too few nodes are left that lead.
        #[arg(long)]
        force: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Bring replicas and leaders to where they should be, and wait until they are.
    Rebalance {
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Strike a node from the cluster and rebuild elsewhere what it held.
    Remove {
        /// Which.
        node: String,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
}

/// What can be done with settings.
#[derive(Clone, Debug, Subcommand)]
pub enum SettingsCommand {
    /// Set one on all nodes, at once and for good.
    Set {
        /// As in node.toml: `limits.contact_share`.
        key: String,
        /// As in node.toml; "" lets each node have its own again.
        value: String,
    },
    /// Show what holds now.
    Get {
        /// Only this one.
        key: Option<String>,
    },
}
