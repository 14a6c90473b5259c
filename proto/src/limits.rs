//! Every limit that a client can meet, with its unit and its reason.

/// Longest frame, in bytes after the length prefix. Media travels by HTTP, so a frame is text, keys
/// and thumbnails.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Longest body of one message, in bytes. Leaves a frame room for its envelope.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - 8 * 1024;

/// Longest frame before login: the longest legitimate one, `RegisterProve`, is under 1 KiB.
pub const FRAME_BYTES_MAX_BEFORE_LOGIN: usize = 4 * 1024;

/// Longest body of a signal, in bytes.
pub const SIGNAL_BYTES_MAX: usize = 1024;

/// Sends of one device that wait for their answer.
pub const UNANSWERED_MAX: usize = 64;

/// Last sends of a device to one user that are remembered in any case. Twice the unanswered sends,
/// so that every retry is recognized.
pub const RECENT_IDS: usize = 128;

/// For so long, in seconds, all sends of a device to one user are remembered. Longer than any node
/// holds a send, so that one that waited somewhere is recognized.
pub const RECENT_S: u64 = 60;

/// Runs of consecutive send ids of a device to one user that are remembered at most, however much it
/// jumps.
pub const RECENT_RUNS_MAX: usize = 4_096;

/// After a refusal that may be repeated, later sends of the conversation are refused for so long, in
/// seconds, unless the refused one comes again: ten times the wait that a refusal asks for.
pub const HOLD_S: u64 = 10;

/// Deliveries sent to one device and not yet acknowledged.
pub const WINDOW_MESSAGES: usize = 128;

/// Bytes of bodies in that window. One body may exceed what is left.
pub const WINDOW_BYTES: usize = 512 * 1024;

/// Longest and default time to live of a message, in seconds: 30 days.
pub const TTL_S_MAX: u32 = 30 * 24 * 3600;

/// Messages held for one user, by default.
pub const MAILBOX_MESSAGES: u64 = 10_000;

/// Bytes held for one user, by default.
pub const MAILBOX_BYTES: u64 = 64 * 1024 * 1024;

/// Of a mailbox, what one contact of its owner may fill by default, in hundredths: room for another.
pub const CONTACT_SHARE: u32 = 50;

/// Of a mailbox, what one stranger may fill by default, in hundredths: 1,000 messages.
pub const STRANGER_SHARE: u32 = 10;

/// Of a mailbox, what all strangers together may fill by default, in hundredths: the other half is for
/// contacts.
pub const STRANGERS_SHARE: u32 = 50;

/// A device for which something has waited this long may be set aside, by default, in seconds: 30 days,
/// as long as messages wait at most.
pub const DEVICE_IDLE_S_MAX: u32 = TTL_S_MAX;

/// Linked devices of one user.
pub const DEVICES_MAX: usize = 8;

/// Blocked users of one user.
pub const BLOCKS_MAX: usize = 1_000;

/// Contacts of one user: more than people have in their phones, and 20 KiB of their account's row.
pub const CONTACTS_MAX: usize = 2_000;

/// Presence subscriptions of one user.
pub const SUBSCRIPTIONS_MAX: usize = 256;

/// Longest device name, in bytes.
pub const DEVICE_NAME_BYTES_MAX: usize = 64;

/// Shortest registration lock, in bytes: four digits, of which a day tries five.
pub const LOCK_BYTES_MIN: usize = 4;

/// Longest registration lock, in bytes.
pub const LOCK_BYTES_MAX: usize = 64;

/// Send ids in one `MarkRead`.
pub const READ_IDS_MAX: usize = 256;

/// Longest frame with a `MarkRead`, in bytes: 256 ids of ten bytes and their keys, and room.
pub const MARK_READ_BYTES_MAX: usize = 4 * 1024;

/// Bytes of the nonce in `Welcome`.
pub const NONCE_BYTES: usize = 32;

const _: () = {
    assert!(BODY_BYTES_MAX < FRAME_BYTES_MAX);
    assert!(RECENT_IDS >= 2 * UNANSWERED_MAX);
    assert!(SIGNAL_BYTES_MAX < FRAME_BYTES_MAX_BEFORE_LOGIN);
    assert!(WINDOW_BYTES > BODY_BYTES_MAX);
};
