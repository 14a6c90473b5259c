//! A bot that answers every message with the same words. Run by whoever wants to try the SDK:
//!
//! ```sh
//! cargo run -p natter-sdk --example echo_bot -- 127.0.0.1:7400 ca.pem echo
//! ```
//! (address, CA file or `plain`, the bot's name). At its first start it registers that name and
//! asks for the PIN. What it must remember is in `./NAME.bot`.

use anyhow::Context;
use natter_sdk::{
    Alias, Client, ClientOptions, Event, FileStore, Identity, Proof, Tls, register_prove,
    register_start,
};
use std::io::Write;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().context("echo_bot ADDRESS CA_FILE|plain NAME");
    let (address, ca, alias) = (arg()?, arg()?, Alias::parse(&arg()?)?);
    let mut options = match ca.as_str() {
        "plain" => ClientOptions::plain(address),
        file => ClientOptions::tls(address, Tls::from_ca_file(file)?),
    };
    options.auto_ack = true;
    let store = FileStore::open(format!("{alias}.bot"))?;
    let identity = match store.identity()? {
        Some(identity) => identity,
        None => register(&options, &alias, &store).await?,
    };

    let (client, mut events) = Client::login(options, identity, store)?;
    while let Some(event) = events.next().await {
        if let Event::Message(message) = event {
            client.typing(message.from, true);
            client.send(message.from, message.body)?;
        } else {
            writeln!(std::io::stdout(), "{event:?}")?;
        }
    }
    Ok(())
}

async fn register(
    options: &ClientOptions,
    alias: &Alias,
    store: &FileStore,
) -> anyhow::Result<Identity> {
    let sent = register_start(options, alias).await?;
    write!(std::io::stdout(), "PIN sent to {alias}: ")?;
    std::io::stdout().flush()?;
    let mut pin = String::new();
    std::io::stdin().read_line(&mut pin)?;
    let proof = Proof { pin: &pin, token: &sent.token, lock: "" };
    let identity = register_prove(options, alias, proof, store.device_key()?, "echo bot").await?;
    store.save_identity(&identity)?;
    Ok(identity)
}
