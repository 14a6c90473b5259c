//! WebSocket (RFC 6455), the server's half: messages from and to length-prefixed frames. Pure; the
//! HTTP handshake before it is in `upgrade.rs`.
//!
//! Frame headers are `tungstenite`'s. The rest is our own and not a library's stream, because that keeps buffers
//! for each connection and cannot change its limit after login.
//!
//! # Invariants
//! 1. A message is bounded before its content is awaited, fragments together.
//! 2. Between messages no memory is held.

use std::io::{self, Cursor};

use bytes::{Buf as _, BufMut as _, BytesMut};
use proto::{Code, limits};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Longest content of a control frame (RFC 6455, section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Answers to pings that wait for the socket. A client that pings faster than it reads gets fewer.
const REPLIES_BYTES_MAX: usize = 1024;

/// The state between two reads.
#[derive(Debug)]
pub(super) struct WebSocket {
    received: BytesMut,
    /// The fragments so far of a message that is not whole.
    fragments: Option<BytesMut>,
    replies: Vec<u8>,
    limit: usize,
    closed: bool,
    /// Messages and fragments that carried nothing.
    idle: u32,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            received: BytesMut::new(),
            fragments: None,
            replies: Vec::new(),
            limit: limits::FRAME_BYTES_MAX_BEFORE_LOGIN,
            closed: false,
            idle: 0,
        }
    }
}

/// The header of a message or fragment that is allowed.
struct Header {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    /// Where its content begins.
    start: usize,
    /// Bytes of content.
    length: usize,
}

impl WebSocket {
    /// Where bytes of the socket go.
    pub(super) fn received(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// Bytes that should be sent soon. The caller takes off what it sent.
    pub(super) fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Pings, pongs and empty fragments since the last call.
    pub(super) fn take_idle(&mut self) -> u32 {
        std::mem::take(&mut self.idle)
    }

    /// Whether a part of a message waits for its rest.
    pub(super) fn holds_part(&self) -> bool {
        !self.received.is_empty() || self.fragments.is_some()
    }

    pub(super) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Appends every whole message that was received to `into`, each with its length in front.
    ///
    /// # Errors
    /// [`Code::FrameTooLarge`] over the limit; [`Code::BadFrame`] for a text message and whatever
    /// else the RFC or we do not allow.
    pub(super) fn decode(&mut self, into: &mut BytesMut) -> Result<(), Code> {
        while let Some(header) = self.next_header()? {
            let whole = header.start + header.length;
            if self.closed || self.received.len() < whole {
                break;
            }
            let mut content = self.received.split_to(whole);
            content.advance(header.start);
            for (byte, mask) in content.iter_mut().zip(header.mask.iter().cycle()) {
                *byte ^= mask;
            }
            self.take(&header, content, into)?;
        }
        if self.closed || self.received.is_empty() {
            self.received = BytesMut::new();
        }
        Ok(())
    }

    fn take(
        &mut self,
        header: &Header,
        content: BytesMut,
        into: &mut BytesMut,
    ) -> Result<(), Code> {
        let is_news = matches!(header.opcode, OpCode::Data(_) | OpCode::Control(Control::Close));
        if !is_news || (content.is_empty() && !header.is_final) {
            self.idle = self.idle.saturating_add(1);
        }
        match (header.opcode, &mut self.fragments) {
            (OpCode::Data(Data::Binary), None) if header.is_final => put_frame(&content, into),
            (OpCode::Data(Data::Binary), None) => self.fragments = Some(content),
            (OpCode::Data(Data::Continue), Some(fragments)) => {
                fragments.extend_from_slice(&content);
                if header.is_final {
                    put_frame(fragments, into);
                    self.fragments = None;
                }
            }
            (OpCode::Control(Control::Ping), _) => {
                if self.replies.len() + content.len() < REPLIES_BYTES_MAX {
                    put_message(OpCode::Control(Control::Pong), &content, &mut self.replies);
                }
            }
            (OpCode::Control(Control::Pong), _) => {}
            (OpCode::Control(Control::Close), _) => self.closed = true,
            _ => return Err(Code::BadFrame),
        }
        Ok(())
    }

    /// The header at the front, or `None` if it is not whole.
    fn next_header(&self) -> Result<Option<Header>, Code> {
        let mut front = Cursor::new(&self.received[..]);
        let parsed = FrameHeader::parse(&mut front).map_err(|_| Code::BadFrame)?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let FrameHeader { opcode, is_final, mask, rsv1, rsv2, rsv3 } = header;
        let Some(mask) = mask.filter(|_| !(rsv1 || rsv2 || rsv3)) else {
            return Err(Code::BadFrame);
        };
        let length = usize::try_from(length).map_err(|_| Code::FrameTooLarge)?;
        let before = self.fragments.as_ref().map_or(0, BytesMut::len);
        match opcode {
            OpCode::Control(_) if length > CONTROL_BYTES_MAX || !is_final => {
                return Err(Code::BadFrame);
            }
            OpCode::Data(_) if length > self.limit.saturating_sub(before) => {
                return Err(Code::FrameTooLarge);
            }
            OpCode::Control(_) | OpCode::Data(_) => {}
        }
        let start = usize::try_from(front.position()).unwrap_or(usize::MAX);
        Ok(Some(Header { opcode, is_final, mask, start, length }))
    }

    /// `frames`, each with its length in front, as messages; after the replies that still wait.
    ///
    /// # Errors
    /// `InvalidInput` if `frames` does not hold whole frames.
    pub(super) fn encode(&mut self, mut frames: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.replies);
        out.reserve(frames.len() + 16);
        while !frames.is_empty() {
            let cut = |_| io::Error::new(io::ErrorKind::InvalidInput, "half a frame to write");
            let length = prost::encoding::decode_varint(&mut frames).map_err(cut)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((frame, rest)) = frames.split_at_checked(length) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "half a frame to write"));
            };
            put_message(OpCode::Data(Data::Binary), frame, &mut out);
            frames = rest;
        }
        Ok(out)
    }

    /// The last message: a normal end (RFC 6455, section 7.4.1), or the answer to the client's.
    pub(super) fn goodbye(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.replies);
        put_message(OpCode::Control(Control::Close), &1000_u16.to_be_bytes(), &mut out);
        out
    }
}

