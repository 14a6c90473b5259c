//! Two people who keep writing to each other while something happens to their nodes, and the
//! account of it: what came, in which order, and how long it took.
//!
//! **Invariant:** an account is given only if every message came once, in its order, with both
//! ticks.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use natter_sdk::Message;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::PATIENCE;
use natter_cli::Tick;

use super::people::{Notice, Person, Sent, span};
use super::stage::Signs;

/// Time between two messages of a person.
const BEAT: Duration = Duration::from_millis(100);

/// What one person writes to the other.
#[derive(Debug, Default)]
struct Line {
    sent: Vec<Sent>,
    /// How long each message took that came.
    took: Vec<Duration>,
}

/// How long someone is without a node.
#[derive(Debug, Default)]
struct Outage(Option<Instant>);

/// Lets both write until `scene` is over, and tells how it went.
///
/// # Errors
/// Those of the scene; or what was lost, doubled or out of order.
pub(super) async fn during(
    signs: &Signs,
    [ada, bob]: [&mut Person; 2],
    scene: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (mut to_bob, mut to_ada) = (Line::default(), Line::default());
    let (mut without_ada, mut without_bob) = (Outage::default(), Outage::default());
    let mut scene = pin!(scene);
    let mut ended: Option<Instant> = None;
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while ended.is_none() || to_bob.misses() + to_ada.misses() > 0 {
        let patience = ended.unwrap_or_else(Instant::now) + PATIENCE;
        tokio::select! {
            done = &mut scene, if ended.is_none() => {
                done?;
                ended = Some(Instant::now());
            }
            _ = beat.tick(), if ended.is_none() => {
                to_bob.say(ada, bob)?;
                to_ada.say(bob, ada)?;
            }
            notice = ada.next() => match notice? {
                Some(Notice::Message(message)) => to_ada.came(&message)?,
                notice => without_ada.note(signs, ada, notice.as_ref()),
            },
            notice = bob.next() => match notice? {
                Some(Notice::Message(message)) => to_bob.came(&message)?,
                notice => without_bob.note(signs, bob, notice.as_ref()),
            },
            () = sleep_until(patience), if ended.is_some() => {
                let (bob, ada) = (to_bob.misses(), to_ada.misses());
                anyhow::bail!("{bob} messages did not come to Bob, and {ada} not to Ada");
            }
        }
    }
    for (line, from, to) in [(&to_bob, ada, "bob"), (&to_ada, bob, "ada")] {
        let ticks = timeout(PATIENCE, line.ticks(from)).await;
        ticks.with_context(|| format!("{} did not get all ticks", from.name()))??;
        signs.tell(&line.account(from.name(), to));
    }
    Ok(())
}

impl Line {
    fn say(&mut self, from: &mut Person, to: &Person) -> anyhow::Result<()> {
        let number = self.sent.len() + 1;
        self.sent.push(from.send(to.user(), &number.to_string())?);
        Ok(())
    }

    fn came(&mut self, message: &Message) -> anyhow::Result<()> {
        let (text, last) = (String::from_utf8_lossy(&message.body), self.took.len());
        let sent = self.sent.get(last).with_context(|| format!("{text:?} came twice"))?;
        ensure!(text == sent.text(), "{text:?} came after {last}");
        self.took.push(sent.age());
        Ok(())
    }

    /// How many messages have not come yet.
    fn misses(&self) -> usize {
        self.sent.len() - self.took.len()
    }

    async fn ticks(&self, from: &mut Person) -> anyhow::Result<()> {
        for sent in &self.sent {
            from.until(sent.id(), &Tick::Accepted).await?;
            from.until(sent.id(), &Tick::Delivered).await?;
        }
        Ok(())
    }

    fn account(&self, from: &str, to: &str) -> String {
        let mut took = self.took.clone();
        took.sort_unstable();
        let (median, longest) = (took.get(took.len() / 2), took.last());
        let span = |time: Option<&Duration>| span(time.copied().unwrap_or_default());
        format!(
            "   {from:<5} > {} messages to {to}: each came once, in order, with both ticks; the median \
             took {}, the longest {}",
            took.len(),
            span(median),
            span(longest)
        )
    }
}

impl Outage {
    /// Tells of a connection that is lost, and found again.
    fn note(&mut self, signs: &Signs, person: &Person, notice: Option<&Notice>) {
        let name = person.name();
        match notice {
            Some(Notice::Lost) if self.0.is_none() => {
                self.0 = Some(Instant::now());
                signs.tell(&format!("   {name:<5}   lost the connection"));
            }
            Some(Notice::Found) => {
                let Some(since) = self.0.take() else { return };
                let node = person.node().map_or("elsewhere", |address| signs.name_of(&address));
                let after = span(since.elapsed());
                signs.tell(&format!("   {name:<5}   goes on, connected to {node}, after {after}"));
            }
            Some(Notice::Lost | Notice::Message(_)) | None => {}
        }
    }
}
