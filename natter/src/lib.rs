//! The `natter` program: a node, an operator's commands, a terminal client and a demo of them all.
//!
//! **Invariant:** this is the only crate that knows both the server and its clients. What they do is
//! decided in theirs.

pub mod cli;
pub mod demo;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use node::boot::Handlers;
use node::{admin, serve, tls};

use crate::cli::{Cli, Command};

/// The whole program: reads the command line and does what it says. `handlers` see what users send,
/// before their shards do. Status 0 if all went well, 1 with the error on standard error if not.
pub fn main_with(handlers: Handlers) -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(options) => return serve::run(&options, handlers),
        Command::Demo(options) => client(demo::run(options)),
        Command::Chat(options) => client(natter_cli::chat(options)),
        Command::Admin(asked) => return admin::run(&asked),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            serve::tell(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs what talks to a node rather than being one.
fn client(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("the async runtime cannot start")?.block_on(work)
}
