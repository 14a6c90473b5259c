//! PINs as an alias's shard counts them: how many are sent, and how many wrong ones are taken. A pure
//! core.
//!
//! A PIN that waits for its proof is in no table. The asker holds a token, sealed by the node, that
//! says which PIN it stands for, so no stranger can push another's PIN out or use its attempts up. The
//! shard counts what strangers could overdo:
//!
//! - PINs sent to an alias in an hour. Beyond it the asker gets a token for the PIN that was sent last.
//!   If that one is short and only long ones count, one long PIN more is sent, on credit.
//! - PINs sent to all aliases of the shard in an hour, for each may cost the operator an SMS.
//! - Wrong PINs with one token. The same wrong one again does not count again: its answer may be lost.
//! - Wrong PINs of an alias in a day. Beyond it only long PINs count, which nobody guesses, and the short
//!   ones that are out with a token of their own: strangers void no PIN that was sent for somebody else.
//! - Wrong PINs of all aliases of the shard in an hour. Beyond it only long PINs count. Nobody is locked
//!   out: whoever asks again is sent a long one.

use super::bucket::Bucket;
use super::command::{Effect, Outcome};
use super::machine::Machine;
use proto::stored::{self, AliasPins, PinGrant, PinLimits};
use proto::{Alias, Code};

/// An hour, in ms.
const HOUR_MS: u64 = 3_600_000;

/// The same in microseconds: what one of many PINs costs is short.
const HOUR_US: u64 = HOUR_MS * 1000;

/// A day, in ms.
const DAY_MS: u64 = 24 * HOUR_MS;

/// Aliases of one shard whose counts are kept. Beyond it the oldest go: their tokens stay good, and
/// those with wrong PINs in this hour are kept.
const ALIASES_MAX: usize = 10_000;

/// Tokens of an alias with wrong PINs that are told apart. More than are tried in a day before only
/// long PINs count.
const GUESSES_MAX: usize = 64;

/// Proofs of an alias that are remembered, so that one whose answer was lost can come again.
const PROOFS_MAX: usize = 8;

impl Machine {
    /// Decides which PIN is sent to an alias, or that the one that was sent last stands.
    ///
    /// [`Outcome::Wait`] with [`Code::TooFast`]: too many were sent to the alias, and the last one is not
    /// good any longer; with [`Code::PinNotSent`]: the same for all aliases of the shard.
    ///
    /// # Errors
    /// [`Code::BadRequest`].
    pub(super) fn start_registration(
        &mut self,
        start: stored::StartRegistration,
    ) -> Result<Outcome, Code> {
        let alias = Alias::parse(&start.alias).map_err(|_| Code::BadRequest)?;
        let (now_ms, limits) = (self.now_ms, start.limits.unwrap_or_default());
        let long = !self.takes_short_pins(&alias, &limits);
        self.make_room_for_pins(&alias);
        self.dirty.pins.insert(alias.clone());
        let pins = self.pins.entry(alias).or_default();
        let last = pins.last.as_ref().filter(|last| last.expires_ms > now_ms);
        let last = last.filter(|last| last.long || !long).cloned();
        // Strangers can spend an alias's PINs and make them worthless. One more is owed to the owner.
        let credit = long && last.is_none();
        let one = Bucket { credit, ..of_alias(&limits) };
        let paid = one.pay(&mut pins.paid_to_ms, now_ms);
        let paid_for_all = of_all(&limits).pay(&mut self.pins_paid_to_us, now_ms * 1000);
        let (code, after_ms) = match (paid, paid_for_all) {
            (Ok(one_paid_to), Ok(all_paid_to)) => {
                let digest = if long { start.long_digest } else { start.short_digest };
                let expires_ms = now_ms + u64::from(start.ttl_s) * 1000;
                let grant = PinGrant { digest, expires_ms, long, own: false };
                (pins.paid_to_ms, pins.last) = (one_paid_to, Some(grant.clone()));
                self.pins_paid_to_us = all_paid_to;
                return Ok(Outcome::Pin { grant: PinGrant { own: true, ..grant }, send: true });
            }
            (Err(one_ms), Ok(_)) => (Code::TooFast, one_ms),
            (Err(one_ms), Err(all_us)) => (Code::TooFast, one_ms.max(all_us.div_ceil(1000))),
            (Ok(_), Err(all_us)) => (Code::PinNotSent, all_us.div_ceil(1000)),
        };
        if let Some(grant) = last {
            return Ok(Outcome::Pin { grant, send: false });
        }
        if code == Code::PinNotSent {
            self.effects.push(Effect::PinsUsedUp);
        }
        Ok(Outcome::wait(code, after_ms))
    }

