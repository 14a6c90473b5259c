//! The command line of `natter`.

use clap::{Parser, Subcommand};
use natter_cli::ChatArgs;
use node::cli::{Admin, Serve};

use crate::demo::Demo;

/// What the process is asked to do.
#[derive(Debug, Parser)]
#[command(name = "natter", version, about = "A messaging cluster", arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Serve(Serve),
    /// See it work: three nodes, two people, and kills in between.
    Demo(Demo),
    /// Write to someone from the terminal.
    Chat(ChatArgs),
    /// Look after a running node and its cluster.
    Admin(Admin),
}
