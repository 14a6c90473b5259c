//! `natter chat`: a terminal client on the SDK.
//!
//! Three layers: `model` decides (pure), `view` draws (pure), `run` and `lines` touch the terminal
//! and the client. `CHAT.md` is its manual.
//!
//! **Invariant:** an entry of the mailbox is acknowledged only after it is in the history on disk.

pub mod body;
mod command;
mod history;
mod home;
mod input;
mod lines;
mod model;
mod run;
mod setup;
mod tick;
mod view;
mod work;

pub use tick::Tick;

use anyhow::Context;
use clap::Args;
use natter_sdk::{Alias, Client};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    path::PathBuf,
};

/// Options of `natter chat`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Args, Clone, Debug, Default)]
#[command(next_line_help = true)]
pub struct ChatArgs {
    /// Whom to write to: a user name, phone number or e-mail address
    #[arg(value_name = "ALIAS")]
    pub peer: Option<String>,
    /// The same, for scripts
    #[arg(long, value_name = "ALIAS", conflicts_with = "peer")]
    pub to: Option<String>,
    /// The node, or several of one cluster with commas; remembered
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT]")]
    pub server: Option<String>,
    /// The certificate to trust, a PEM file; remembered
    #[arg(long, value_name = "FILE", conflicts_with = "plain")]
    pub ca: Option<PathBuf>,
    /// The name in the node's certificate, if it is not that of --server
    #[arg(long, value_name = "NAME", conflicts_with = "plain")]
    pub server_name: Option<String>,
    /// Without TLS; only where nobody listens
    #[arg(long)]
    pub plain: bool,
    /// Where keys, history and unsent messages are kept [default: ~/.natter]
    #[arg(long, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Who you are; asked at the first run
    #[arg(long = "as", value_name = "ALIAS")]
    pub alias: Option<String>,
    /// The PIN of a registration, for scripts; otherwise it is asked
    #[arg(long)]
    pub pin: Option<String>,
    /// The registration lock of the account, if it has one; else it is asked
    #[arg(long, value_name = "LOCK")]
    pub registration_lock: Option<String>,
    /// Ask for a PIN and end, for scripts; call again with --pin
    #[arg(long, conflicts_with = "pin")]
    pub request_pin: bool,
    /// Make this a further device of your account: another one links it
    #[arg(long, conflicts_with_all = ["pin", "request_pin"])]
    pub link: bool,
    /// Forget who this device was and begin anew, by a PIN or with --link
    #[arg(long)]
    pub register_again: bool,
    /// Plain lines instead of a screen; the default without a terminal
    #[arg(long)]
    pub lines: bool,
    /// With --lines: go on after the end of the input
    #[arg(long)]
    pub stay: bool,
}

/// Runs the client until its person leaves.
///
/// # Errors
/// What a person can act on: no such file, no connection for the registration, a wrong PIN, an
/// ended session.
pub async fn chat(args: ChatArgs) -> anyhow::Result<()> {
    let peer = args.peer.as_deref().or(args.to.as_deref());
    let peer = peer.map(Alias::parse).transpose().context("who to write to")?;
    let Some(ready) = setup::prepare(&args).await? else { return Ok(()) };
    let setup::Ready { profile, alias, options, identity, store } = ready;
    let history = history::History::open(profile.history_dir())?;
    let (client, events) = Client::login(options, identity, store)?;
    let chat = work::Chat {
        client,
        alias,
        profile,
        history,
        waiting: BTreeMap::new(),
        contacts: BTreeSet::new(),
    };
    let lines = args.lines || !std::io::stdout().is_terminal();
    anyhow::ensure!(lines || !args.stay, "--stay goes with --lines");
    if lines {
        let peer = peer.context("plain lines need someone to write to: natter chat ALIAS")?;
        lines::run(chat, events, peer, args.stay).await
    } else {
        run::run(chat, events, peer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_80_columns() {
        let help = ChatArgs::augment_args(clap::Command::new("chat")).render_help().to_string();
        assert!(help.contains("--register-again"), "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