fn put_frame(content: &[u8], into: &mut BytesMut) {
    prost::encoding::encode_varint(content.len() as u64, into);
    into.put_slice(content);
}

fn put_message(opcode: OpCode, content: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    // Writing into a `Vec` cannot fail.
    let _always_ok = header.format(content.len() as u64, out);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    // As RFC 6455 has them, and not as the library writes them.
    const FINAL: u8 = 0x80;
    const MASKED: u8 = 0x80;
    const BINARY: u8 = 0x2;
    const PING: u8 = 0x9;
    const PONG: u8 = 0xa;

    fn masked(first: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_message(OpCode::Data(Data::Binary), content, &mut bytes);
        bytes[0] = first;
        bytes[1] |= MASKED;
        let mask = [7, 77, 177, 250];
        let at = bytes.len() - content.len();
        bytes.splice(at..at, mask);
        for (byte, mask) in bytes[at + 4..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        bytes
    }

    fn decode(socket: &mut WebSocket, bytes: &[u8]) -> Result<Vec<u8>, Code> {
        let mut into = BytesMut::new();
        socket.received().extend_from_slice(bytes);
        socket.decode(&mut into).map(|()| into.to_vec())
    }

    #[test]
    fn a_message_becomes_a_frame_however_it_is_cut() {
        for length in [0, 1, 125, 126, 1000] {
            let bytes = masked(FINAL | BINARY, &vec![9; length]);
            for cut in 0..bytes.len() {
                let mut socket = WebSocket::default();
                let mut frames = decode(&mut socket, &bytes[..cut]).unwrap();
                assert!(frames.is_empty());
                frames.extend(decode(&mut socket, &bytes[cut..]).unwrap());
                let mut expected = BytesMut::new();
                put_frame(&vec![9; length], &mut expected);
                assert_eq!(frames, expected);
                assert_eq!(socket.received.capacity(), 0, "no memory between messages");
            }
        }
    }

    #[test]
    fn fragments_are_joined_and_pings_between_them_answered() {
        let mut socket = WebSocket::default();
        let bytes = [
            masked(BINARY, b"he"),
            masked(FINAL | PING, b"?"),
            masked(0, b"l"),
            masked(FINAL, b"lo"),
        ];
        assert_eq!(decode(&mut socket, &bytes.concat()).unwrap(), b"\x05hello");
        assert_eq!(socket.replies, [FINAL | PONG, 1, b'?']);
    }

    #[test]
    fn a_frame_becomes_a_message_behind_waiting_replies() {
        let mut socket = WebSocket::default();
        decode(&mut socket, &masked(FINAL | PING, b"")).unwrap();
        let mut frames = BytesMut::new();
        put_frame(b"a", &mut frames);
        put_frame(&[5; 300], &mut frames);
        let messages = socket.encode(&frames).unwrap();
        assert_eq!(messages[..9], [0x8a, 0, 0x82, 1, b'a', 0x82, 126, 1, 44]);
        assert_eq!(messages.len(), 9 + 300);
        assert!(socket.encode(&[3, 1]).is_err(), "half a frame");
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_comes() {
        let long = [FINAL | BINARY, MASKED | 127, 0, 0, 0, 0, 0, 1, 0, 0, 7, 7, 7, 7];
        assert_eq!(decode(&mut WebSocket::default(), &long), Err(Code::FrameTooLarge));
        let endless = [[FINAL | BINARY, MASKED | 127].as_slice(), &[255; 12]].concat();
        assert_eq!(decode(&mut WebSocket::default(), &endless), Err(Code::FrameTooLarge));
        let mut socket = WebSocket::default();
        socket.set_limit(10);
        let parts = [masked(BINARY, &[1; 6]), masked(0, &[1; 6])].concat();
        assert_eq!(decode(&mut socket, &parts), Err(Code::FrameTooLarge));
    }

    #[test]
    fn what_the_rules_forbid_is_refused() {
        let unmasked = vec![FINAL | BINARY, 1, 0];
        for bytes in [
            unmasked,
            masked(FINAL | 0x1, b"text"),
            masked(FINAL | 0x40 | BINARY, b"reserved"),
            masked(FINAL, b"nothing to continue"),
            masked(PING, b"a ping in pieces"),
            masked(FINAL | PING, &[0; 126]),
            masked(FINAL | 0x3, b"unknown"),
            [masked(BINARY, b"a"), masked(BINARY, b"b")].concat(),
        ] {
            assert_eq!(decode(&mut WebSocket::default(), &bytes), Err(Code::BadFrame));
        }
    }

    #[test]
    fn messages_that_carry_nothing_are_counted() {
        let mut socket = WebSocket::default();
        let idle = [masked(FINAL | PING, b"?"), masked(FINAL | PONG, b""), masked(BINARY, b"")];
        decode(&mut socket, &idle.concat()).unwrap();
        let rest =
            [masked(0, b""), masked(0, b"a"), masked(FINAL, b""), masked(FINAL | BINARY, b"b")];
        decode(&mut socket, &rest.concat()).unwrap();
        assert_eq!((socket.take_idle(), socket.take_idle()), (4, 0));
    }

    #[test]
    fn many_pings_hold_little_memory() {
        let mut socket = WebSocket::default();
        for _ in 0..10_000 {
            decode(&mut socket, &masked(FINAL | PING, &[0; 100])).unwrap();
        }
        assert!(socket.replies.len() < 2 * REPLIES_BYTES_MAX);
    }
}
