//! The command line of `natter`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use natter_cli::ChatArgs;

use crate::demo::Demo;

/// What the process is asked to do.
#[derive(Debug, Parser)]
#[command(name = "natter", version, about = "A messaging cluster", arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of a node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Serve(Serve),
    /// See it work: a node, two people, and a kill in between.
    Demo(Demo),
    /// Write to someone from the terminal.
    Chat(ChatArgs),
}

/// How a node is run.
#[derive(Args, Clone, Debug, Default)]
pub struct Serve {
    /// Settings file. Without one: a node on localhost with the defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of everything durable; goes before `node.data_dir` of the settings.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Check the settings, say what is wrong, and end.
    #[arg(long)]
    pub check: bool,
    /// Print the default settings with their documentation, and end.
    #[arg(long, conflicts_with_all = ["config", "check"])]
    pub print_config: bool,
}
