//! The state machine of a shard: commands in, outcomes and effects out. A pure core.
//!
//! It knows no clock (each batch carries its time), no disk and no other shard: what it owes others
//! it puts into [`Streams`], what it wants done it returns as [`Effect`]s. Applying the same
//! commands in the same order gives the same state on every replica.
//!
//! # Invariants
//! 1. A refused command changes nothing but limits on registration.
//! 2. Every message that leaves a mailbox leaves a receipt in `streams` or in a mailbox here.
//! 3. What is dirty is written by the next [`Command::Spill`], and only then.

use super::account::Account;
use super::command::{Command, Effect, Judgment, Outcome};
use super::mailbox::{Mailbox, Origin, origin_of};
use super::streams::Streams;
use crate::shard::mailbox::usage::{Class, Room, Rooms, bytes_of, message_bytes};
use membership::ClusterSettings;
use proto::stored::{self, envelope::Content};
use proto::{Alias, Code, DeviceId, Seq, ShardId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long receipts and copies are kept for a device that does not come, in ms: as long as messages
/// at most are, 30 days.
pub(super) const NOTICE_TTL_MS: u64 = proto::limits::TTL_S_MAX as u64 * 1000;

/// Entries whose time ends sooner than this are watched while in memory, in ms. Checkpoints move the
/// others to the tables long before, and an index finds them there.
const SOON_MS: u64 = 3_600_000;

/// The longest step of the clock that measures how old send ids and refusals are, in ms. A jump of the
/// time makes them no older than this, so that a retry is still recognized after it; where nothing is
/// proposed for longer they stay young, which costs a little memory.
const STEP_MS_MAX: u64 = 10_000;

/// How far a proposer may be behind before that is a correction of the time, in ms: more than leaders'
/// clocks differ (`cluster.clock_difference_max`, at most a minute).
const BACK_MS: u64 = 120_000;

/// What the operator sets.
#[derive(Clone, Copy, Debug)]
pub struct MachineLimits {
    /// Entries one mailbox may hold.
    pub mailbox_messages: u64,
    /// Bytes one mailbox may hold.
    pub mailbox_bytes: u64,
    /// Hundredths of a mailbox that one contact of its owner may fill.
    pub contact_share: u32,
    /// Hundredths that one stranger may fill.
    pub stranger_share: u32,
    /// Hundredths that all strangers together may fill.
    pub strangers_share: u32,
}

impl MachineLimits {
    /// Without shares: anybody may fill a mailbox.
    #[must_use]
    pub fn unshared(self) -> Self {
        Self { contact_share: 100, stranger_share: 100, strangers_share: 100, ..self }
    }

    /// As batches carry them.
    pub fn to_stored(self) -> stored::MailboxLimits {
        stored::MailboxLimits {
            messages: self.mailbox_messages,
            bytes: self.mailbox_bytes,
            contact_share: self.contact_share,
            stranger_share: self.stranger_share,
            strangers_share: self.strangers_share,
        }
    }

    /// As a batch carries them.
    pub fn from_stored(limits: stored::MailboxLimits) -> Self {
        Self {
            mailbox_messages: limits.messages,
            mailbox_bytes: limits.bytes,
            contact_share: limits.contact_share,
            stranger_share: limits.stranger_share,
            strangers_share: limits.strangers_share,
        }
    }

    fn rooms(&self, stranger: bool) -> Rooms {
        let whole = Room { messages: self.mailbox_messages, bytes: self.mailbox_bytes };
        if stranger {
            let strangers = Some(whole.percent(self.strangers_share));
            Rooms { whole, sender: whole.percent(self.stranger_share), strangers }
        } else {
            Rooms { whole, sender: whole.percent(self.contact_share), strangers: None }
        }
    }
}

impl Default for MachineLimits {
    fn default() -> Self {
        Self::from(&ClusterSettings::default())
    }
}

impl From<&ClusterSettings> for MachineLimits {
    fn from(settings: &ClusterSettings) -> Self {
        Self {
            mailbox_messages: settings.mailbox_messages,
            mailbox_bytes: settings.mailbox_bytes,
            contact_share: settings.contact_share,
            stranger_share: settings.stranger_share,
            strangers_share: settings.strangers_share,
        }
    }
}

/// A user and their mailbox.
#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) account: Account,
    pub(super) mailbox: Mailbox,
}

