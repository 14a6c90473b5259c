//! `natter demo`: the newcomer's first minute. A cluster of three nodes, two people who write to
//! each other, and kills in between.
//!
//! The nodes are real processes on real ports with a real disk each; Ada and Bob use the SDK. Only
//! what they see is told, and what the nodes say of themselves is drawn under it.
//!
//! **Invariant:** the story ends well only if every tick it tells of came.

mod guard;
mod node;
mod painter;
mod people;
mod screen;
mod stage;
mod status;
mod talk;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use natter_cli::Tick;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use painter::Watcher;
use people::{Person, span};
use screen::Screen;
use stage::Stage;

/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long people write undisturbed, before a node is killed and after the others have taken over.
const CALM: Duration = Duration::from_secs(1);

/// Options of `natter demo`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Demo {
    /// End after the story: status 0 if every tick came.
    #[arg(long)]
    pub once: bool,
}

/// Tells the story, and then keeps the nodes running for others to join.
///
/// # Errors
/// What kept a node from running, or the tick that did not come.
pub async fn run(demo: Demo) -> anyhow::Result<()> {
    let screen = Screen::new();
    let mut stage = Stage::set(screen.clone())?;
    let painter = stage.painter();
    let told = tokio::select! {
        told = Box::pin(tell(demo, &mut stage, painter.watcher(), &screen)) => told,
        () = painter.paint() => Ok(()),
        interrupted = interrupted() => interrupted.map(|()| screen.tell("\nGood bye.")),
    };
    if told.is_err() {
        screen.tell(&format!("The story went wrong. What the nodes said is in {}", stage.logs()));
        stage.keep_files();
    }
    screen.wipe();
    told
}

/// Returns when the demo is asked to end.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
    Ok(())
}

async fn tell(
    demo: Demo,
    stage: &mut Stage,
    watcher: Watcher,
    screen: &Screen,
) -> anyhow::Result<()> {
    let mut story = Story { stage, watcher, screen };
    let (ada, bob) = story.tell().await?;
    screen.tell("\nEvery tick came. Nothing that was accepted was lost.\n");
    if demo.once {
        return Ok(());
    }
    stage.invite();
    tokio::select! {
        failed = ada.answer_everyone() => failed,
        failed = bob.answer_everyone() => failed,
        failed = stage.keep_up() => failed,
    }
}

/// What the story is made of.
struct Story<'a> {
    stage: &'a mut Stage,
    watcher: Watcher,
    screen: &'a Screen,
}

