//! The part of the machine that tells people what became of messages: receipts and copies.

use super::command::{Effect, Outcome, is_known_notice};
use super::machine::{Machine, NOTICE_TTL_MS};
use super::mailbox::{Origin, Released, origin_of};
use super::streams::Taken;
use crate::shard::mailbox::recent::Sent;
use proto::limits::READ_IDS_MAX;
use proto::stored::{self, envelope::Content, notice::What};
use proto::wire::receipt::Kind as ReceiptKind;
use proto::{Code, DeviceId, Seq, ShardId, UserId};
use std::collections::BTreeMap;

/// Receipts that a mailbox holds at most, in multiples of its messages. Only who never acknowledges
/// meets it.
const RECEIPTS_FACTOR: u64 = 10;

/// Receipts about messages that are remembered no longer have a tenth of the room of others.
const UNSURE_PART: u64 = 10;

/// Send ids in one receipt: it stays below 4 KiB, however many are told of at once.
const RECEIPT_IDS_MAX: usize = READ_IDS_MAX;

/// True if a time to live that ends at `expires_ms` is over by `ends_by_ms`; 0 never ends.
pub(super) fn is_over(expires_ms: u64, ends_by_ms: u64) -> bool {
    expires_ms != 0 && expires_ms <= ends_by_ms
}

impl Machine {
    pub(super) fn take_notices(&mut self, taken: stored::TakeNotices) -> Outcome {
        if !taken.notices.iter().all(is_known_notice) {
            return Outcome::Refused(Code::NotSupported);
        }
        let from = ShardId::from_number(taken.from_shard);
        for notice in taken.notices {
            match self.streams.take(from, notice.number) {
                Taken::Now => {}
                Taken::Before => continue,
                Taken::TooEarly => return Outcome::Refused(Code::Unavailable),
            }
            let user = UserId(notice.user);
            if let Some(what) = notice.what {
                self.take_notice(user, what);
            }
        }
        Outcome::Done
    }

