//! Sends: checked, brought into order, proposed to the recipient's shard.
//!
//! # Invariants
//! 1. While an alias is being resolved, everything sent after it waits: order is kept.
//! 2. A body that is stored is a copy of its own, never a slice of a larger read buffer.

use super::UserItem;
use super::actor::UserActor;
use crate::connection::{Connection, ConnectionId};
use crate::context::Verdict;
use crate::shard::{Command, Outcome, Query};
use bytes::Bytes;
use proto::limits::{BODY_BYTES_MAX, TTL_S_MAX};
use proto::wire::{self, send::To};
use proto::{Alias, Code, DeviceId, UserId, stored};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Aliases whose owners a user actor remembers.
const ALIASES: usize = 64;

/// How long a send that came too fast is waited for, in seconds.
const HELD_S: u64 = 10;

/// A body shorter than this is copied out of the buffer it was read into, in bytes.
const COPY_BELOW: usize = 32 * 1024;

/// What a user actor knows about the sends of its devices.
#[derive(Debug, Default)]
pub(super) struct Sends {
    waiting: VecDeque<(ConnectionId, u64, wire::Send)>,
    owners: BTreeMap<Alias, UserId>,
    /// Sends that may still be made this second, and which second that is.
    allowance: (u32, u64),
    /// The send of each device that came too fast and has not come again, and in which second. What
    /// came after it is refused as well, or it would overtake.
    held: BTreeMap<DeviceId, (u64, u64)>,
}

impl Sends {
    /// Counts one more send, of this device under this id, unless it comes too fast. `limit` is for each
    /// second; 0: none.
    fn are_slow_enough(&mut self, device: DeviceId, id: u64, limit: u32, now_s: u64) -> bool {
        let (left, second) = &mut self.allowance;
        if *second != now_s {
            (*left, *second) = (limit, now_s);
        }
        // The clock may have been set back.
        let waits =
            |(first, since_s): &(u64, u64)| id > *first && now_s.abs_diff(*since_s) < HELD_S;
        if limit > 0 && self.held.get(&device).is_some_and(waits) {
            return false;
        }
        self.held.remove(&device);
        if limit > 0 && *left == 0 {
            self.held.insert(device, (id, now_s));
            return false;
        }
        *left = left.saturating_sub(1);
        true
    }
}

impl UserActor {
    /// A device sends.
    pub(super) fn send(&mut self, place: usize, id: u64, send: wire::Send) {
        let connection = self.sessions[place].connection.clone();
        if let Err(code) = self.check_send(place, id, &send) {
            connection.refuse(id, code);
            return;
        }
        self.sends.waiting.push_back((connection.id(), id, send));
        if self.sends.waiting.len() == 1 {
            self.send_waiting();
        }
    }

    fn check_send(&mut self, place: usize, id: u64, send: &wire::Send) -> Result<(), Code> {
        if send.body.len() > BODY_BYTES_MAX {
            return Err(Code::BodyTooLarge);
        }
        if send.ttl_s > TTL_S_MAX || send.to.is_none() {
            return Err(Code::BadRequest);
        }
        let device = self.sessions[place].device;
        let (limit, now_ms) =
            (self.context.settings().sends_per_second, self.context.clock.now_ms());
        if !self.sends.are_slow_enough(device, id, limit, now_ms / 1000) {
            return Err(Code::TooFast);
        }
        for handler in &self.context.handlers {
            match handler.user_send(self.user, device, send) {
                Verdict::Continue => {}
                Verdict::Drop(code) => return Err(code),
            }
        }
        Ok(())
    }

