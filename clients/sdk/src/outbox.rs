//! Sends that wait: in order for each conversation, a window of unanswered ones, conversations held
//! back after a refusal. Pure: time and chance come from the caller.
//!
//! # Invariants
//! 1. A send leaves only when no later send of its conversation is unanswered, and no earlier one
//!    is queued. So after a refusal or a reconnect the original order is restored.
//! 2. At most `window` sends are unanswered.

use crate::{client::Recipient, error::Refusal};
use proto::{Alias, Fault, Retry, UserId, wire};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Refusals after which a send is given up, unless the fault is the server's and waiting is the
/// cure: about five minutes at the longest waits.
const REFUSALS_MAX: u32 = 10;

/// First wait after a refusal that names none; doubled each time.
const HOLD_MIN: Duration = Duration::from_millis(250);

/// Longest wait after a refusal that names none.
const HOLD_MAX: Duration = Duration::from_mins(1);

/// Aliases whose user is remembered, so that both name one conversation.
const KNOWN_MAX: usize = 1_024;

/// What became of a refused send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<A> {
    /// It will be sent again; `reconnect` if the code asks for a new connection first.
    Kept { reconnect: bool },
    /// It is given up; `answer` is whoever waits for it.
    GivenUp { answer: Option<A> },
    /// No such send waits.
    Unknown,
}

/// What an acceptance means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Accepted<A> {
    /// The send is done; `answer` is whoever waits for it.
    Settled { answer: Option<A> },
    /// No such send waits.
    Unknown,
}

#[derive(Debug)]
struct Entry<A> {
    send: wire::Send,
    conversation: Recipient,
    refusals: u32,
    answer: Option<A>,
}

#[derive(Debug, Default)]
struct Conversation {
    queued: BTreeSet<u64>,
    unanswered: BTreeSet<u64>,
    held_until: Option<Instant>,
    /// The id under which `ready` lists it.
    listed: Option<u64>,
}

/// The sends of one device; `A` is what the caller wants back with the answer.
#[derive(Debug)]
pub(crate) struct Outbox<A> {
    window: usize,
    unanswered: usize,
    entries: BTreeMap<u64, Entry<A>>,
    conversations: BTreeMap<Recipient, Conversation>,
    /// Conversations that may send, by the id of their first queued send.
    ready: BTreeMap<u64, Recipient>,
    held: BTreeSet<(Instant, Recipient)>,
    known: BTreeMap<Alias, UserId>,
}

impl<A> Outbox<A> {
    pub(crate) fn new(window: usize) -> Self {
        Self {
            window: window.max(1),
            unanswered: 0,
            entries: BTreeMap::new(),
            conversations: BTreeMap::new(),
            ready: BTreeMap::new(),
            held: BTreeSet::new(),
            known: BTreeMap::new(),
        }
    }