    /// Puts a notice into a mailbox here, if its class has room: read receipts and copies as many as
    /// messages, other receipts ten times that. A blocked user's reading is not told, and nobody gets a copy
    /// whose only device sent it. While a device far behind holds the room, it is set aside and nothing is
    /// dropped.
    pub(super) fn take_envelope(&mut self, to: UserId, content: Content) {
        let Some(user) = self.users.get(&to).filter(|user| !user.account.closing) else { return };
        let (usage, limit) = (user.mailbox.usage(), self.limits.mailbox_messages);
        let full = match &content {
            Content::Receipt(receipt) if receipt.unsure => usage.unsure > limit / UNSURE_PART,
            Content::Receipt(receipt) if receipt.kind == ReceiptKind::Read as u32 => {
                usage.receipts >= limit
            }
            Content::Receipt(_) => usage.receipts >= limit.saturating_mul(RECEIPTS_FACTOR),
            Content::SentCopy(_) | Content::ReadCopy(_) | Content::DeviceNotice(_) => {
                usage.copies >= limit
            }
            Content::Message(_) => return,
        };
        if let Content::Receipt(receipt) = &content
            && receipt.kind == ReceiptKind::Read as u32
            && user.account.blocked.contains(&UserId(receipt.user))
        {
            return;
        }
        if matches!(content, Content::SentCopy(_)) && user.account.devices().len() <= 1 {
            return;
        }
        if full {
            if user.mailbox.cursors().laggards(user.mailbox.last()).is_empty() {
                return;
            }
            self.crowded.insert(to);
        }
        self.put(to, content, self.now_ms + NOTICE_TTL_MS);
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

    /// Tells the senders what became of entries that left a mailbox, one receipt for each device and
    /// fate, of at most [`RECEIPT_IDS_MAX`] ids.
    pub(super) fn tell_origins(
        &mut self,
        recipient: UserId,
        origins: impl IntoIterator<Item = (Origin, ReceiptKind)>,
    ) {
        let mut receipts: BTreeMap<(UserId, DeviceId, ReceiptKind), Vec<u64>> = BTreeMap::new();
        for (origin, kind) in origins {
            if origin.from != recipient {
                let ids = receipts.entry((origin.from, origin.device, kind)).or_default();
                ids.push(origin.send_id.0);
            }
        }
        for ((from, device, kind), ids) in receipts {
            for send_ids in ids.chunks(RECEIPT_IDS_MAX) {
                let receipt = stored::Receipt {
                    kind: kind as u32,
                    user: recipient.0,
                    device: device.0,
                    send_ids: send_ids.to_vec(),
                    unsure: false,
                };
                self.tell(from, Content::Receipt(receipt));
            }
        }
    }

    /// The receipt for an entry that the mailbox let go of. `is_over`: its time to live was over then. Such
    /// an entry is not sent any longer, and a device that acknowledges a later one says nothing about it.
    pub(super) fn fate(&self, user: UserId, seq: Seq, is_over: bool) -> ReceiptKind {
        let delivered = self.mailbox(user).is_some_and(|m| m.cursors().was_acknowledged(seq));
        match (delivered, is_over) {
            (true, false) => ReceiptKind::Delivered,
            (true, true) => ReceiptKind::Expired,
            (false, _) => ReceiptKind::Undeliverable,
        }
    }

    /// Entries that were let go of: receipts for those in memory, a request to read the others.
    /// Delivered is only what a device has acknowledged.
    pub(super) fn let_go(&mut self, user: UserId, released: &Released) {
        for entry in &released.entries {
            if !self.expiring.is_empty() {
                self.expiring.remove(&(entry.envelope.expires_ms, user, entry.seq));
            }
        }
        if let Some(up_to) = released.read_origins_to {
            self.read_origins(user, up_to);
        }
        let origins = released.entries.iter().filter_map(|entry| {
            let is_over = is_over(entry.envelope.expires_ms, self.ends_by_ms);
            origin_of(&entry.envelope).map(|origin| (origin, self.fate(user, entry.seq, is_over)))
        });
        let origins: Vec<_> = origins.collect();
        self.tell_origins(user, origins);
        if let Some(user) = self.users.get_mut(&user) {
            user.mailbox.senders_told();
        }
    }

    pub(super) fn read_origins(&mut self, user: UserId, up_to: Seq) {
        let first = self.users.get(&user).map_or(Seq(1), |user| user.mailbox.stored_first);
        self.effects.push(Effect::ReadOrigins { user, first: first.max(Seq(1)), up_to });
    }

    /// Only what that device really sent counts, and each id once.
    pub(super) fn mark_read(&mut self, read: &stored::MarkRead) -> Result<Outcome, Code> {
        self.check_asker(read.user, read.device)?;
        let (reader, from) = (UserId(read.user), UserId(read.from));
        let device = DeviceId(read.from_device);
        if self.owes_too_much(from) {
            return Err(Code::Unavailable);
        }
        let user = self.users.get_mut(&reader).ok_or(Code::UnknownUser)?;
        let news = user.mailbox.mark_read(from, device, &read.send_ids);
        if news.is_empty() {
            return Ok(Outcome::Done);
        }
        let tells = from != reader && user.account.tells_of_reading(from);
        let has_others = user.account.devices().len() > 1;
        self.dirty.recent.insert((reader, from, device));
        for certainty in [Sent::Yes, Sent::Perhaps] {
            let of_it = news.iter().filter(|(_, sent)| *sent == certainty);
            let send_ids: Vec<u64> = of_it.map(|(id, _)| *id).collect();
            if tells && !send_ids.is_empty() {
                let receipt = stored::Receipt {
                    kind: ReceiptKind::Read as u32,
                    user: reader.0,
                    device: device.0,
                    send_ids,
                    unsure: certainty == Sent::Perhaps,
                };
                self.tell(from, Content::Receipt(receipt));
            }
        }
        if has_others {
            let copy = stored::ReadCopy {
                from: read.from,
                from_device: read.from_device,
                by_device: read.device,
                send_ids: news.into_iter().map(|(id, _)| id).collect(),
            };
            self.take_envelope(reader, Content::ReadCopy(copy));
        }
        Ok(Outcome::Done)
    }
}
