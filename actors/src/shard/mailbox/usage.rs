//! What a mailbox holds, counted by class and by sender, so that nobody takes the room of others. A
//! pure core.

use proto::UserId;
use proto::stored::{self, envelope::Content};
use std::collections::BTreeMap;

/// Bytes that an entry is counted with on top of its content: its row, its place in memory and on the
/// wire.
const ENTRY_BYTES: usize = 64;

/// Bytes of an id in memory, and the most of one that devices count up on the wire.
const ID_BYTES: usize = 8;

/// Who caused an entry: each class has room of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody sent a message.
    Message,
    /// Something became of a message that the user really sent.
    Receipt,
    /// The user's own devices did something.
    Copy,
    /// Somebody says that they have read what is remembered no longer.
    Unsure,
}

impl Class {
    /// The class of an entry.
    pub fn of(envelope: &stored::Envelope) -> Self {
        match &envelope.content {
            Some(Content::Message(_)) => Self::Message,
            Some(Content::Receipt(receipt)) if receipt.unsure => Self::Unsure,
            Some(Content::Receipt(_)) => Self::Receipt,
            Some(Content::SentCopy(_) | Content::ReadCopy(_) | Content::DeviceNotice(_)) | None => {
                Self::Copy
            }
        }
    }

    /// As it is stored.
    pub fn number(self) -> u32 {
        match self {
            Self::Message => 0,
            Self::Receipt => 1,
            Self::Copy => 2,
            Self::Unsure => 3,
        }
    }

    /// As it was stored.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Message,
            1 => Self::Receipt,
            3 => Self::Unsure,
            _ => Self::Copy,
        }
    }
}

/// Messages and bytes of one sender in a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    messages: u64,
    bytes: u64,
    /// No contact of the recipient.
    stranger: bool,
}

/// Messages and bytes in a mailbox, by class and sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Receipts.
    pub receipts: u64,
    /// Copies and notices of own devices.
    pub copies: u64,
    /// Receipts about messages that are remembered no longer.
    pub unsure: u64,
    senders: BTreeMap<UserId, Share>,
    strangers: Share,
}

/// Room for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Room {
    /// So many hundredths of it, but room for one.
    pub fn percent(self, percent: u32) -> Self {
        let part = |of: u64| of / 100 * u64::from(percent) + of % 100 * u64::from(percent) / 100;
        Self { messages: part(self.messages).max(1), bytes: part(self.bytes).max(1) }
    }

    fn fits(self, held: Share, bytes: u64) -> bool {
        // One message always fits into an empty share, however long it is.
        held.messages < self.messages && (held.messages == 0 || held.bytes + bytes <= self.bytes)
    }
}

/// Whom an entry counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its class.
    pub class: Class,
    /// Who sent it; 0 for anything but a message.
    pub from: UserId,
    /// Its length.
    pub bytes: u64,
}

impl Counted {
    /// An entry.
    pub fn of(envelope: &stored::Envelope) -> Self {
        let from = match &envelope.content {
            Some(Content::Message(message)) => UserId(message.from),
            _ => UserId(0),
        };
        Self { class: Class::of(envelope), from, bytes: bytes_of(envelope) as u64 }
    }

    /// A stored entry that a command names.
    pub fn named(origin: &stored::Origin) -> Self {
        let class = Class::from_number(origin.class);
        Self { class, from: UserId(origin.from), bytes: origin.bytes }
    }
}

impl Usage {
    /// Whether a message of `bytes` from `from` fits: into the mailbox, into the share of one sender,
    /// and into that of all strangers if it is one.
    pub fn fits(&self, from: UserId, bytes: u64, rooms: Rooms) -> bool {
        let whole = Share { messages: self.messages, bytes: self.bytes, stranger: false };
        let room = rooms.whole;
        let sender = self.senders.get(&from).copied().unwrap_or_default();
        whole.messages < room.messages
            && whole.bytes + bytes <= room.bytes
            && rooms.sender.fits(sender, bytes)
            && rooms.strangers.is_none_or(|room| room.fits(self.strangers, bytes))
    }

    /// Counts an entry that came. `stranger`: its sender is no contact.
    pub fn add(&mut self, entry: Counted, stranger: bool) {
        match entry.class {
            Class::Message => {
                self.messages += 1;
                self.bytes += entry.bytes;
                let share = self.senders.entry(entry.from).or_default();
                if share.messages == 0 {
                    share.stranger = stranger;
                }
                share.messages += 1;
                share.bytes += entry.bytes;
                if share.stranger {
                    self.strangers.messages += 1;
                    self.strangers.bytes += entry.bytes;
                }
            }
            Class::Receipt => self.receipts += 1,
            Class::Copy => self.copies += 1,
            Class::Unsure => self.unsure += 1,
        }
    }

    /// Counts an entry that went.
    pub fn take(&mut self, entry: Counted) {
        let less = |count: &mut u64| *count = count.saturating_sub(1);
        match entry.class {
            Class::Message => {
                less(&mut self.messages);
                self.bytes = self.bytes.saturating_sub(entry.bytes);
                let Some(share) = self.senders.get_mut(&entry.from) else { return };
                less(&mut share.messages);
                share.bytes = share.bytes.saturating_sub(entry.bytes);
                if share.stranger {
                    less(&mut self.strangers.messages);
                    self.strangers.bytes = self.strangers.bytes.saturating_sub(entry.bytes);
                }
                if share.messages == 0 {
                    self.senders.remove(&entry.from);
                }
            }
            Class::Receipt => less(&mut self.receipts),
            Class::Copy => less(&mut self.copies),
            Class::Unsure => less(&mut self.unsure),
        }
    }

