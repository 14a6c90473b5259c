//! Sends: checked, brought into order, proposed to the recipient's shard.
//!
//! # Invariants
//! 1. While an alias is being resolved, everything sent after it waits: order is kept.
//! 2. A body that is stored is a copy of its own, never a slice of a larger read buffer.

use super::UserItem;
use super::actor::UserActor;
use crate::connection::{Connection, ConnectionId, refusal, refusal_after};
use crate::hooks::Verdict;
use crate::rates::{Kind, TooFast, Who};
use crate::retry_order::RetryOrder;
use crate::shard::{Command, Outcome, Query};
use bytes::Bytes;
use proto::limits::{BODY_BYTES_MAX, DEVICES_MAX, TTL_S_MAX};
use proto::wire::{self, send::To, server_frame::Kind as Say};
use proto::{Alias, Code, DeviceId, UserId, stored};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::time::Instant;

/// Aliases whose owners a user actor remembers.
const ALIASES: usize = 64;

/// How long the owner of an alias is remembered, in ms: an alias can pass to another person.
const OWNER_KEPT_MS: u64 = 10_000;

/// A body shorter than this is copied out of the buffer it was read into, in bytes.
const COPY_BELOW: usize = 32 * 1024;

/// A send that waits until it is known whom it is for.
#[derive(Debug)]
struct WaitingSend {
    connection: ConnectionId,
    id: u64,
    send: wire::Send,
    /// The remembered owner of its alias was no user any longer: only a fresh answer counts.
    asks_again: bool,
}

/// What a user actor knows about the sends of its devices.
#[derive(Debug)]
pub(super) struct Sends {
    waiting: VecDeque<WaitingSend>,
    /// And until when each counts, Unix time in ms.
    owners: BTreeMap<Alias, (UserId, u64)>,
    /// Sends of each device that came too fast and have not come again.
    holds: RetryOrder<DeviceId>,
}

impl Default for Sends {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            owners: BTreeMap::new(),
            holds: RetryOrder::new(DEVICES_MAX),
        }
    }
}

impl Sends {
    /// Counts one more send, of this device under this id, unless it comes too fast or must wait for the
    /// retry of one that did. `take` asks the rates.
    fn admit(
        &mut self,
        device: DeviceId,
        id: u64,
        now_ms: u64,
        take: impl FnOnce() -> Result<(), TooFast>,
    ) -> Result<(), wire::Refused> {
        if let Some(code) = self.holds.holds_back(&device, id, now_ms) {
            return Err(refusal(code));
        }
        take().map_err(|too_fast| {
            self.holds.refused(device, id, Code::TooFast, now_ms);
            refusal_after(too_fast)
        })
    }

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

impl UserActor {
    /// A device sends.
    pub(super) fn send(&mut self, place: usize, id: u64, send: wire::Send) {
        let connection = self.sessions[place].connection.clone();
        if let Err(refused) = self.check_send(place, id, &send) {
            connection.answer(id, Say::Refused(refused));
            return;
        }
        let connection = connection.id();
        self.sends.waiting.push_back(WaitingSend { connection, id, send, asks_again: false });
        if self.sends.waiting.len() == 1 {
            self.send_waiting();
        }
    }

    fn check_send(
        &mut self,
        place: usize,
        id: u64,
        send: &wire::Send,
    ) -> Result<(), wire::Refused> {
        if send.body.len() > BODY_BYTES_MAX {
            return Err(refusal(Code::BodyTooLarge));
        }
        if send.ttl_s > TTL_S_MAX || send.to.is_none() {
            return Err(refusal(Code::BadRequest));
        }
        let (device, now_ms) = (self.sessions[place].device, self.context.clock.now_ms());
        let asks = alias_of(send).is_some_and(|alias| self.sends.asks_for(&alias, now_ms));
        let (context, who) = (&self.context, Who::User(self.user));
        let take = |kind| context.rates.take(who, kind, now_ms);
        self.sends.admit(device, id, now_ms, || {
            take(Kind::Send)
                .and_then(|()| if asks { take(Kind::Lookup) } else { Ok(()) })
                .and_then(|()| if asks { take(Kind::LookupDaily) } else { Ok(()) })
                .inspect_err(|_| context.metrics.too_fast.increment(1))
        })?;
        for handler in &self.context.handlers {
            match handler.user_send(self.user, device, send) {
                Verdict::Continue => {}
                Verdict::Drop(code) => return Err(refusal(code)),
            }
        }
        Ok(())
    }

