//! What a shard is told, what it answers and what follows: the vocabulary of the machine.
//!
//! Commands are the generated types of `stored.proto`: what is logged is what is applied. Their
//! numbers become ids in the first lines of each step of the machine.

use super::account::AccountView;
use bytes::Bytes;
use proto::stored::{self, command::Kind, notice::What};
use proto::{Code, DeviceId, Seq, ShardId, UserId};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use storage::Row;

/// A command to the machine.
pub type Command = Kind;

/// What became of a command. A refusal is an outcome: it is logged and applied like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, or had before.
    Done,
    /// The message is in the mailbox.
    Accepted {
        /// When, Unix time in ms.
        at_ms: u64,
    },
    /// This is the PIN that the asker has to prove.
    Pin {
        /// For the asker's token.
        grant: stored::PinGrant,
        /// Whether it still has to be sent; else it was sent before.
        send: bool,
    },
    /// The PIN was right.
    Proven {
        /// Whose alias it is.
        owner: Option<stored::AliasOwner>,
        /// Whose it will be if it changes hands.
        new: stored::AliasOwner,
    },
    /// Neither a device nor the lock of the account came.
    NotTheirs,
    /// The device belongs to the user now.
    Admitted(DeviceId),
    /// Nothing changed.
    Refused(Code),
    /// Nothing changed. The same may pass after this time.
    Wait {
        /// Why.
        code: Code,
        /// In ms.
        after_ms: u32,
    },
    /// It was not proposed here: the leader is elsewhere. Never logged, never told to a client.
    Elsewhere,
}

impl Outcome {
    /// A refusal of what may pass after so many ms.
    pub(super) fn wait(code: Code, after_ms: u64) -> Self {
        Self::Wait { code, after_ms: u32::try_from(after_ms).unwrap_or(u32::MAX) }
    }

    /// Why nothing changed.
    pub(crate) fn refusal(&self) -> Option<Code> {
        match self {
            Self::Refused(code) | Self::Wait { code, .. } => Some(*code),
            Self::Done
            | Self::Accepted { .. }
            | Self::Pin { .. }
            | Self::Proven { .. }
            | Self::NotTheirs
            | Self::Admitted(_)
            | Self::Elsewhere => None,
        }
    }
}

/// A leader's knowledge of a send before it is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgment {
    /// Nothing: only the log tells.
    Unknown,
    /// It is stored already, and is to be accepted.
    Stored,
    /// It is new, and nothing speaks against it.
    New,
    /// It is new, and is to be refused without being logged.
    Refused(Code),
}

/// What the world must do after a command was applied. The shard actor of the leader does it.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A mailbox has a new entry: tell the user's devices.
    Push {
        /// Whose mailbox.
        user: UserId,
        /// Its place.
        seq: Seq,
        /// What it is.
        envelope: Arc<stored::Envelope>,
    },
    /// Rows up to `up_to` are released: read who sent them and propose `Release`.
    ReadOrigins {
        /// Whose mailbox.
        user: UserId,
        /// First row.
        first: Seq,
        /// Last row.
        up_to: Seq,
    },
    /// The account changed: tell the user's actor. `None`: there is no account any longer.
    AccountChanged {
        /// Whose.
        user: UserId,
        /// As it is now.
        account: Option<Arc<AccountView>>,
    },
    /// So many wrong PINs came in this hour that only long PINs count for the rest of it: tell the
    /// operator.
    WrongPins {
        /// How many.
        in_hour: u32,
    },
    /// A PIN was not sent, for the PINs of the hour to all aliases are used up: tell the operator.
    PinsUsedUp,
    /// Write this checkpoint.
    Checkpoint(Spill),
}

/// A checkpoint: rows to write, and the entries that left the machine's memory by it.
#[derive(Clone, Debug, Default)]
pub struct Spill {
    /// For the tables.
    pub rows: Vec<Row>,
    /// Readable from here until the rows are written.
    pub entries: Vec<(UserId, VecDeque<super::mailbox::Entry>)>,
    /// Entries that have expired and whose rows go: nobody reads them until the rows are gone, or
    /// they would be counted out twice.
    pub gone: BTreeSet<(UserId, Seq)>,
    /// Seconds of Unix time in which entries end that left memory and came with less than an hour to live.
    pub ends_s: BTreeSet<u64>,
}

