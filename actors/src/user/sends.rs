//! Sends: brought into order, and proposed to the recipient's shard. A part of the core.
//!
//! # Invariants
//! 1. While an alias is being resolved, everything sent after it waits: order is kept.
//! 2. A body that is stored is a copy of its own, never a slice of a larger read buffer.

use super::core::UserCore;
use super::items::{Action, Checking, Now, Rejected};
use super::login::refused;
use crate::connection::{ConnectionId, Refusal};
use crate::retry_order::RetryOrder;
use crate::shard::Outcome;
use bytes::Bytes;
use proto::limits::{BODY_BYTES_MAX, DEVICES_MAX, TTL_S_MAX};
use proto::wire::{self, send::To};
use proto::{Alias, Code, DeviceId, UserId, stored};
use std::collections::{BTreeMap, VecDeque};

/// Aliases whose owners a user actor remembers.
const ALIASES: usize = 64;

/// How long the owner of an alias is remembered, in ms: an alias can pass to another person.
const OWNER_KEPT_MS: u64 = 10_000;

/// A body shorter than this is copied out of the buffer it was read into, in bytes.
const COPY_BELOW: usize = 32 * 1024;

/// A send that waits until it is known whom it is for.
#[derive(Debug)]
pub(super) struct WaitingSend {
    pub(super) connection: ConnectionId,
    pub(super) id: u64,
    pub(super) send: wire::Send,
    /// The remembered owner of its alias was no user any longer: only a fresh answer counts.
    pub(super) asks_again: bool,
}

/// What a user actor knows about the sends of its devices.
#[derive(Debug)]
pub(super) struct Sends {
    waiting: VecDeque<WaitingSend>,
    /// And until when each counts, Unix time in ms.
    owners: BTreeMap<Alias, (UserId, u64)>,
    /// Sends of each device that came too fast and have not come again.
    holds: RetryOrder<DeviceId>,
    /// A device was linked from here: news of the account may come later than what is sent next.
    pub(super) has_linked: bool,
}

impl Default for Sends {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            owners: BTreeMap::new(),
            holds: RetryOrder::new(DEVICES_MAX),
            has_linked: false,
        }
    }
}

/// A send that was proposed: how its outcome is to be understood.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Where it came.
    pub connection: ConnectionId,
    /// Its id.
    pub id: u64,
    /// Whose alias it named, for the answer; 0: it named a user.
    named: u64,
    /// The send itself, if the owner of its alias may have changed since it was looked up.
    again: Option<Box<wire::Send>>,
}

/// What comes of a send that was proposed.
#[derive(Clone, Debug)]
pub enum SendAnswer {
    /// Tell the sender that it was stored.
    Accepted {
        /// When, Unix time in ms.
        at_ms: u64,
        /// Whose alias it named; 0: it named a user.
        named: u64,
    },
    /// Tell the sender that it was not.
    Refused(Refusal),
    /// Look the alias up again: [`super::Item::AliasStale`].
    AliasStale(Box<wire::Send>),
}

impl Sent {
    /// What an outcome means.
    pub fn answer(self, outcome: &Outcome) -> SendAnswer {
        match (outcome, self.again) {
            (Outcome::Refused(Code::UnknownUser), Some(send)) => SendAnswer::AliasStale(send),
            (Outcome::Accepted { at_ms }, _) => {
                SendAnswer::Accepted { at_ms: *at_ms, named: self.named }
            }
            (
                Outcome::Refused(_)
                | Outcome::Wait { .. }
                | Outcome::Elsewhere
                | Outcome::Done
                | Outcome::Pin { .. }
                | Outcome::Proven { .. }
                | Outcome::NotTheirs
                | Outcome::Admitted(_),
                _,
            ) => SendAnswer::Refused(refused(outcome)),
        }
    }
}

impl Sends {
    /// Whether a send to `alias` asks for its owner: it is not known, and nothing that waits asks for it.
    fn asks_for(&self, alias: &Alias, now_ms: u64) -> bool {
        self.owner(alias, now_ms).is_none()
            && !self.waiting.iter().any(|waiting| alias_of(&waiting.send).as_ref() == Some(alias))
    }

    fn owner(&self, alias: &Alias, now_ms: u64) -> Option<UserId> {
        self.owners.get(alias).filter(|(_, until_ms)| now_ms < *until_ms).map(|(owner, _)| *owner)
    }

    fn remember_owner(&mut self, alias: Alias, owner: UserId, now_ms: u64) {
        if self.owners.len() >= ALIASES {
            self.owners.pop_first();
        }
        self.owners.insert(alias, (owner, now_ms + OWNER_KEPT_MS));
    }

    /// Puts a send back that was made before those of its connection that wait.
    fn put_back(&mut self, waiting: WaitingSend) {
        let later =
            |other: &WaitingSend| other.connection == waiting.connection && other.id > waiting.id;
        let place = self.waiting.iter().position(later).unwrap_or(self.waiting.len());
        self.waiting.insert(place, waiting);
    }
}

/// Whether the fields of a send are within their ranges.
fn check(send: &wire::Send) -> Result<(), Refusal> {
    if send.body.len() > BODY_BYTES_MAX {
        return Err(Code::BodyTooLarge.into());
    }
    if send.ttl_s > TTL_S_MAX {
        return Err(Refusal::field("ttl_s", format!("more than {TTL_S_MAX}")));
    }
    match &send.to {
        Some(To::Alias(text)) => {
            Alias::parse(text).map(drop).map_err(|why| Refusal::field("alias", why))
        }
        Some(To::User(_)) => Ok(()),
        None => Err(Refusal::field("to", "neither a user nor an alias")),
    }
}