impl Story<'_> {
    async fn tell(&mut self) -> anyhow::Result<(Person, Person)> {
        self.gather().await?;

        self.say("\n1. Two people register with a PIN and a key of their own.\n");
        let mut ada = self.stage.register("ada", 0).await?;
        let mut bob = self.stage.register("bob", 1).await?;

        let [accepted, delivered, read] =
            [Tick::Accepted, Tick::Delivered, Tick::Read].map(|tick| tick.plain());
        self.say(&format!(
            "\n2. Both are online, at different nodes. {accepted} on the disks of two nodes, {delivered} on \
             Bob's device, {read} seen by him.\n"
        ));
        exchange(&mut ada, &mut bob, "Hello Bob, is this thing safe?").await?;
        exchange(&mut bob, &mut ada, "Ask me again after they pull the plug.").await?;

        self.say(
            "\n3. They go on, ten messages a second each. The node that leads the shard of Bob's \
             mailbox is killed (SIGKILL).\n",
        );
        let shard = bob.user().shard();
        let leads = move |answers: &status::Answers| status::leader(answers, shard);
        let leader = self.watcher.until("a leader of Bob's shard", leads).await?;
        self.strike(leader, &mut ada, &mut bob).await?;

        self.say("\n4. The same with the node that Ada is connected to.\n");
        let node = ada.node().and_then(|address| self.stage.node_at(&address));
        let node = node.context("Ada is connected to no node")?;
        self.strike(node, &mut ada, &mut bob).await?;

        self.power_cut(ada, bob).await
    }

    /// Starts the nodes and waits until they are one cluster.
    async fn gather(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.stage.raise().await?;
        let ready = span(begun.elapsed());
        self.say(&format!("Three natter nodes run on this machine, ready after {ready}."));
        let whole = |answers: &status::Answers| status::are_whole(answers).then_some(());
        tokio::select! {
            whole = self.watcher.until("one cluster of all nodes", whole) => whole?,
            fallen = self.stage.fallen() => return fallen,
        }
        let formed = span(begun.elapsed());
        self.say(&format!(
            "They are one cluster after {formed}: each shard has three replicas, one of them leads."
        ));
        Ok(())
    }

    /// Kills a node while both write, starts it again, and compares all replicas.
    async fn strike(
        &mut self,
        node: usize,
        ada: &mut Person,
        bob: &mut Person,
    ) -> anyhow::Result<()> {
        let signs = self.stage.signs();
        let scene = self.kill_and_start(node);
        talk::during(&signs, [ada, bob], scene).await?;
        let equal = |answers: &status::Answers| status::are_equal(answers).then_some(());
        self.watcher.until("replicas that are equal", equal).await?;
        self.say(
            "   all     three hold the same: 17 Raft groups and the table of sessions, by digest",
        );
        Ok(())
    }

    async fn kill_and_start(&mut self, node: usize) -> anyhow::Result<()> {
        let name = self.stage.name(node).to_owned();
        sleep(CALM).await;
        let killed = Instant::now();
        self.say(&format!("   {name}  killed"));
        self.stage.kill(node..node + 1).await?;
        let led = move |answers: &status::Answers| {
            status::are_led(answers, node).then(|| answers.to_vec())
        };
        self.watcher.until("new leaders", led).await?;
        let after = span(killed.elapsed());
        self.say(&format!("   {name}  the others lead all its shards after {after}"));
        sleep(CALM).await;

        let took = self.stage.start(node).await?;
        let started = Instant::now();
        self.say(&format!("   {name}  started again, ready after {}", span(took)));
        let others = |answers: &status::Answers| {
            answers
                .iter()
                .enumerate()
                .find_map(|(other, said)| said.clone().filter(|_| other != node))
        };
        let goal = self.watcher.until("a node that is up", others).await?;
        let has_all = |answers: &status::Answers| {
            answers[node].as_ref().is_some_and(|said| status::has_all(said, &goal)).then_some(())
        };
        self.watcher.until("the node to catch up", has_all).await?;
        let after = span(started.elapsed());
        self.say(&format!("   {name}  has what it missed after {after} more"));
        sleep(CALM).await;
        Ok(())
    }

    /// All nodes are killed at once while a message waits for Bob.
    async fn power_cut(
        &mut self,
        mut ada: Person,
        bob: Person,
    ) -> anyhow::Result<(Person, Person)> {
        self.say("\n5. Bob's phone goes off. Ada writes all the same.\n");
        let bob = bob.leave().await;
        let question = ada.send(bob.user(), "So: was it safe?")?;
        ada.wait(&question, Tick::Accepted).await?;

        self.say("\n6. All three nodes are killed at once, before anybody has that message.\n");
        self.say("   all     killed");
        self.stage.kill(0..stage::NODES).await?;
        let second = ada.send(bob.user(), "I am writing this to a dead cluster.")?;
        let sign = Tick::Waiting.plain();
        self.say(&format!("   ada   > {sign:<7} {:?}", second.text()));
        let begun = Instant::now();
        self.stage.raise().await?;
        self.say(&format!("   all     started again, ready after {}", span(begun.elapsed())));
        ada.wait(&second, Tick::Accepted).await?;

        self.say("\n7. Bob's phone is back.\n");
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
        ensure!(ada.has_read_all() && bob.has_read_all(), "something came twice");
        Ok((ada, bob))
    }

    fn say(&self, line: &str) {
        self.screen.tell(line);
    }
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
