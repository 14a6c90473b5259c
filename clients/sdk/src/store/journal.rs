//! Changes as bytes, and the file they are appended to.
//!
//! ```text
//! | kind: 1 | length: u32 LE | content | FNV-1a of all before: u32 LE |
//! ```
//! A record that is cut off or damaged ends the journal: what was written after a crash began
//! cannot be trusted, what was written before it can.

use super::{Change, Saved, Unsent};
use bytes::{Buf, Bytes};
use proto::{
    SendId, Seq, frame,
    wire::{ClientFrame, client_frame::Kind},
};

const TICKET: u8 = 1;
const ACKNOWLEDGED: u8 = 2;
const SEND_IDS_USED: u8 = 3;
const QUEUED: u8 = 4;
const ANSWERED: u8 = 5;

const HEAD_BYTES: usize = 5;
const SUM_BYTES: usize = 4;

/// Appends one record to `out`.
pub(super) fn encode(change: &Change, out: &mut Vec<u8>) {
    let start = out.len();
    match change {
        Change::Ticket(ticket) => record(TICKET, ticket, out),
        Change::Acknowledged(seq) => record(ACKNOWLEDGED, &seq.0.to_le_bytes(), out),
        Change::SendIdsUsed(below) => record(SEND_IDS_USED, &below.to_le_bytes(), out),
        Change::Queued(Unsent { id, send }) => {
            let mut content = Vec::new();
            let kind = Some(Kind::Send(send.clone()));
            frame::encode(&ClientFrame { id: id.0, kind }, &mut content);
            record(QUEUED, &content, out);
        }
        Change::Answered(id) => record(ANSWERED, &id.0.to_le_bytes(), out),
    }
    let sum = checksum(&out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
}

/// Everything that `journal` holds, up to its first record that is not whole.
pub(super) fn replay(mut journal: Bytes) -> Saved {
    let mut saved = Saved::default();
    while let Some(change) = next(&mut journal) {
        saved.apply(&change);
    }
    saved
}

/// The journal that holds just `saved`.
pub(super) fn snapshot(saved: &Saved) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&Change::SendIdsUsed(saved.send_ids_used), &mut out);
    encode(&Change::Acknowledged(saved.acknowledged), &mut out);
    encode(&Change::Ticket(saved.ticket.clone()), &mut out);
    for (id, send) in &saved.unsent {
        encode(&Change::Queued(Unsent { id: SendId(*id), send: send.clone() }), &mut out);
    }
    out
}

fn record(kind: u8, content: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(content);
}

fn next(journal: &mut Bytes) -> Option<Change> {
    let head = journal.get(..HEAD_BYTES)?;
    let kind = head[0];
    let length = usize::try_from(u32::from_le_bytes(head[1..].try_into().ok()?)).ok()?;
    let end = HEAD_BYTES.checked_add(length)?;
    let sum = journal.get(end..end.checked_add(SUM_BYTES)?)?;
    if checksum(&journal[..end]).to_le_bytes() != sum {
        return None;
    }
    let content = journal.slice(HEAD_BYTES..end);
    journal.advance(end + SUM_BYTES);
    decode(kind, content)
}

fn decode(kind: u8, content: Bytes) -> Option<Change> {
    let number = || Some(u64::from_le_bytes(content[..].try_into().ok()?));
    match kind {
        TICKET => Some(Change::Ticket(content)),
        ACKNOWLEDGED => number().map(|seq| Change::Acknowledged(Seq(seq))),
        SEND_IDS_USED => number().map(Change::SendIdsUsed),
        ANSWERED => number().map(|id| Change::Answered(SendId(id))),
        QUEUED => {
            let mut content = bytes::BytesMut::from(&content[..]);
            let whole: ClientFrame = frame::decode(&mut content, usize::MAX).ok()??;
            let Some(Kind::Send(send)) = whole.kind else { return None };
            Some(Change::Queued(Unsent { id: SendId(whole.id), send }))
        }
        _ => None,
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::wire::{self, send::To};

    fn example() -> Saved {
        let send = wire::Send {
            to: Some(To::Alias("ada".into())),
            body: Bytes::from_static(b"hello"),
            ..wire::Send::default()
        };
        Saved {
            ticket: Bytes::from_static(b"ticket"),
            acknowledged: Seq(7),
            send_ids_used: 300,
            unsent: [(40, send.clone()), (41, send)].into(),
        }
    }

    #[test]
    fn a_snapshot_holds_everything() {
        assert_eq!(replay(snapshot(&example()).into()), example());
    }

    #[test]
    fn a_journal_cut_anywhere_gives_what_was_whole_before_the_cut() {
        let mut bytes = snapshot(&example());
        let whole = bytes.len();
        encode(&Change::Answered(SendId(40)), &mut bytes);
        for cut in whole..bytes.len() {
            assert_eq!(replay(Bytes::copy_from_slice(&bytes[..cut])), example());
        }
        assert_eq!(replay(bytes.clone().into()).unsent.len(), 1);
        bytes[whole + 6] ^= 1;
        assert_eq!(replay(bytes.into()), example(), "a damaged record is not believed");
    }
}