    /// Proposes waiting sends in order, up to the first whose alias must be resolved.
    fn send_waiting(&mut self) {
        let now_ms = self.context.clock.now_ms();
        while let Some(waiting) = self.sends.waiting.pop_front() {
            let Some(place) = self.place_of(waiting.connection) else { continue };
            let owner = match (&waiting.send.to, alias_of(&waiting.send)) {
                (Some(To::User(user)), _) => Ok(Some(UserId(*user))),
                (Some(To::Alias(_)), Some(alias)) => {
                    Ok(self.sends.owner(&alias, now_ms).or_else(|| {
                        self.resolve(alias);
                        None
                    }))
                }
                (Some(To::Alias(_)), None) | (None, _) => Err(Code::BadRequest),
            };
            match owner {
                Ok(Some(to)) => self.propose_send(place, to, waiting),
                Ok(None) => {
                    self.sends.waiting.push_front(waiting);
                    return;
                }
                Err(code) => self.sessions[place].connection.refuse(waiting.id, code),
            }
        }
    }

    fn place_of(&self, connection: ConnectionId) -> Option<usize> {
        self.sessions.iter().position(|session| session.connection.id() == connection)
    }

    fn resolve(&self, alias: Alias) {
        let (inbox, asked) = (self.inbox.clone(), alias.clone());
        let answer = Box::new(move |owner: Result<Option<UserId>, Code>| {
            let owner = owner.and_then(|owner| owner.ok_or(Code::UnknownUser));
            inbox.force(UserItem::Resolved(asked, owner));
        });
        self.context.shards.query(alias.shard(), Query::Owner { alias, answer });
    }

    /// An alias was resolved. It counts only if the first waiting send still asks for it: after a
    /// restart the answer may belong to a question of the actor before.
    pub(super) fn resolved(&mut self, alias: Alias, owner: Result<UserId, Code>) {
        let Some(waiting) = self.sends.waiting.front() else { return };
        if alias_of(&waiting.send).as_ref() != Some(&alias) {
            return;
        }
        match owner {
            Ok(owner) => self.sends.remember_owner(alias, owner, self.context.clock.now_ms()),
            Err(code) => {
                if let Some(place) = self.place_of(waiting.connection) {
                    self.sessions[place].connection.refuse(waiting.id, code);
                }
                self.sends.waiting.pop_front();
            }
        }
        self.send_waiting();
    }

    /// The remembered owner of an alias is no user any longer: who owns it now is asked before the send
    /// is refused. Everything sent later waits for that.
    pub(super) fn ask_again(&mut self, connection: ConnectionId, id: u64, send: wire::Send) {
        if let Some(alias) = alias_of(&send) {
            self.sends.owners.remove(&alias);
        }
        self.sends.put_back(WaitingSend { connection, id, send, asks_again: true });
        if self.sends.waiting.len() == 1 {
            self.send_waiting();
        }
    }