impl UserCore {
    /// A device sends.
    pub(super) fn send(&mut self, place: usize, id: u64, send: wire::Send, now: Now) {
        let (connection, device) = (self.sessions[place].connection, self.sessions[place].device);
        let held = || self.sends.holds.holds_back(&device, id, now.ms).map(Refusal::from);
        if let Some(refusal) = check(&send).err().or_else(held) {
            self.refuse(connection, id, refusal);
            return;
        }
        let looks_up = alias_of(&send).is_some_and(|alias| self.sends.asks_for(&alias, now.ms));
        let checking = Checking { connection, device, id, send, looks_up };
        self.actions.push(Action::CheckSend(Box::new(checking)));
    }

    /// Rates and handlers have seen a send.
    pub(super) fn send_checked(
        &mut self,
        checking: Checking,
        verdict: Result<(), Rejected>,
        now: Now,
    ) {
        let Checking { connection, device, id, send, .. } = checking;
        match verdict {
            Ok(()) => {
                let mut waits = Some(WaitingSend { connection, id, send, asks_again: false });
                if self.sends.waiting.is_empty() {
                    waits = waits.and_then(|first| self.send_unless_asked(first, now));
                }
                self.sends.waiting.extend(waits);
            }
            Err(Rejected::TooFast(too_fast)) => {
                self.sends.holds.refused(device, id, Code::TooFast, now.ms);
                self.refuse(connection, id, too_fast);
            }
            Err(Rejected::ByHandler(code)) => self.refuse(connection, id, code),
        }
    }

    /// Proposes waiting sends in order, up to the first whose alias must be resolved.
    fn send_waiting(&mut self, now: Now) {
        while let Some(first) = self.sends.waiting.pop_front() {
            if let Some(first) = self.send_unless_asked(first, now) {
                self.sends.waiting.push_front(first);
                return;
            }
        }
    }

    /// Proposes a send, or gives it back: the owner of its alias is being asked for.
    fn send_unless_asked(&mut self, first: WaitingSend, now: Now) -> Option<WaitingSend> {
        let place = self.place_of(first.connection)?;
        let owner = match (&first.send.to, alias_of(&first.send)) {
            (Some(To::User(user)), _) => Some(UserId(*user)),
            (Some(To::Alias(_)), Some(alias)) => {
                let owner = self.sends.owner(&alias, now.ms);
                if owner.is_none() {
                    self.actions.push(Action::Resolve(alias));
                    return Some(first);
                }
                owner
            }
            (Some(To::Alias(_)), None) | (None, _) => None,
        };
        match owner {
            Some(to) => self.propose_send(place, to, first, now),
            None => self.refuse(first.connection, first.id, Code::BadRequest),
        }
        None
    }

    /// An alias was resolved. It counts only if the first waiting send still asks for it: after a
    /// restart the answer may belong to a question of the actor before.
    pub(super) fn resolved(&mut self, alias: Alias, owner: Result<UserId, Code>, now: Now) {
        let Some(waiting) = self.sends.waiting.front() else { return };
        if alias_of(&waiting.send).as_ref() != Some(&alias) {
            return;
        }
        match owner {
            Ok(owner) => self.sends.remember_owner(alias, owner, now.ms),
            Err(code) => {
                let (connection, id) = (waiting.connection, waiting.id);
                self.sends.waiting.pop_front();
                if self.has_session(connection) {
                    self.refuse(connection, id, code);
                }
            }
        }
        self.send_waiting(now);
    }

    /// The remembered owner of an alias is no user any longer: who owns it now is asked before the send
    /// is refused. Everything sent later waits for that.
    pub(super) fn alias_stale(&mut self, waiting: WaitingSend, now: Now) {
        if let Some(alias) = alias_of(&waiting.send) {
            self.sends.owners.remove(&alias);
        }
        self.sends.put_back(waiting);
        if self.sends.waiting.len() == 1 {
            self.send_waiting(now);
        }
    }

    fn propose_send(&mut self, place: usize, to: UserId, waiting: WaitingSend, now: Now) {
        let WaitingSend { connection, id, send, asks_again } = waiting;
        let longest_s = now.message_ttl_max_s;
        let linked = self.account.as_ref().is_none_or(|account| account.devices.len() > 1);
        let others = linked || self.sends.has_linked;
        let append = stored::Append {
            to: to.0,
            from: self.user.0,
            from_device: self.sessions[place].device.0,
            send_id: id,
            ttl_s: if send.ttl_s == 0 { longest_s } else { send.ttl_s.min(longest_s) },
            body: own(&send.body),
            copy: others && to != self.user,
            held: 0,
        };
        let by_alias = matches!(send.to, Some(To::Alias(_)));
        let named = if by_alias { to.0 } else { 0 };
        let again = (by_alias && !asks_again).then(|| Box::new(send));
        let sent = Sent { connection, id, named, again };
        self.actions.push(Action::Propose(to, Box::new(append), sent));
    }
}

fn alias_of(send: &wire::Send) -> Option<Alias> {
    match &send.to {
        Some(To::Alias(text)) => Alias::parse(text).ok(),
        Some(To::User(_)) | None => None,
    }
}

fn own(body: &Bytes) -> Bytes {
    if body.len() < COPY_BELOW { Bytes::copy_from_slice(body) } else { body.clone() }
}

#[cfg(test)]
#[path = "sends_tests.rs"]
mod tests;
