//! Looks at the nodes all the time: paints the picture, and passes on what they said to the story.
//!
//! **Invariant:** a node is shown as up only if it answered in this round.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use natter_sdk::Client;
use node::admin::Status;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::PATIENCE;
use super::screen::{Picture, Screen};
use super::status::{self, Answers};

/// Time between two rounds.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for one node's answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Where a node can be looked at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) data_dir: PathBuf,
    pub(super) client: String,
    pub(super) http: String,
}

/// What all nodes said when they were asked at once.
#[derive(Debug, Default)]
struct Round {
    number: u64,
    answers: Vec<Option<Status>>,
}

/// Whose phone is where. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Guests(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    phones: Vec<(&'static str, Client)>,
    /// Who has asked for a PIN and is not one of the demo's people.
    visitors: BTreeSet<String>,
}

/// Visitors whose names are kept.
const VISITORS_MAX: usize = 100;

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock()
    }

    pub(super) fn add(&self, name: &'static str, client: Client) {
        self.lock().phones.push((name, client));
    }

    /// Their phone is off: nothing of it may be held any longer.
    pub(super) fn remove(&self, name: &str) {
        self.lock().phones.retain(|(known, _)| *known != name);
    }

    /// Somebody from outside of the story may come.
    pub(super) fn invite(&self, name: &str) {
        let mut known = self.lock();
        if known.visitors.len() < VISITORS_MAX {
            known.visitors.insert(name.to_owned());
        }
    }

    /// Who is at the node with this address, where `phones` are connected. A visitor is named if there has
    /// been only one; otherwise they are counted, for a connection has no name.
    fn at(&self, address: &str, phones: u64) -> String {
        let known = self.lock();
        let here = known.phones.iter();
        let here = here.filter(|(_, client)| client.node().as_deref() == Some(address));
        let mut names: Vec<String> = here.map(|(name, _)| (*name).to_owned()).collect();
        let others = phones.saturating_sub(u64::try_from(names.len()).unwrap_or(u64::MAX));
        match (others, known.visitors.first()) {
            (0, _) => {}
            (1, Some(name)) if known.visitors.len() == 1 => names.push(name.clone()),
            (others, _) => names.push(format!("{others} more")),
        }
        names.join(", ")
    }
}

/// The one who looks.
#[derive(Debug)]
pub(super) struct Painter {
    screen: Screen,
    places: Vec<Place>,
    guests: Guests,
    rounds: watch::Sender<Round>,
}

impl Painter {
    pub(super) fn new(screen: Screen, places: Vec<Place>, guests: Guests) -> Self {
        Self { screen, places, guests, rounds: watch::Sender::new(Round::default()) }
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.rounds.subscribe())
    }

    /// Looks and paints, for ever.
    pub(super) async fn paint(&self) {
        let mut is_begun = false;
        for number in 1.. {
            let looks = join_all(self.places.iter().map(look)).await;
            let (answers, phones): (Vec<_>, Vec<_>) = looks.into_iter().unzip();
            is_begun |= answers.iter().any(Option::is_some);
            if is_begun {
                self.screen.draw(self.picture(&answers, &phones));
            }
            self.rounds.send_replace(Round { number, answers });
            sleep(PAUSE).await;
        }
    }

    fn picture(&self, answers: &Answers, phones: &[Option<u64>]) -> Picture {
        let mut picture = Picture::default();
        for (node, (place, phones)) in self.places.iter().zip(phones).enumerate() {
            let name = &place.name;
            if answers[node].is_none() {
                picture.lines.push(format!("   {name}  \u{25cb} down"));
                // Writing to a string does not fail.
                write!(picture.line, "   {name}: down").ok();
                continue;
            }
            let (led, phones) = (status::shards_led(answers, node), phones.unwrap_or(0));
            let guests = self.guests.at(&place.client, phones);
            let bar = "\u{25a0}".repeat(led);
            picture.lines.push(format!(
                "   {name}  \u{25cf} up    leads {led:>2} of 16 {bar:<16}  sessions {phones}  {guests}"
            ));
            write!(picture.line, "   {name}: up, leads {led}, sessions {phones}").ok();
        }
        picture
    }
}

async fn look(place: &Place) -> (Option<Status>, Option<u64>) {
    let asked = timeout(ANSWER, node::admin::status(&place.data_dir));
    let counted = timeout(ANSWER, sessions(&place.http));
    let (said, counted) = tokio::join!(asked, counted);
    (said.ok().and_then(Result::ok), counted.ok().flatten())
}

/// How many phones are connected to a node, as its metrics say.
async fn sessions(http: &str) -> Option<u64> {
    let page = reqwest::get(format!("http://{http}/metrics")).await.ok()?.text().await.ok()?;
    page.lines().find_map(|line| line.strip_prefix("natter_connections ")?.trim().parse().ok())
}

/// The story's view of the nodes.
#[derive(Clone, Debug)]
pub(super) struct Watcher(watch::Receiver<Round>);

impl Watcher {
    /// Waits until `pick` finds what it looks for in what the nodes say from now on.
    ///
    /// # Errors
    /// Says that `what` did not come in time.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&Answers) -> Option<T>,
    ) -> anyhow::Result<T> {
        // The round that is under way began before.
        let begin = self.0.borrow().number + 2;
        let looking = async {
            loop {
                self.0.changed().await?;
                let round = self.0.borrow_and_update();
                if round.number >= begin
                    && let Some(found) = pick(&round.answers)
                {
                    return anyhow::Ok(found);
                }
            }
        };
        let found = timeout(PATIENCE, looking).await;
        found.with_context(|| format!("waited too long for {what}"))?
    }
}