    /// Proposes waiting sends in order, up to the first whose alias must be resolved.
    fn send_waiting(&mut self) {
        while let Some((connection, id, send)) = self.sends.waiting.pop_front() {
            let Some(place) = self.sessions.iter().position(|s| s.connection.id() == connection)
            else {
                continue;
            };
            let owner = match &send.to {
                Some(To::User(user)) => Ok(Some(UserId(*user))),
                Some(To::Alias(text)) => match Alias::parse(text) {
                    Ok(alias) => Ok(self.sends.owners.get(&alias).copied().or_else(|| {
                        self.resolve(alias);
                        None
                    })),
                    Err(_) => Err(Code::BadRequest),
                },
                None => Err(Code::BadRequest),
            };
            match owner {
                Ok(Some(to)) => self.propose_send(place, id, to, send),
                Ok(None) => {
                    self.sends.waiting.push_front((connection, id, send));
                    return;
                }
                Err(code) => self.sessions[place].connection.refuse(id, code),
            }
        }
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
        let Some((connection, id, send)) = self.sends.waiting.front() else { return };
        let asked = match &send.to {
            Some(To::Alias(text)) => Alias::parse(text).ok(),
            Some(To::User(_)) | None => None,
        };
        if asked.as_ref() != Some(&alias) {
            return;
        }
        match owner {
            Ok(owner) => {
                if self.sends.owners.len() >= ALIASES {
                    self.sends.owners.pop_first();
                }
                self.sends.owners.insert(alias, owner);
            }
            Err(code) => {
                let session = self.sessions.iter().find(|s| s.connection.id() == *connection);
                if let Some(session) = session {
                    session.connection.refuse(*id, code);
                }
                self.sends.waiting.pop_front();
            }
        }
        self.send_waiting();
    }

    /// An alias has led to nobody: ask again next time.
    pub(super) fn forget_owner(&mut self, alias: &Alias) {
        self.sends.owners.remove(alias);
    }

    fn propose_send(&mut self, place: usize, id: u64, to: UserId, send: wire::Send) {
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
        let alias = match send.to {
            Some(To::Alias(text)) => Alias::parse(&text).ok(),
            Some(To::User(_)) | None => None,
        };
        let named = if alias.is_some() { to.0 } else { 0 };
        let inbox = self.inbox.clone();
        let refused = self.context.metrics.sends_refused.clone();
        self.context.metrics.sends.increment(1);
        let reply = Box::new(move |outcome| {
            if let (Outcome::Refused(Code::UnknownUser), Some(alias)) = (&outcome, alias) {
                inbox.force(UserItem::AliasStale(alias));
            }
            answer_send(&connection, id, named, &outcome, || refused.increment(1));
        });
        self.context.shards.propose(to.shard(), Command::Append(append), reply);
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
        Outcome::Done | Outcome::Proven(_) | Outcome::Admitted(_) => {
            connection.refuse(id, Code::Internal);
        }
    }
}

fn own(body: &Bytes) -> Bytes {
    if body.len() < COPY_BELOW { Bytes::copy_from_slice(body) } else { body.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHONE: DeviceId = DeviceId(1);

    #[test]
    fn what_came_after_a_send_that_was_too_fast_waits_until_that_comes_again() {
        let mut sends = Sends::default();
        assert!(sends.are_slow_enough(PHONE, 1, 1, 100));
        assert!(!sends.are_slow_enough(PHONE, 2, 1, 100));
        assert!(!sends.are_slow_enough(PHONE, 3, 1, 101), "it would overtake");
        assert!(sends.are_slow_enough(DeviceId(2), 3, 1, 101), "another device");
        assert!(sends.are_slow_enough(PHONE, 2, 1, 102));
        assert!(sends.are_slow_enough(PHONE, 3, 1, 103));
    }

    #[test]
    fn one_that_never_comes_again_is_not_waited_for_also_if_the_clock_is_set_back() {
        for later in [100 + HELD_S, 5] {
            let mut sends = Sends::default();
            assert!(sends.are_slow_enough(PHONE, 1, 1, 100));
            assert!(!sends.are_slow_enough(PHONE, 2, 1, 100));
            assert!(sends.are_slow_enough(PHONE, 3, 1, later), "{later}");
        }
    }
}
