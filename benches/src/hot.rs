//! The frames that travel with every message, read and written without an allocation. A pure core.
//!
//! Everything else is handed on as [`Frame::Other`] and decoded by `proto`. Tags and types are those
//! of `proto/schema/client.proto`; the tests here compare with the generated code.

use anyhow::{Result, bail};

/// Smallest body: a marker fits.
pub(crate) const MARKER_BYTES: usize = 24;

/// First bytes of every body this program sends.
const MAGIC: [u8; 4] = *b"ntld";

/// Where an entry stands in its mailbox, and which one came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) after: u64,
}

/// What this program puts into a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// Which stream of messages.
    pub(crate) stream: u32,
    /// Which message of the stream: 0, 1, 2 and so on.
    pub(crate) number: u64,
    /// When it was sent, or was to be sent.
    pub(crate) sent_ns: u64,
}

/// A frame from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Accepted {
        id: u64,
    },
    Message {
        place: Place,
        body: &'a [u8],
    },
    Receipt {
        place: Place,
        receipt: Receipt<'a>,
    },
    /// An entry of the mailbox that only counts as seen.
    Entry {
        place: Place,
    },
    CaughtUp,
    Ping,
    /// Any other frame, whole.
    Other(&'a [u8]),
}

/// What became of sends: the content of a `Receipt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt<'a>(&'a [u8]);

/// `Receipt.Kind` DELIVERED.
const DELIVERED: u64 = 1;

impl Receipt<'_> {
    /// Calls `each` with the id of every send that was delivered.
    pub(crate) fn each_delivered(&self, mut each: impl FnMut(u64)) -> Result<()> {
        let Some(kind) = first_number(self.0, 1) else { return Ok(()) };
        if kind != DELIVERED {
            return Ok(());
        }
        let mut rest = self.0;
        while !rest.is_empty() {
            let Some(field) = field(&mut rest) else { bail!("a receipt that ends early") };
            match field {
                (4, Value::Number(id)) => each(id),
                (4, Value::Bytes(mut packed)) => {
                    while let Some(id) = varint(&mut packed) {
                        each(id);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first frame in `buffer` and the bytes it takes, or `None` if it is not whole.
pub(crate) fn take(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>> {
    let mut rest = buffer;
    let Some(length) = varint(&mut rest) else {
        if buffer.len() >= 4 {
            bail!("a length prefix over 4 bytes");
        }
        return Ok(None);
    };
    let length = usize::try_from(length)?;
    if length > proto::limits::FRAME_BYTES_MAX {
        bail!("a frame of {length} bytes");
    }
    let Some(content) = rest.get(..length) else { return Ok(None) };
    let Some(frame) = server_frame(content) else { bail!("bytes that are no frame") };
    Ok(Some((frame, buffer.len() - rest.len() + length)))
}

fn server_frame(content: &[u8]) -> Option<Frame<'_>> {
    let mut rest = content;
    let mut id = 0;
    let mut kind = None;
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Value::Number(number)) => id = number,
            (tag, Value::Bytes(inner)) => kind = Some((tag, inner)),
            _ => {}
        }
    }
    match kind {
        Some((2, _)) => Some(Frame::Accepted { id }),
        Some((3, inner)) => deliver(inner),
        Some((5, _)) => Some(Frame::CaughtUp),
        Some((6, _)) => Some(Frame::Ping),
        _ => Some(Frame::Other(content)),
    }
}

fn deliver(content: &[u8]) -> Option<Frame<'_>> {
    let mut rest = content;
    let (mut seq, mut after, mut kind) = (0, None, None);
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Value::Number(number)) => seq = number,
            (2, Value::Number(number)) => after = Some(number),
            (tag @ 4..=7, Value::Bytes(inner)) => kind = Some((tag, inner)),
            _ => {}
        }
    }
    let place = Place { seq, after: after.unwrap_or(seq.saturating_sub(1)) };
    match kind {
        Some((4, inner)) => Some(Frame::Message { place, body: body(inner)? }),
        Some((5, inner)) => Some(Frame::Receipt { place, receipt: Receipt(inner) }),
        _ => Some(Frame::Entry { place }),
    }
}

/// The body of a `Message`.
fn body(content: &[u8]) -> Option<&[u8]> {
    let mut rest = content;
    let mut body: &[u8] = &[];
    while !rest.is_empty() {
        if let (4, Value::Bytes(inner)) = field(&mut rest)? {
            body = inner;
        }
    }
    Some(body)
}

/// The first number with this tag, 0 if there is none; `None` if the bytes are no message.
fn first_number(content: &[u8], tag: u64) -> Option<u64> {
    let mut rest = content;
    while !rest.is_empty() {
        if let (found, Value::Number(number)) = field(&mut rest)?
            && found == tag
        {
            return Some(number);
        }
    }
    Some(0)
}

/// What a field holds.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Takes the next field off `bytes`: its tag and what it holds.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => Value::Bytes(chunk(bytes, 8)?),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(chunk(bytes, length)?)
        }
        5 => Value::Bytes(chunk(bytes, 4)?),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn chunk<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (chunk, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(chunk)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return Some(number);
        }
    }
    None
}

