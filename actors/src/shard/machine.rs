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
use super::command::{Command, Effect, Outcome};
use super::mailbox::{Mailbox, Origin, bytes_of, origin_of};
use super::streams::{Streams, Taken};
use proto::stored::{self, envelope::Content, notice::What};
use proto::wire::receipt::Kind as ReceiptKind;
use proto::{Alias, Code, DeviceId, Seq, ShardId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long receipts and copies are kept for a device that does not come, in ms: as long as messages
/// at most are, 30 days.
const NOTICE_TTL_MS: u64 = proto::limits::TTL_S_MAX as u64 * 1000;

/// Entries whose time ends sooner than this are watched while in memory, in ms. Checkpoints move the
/// others to the tables long before, and an index finds them there.
const SOON_MS: u64 = 3_600_000;

/// Receipts that a mailbox holds at most, in multiples of its messages. Only who never acknowledges
/// meets it.
const RECEIPTS_FACTOR: u64 = 10;

/// What the operator sets.
#[derive(Clone, Copy, Debug)]
pub struct MachineLimits {
    /// Entries one mailbox may hold.
    pub mailbox_messages: u64,
    /// Bytes one mailbox may hold.
    pub mailbox_bytes: u64,
}

impl Default for MachineLimits {
    fn default() -> Self {
        use proto::limits::{MAILBOX_BYTES, MAILBOX_MESSAGES};
        Self { mailbox_messages: MAILBOX_MESSAGES, mailbox_bytes: MAILBOX_BYTES }
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
    pub(super) users: BTreeMap<UserId, Box<User>>,
    pub(super) aliases: BTreeMap<Alias, UserId>,
    pub(super) pins: BTreeMap<Alias, stored::PendingPin>,
    pub(super) streams: Streams,
    /// Entries in memory by the end of their time to live.
    pub(super) expiring: BTreeSet<(u64, UserId, Seq)>,
    pub(super) dirty: Dirty,
    pub(super) effects: Vec<Effect>,
}

impl Machine {
    /// An empty shard.
    pub fn new(shard: ShardId, limits: MachineLimits) -> Self {
        Self {
            shard,
            limits,
            now_ms: 0,
            users: BTreeMap::new(),
            aliases: BTreeMap::new(),
            pins: BTreeMap::new(),
            streams: Streams::default(),
            expiring: BTreeSet::new(),
            dirty: Dirty::default(),
            effects: Vec::new(),
        }
    }

    /// Takes over the limits of a proposer.
    pub fn set_limits(&mut self, mailbox_messages: u64, mailbox_bytes: u64) {
        self.limits = MachineLimits { mailbox_messages, mailbox_bytes };
    }

    /// Takes over the clock of the tables.
    pub fn set_clock(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> u64 {
        self.users.len() as u64
    }

    /// Applies one command. `now_ms` is the proposer's clock, which never goes back here.
    pub fn apply(&mut self, now_ms: u64, command: Command) -> Outcome {
        self.now_ms = self.now_ms.max(now_ms);
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
            Command::StartRegistration(start) => self.start_registration(start),
            Command::ProvePin(proof) => self.prove_pin(&proof),
            Command::AdmitDevice(admit) => self.admit_device(admit),
            Command::RemoveDevice(remove) => self.remove_device(remove),
            Command::DeleteAccount(delete) => self.delete_account(UserId(delete.user)),
            Command::SetBlock(block) => self.set_block(&block),
            Command::SetPrivacy(privacy) => self.set_privacy(&privacy),
            Command::SetContact(contact) => self.set_contact(&contact),
            Command::MarkRead(read) => self.mark_read(read),
            Command::Spill(stored::Spill {}) => {
                let spill = self.spill();
                self.effects.push(Effect::Checkpoint(spill));
                Ok(Outcome::Done)
            }
        };
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
        self.aliases.get(alias).copied()
    }

    fn append(&mut self, append: stored::Append) -> Result<Outcome, Code> {
        let now_ms = self.now_ms;
        let to = UserId(append.to);
        let origin = Origin {
            from: UserId(append.from),
            device: DeviceId(append.from_device),
            send_id: proto::SendId(append.send_id),
        };
        let user = self.users.get_mut(&to).filter(|user| !user.account.closing);
        let user = user.ok_or(Code::UnknownUser)?;
        if user.mailbox.recognize(origin, now_ms) {
            self.dirty.recent.insert((to, origin.from, origin.device));
            return Ok(Outcome::Accepted { at_ms: now_ms });
        }
        if user.account.blocked.contains(&origin.from) {
            return Err(Code::Blocked);
        }
        let held = user.mailbox.held();
        let bytes = append.body.len();
        let full = held.messages >= self.limits.mailbox_messages
            || held.bytes + bytes as u64 > self.limits.mailbox_bytes;
        if let Some(code) = user.mailbox.holds_back(origin, now_ms) {
            return Err(code);
        }
        if full {
            user.mailbox.refuse(origin, now_ms);
            self.dirty.mailboxes.insert(to);
            return Err(Code::MailboxFull);
        }
        user.mailbox.remember(origin, now_ms);
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

    fn acknowledge(&mut self, ack: &stored::Ack) -> Result<Outcome, Code> {
        let user_id = UserId(ack.user);
        let user = self.users.get_mut(&user_id).ok_or(Code::UnknownUser)?;
        if user.mailbox.acknowledge(DeviceId(ack.device), Seq(ack.seq)) {
            self.dirty.mailboxes.insert(user_id);
            let released = user.mailbox.release();
            self.let_go(user_id, &released, ReceiptKind::Delivered);
        }
        Ok(Outcome::Done)
    }

    fn take_notices(&mut self, taken: stored::TakeNotices) -> Outcome {
        let from = ShardId::from_number(taken.from_shard);
        for notice in taken.notices {
            match self.streams.take(from, notice.number) {
                Taken::Now => {}
                Taken::Before => continue,
                Taken::TooEarly => return Outcome::Refused(Code::Unavailable),
            }
            let user = UserId(notice.user);
            match notice.what {
                Some(What::Envelope(stored::Envelope { content: Some(content), .. })) => {
                    self.take_envelope(user, content);
                }
                Some(What::FreeAlias(alias)) => self.free_alias(user, &alias),
                Some(What::Envelope(_)) | None => {}
            }
        }
        Outcome::Done
    }

    /// Puts a notice into a mailbox here. One that holds too many gets no more copies and read
    /// receipts, and at ten times that no receipts at all; a blocked user's reading is not told.
    fn take_envelope(&mut self, to: UserId, content: Content) {
        let Some(user) = self.users.get(&to).filter(|user| !user.account.closing) else { return };
        let (notices, limit) = (user.mailbox.held().notices, self.limits.mailbox_messages);
        let dropped = match &content {
            Content::Receipt(receipt) if receipt.kind == ReceiptKind::Read as u32 => {
                notices >= limit || user.account.blocked.contains(&UserId(receipt.user))
            }
            Content::Receipt(_) => notices >= limit.saturating_mul(RECEIPTS_FACTOR),
            Content::SentCopy(_) | Content::ReadCopy(_) => notices >= limit,
            Content::Message(_) => true,
        };
        if !dropped {
            self.put(to, content, self.now_ms + NOTICE_TTL_MS);
        }
    }

    /// Owes a mailbox an entry, wherever that mailbox is.
    pub(super) fn tell(&mut self, to: UserId, content: Content) {
        if to.shard() == self.shard {
            self.take_envelope(to, content);
        } else {
            let envelope =
                stored::Envelope { at_ms: self.now_ms, expires_ms: 0, content: Some(content) };
            self.streams.owe(to.shard(), to, What::Envelope(envelope));
        }
    }

    /// Appends to a mailbox of this shard.
    pub(super) fn put(&mut self, to: UserId, content: Content, expires_ms: u64) {
        let Some(user) = self.users.get_mut(&to) else { return };
        let envelope =
            Arc::new(stored::Envelope { at_ms: self.now_ms, expires_ms, content: Some(content) });
        let seq = user.mailbox.append(envelope.clone());
        if expires_ms < self.now_ms + SOON_MS {
            self.expiring.insert((expires_ms, to, seq));
        }
        self.dirty.mailboxes.insert(to);
        self.effects.push(Effect::Push { user: to, seq, envelope });
    }

    /// Tells the senders what became of entries that left a mailbox, one receipt for each device.
    pub(super) fn tell_origins(
        &mut self,
        recipient: UserId,
        origins: impl IntoIterator<Item = Origin>,
        kind: ReceiptKind,
    ) {
        let mut receipts: BTreeMap<(UserId, DeviceId), Vec<u64>> = BTreeMap::new();
        for origin in origins {
            if origin.from != recipient {
                receipts.entry((origin.from, origin.device)).or_default().push(origin.send_id.0);
            }
        }
        for ((from, device), send_ids) in receipts {
            let receipt = stored::Receipt {
                kind: kind as u32,
                user: recipient.0,
                device: device.0,
                send_ids,
            };
            self.tell(from, Content::Receipt(receipt));
        }
    }

    /// Entries that were let go of: receipts for those in memory, a request to read the others.
    pub(super) fn let_go(
        &mut self,
        user: UserId,
        released: &super::mailbox::Released,
        kind: ReceiptKind,
    ) {
        for entry in &released.entries {
            if !self.expiring.is_empty() {
                self.expiring.remove(&(entry.envelope.expires_ms, user, entry.seq));
            }
        }
        if let Some(up_to) = released.read_origins_to {
            self.read_origins(user, up_to);
        }
        let origins = released.entries.iter().filter_map(|entry| origin_of(&entry.envelope));
        self.tell_origins(user, origins.collect::<Vec<_>>(), kind);
    }

    pub(super) fn read_origins(&mut self, user: UserId, up_to: Seq) {
        let first = self.users.get(&user).map_or(Seq(1), |user| user.mailbox.stored_first);
        self.effects.push(Effect::ReadOrigins { user, first: first.max(Seq(1)), up_to });
    }

    fn mark_read(&mut self, read: stored::MarkRead) -> Result<Outcome, Code> {
        let reader = UserId(read.user);
        let user = self.users.get(&reader).ok_or(Code::UnknownUser)?;
        let (tells, has_others) =
            (user.account.tells_of_reading(UserId(read.from)), user.account.devices.len() > 1);
        if tells {
            let receipt = stored::Receipt {
                kind: ReceiptKind::Read as u32,
                user: reader.0,
                device: read.from_device,
                send_ids: read.send_ids.clone(),
            };
            self.tell(UserId(read.from), Content::Receipt(receipt));
        }
        if has_others {
            let copy = stored::ReadCopy {
                from: read.from,
                from_device: read.from_device,
                by_device: read.device,
                send_ids: read.send_ids,
            };
            self.take_envelope(reader, Content::ReadCopy(copy));
        }
        Ok(Outcome::Done)
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
pub(super) fn origin_row(seq: Seq, envelope: &stored::Envelope) -> stored::Origin {
    let origin = origin_of(envelope);
    stored::Origin {
        seq: seq.0,
        from: origin.map_or(0, |origin| origin.from.0),
        from_device: origin.map_or(0, |origin| origin.device.0),
        send_id: origin.map_or(0, |origin| origin.send_id.0),
        bytes: bytes_of(envelope) as u64,
    }
}