    fn propose_send(&mut self, place: usize, to: UserId, waiting: WaitingSend) {
        let WaitingSend { connection: asker, id, send, asks_again } = waiting;
        let session = &self.sessions[place];
        let longest_s = self.context.settings().message_ttl_max_s;
        let others = self.account.as_ref().is_some_and(|account| account.devices.len() > 1);
        let append = stored::Append {
            to: to.0,
            from: self.user.0,
            from_device: session.device.0,
            send_id: id,
            ttl_s: if send.ttl_s == 0 { longest_s } else { send.ttl_s.min(longest_s) },
            body: own(&send.body),
            copy: others && to != self.user,
        };
        let connection = session.connection.clone();
        let by_alias = matches!(send.to, Some(To::Alias(_)));
        let named = if by_alias { to.0 } else { 0 };
        let again = (by_alias && !asks_again).then(|| (self.inbox.clone(), send));
        let refused = self.context.metrics.sends_refused.clone();
        let (begun, took) = (Instant::now(), self.context.metrics.send_seconds.clone());
        self.context.metrics.sends.increment(1);
        let reply = Box::new(move |outcome| {
            if matches!(outcome, Outcome::Accepted { .. }) {
                took.record(begun.elapsed());
            }
            if let (Outcome::Refused(Code::UnknownUser), Some((inbox, send))) = (&outcome, again) {
                inbox.force(UserItem::AliasStale(asker, id, Box::new(send)));
                return;
            }
            answer_send(&connection, id, named, &outcome, || refused.increment(1));
        });
        self.context.shards.propose(to.shard(), Command::Append(append), reply);
    }
}

fn alias_of(send: &wire::Send) -> Option<Alias> {
    match &send.to {
        Some(To::Alias(text)) => Alias::parse(text).ok(),
        Some(To::User(_)) | None => None,
    }
}

fn answer_send(
    connection: &Arc<Connection>,
    id: u64,
    named: u64,
    outcome: &Outcome,
    refused: impl FnOnce(),
) {
    match outcome {
        Outcome::Accepted { at_ms } => connection.accepted(id, *at_ms, named),
        Outcome::Refused(code) => {
            refused();
            connection.refuse(id, *code);
        }
        Outcome::Elsewhere => {
            refused();
            connection.refuse(id, Code::Unavailable);
        }
        Outcome::Done
        | Outcome::Pin { .. }
        | Outcome::Proven { .. }
        | Outcome::NotTheirs
        | Outcome::Admitted(_) => connection.refuse(id, Code::Internal),
    }
}

fn own(body: &Bytes) -> Bytes {
    if body.len() < COPY_BELOW { Bytes::copy_from_slice(body) } else { body.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One more send while the bucket holds `left`; with which code and wait it is refused.
    fn admit(
        sends: &mut Sends,
        (device, id): (u32, u64),
        left: bool,
        now_ms: u64,
    ) -> Result<(), (Code, u32)> {
        let take = || if left { Ok(()) } else { Err(TooFast { after_ms: 20 }) };
        let admitted = sends.admit(DeviceId(device), id, now_ms, take);
        admitted.map_err(|refused| (Code::from_number(refused.code), refused.retry_after_ms))
    }

    #[test]
    fn sends_after_one_that_was_too_fast_wait_for_its_retry() {
        let mut sends = Sends::default();
        let held = Err((Code::TooFast, 1_000));
        assert_eq!(admit(&mut sends, (1, 1), true, 100_000), Ok(()));
        assert_eq!(admit(&mut sends, (1, 2), false, 100_000), Err((Code::TooFast, 20)));
        assert_eq!(admit(&mut sends, (1, 3), true, 101_000), held, "it would overtake");
        assert_eq!(admit(&mut sends, (2, 3), true, 101_000), Ok(()), "another device");
        assert_eq!(admit(&mut sends, (1, 2), true, 102_000), Ok(()));
        assert_eq!(admit(&mut sends, (1, 3), true, 103_000), Ok(()));
    }

    #[test]
    fn new_sends_do_not_prolong_the_wait_for_one_that_never_comes_again() {
        let mut sends = Sends::default();
        assert!(admit(&mut sends, (1, 2), false, 100_000).is_err());
        for second in 1..10 {
            let admitted = admit(&mut sends, (1, 2 + second), true, 100_000 + second * 1000);
            assert!(admitted.is_err(), "{second}");
        }
        assert_eq!(admit(&mut sends, (1, 20), true, 110_000), Ok(()));
    }

    #[test]
    fn the_owner_of_an_alias_is_not_remembered_for_long() {
        let (mut sends, alias) = (Sends::default(), Alias::parse("cyx").unwrap());
        sends.remember_owner(alias.clone(), UserId(7), 1_000);
        assert_eq!(sends.owner(&alias, 1_001), Some(UserId(7)));
        assert_eq!(sends.owner(&alias, 1_000 + OWNER_KEPT_MS), None);
    }
}