    /// A PIN went nowhere: the request does not count.
    pub(super) fn pin_not_sent(&mut self, not_sent: &stored::PinNotSent) -> Result<Outcome, Code> {
        let alias = Alias::parse(&not_sent.alias).map_err(|_| Code::BadRequest)?;
        let limits = not_sent.limits.unwrap_or_default();
        if let Some(pins) = self.pins.get_mut(&alias) {
            pins.paid_to_ms = pins.paid_to_ms.saturating_sub(of_alias(&limits).step());
            let step = of_all(&limits).step();
            self.pins_paid_to_us = self.pins_paid_to_us.saturating_sub(step);
            pins.last.take_if(|last| last.digest == not_sent.digest);
            self.dirty.pins.insert(alias);
        }
        Ok(Outcome::Done)
    }

    /// Checks a PIN. A proof that was right before is right again for the same device, so that it can
    /// be repeated when its answer was lost.
    ///
    /// # Errors
    /// [`Code::WrongPin`], [`Code::NoPin`].
    pub(super) fn prove_pin(&mut self, proof: stored::ProvePin) -> Result<Outcome, Code> {
        let alias = Alias::parse(&proof.alias).map_err(|_| Code::BadRequest)?;
        let (now_ms, limits) = (self.now_ms, proof.limits.unwrap_or_default());
        let owner = self.aliases.get(&alias).copied();
        let grant = proof.grant.unwrap_or_default();
        let counts = grant.long
            || if grant.own {
                self.wrong_pins_in_hour() < limits.wrong_per_hour
            } else {
                self.takes_short_pins(&alias, &limits)
            };
        if grant.expires_ms <= now_ms {
            return Err(Code::NoPin);
        }
        let right = grant.digest == proof.digest;
        self.make_room_for_pins(&alias);
        self.dirty.pins.insert(alias.clone());
        let pins = self.pins.entry(alias).or_default();
        forget_ended(pins, now_ms);
        if let Some(before) = pins.proofs.iter().find(|before| before.token == proof.token) {
            let again = right && before.key == proof.key;
            return if again { Ok(proven(owner, before)) } else { Err(Code::NoPin) };
        }
        let guess = pins.guesses.iter().position(|guess| guess.token == proof.token);
        if guess.is_some_and(|place| pins.guesses[place].last == proof.digest) {
            return Err(Code::WrongPin);
        }
        let wrong = guess.map_or(0, |place| pins.guesses[place].wrong);
        if wrong >= limits.attempts || !counts {
            return Err(Code::NoPin);
        }
        guess.map(|place| pins.guesses.remove(place));
        if right {
            let proof = stored::Proof {
                token: proof.token,
                key: proof.key,
                user: proof.user_if_new,
                claim: proof.claim_if_new,
                expires_ms: grant.expires_ms,
                claimed: false,
            };
            let outcome = proven(owner, &proof);
            push_bounded(&mut pins.proofs, proof, PROOFS_MAX);
            pins.last.take_if(|last| last.digest == grant.digest);
            return Ok(outcome);
        }
        let (token, expires_ms) = (proof.token, grant.expires_ms);
        let guess = stored::Guess { token, wrong: wrong + 1, expires_ms, last: proof.digest };
        push_bounded(&mut pins.guesses, guess, GUESSES_MAX);
        if !grant.long {
            count_wrong(pins, now_ms);
            if self.wrong_pins_in_hour() == limits.wrong_per_hour {
                self.effects.push(Effect::WrongPins { in_hour: limits.wrong_per_hour });
            }
        }
        Err(Code::WrongPin)
    }