/// What changed since the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) accounts: BTreeSet<UserId>,
    /// Devices whose ticket changed; what else changes of one is a change of its account.
    pub(super) devices: BTreeSet<(UserId, DeviceId)>,
    pub(super) mailboxes: BTreeSet<UserId>,
    pub(super) recent: BTreeSet<(UserId, UserId, DeviceId)>,
    pub(super) aliases: BTreeSet<Alias>,
    pub(super) pins: BTreeSet<Alias>,
    /// Rows to delete.
    pub(super) gone: Vec<storage::Row>,
}

/// The state of one shard.
#[derive(Debug)]
pub struct Machine {
    pub(super) shard: ShardId,
    pub(super) limits: MachineLimits,
    pub(super) now_ms: u64,
    /// Times to live up to here are over, Unix time in ms.
    pub(super) ends_by_ms: u64,
    may_expire: bool,
    /// How long it has run, by steps of at most [`STEP_MS_MAX`].
    pub(super) steady_ms: u64,
    pub(super) users: BTreeMap<UserId, Box<User>>,
    pub(super) aliases: BTreeMap<Alias, stored::AliasOwner>,
    pub(super) pins: BTreeMap<Alias, stored::AliasPins>,
    /// PINs to all aliases of the shard are paid for up to here, Unix time in microseconds.
    pub(super) pins_paid_to_us: u64,
    pub(super) streams: Streams,
    /// Entries in memory by the end of their time to live.
    pub(super) expiring: BTreeSet<(u64, UserId, Seq)>,
    pub(super) dirty: Dirty,
    /// Mailboxes that were found full while a device far behind holds them.
    pub(super) crowded: BTreeSet<UserId>,
    pub(super) effects: Vec<Effect>,
}