/// Appends a frame with `Send{to: user, body}`.
pub(crate) fn put_send(out: &mut Vec<u8>, id: u64, user: u64, body: &[u8]) {
    let send = 1 + varint_len(user) + 1 + varint_len(body.len() as u64) + body.len();
    let frame = 1 + varint_len(id) + 1 + varint_len(send as u64) + send;
    put_varint(out, frame as u64);
    out.push(0x08);
    put_varint(out, id);
    out.push(0x12);
    put_varint(out, send as u64);
    out.push(0x08);
    put_varint(out, user);
    out.push(0x1a);
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

/// Appends a frame with `Ack{seq}`.
pub(crate) fn put_ack(out: &mut Vec<u8>, seq: u64) {
    let ack = 1 + varint_len(seq);
    out.extend_from_slice(&[(2 + ack) as u8, 0x1a, ack as u8, 0x08]);
    put_varint(out, seq);
}

/// Appends a frame with `Pong`.
pub(crate) fn put_pong(out: &mut Vec<u8>) {
    out.extend_from_slice(&[2, 0x3a, 0]);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint_len(number: u64) -> usize {
    (number | 1).ilog2() as usize / 7 + 1
}

impl Marker {
    /// Writes the marker over the beginning of `body`.
    pub(crate) fn stamp(&self, body: &mut [u8]) {
        body[..4].copy_from_slice(&MAGIC);
        body[4..8].copy_from_slice(&self.stream.to_be_bytes());
        body[8..16].copy_from_slice(&self.number.to_be_bytes());
        body[16..24].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads it back; `None` if the body is none of ours.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let rest = body.strip_prefix(&MAGIC)?;
        let (stream, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (sent, _) = rest.split_first_chunk()?;
        Some(Self {
            stream: u32::from_be_bytes(*stream),
            number: u64::from_be_bytes(*number),
            sent_ns: u64::from_be_bytes(*sent),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proto::wire::{self, client_frame, deliver::Content, server_frame::Kind};

    fn encoded(id: u64, kind: Kind) -> Vec<u8> {
        let mut out = BytesMut::new();
        proto::frame::encode(&wire::ServerFrame { id, kind: Some(kind) }, &mut out);
        out.to_vec()
    }

    fn delivered(seq: u64, after: Option<u64>, content: Content) -> Vec<u8> {
        let content = Some(content);
        encoded(0, Kind::Deliver(wire::Deliver { seq, after, at_ms: 1_795_000_000_000, content }))
    }

    #[test]
    fn hot_frames_are_read_as_the_generated_code_writes_them() {
        let accepted = encoded(300, Kind::Accepted(wire::Accepted { at_ms: 5, user: 0 }));
        assert_eq!(
            take(&accepted).unwrap().unwrap(),
            (Frame::Accepted { id: 300 }, accepted.len())
        );

        let message = wire::Message {
            from: (1 << 53) - 1,
            from_device: 1,
            send_id: 9,
            body: vec![7; 300].into(),
        };
        let bytes = delivered(1000, Some(3), Content::Message(message));
        let place = Place { seq: 1000, after: 3 };
        let (frame, used) = take(&bytes).unwrap().unwrap();
        assert_eq!(frame, Frame::Message { place, body: &[7; 300] });
        assert_eq!(used, bytes.len());

        assert_eq!(take(&encoded(0, Kind::Ping(wire::Ping {}))).unwrap().unwrap().0, Frame::Ping);
        let pin_sent = encoded(
            1,
            Kind::PinSent(wire::PinSent { expires_s: 600, digits: 6, token: bytes::Bytes::new() }),
        );
        assert!(matches!(take(&pin_sent).unwrap().unwrap().0, Frame::Other(_)));
    }

    #[test]
    fn a_receipt_names_the_sends_it_is_for_and_only_if_delivered() {
        for (kind, expected) in [(1, vec![5, 300, 70_000]), (3, vec![])] {
            let send_ids = vec![5, 300, 70_000];
            let receipt = wire::Receipt { kind, user: 8, device: 1, send_ids };
            let bytes = delivered(4, None, Content::Receipt(receipt));
            let (frame, _) = take(&bytes).unwrap().unwrap();
            let Frame::Receipt { place, receipt } = frame else { panic!("{frame:?}") };
            assert_eq!(place, Place { seq: 4, after: 3 });
            let mut ids = Vec::new();
            receipt.each_delivered(|id| ids.push(id)).unwrap();
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn half_a_frame_is_left_alone() {
        let bytes = encoded(300, Kind::Accepted(wire::Accepted { at_ms: 5, user: 0 }));
        for cut in 0..bytes.len() {
            assert!(take(&bytes[..cut]).unwrap().is_none(), "{cut}");
        }
        assert!(take(&[0xff; 8]).is_err());
    }

    #[test]
    fn what_is_written_is_read_by_the_generated_code() {
        let mut out = Vec::new();
        for body_bytes in [24, 100, 127, 128, 20_000] {
            let mut body = vec![0; body_bytes];
            let marker = Marker { stream: 3, number: 1 << 40, sent_ns: 77 };
            marker.stamp(&mut body);
            out.clear();
            put_send(&mut out, 16_384, (1 << 53) - 1, &body);
            put_ack(&mut out, u64::MAX);
            put_pong(&mut out);
            let mut bytes = BytesMut::from(&out[..]);
            let mut next = || proto::frame::decode::<wire::ClientFrame>(&mut bytes, 300_000);
            let frame = next().unwrap().unwrap();
            assert_eq!(frame.id, 16_384);
            let Some(client_frame::Kind::Send(send)) = frame.kind else { panic!("{frame:?}") };
            assert_eq!(send.to, Some(wire::send::To::User((1 << 53) - 1)));
            assert_eq!(Marker::read(&send.body), Some(marker));
            assert_eq!(send.body.len(), body_bytes);
            let ack = next().unwrap().unwrap().kind;
            assert_eq!(ack, Some(client_frame::Kind::Ack(wire::Ack { seq: u64::MAX })));
            let pong = next().unwrap().unwrap().kind;
            assert_eq!(pong, Some(client_frame::Kind::Pong(wire::Pong {})));
        }
    }
}
