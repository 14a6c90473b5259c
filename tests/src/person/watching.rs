//! What a device does about presence: it subscribes to everybody, says now and then that its person
//! is away or back, and tells the judge how it stands and what it sees.
//!
//! **Invariant:** the judge hears how a device stands only after the node has confirmed it.

use super::{Person, say};
use crate::checker::{Shown, Standing};
use crate::wire::Wire;
use anyhow::Result;
use proto::Code;
use proto::codes::Retry;
use proto::wire::{Presence, Refused, SetPresence, Subscribe, client_frame::Kind as Ask};
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Ids of these requests, far from those of sends.
const FIRST_ID: u64 = 1 << 50;

/// Longest time between two changes of a person's mind, in ms.
const CHANGE_MS: u64 = 6_000;

#[derive(Clone, Copy, Debug)]
enum Question {
    Subscribe(u64),
    Stand(bool),
}

/// What is asked, and what is to be asked.
#[derive(Debug)]
pub(super) struct Watching {
    ids: u64,
    due: VecDeque<Question>,
    asked: BTreeMap<u64, Question>,
    again_at: Instant,
    change_at: Instant,
}

impl Watching {
    pub(super) fn new() -> Self {
        let (due, asked) = (VecDeque::new(), BTreeMap::new());
        let now = Instant::now();
        Self { ids: FIRST_ID, due, asked, again_at: now, change_at: now }
    }
}

impl Person {
    /// A new session: there until it says otherwise, subscribed to nobody.
    pub(super) fn watch_anew(&mut self) {
        self.watching.asked.clear();
        self.watching.due = self.others.iter().map(|user| Question::Subscribe(*user)).collect();
        self.decide_later();
        self.shared.facts().checker.stands(self.who, Standing::There);
    }

    /// The session is over: it sees nobody any longer, and is seen no longer.
    pub(super) fn watch_no_more(&mut self) {
        let mut facts = self.shared.facts();
        facts.checker.stands(self.who, Standing::Gone);
        for user in &self.others {
            facts.checker.sees(self.who, *user, None);
        }
    }

    fn decide_later(&mut self) {
        let wait = self.rng.random_range(CHANGE_MS / 4..CHANGE_MS);
        self.watching.change_at = Instant::now() + Duration::from_millis(wait);
    }

    /// Asks what is due, as far as the node is to be asked now.
    pub(super) async fn watch(&mut self, wire: &mut Wire, may_change: bool) -> Result<()> {
        let now = Instant::now();
        if may_change && now >= self.watching.change_at {
            self.decide_later();
            self.watching.due.push_back(Question::Stand(self.rng.random_bool(0.5)));
        }
        if now < self.watching.again_at || !self.watching.asked.is_empty() {
            return Ok(());
        }
        let Some(question) = self.watching.due.pop_front() else { return Ok(()) };
        let ask = match question {
            Question::Subscribe(user) => Ask::Subscribe(Subscribe { user, unsubscribe: false }),
            Question::Stand(away) => {
                self.shared.facts().checker.stands(self.who, Standing::Unknown);
                Ask::SetPresence(SetPresence { away })
            }
        };
        self.watching.ids += 1;
        self.watching.asked.insert(self.watching.ids, question);
        say(wire, self.watching.ids, ask).await
    }

    /// An answer `Done`; false: not to a question of this kind.
    pub(super) fn watch_done(&mut self, id: u64) -> bool {
        let Some(question) = self.watching.asked.remove(&id) else { return false };
        if let Question::Stand(away) = question {
            let standing = if away { Standing::Away } else { Standing::There };
            self.shared.facts().checker.stands(self.who, standing);
        }
        true
    }

    /// A refusal; false: not of a question of this kind. What may be asked again is.
    pub(super) fn watch_refused(&mut self, id: u64, refused: &Refused) -> bool {
        let Some(question) = self.watching.asked.remove(&id) else { return false };
        self.judge(refused);
        if Code::from_number(refused.code).retry() != Retry::Never {
            let after = u64::from(refused.retry_after_ms).clamp(50, 1000);
            self.watching.again_at = Instant::now() + Duration::from_millis(after);
            self.watching.due.push_front(question);
        }
        true
    }

    /// What the node shows of someone.
    pub(super) fn saw(&self, presence: Presence) {
        let Presence { user, online, last_seen_ms } = presence;
        self.shared.facts().checker.sees(self.who, user, Some(Shown { online, last_seen_ms }));
    }
}