impl Machine {
    /// An empty shard.
    pub fn new(shard: ShardId, limits: MachineLimits) -> Self {
        Self {
            shard,
            limits,
            now_ms: 0,
            ends_by_ms: 0,
            may_expire: false,
            steady_ms: 0,
            users: BTreeMap::new(),
            aliases: BTreeMap::new(),
            pins: BTreeMap::new(),
            pins_paid_to_us: 0,
            streams: Streams::default(),
            expiring: BTreeSet::new(),
            dirty: Dirty::default(),
            crowded: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Takes over the limits of a proposer.
    pub fn set_limits(&mut self, limits: MachineLimits) {
        self.limits = limits;
    }

    /// Takes over whether a majority of the members agrees with the clock of the commands that follow.
    pub fn set_may_expire(&mut self, may_expire: bool) {
        self.may_expire = may_expire;
    }

    /// Takes over the clocks of the tables, and up to where PINs are paid for.
    pub fn set_clock(&mut self, applied: &stored::Applied) {
        (self.now_ms, self.steady_ms) = (applied.now_ms, applied.steady_ms);
        (self.ends_by_ms, self.pins_paid_to_us) = (applied.ends_by_ms, applied.pins_paid_to_us);
    }

    /// Writes them into what a checkpoint keeps.
    pub fn note_clock(&self, applied: &mut stored::Applied) {
        (applied.now_ms, applied.steady_ms) = (self.now_ms, self.steady_ms);
        (applied.ends_by_ms, applied.pins_paid_to_us) = (self.ends_by_ms, self.pins_paid_to_us);
    }

    /// The proposer says that it is `now_ms`. Proposers' clocks differ a little, and time stands still
    /// meanwhile; much earlier than before is a correction.
    fn advance(&mut self, now_ms: u64) {
        self.steady_ms += now_ms.saturating_sub(self.now_ms).min(STEP_MS_MAX);
        let corrected = now_ms.saturating_add(BACK_MS) < self.now_ms;
        self.now_ms = if corrected { now_ms } else { self.now_ms.max(now_ms) };
        if self.may_expire {
            self.ends_by_ms = self.now_ms;
        }
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> u64 {
        self.users.len() as u64
    }

    /// Applies one command. `now_ms` is the proposer's clock.
    pub fn apply(&mut self, now_ms: u64, command: Command) -> Outcome {
        self.advance(now_ms);
        let applied = match command {
            Command::Append(append) => self.append(append),
            Command::Ack(ack) => self.acknowledge(&ack),
            Command::TakeNotices(taken) => Ok(self.take_notices(taken)),
            Command::SettleNotices(settled) => {
                self.streams.settle(ShardId::from_number(settled.to_shard), settled.number);
                Ok(Outcome::Done)
            }
            Command::Release(release) => self.release_stored(&release),
            Command::Expire(expire) => Ok(self.expire(&expire)),
            Command::StartRegistration(start) => self.start_registration(*start),
            Command::PinNotSent(not_sent) => self.pin_not_sent(&not_sent),
            Command::ProvePin(proof) => self.prove_pin(*proof),
            Command::KeepAccount(keep) => self.keep_account(*keep),
            Command::ClaimAlias(claim) => self.claim_alias(*claim),
            Command::AdmitDevice(admit) => self.admit_device(admit),
            Command::RemoveDevice(remove) => self.remove_device(remove),
            Command::DeleteAccount(delete) => self.delete_account(delete),
            Command::SetRegistrationLock(set) => self.set_registration_lock(set),
            Command::SetBlock(block) => self.set_block(&block),
            Command::SetPrivacy(privacy) => self.set_privacy(&privacy),
            Command::OpenSession(open) => self.open_session(&open),
            Command::CloseSession(close) => self.close_session(&close),
            Command::SetContact(contact) => self.set_contact(&contact),
            Command::MarkRead(read) => self.mark_read(&read),
            Command::SetAside(set) => self.set_aside(&set),
            Command::Readmit(readmit) => self.readmit(&readmit),
            Command::Spill(stored::Spill {}) => {
                let spill = self.spill();
                self.effects.push(Effect::Checkpoint(spill));
                Ok(Outcome::Done)
            }
        };
        self.relieve_crowded();
        applied.unwrap_or_else(Outcome::Refused)
    }

    /// What must be done because of the commands applied since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What this shard owes others.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Whether an entry in memory has outlived its time.
    pub fn has_due(&self, now_ms: u64) -> bool {
        self.expiring.first().is_some_and(|(at_ms, ..)| *at_ms <= now_ms)
    }

    /// An account, unless it is being deleted.
    pub fn account(&self, user: UserId) -> Option<&Account> {
        self.users.get(&user).map(|user| &user.account).filter(|account| !account.closing)
    }

    /// A mailbox.
    pub fn mailbox(&self, user: UserId) -> Option<&Mailbox> {
        self.users.get(&user).map(|user| &user.mailbox)
    }

    /// Whose alias this is.
    pub fn owner(&self, alias: &Alias) -> Option<UserId> {
        self.aliases.get(alias).map(|owner| UserId(owner.user))
    }

    fn append(&mut self, append: stored::Append) -> Result<Outcome, Code> {
        let (now_ms, steady_ms) = (self.now_ms, self.steady_ms);
        let (to, origin) = (UserId(append.to), origin_of_send(&append));
        let owes_too_much = self.owes_too_much(origin.from);
        let user = self.users.get_mut(&to).filter(|user| !user.account.closing);
        let user = user.ok_or(Code::UnknownUser)?;
        if user.mailbox.recognize(origin, steady_ms) {
            self.dirty.recent.insert((to, origin.from, origin.device));
            return Ok(Outcome::Accepted { at_ms: now_ms });
        }
        if append.held != 0 {
            return Err(Code::from_number(append.held));
        }
        if user.account.blocked.contains(&origin.from) {
            return Err(Code::Blocked);
        }
        if let Some(code) = user.mailbox.holds_back(origin, steady_ms) {
            return Err(code);
        }
        if owes_too_much {
            user.mailbox.refuse(origin, Code::Unavailable, steady_ms);
            return Err(Code::Unavailable);
        }
        let stranger = user.account.is_stranger(to, origin.from);
        let bytes = message_bytes(append.body.len());
        if !user.mailbox.usage().fits(origin.from, bytes, self.limits.rooms(stranger)) {
            user.mailbox.refuse(origin, Code::MailboxFull, steady_ms);
            self.dirty.mailboxes.insert(to);
            if !stranger {
                self.crowded.insert(to);
            }
            return Err(Code::MailboxFull);
        }
        if let Some(forgotten) = user.mailbox.remember(origin, steady_ms) {
            self.dirty.recent.insert((to, origin.from, forgotten));
        }
        self.dirty.recent.insert((to, origin.from, origin.device));
        if append.copy {
            let copy = stored::SentCopy {
                to: append.to,
                from_device: append.from_device,
                send_id: append.send_id,
                body: append.body.clone(),
            };
            self.tell(origin.from, Content::SentCopy(copy));
        }
        let expires_ms = now_ms + u64::from(append.ttl_s) * 1000;
        let message = stored::Message {
            from: append.from,
            from_device: append.from_device,
            send_id: append.send_id,
            body: append.body,
        };
        self.put(to, Content::Message(message), expires_ms);
        Ok(Outcome::Accepted { at_ms: now_ms })
    }

    /// True if a send is stored already.
    pub fn knows(&self, append: &stored::Append) -> bool {
        let mailbox = self.mailbox(UserId(append.to));
        mailbox.is_some_and(|mailbox| mailbox.knows(origin_of_send(append)))
    }

    /// This replica's judgment of a send. A leader asks before it writes the send into the log.
    pub fn judge(&self, append: &stored::Append) -> Judgment {
        if self.knows(append) {
            return Judgment::Stored;
        }
        self.would_refuse(append).map_or(Judgment::New, Judgment::Refused)
    }

    /// Whether the shard of a user has not taken for so long what it is owed that nothing is done that
    /// would add to it.
    pub(super) fn owes_too_much(&self, to: UserId) -> bool {
        to.shard() != self.shard && self.streams.is_full(to.shard())
    }

    fn would_refuse(&self, append: &stored::Append) -> Option<Code> {
        let (to, from) = (UserId(append.to), UserId(append.from));
        let Some(user) = self.users.get(&to).filter(|user| !user.account.closing) else {
            return Some(Code::UnknownUser);
        };
        let stranger = user.account.is_stranger(to, from);
        let bytes = message_bytes(append.body.len());
        let mailbox = &user.mailbox;
        if user.account.blocked.contains(&from) {
            Some(Code::Blocked)
        } else if self.owes_too_much(from) {
            Some(Code::Unavailable)
        } else if mailbox.usage().fits(from, bytes, self.limits.rooms(stranger))
            || !stranger && !mailbox.cursors().laggards(mailbox.last()).is_empty()
        {
            None
        } else {
            Some(Code::MailboxFull)
        }
    }

    /// Whether a send comes from somebody whom the recipient does not know.
    pub fn is_from_stranger(&self, append: &stored::Append) -> bool {
        let (to, from) = (UserId(append.to), UserId(append.from));
        self.account(to).is_none_or(|account| account.is_stranger(to, from))
    }

    fn acknowledge(&mut self, ack: &stored::Ack) -> Result<Outcome, Code> {
        let user_id = UserId(ack.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        if user.mailbox.acknowledge(DeviceId(ack.device), Seq(ack.seq), self.now_ms) {
            if user.account.note_active(self.now_ms) {
                self.dirty.accounts.insert(user_id);
            }
            self.dirty.mailboxes.insert(user_id);
            let released = user.mailbox.release();
            self.let_go(user_id, &released);
        }
        Ok(Outcome::Done)
    }

    /// Appends to a mailbox of this shard.
    pub(super) fn put(&mut self, to: UserId, content: Content, expires_ms: u64) {
        let Some(user) = self.users.get_mut(&to) else { return };
        let stranger = match &content {
            Content::Message(message) => user.account.is_stranger(to, UserId(message.from)),
            Content::Receipt(_)
            | Content::SentCopy(_)
            | Content::ReadCopy(_)
            | Content::DeviceNotice(_) => false,
        };
        let envelope =
            Arc::new(stored::Envelope { at_ms: self.now_ms, expires_ms, content: Some(content) });
        let seq = user.mailbox.append(envelope.clone(), stranger, self.now_ms);
        if expires_ms < self.now_ms + SOON_MS {
            self.expiring.insert((expires_ms, to, seq));
        }
        self.dirty.mailboxes.insert(to);
        self.effects.push(Effect::Push { user: to, seq, envelope });
    }
}

fn origin_of_send(append: &stored::Append) -> Origin {
    Origin {
        from: UserId(append.from),
        device: DeviceId(append.from_device),
        send_id: proto::SendId(append.send_id),
    }
}

/// The origin that a `Release` or `Expire` command names, if anyone waits for news of it.
pub(super) fn named_origin(origin: &stored::Origin) -> Option<Origin> {
    (origin.from != 0).then_some(Origin {
        from: UserId(origin.from),
        device: DeviceId(origin.from_device),
        send_id: proto::SendId(origin.send_id),
    })
}

/// What a `Release` or `Expire` command says of a stored entry.
pub fn origin_row(seq: Seq, envelope: &stored::Envelope) -> stored::Origin {
    let origin = origin_of(envelope);
    stored::Origin {
        seq: seq.0,
        from: origin.map_or(0, |origin| origin.from.0),
        from_device: origin.map_or(0, |origin| origin.device.0),
        send_id: origin.map_or(0, |origin| origin.send_id.0),
        bytes: bytes_of(envelope) as u64,
        class: Class::of(envelope).number(),
        expires_ms: envelope.expires_ms,
    }
}