    /// Whether PINs of the usual length count for an alias now.
    fn takes_short_pins(&self, alias: &Alias, limits: &PinLimits) -> bool {
        let today = self.now_ms / DAY_MS;
        let pins = self.pins.get(alias).filter(|pins| pins.day == today);
        pins.map_or(0, |pins| pins.wrong_in_day) < limits.wrong_per_day
            && self.wrong_pins_in_hour() < limits.wrong_per_hour
    }

    /// Wrong PINs of this shard's aliases in this hour. A sum over rows that checkpoints keep, so it is
    /// the same on every replica.
    fn wrong_pins_in_hour(&self) -> u32 {
        let hour = self.now_ms / HOUR_MS;
        self.pins.values().filter(|pins| pins.hour == hour).map(|pins| pins.wrong_in_hour).sum()
    }

    /// Lets the oldest eighth go when there are too many.
    fn make_room_for_pins(&mut self, alias: &Alias) {
        if self.pins.len() < ALIASES_MAX || self.pins.contains_key(alias) {
            return;
        }
        let hour = self.now_ms / HOUR_MS;
        let goes = |pins: &AliasPins| pins.hour != hour || pins.wrong_in_hour == 0;
        let oldest = self.pins.iter().filter(|(_, pins)| goes(pins));
        let mut oldest: Vec<_> =
            oldest.map(|(alias, pins)| (pins.paid_to_ms, alias.clone())).collect();
        oldest.sort_unstable();
        for (_, alias) in oldest.into_iter().take(ALIASES_MAX / 8) {
            self.pins.remove(&alias);
            self.dirty.pins.insert(alias);
        }
    }
}

/// Whether a row says nothing any longer.
pub(super) fn is_over(pins: &AliasPins, now_ms: u64) -> bool {
    let ended = |expires_ms: u64| expires_ms <= now_ms;
    pins.paid_to_ms <= now_ms
        && pins.last.as_ref().is_none_or(|last| ended(last.expires_ms))
        && pins.guesses.iter().all(|guess| ended(guess.expires_ms))
        && pins.proofs.iter().all(|proof| ended(proof.expires_ms))
        && (pins.hour != now_ms / HOUR_MS || pins.wrong_in_hour == 0)
        && (pins.day != now_ms / DAY_MS || pins.wrong_in_day == 0)
}

/// PINs that are sent to one alias, in ms.
fn of_alias(limits: &PinLimits) -> Bucket {
    Bucket { whole: HOUR_MS, count: limits.requests_per_hour, credit: false }
}

/// PINs that are sent to all aliases of a shard, in microseconds.
fn of_all(limits: &PinLimits) -> Bucket {
    Bucket { whole: HOUR_US, count: limits.sent_per_hour, credit: false }
}

fn count_wrong(pins: &mut AliasPins, now_ms: u64) {
    let (hour, day) = (now_ms / HOUR_MS, now_ms / DAY_MS);
    if pins.hour != hour {
        (pins.hour, pins.wrong_in_hour) = (hour, 0);
    }
    if pins.day != day {
        (pins.day, pins.wrong_in_day) = (day, 0);
    }
    pins.wrong_in_hour += 1;
    pins.wrong_in_day += 1;
}

fn forget_ended(pins: &mut AliasPins, now_ms: u64) {
    pins.guesses.retain(|guess| guess.expires_ms > now_ms);
    pins.proofs.retain(|proof| proof.expires_ms > now_ms);
}

fn push_bounded<T>(list: &mut Vec<T>, item: T, max: usize) {
    if list.len() >= max {
        list.remove(0);
    }
    list.push(item);
}

fn proven(owner: Option<stored::AliasOwner>, proof: &stored::Proof) -> Outcome {
    let new = stored::AliasOwner { user: proof.user, claim: proof.claim };
    Outcome::Proven { owner, new }
}
