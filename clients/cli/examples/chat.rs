//! The terminal client as a program of its own, for work on it: `natter chat` without the node.

use clap::Parser;
use natter_cli::ChatArgs;

#[derive(Parser)]
struct Chat {
    #[command(flatten)]
    args: ChatArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    natter_cli::chat(Chat::parse().args).await
}
