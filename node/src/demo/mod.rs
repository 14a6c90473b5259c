//! `natter demo`: the newcomer's first minute. A node of its own, two people who write to each
//! other, and a kill in between.
//!
//! The node is a real process on real ports with a real disk; Ada and Bob use the SDK. Only what
//! they see is printed.
//!
//! **Invariant:** the story ends well only if every tick it tells of came.

mod people;
mod stage;

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use people::{Person, Tick};
use stage::{Stage, narrate};

/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `natter demo`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Demo {
    /// End after the story: status 0 if every tick came.
    #[arg(long)]
    pub once: bool,
}

/// Tells the story, and then keeps the node running for others to join.
///
/// # Errors
/// What kept the node from running, or the tick that did not come.
pub async fn run(demo: Demo) -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    let told = tokio::select! {
        told = story(&mut stage) => told,
        signal = tokio::signal::ctrl_c() => { signal?; return stage.clear().await; }
    };
    if let Err(error) = &told {
        narrate(&format!("The story went wrong: {error:#}"));
        narrate(&format!("What the node said is in {}", stage.log().display()));
        stage.keep_files();
    }
    let bob = told?;
    narrate("\nEvery tick came. Nothing that was accepted was lost.\n");
    if !demo.once {
        stage.invite();
        tokio::select! {
            failed = bob.answer_everyone() => failed?,
            ended = stage.ended() => ended?,
            signal = tokio::signal::ctrl_c() => signal?,
        }
        narrate("\nGood bye.");
    }
    stage.clear().await
}

async fn story(stage: &mut Stage) -> anyhow::Result<Person> {
    narrate("\n1. Two people register with a PIN and a key of their own.\n");
    let mut ada = stage.register("ada").await?;
    let mut bob = stage.register("bob").await?;

    narrate(
        "\n2. Both are online. \u{2713} on disk  \u{2713}\u{2713} on Bob's device  \u{2713}\u{2713}\u{2713} read.\n",
    );
    exchange(&mut ada, &mut bob, "Hello Bob, is this thing safe?").await?;
    exchange(&mut bob, &mut ada, "Ask me again after they pull the plug.").await?;

    narrate("\n3. Bob's phone goes off. Ada writes all the same.\n");
    let bob = bob.leave().await;
    let question = ada.send(bob.user(), "So: was it safe?")?;
    ada.wait(&question, Tick::Accepted).await?;

    narrate("\n4. The node is killed (SIGKILL), before anybody has that message.\n");
    stage.kill().await?;
    let second = ada.send(bob.user(), "I am writing this to a dead server.")?;
    narrate("   ada   > \u{1f551} \"I am writing this to a dead server.\"");
    let took = stage.start().await?;
    narrate(&format!("   node    started again, ready after {} ms", took.as_millis()));
    ada.wait(&second, Tick::Accepted).await?;

    narrate("\n5. Bob's phone is back.\n");
    let mut bob = bob.come_back().await?;
    let first_seen = bob.receive().await?;
    let second_seen = bob.receive().await?;
    ensure!(
        (first_seen.text(), second_seen.text()) == (question.text(), second.text()),
        "Bob got {:?}, then {:?}",
        first_seen.text(),
        second_seen.text()
    );
    for sent in [&question, &second] {
        ada.wait(sent, Tick::Delivered).await?;
    }
    exchange(&mut bob, &mut ada, "It was. Both came, once, in order.").await?;
    Ok(bob)
}

/// One message with its three ticks.
async fn exchange(from: &mut Person, to: &mut Person, text: &str) -> anyhow::Result<()> {
    let sent = from.send(to.user(), text)?;
    from.wait(&sent, Tick::Accepted).await?;
    let seen = to.receive().await?;
    ensure!(seen.text() == text, "{} got {:?}", to.name(), seen.text());
    from.wait(&sent, Tick::Delivered).await?;
    to.read(&seen).await?;
    from.wait(&sent, Tick::Read).await
}
