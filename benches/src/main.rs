//! `natter-load`: puts load on a natter node and measures what it does with it.
//!
//! It shares the machine with the server, so it is lean: one thread, one epoll, no runtime; hot
//! frames are read and written in place; all that one read asks for is answered by one write. It
//! shares no code with the server but the schema, and checks every message: nothing lost, doubled or
//! out of order.
//!
//! **Invariant:** standard output gets the result of a run that went to its end, and nothing else: a table on a
//! terminal, otherwise, or with `--json`, one line of JSON.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(clippy::cast_possible_truncation, reason = "counts of one run, far below any limit")]
#![allow(clippy::cast_sign_loss, reason = "times and counts are never negative")]

mod args;
mod clock;
mod cold;
mod entry;
mod hot;
mod latency;
mod link;
mod listen;
mod modes;
mod net;
mod offline;
mod order;
mod pairs;
mod pins;
mod process;
mod sender;
mod server;
mod spawned;
mod table;
mod upset;

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

use crate::args::Command;
use crate::clock::Clock;
use crate::modes::Run;
use crate::server::Server;

fn main() -> Result<()> {
    let command = Command::parse();
    command.check()?;
    let clock = Clock::start();
    let mut server = Server::of(&command.common, clock)?;
    let measured = Run::new(&command, &mut server, clock).and_then(|mut run| run.measure());
    let measured = measured.with_context(|| match server.log_tail() {
        log if log.is_empty() => "the run did not come to its end".to_owned(),
        log => format!("the run did not come to its end; the server's log ends:\n{log}"),
    })?;
    server.stop()?;
    let line = with_setting(&command, measured);
    let mut out = std::io::stdout();
    if out.is_terminal() && !command.common.json {
        write!(out, "{}", table::table(&line))?;
    } else {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The result with what was measured, and how.
fn with_setting(command: &Command, measured: Value) -> Value {
    let mut line = json!({
        "mode": command.mode.name(),
        "tls": !command.common.plain,
        "body": command.common.body,
        "nodes": command.common.nodes,
    });
    if let (Value::Object(line), Value::Object(measured)) = (&mut line, measured) {
        line.extend(measured);
        let labels = command.common.label.iter();
        line.extend(labels.map(|(name, text)| (name.clone(), json!(text))));
    }
    line
}