/// A replica met a command that this version does not know. It stops: one that skipped the command would
/// hold another state than the others, and nobody would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {shard} stops: entry {index} of its log holds a command that this version of natter does not \
     know; start a newer version on this node"
)]
pub(super) struct UnknownCommand {
    pub(super) shard: ShardId,
    pub(super) index: u64,
}

/// Whether this version knows a command of the log, or of another node, and all notices in it. A newer
/// version may have made it. A leader does not propose one that it does not know.
pub(super) fn is_known(command: &stored::Command) -> bool {
    command.kind.as_ref().is_some_and(knows_notices)
}

/// Whether this version knows all notices that a command brings.
pub(super) fn knows_notices(command: &Command) -> bool {
    let Command::TakeNotices(taken) = command else { return true };
    taken.notices.iter().all(is_known_notice)
}

/// Whether this version knows a notice.
pub(super) fn is_known_notice(notice: &stored::Notice) -> bool {
    match &notice.what {
        Some(What::Envelope(envelope)) => envelope.content.is_some(),
        Some(What::FreeAlias(_) | What::LoseAlias(_) | What::OpenAccount(_)) => true,
        None => false,
    }
}

/// Whether it may come before what was asked for earlier: an acknowledgment is for all before it, and
/// notices are numbered.
pub(super) fn may_overtake(command: &Command) -> bool {
    matches!(command, Command::Ack(_) | Command::TakeNotices(_))
}

/// Whether nobody waits for a command with a message in hand.
pub(super) fn can_wait(command: &Command) -> bool {
    matches!(
        command,
        Command::Ack(_)
            | Command::TakeNotices(_)
            | Command::SettleNotices(_)
            | Command::Release(_)
            | Command::Expire(_)
    )
}

/// Whether a command needs space for something new.
pub(super) fn stores(command: &Command) -> bool {
    matches!(
        command,
        Command::Append(_)
            | Command::StartRegistration(_)
            | Command::KeepAccount(_)
            | Command::ClaimAlias(_)
            | Command::AdmitDevice(_)
    )
}

/// Whether the command can be proposed once more though it may have taken effect. `Expire` names
/// rows that are read anew; after a checkpoint nobody would know that they were counted out. A device
/// that was linked may have been unlinked since, and a lock set anew. A login by key would bring back a
/// ticket that was used since.
pub(super) fn may_be_repeated(command: &Command) -> bool {
    if let Command::OpenSession(open) = command {
        return open.ticket != 0;
    }
    !matches!(
        command,
        Command::AdmitDevice(_)
            | Command::StartRegistration(_)
            | Command::PinNotSent(_)
            | Command::ProvePin(_)
            | Command::SetRegistrationLock(_)
            | Command::DeleteAccount(_)
            | Command::Expire(_)
    )
}

/// Wraps a command for the log.
pub(super) fn to_stored(command: Command) -> stored::Command {
    stored::Command { kind: Some(command) }
}

/// A send that an earlier one holds back: only where its mailbox is led it is known whether it is stored
/// already.
pub(super) fn held(command: Command, code: Code) -> Command {
    let Command::Append(append) = command else { return command };
    Command::Append(stored::Append { held: code.number(), body: Bytes::new(), ..append })
}

/// Sender, device and recipient.
pub(super) type Conversation = (u64, u32, u64);

/// The conversation of a send.
pub(super) fn conversation(append: &stored::Append) -> Conversation {
    (append.from, append.from_device, append.to)
}

/// The conversation of a send that is under way.
pub(super) fn conversation_of(command: &stored::Command) -> Option<Conversation> {
    let Some(Command::Append(append)) = &command.kind else { return None };
    Some(conversation(append))
}