    /// Sends that are queued or unanswered.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered
    }

    pub(crate) fn set_window(&mut self, window: usize) {
        self.window = window.max(1);
    }

    /// Queues a send. Ids must be unique and grow.
    pub(crate) fn push(&mut self, id: u64, to: Recipient, send: wire::Send, answer: Option<A>) {
        let conversation = self.conversation_of(to);
        self.conversations.entry(conversation.clone()).or_default().queued.insert(id);
        let entry = Entry { send, conversation: conversation.clone(), refusals: 0, answer };
        self.entries.insert(id, entry);
        self.list(&conversation);
    }

    /// The next send to put on the connection, now unanswered.
    pub(crate) fn next(&mut self) -> Option<(u64, wire::Send)> {
        if self.unanswered >= self.window {
            return None;
        }
        let (&id, conversation) = self.ready.first_key_value()?;
        let conversation = conversation.clone();
        let send = self.entries.get(&id)?.send.clone();
        if let Some(state) = self.conversations.get_mut(&conversation) {
            state.queued.remove(&id);
            state.unanswered.insert(id);
            self.unanswered += 1;
        }
        self.list(&conversation);
        Some((id, send))
    }

    /// When the next held conversation is released.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.held.first().map(|(at, _)| *at)
    }

    /// The connection is gone: everything unanswered is queued again in its place.
    pub(crate) fn disconnected(&mut self) {
        self.unanswered = 0;
        let names: Vec<Recipient> = self.conversations.keys().cloned().collect();
        for name in names {
            if let Some(state) = self.conversations.get_mut(&name) {
                let back = std::mem::take(&mut state.unanswered);
                state.queued.extend(back);
            }
            self.list(&name);
        }
    }

    /// Send `id` was accepted for `user` (0 if the node named none).
    pub(crate) fn accepted(&mut self, id: u64, user: UserId) -> Accepted<A> {
        let Some(entry) = self.settle(id) else { return Accepted::Unknown };
        if let (Recipient::Alias(alias), true) = (entry.conversation, user.0 != 0) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            self.known.insert(alias, user);
        }
        Accepted::Settled { answer: entry.answer }
    }

    /// Send `id` was refused; `chance` is from 0 to 1.
    pub(crate) fn refused(
        &mut self,
        id: u64,
        refusal: &Refusal,
        now: Instant,
        chance: f64,
    ) -> Refused<A> {
        let Some(entry) = self.entries.get_mut(&id) else { return Refused::Unknown };
        entry.refusals += 1;
        let refusals = entry.refusals;
        if !worth_another(refusal, refusals) {
            let answer = self.settle(id).and_then(|entry| entry.answer);
            return Refused::GivenUp { answer };
        }
        let conversation = entry.conversation.clone();
        self.hold(&conversation, id, now + hold_for(refusal, refusals, chance));
        Refused::Kept { reconnect: refusal.code.retry() != Retry::After }
    }

    /// Gives up every wait for an answer; the sends themselves stay.
    pub(crate) fn abandon(&mut self) -> Vec<(u64, A)> {
        let entries = self.entries.iter_mut();
        entries.filter_map(|(id, entry)| entry.answer.take().map(|a| (*id, a))).collect()
    }

    fn conversation_of(&self, to: Recipient) -> Recipient {
        match &to {
            Recipient::User(_) => to,
            // What already waits under the alias must stay in front.
            Recipient::Alias(_) if self.conversations.contains_key(&to) => to,
            Recipient::Alias(alias) => self.known.get(alias).map_or(to, |u| Recipient::User(*u)),
        }
    }

    fn hold(&mut self, conversation: &Recipient, id: u64, until: Instant) {
        if let Some(state) = self.conversations.get_mut(conversation) {
            if state.unanswered.remove(&id) {
                self.unanswered = self.unanswered.saturating_sub(1);
            }
            state.queued.insert(id);
            let until = state.held_until.map_or(until, |earlier| earlier.max(until));
            if let Some(earlier) = state.held_until.replace(until) {
                self.held.remove(&(earlier, conversation.clone()));
            }
            self.held.insert((until, conversation.clone()));
        }
        self.list(conversation);
    }

    /// Lets go of conversations whose wait is over.
    pub(crate) fn release(&mut self, now: Instant) {
        while self.held.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, conversation)) = self.held.pop_first() else { return };
            if let Some(state) = self.conversations.get_mut(&conversation) {
                state.held_until = None;
            }
            self.list(&conversation);
        }
    }

    fn settle(&mut self, id: u64) -> Option<Entry<A>> {
        let entry = self.entries.remove(&id)?;
        if let Some(state) = self.conversations.get_mut(&entry.conversation) {
            state.queued.remove(&id);
            if state.unanswered.remove(&id) {
                self.unanswered = self.unanswered.saturating_sub(1);
            }
        }
        self.list(&entry.conversation);
        Some(entry)
    }

    /// Brings `ready` up to date for one conversation, and forgets it when it is empty.
    fn list(&mut self, name: &Recipient) {
        let Some(state) = self.conversations.get_mut(name) else { return };
        let first = state.queued.first().copied();
        let may_send = |id: &u64| {
            state.held_until.is_none() && state.unanswered.last().is_none_or(|last| last < id)
        };
        let place = first.filter(may_send);
        if state.listed != place {
            if let Some(old) = state.listed {
                self.ready.remove(&old);
            }
            if let Some(new) = place {
                self.ready.insert(new, name.clone());
            }
            state.listed = place;
        }
        if state.queued.is_empty() && state.unanswered.is_empty() {
            if let Some(at) = state.held_until {
                self.held.remove(&(at, name.clone()));
            }
            self.conversations.remove(name);
        }
    }
}

fn worth_another(refusal: &Refusal, refusals: u32) -> bool {
    match refusal.code.retry() {
        Retry::Never => false,
        // No other code of this kind answers a send.
        Retry::SameConnection => refusal.code == proto::Code::NotLoggedIn,
        Retry::Reconnect => refusals < REFUSALS_MAX,
        Retry::After => refusal.code.fault() == Fault::Server || refusals < REFUSALS_MAX,
    }
}

fn hold_for(refusal: &Refusal, refusals: u32, chance: f64) -> Duration {
    let wait = if refusal.retry_after.is_zero() {
        HOLD_MIN.saturating_mul(1 << refusals.saturating_sub(1).min(16)).min(HOLD_MAX)
    } else {
        refusal.retry_after
    };
    wait.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