    /// A sender has become a contact of the recipient, or is none any longer.
    pub fn set_stranger(&mut self, from: UserId, stranger: bool) {
        let Some(share) = self.senders.get_mut(&from).filter(|share| share.stranger != stranger)
        else {
            return;
        };
        share.stranger = stranger;
        let all = &mut self.strangers;
        if stranger {
            all.messages += share.messages;
            all.bytes += share.bytes;
        } else {
            all.messages = all.messages.saturating_sub(share.messages);
            all.bytes = all.bytes.saturating_sub(share.bytes);
        }
    }

    /// Writes its part of the row of table `cursors`.
    pub fn to_row(&self, row: &mut stored::Cursors) {
        (row.held, row.held_bytes) = (self.messages, self.bytes);
        (row.receipts, row.copies, row.unsure) = (self.receipts, self.copies, self.unsure);
        let share = |(user, share): (&UserId, &Share)| stored::SenderShare {
            user: user.0,
            messages: share.messages,
            bytes: share.bytes,
            stranger: share.stranger,
        };
        row.senders = self.senders.iter().map(share).collect();
    }

    /// Reads it.
    pub fn from_row(row: &stored::Cursors) -> Self {
        let mut usage = Self {
            messages: row.held,
            bytes: row.held_bytes,
            receipts: row.receipts,
            copies: row.copies,
            unsure: row.unsure,
            ..Self::default()
        };
        for &stored::SenderShare { user, messages, bytes, stranger } in &row.senders {
            usage.senders.insert(UserId(user), Share { messages, bytes, stranger });
            if stranger {
                usage.strangers.messages += messages;
                usage.strangers.bytes += bytes;
            }
        }
        usage
    }
}

/// The room that a message must fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Of the whole mailbox.
    pub whole: Room,
    /// Of its sender.
    pub sender: Room,
    /// Of all strangers together, if its sender is one.
    pub strangers: Option<Room>,
}

/// Quota used by a message with a body of this length, in bytes.
pub(in crate::shard) fn message_bytes(body: usize) -> u64 {
    (body + ENTRY_BYTES) as u64
}

/// Size of an entry in bytes, counted against the quota, in a window, in a page.
pub fn bytes_of(envelope: &stored::Envelope) -> usize {
    let content = match &envelope.content {
        Some(Content::Message(message)) => message.body.len(),
        Some(Content::SentCopy(copy)) => copy.body.len(),
        Some(Content::Receipt(receipt)) => receipt.send_ids.len() * ID_BYTES,
        Some(Content::ReadCopy(copy)) => copy.send_ids.len() * ID_BYTES,
        Some(Content::DeviceNotice(_)) | None => 0,
    };
    content + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVE: UserId = UserId(1);
    const BOB: UserId = UserId(2);

    fn message(from: UserId) -> Counted {
        Counted { class: Class::Message, from, bytes: 10 }
    }

    fn rooms(stranger: bool) -> Rooms {
        let whole = Room { messages: 10, bytes: 1_000 };
        Rooms { whole, sender: whole.percent(50), strangers: stranger.then_some(whole.percent(20)) }
    }

    #[test]
    fn strangers_leave_room_for_friends_and_one_friend_for_the_others() {
        let mut usage = Usage::default();
        for _ in 0..2 {
            assert!(usage.fits(EVE, 10, rooms(true)));
            usage.add(message(EVE), true);
        }
        assert!(!usage.fits(EVE, 10, rooms(true)));
        assert!(!usage.fits(UserId(9), 10, rooms(true)), "all strangers share");
        for _ in 0..5 {
            assert!(usage.fits(BOB, 10, rooms(false)));
            usage.add(message(BOB), false);
        }
        assert!(!usage.fits(BOB, 10, rooms(false)));
        assert!(usage.fits(UserId(3), 10, rooms(false)));
        usage.take(message(EVE));
        assert!(usage.fits(UserId(9), 10, rooms(true)));
    }

    #[test]
    fn a_stranger_who_becomes_a_contact_frees_the_strangers_room() {
        let mut usage = Usage::default();
        usage.add(message(EVE), true);
        usage.add(message(EVE), true);
        usage.set_stranger(EVE, false);
        assert!(usage.fits(UserId(9), 10, rooms(true)));
        usage.set_stranger(EVE, true);
        assert!(!usage.fits(UserId(9), 10, rooms(true)));
    }

    #[test]
    fn a_row_brings_all_counts_back() {
        let mut usage = Usage::default();
        usage.add(message(EVE), true);
        usage.add(message(BOB), false);
        for class in [Class::Receipt, Class::Copy, Class::Unsure] {
            usage.add(Counted { class, from: UserId(0), bytes: 1 }, false);
        }
        let mut row = stored::Cursors::default();
        usage.to_row(&mut row);
        assert_eq!(Usage::from_row(&row), usage);
        for class in [Class::Receipt, Class::Copy, Class::Unsure] {
            usage.take(Counted { class, from: UserId(0), bytes: 1 });
        }
        usage.take(message(EVE));
        usage.take(message(BOB));
        assert_eq!(usage, Usage::default());
    }
}
