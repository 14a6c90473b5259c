//! The frame codec: a varint length, then the message. Bounded, and bodies are not copied: they are
//! slices of the bytes that were read.

use crate::limits::MARK_READ_BYTES_MAX;
use crate::wire::ClientFrame;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest length prefix that is accepted, in bytes: enough for 2^28.
const PREFIX_BYTES_MAX: usize = 4;

/// `ClientFrame.mark_read` in the schema.
const MARK_READ_FIELD: u64 = 5;

/// Why bytes are no frame. After either the stream cannot be read further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length exceeds the limit.
    #[error("frame of {bytes} bytes, {limit} allowed")]
    TooLarge {
        /// What the prefix says.
        bytes: usize,
        /// The limit that was given.
        limit: usize,
    },
    /// The prefix is no varint, or the content no message of the schema.
    #[error("not a frame: {0}")]
    Malformed(String),
}

impl FrameError {
    /// The code that the peer is told.
    pub fn code(&self) -> crate::Code {
        match self {
            Self::TooLarge { .. } => crate::Code::FrameTooLarge,
            Self::Malformed(_) => crate::Code::BadFrame,
        }
    }
}

/// Takes the next whole frame off `buffer`, or `None` if more bytes are needed.
///
/// # Errors
/// [`FrameError::TooLarge`] as soon as the length is read, without waiting for the content;
/// [`FrameError::Malformed`] for bytes that are no frame.
pub fn decode<M: Message + Default>(
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<M>, FrameError> {
    let Some((length, prefix)) = read_prefix(buffer)? else { return Ok(None) };
    if length > limit {
        return Err(FrameError::TooLarge { bytes: length, limit });
    }
    if buffer.len() < prefix + length {
        return Ok(None);
    }
    buffer.advance(prefix);
    decode_whole(buffer.split_to(length).freeze(), limit).map(Some)
}

/// Takes the next request of a client off `buffer`, as [`decode`] does. A list in it is bounded before it
/// is decoded: ids of one byte each would take eight in memory.
///
/// # Errors
/// As [`decode`]; [`FrameError::TooLarge`] for a `MarkRead` of more than [`MARK_READ_BYTES_MAX`].
pub fn decode_request(
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<ClientFrame>, FrameError> {
    let Some((length, prefix)) = read_prefix(buffer)? else { return Ok(None) };
    if length > MARK_READ_BYTES_MAX
        && let Some(content) = buffer.get(prefix..prefix + length)
        && has_list(content)
    {
        return Err(FrameError::TooLarge { bytes: length, limit: MARK_READ_BYTES_MAX });
    }
    decode(buffer, limit)
}

/// Whether a request has a field that holds a list: `MarkRead`. What is no message is left to the
/// decoder.
fn has_list(mut content: &[u8]) -> bool {
    while let Ok(key) = prost::encoding::decode_varint(&mut content) {
        let (field, kind) = (key >> 3, key & 7);
        if field == MARK_READ_FIELD {
            return true;
        }
        let skipped = match kind {
            0 => prost::encoding::decode_varint(&mut content).ok().map(|_| 0),
            1 => Some(8),
            2 => prost::encoding::decode_varint(&mut content).ok(),
            5 => Some(4),
            _ => None,
        };
        let rest = skipped.and_then(|count| content.get(usize::try_from(count).ok()?..));
        let Some(rest) = rest else { return false };
        content = rest;
    }
    false
}

/// Decodes one frame whose bounds are known: the content of a WebSocket message.
///
/// # Errors
/// As [`decode`].
pub fn decode_whole<M: Message + Default>(content: Bytes, limit: usize) -> Result<M, FrameError> {
    if content.len() > limit {
        return Err(FrameError::TooLarge { bytes: content.len(), limit });
    }
    M::decode(content).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Appends `message` with its length to `out`.
pub fn encode<M: Message>(message: &M, out: &mut impl BufMut) {
    let length = message.encoded_len();
    prost::encoding::encode_varint(length as u64, out);
    message.encode_raw(out);
}

/// The length prefix and its own size, or `None` if it is not whole yet.
fn read_prefix(buffer: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut length = 0usize;
    for (place, byte) in buffer.iter().take(PREFIX_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((length, place + 1)));
        }
    }
    if buffer.len() >= PREFIX_BYTES_MAX {
        return Err(FrameError::Malformed("length prefix longer than 4 bytes".into()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Send, client_frame::Kind, send::To};

    fn hello() -> ClientFrame {
        let send = Send { to: Some(To::User(7)), body: "hello".into(), ..Send::default() };
        ClientFrame { id: 1, kind: Some(Kind::Send(send)) }
    }

    #[test]
    fn a_list_is_bounded_before_it_is_decoded() {
        use crate::wire::MarkRead;
        let frame = |ids: usize| {
            let read = MarkRead { from: 7, from_device: 1, send_ids: vec![u64::MAX; ids] };
            let mut bytes = BytesMut::new();
            encode(&ClientFrame { id: 1, kind: Some(Kind::MarkRead(read)) }, &mut bytes);
            bytes
        };
        let limit = crate::limits::FRAME_BYTES_MAX;
        let longest = decode_request(&mut frame(crate::limits::READ_IDS_MAX), limit);
        assert!(longest.is_ok_and(|frame| frame.is_some()));
        let refused = decode_request(&mut frame(1_000), limit);
        assert!(matches!(refused, Err(FrameError::TooLarge { limit: MARK_READ_BYTES_MAX, .. })));
        let send = Send { body: vec![0x28; 100_000].into(), ..Send::default() };
        let mut long = BytesMut::new();
        encode(&ClientFrame { id: 1, kind: Some(Kind::Send(send)) }, &mut long);
        assert!(decode_request(&mut long, limit).is_ok_and(|frame| frame.is_some()));
    }

    #[test]
    fn a_frame_comes_back_whole_and_only_when_whole() {
        let mut bytes = BytesMut::new();
        encode(&hello(), &mut bytes);
        let whole = bytes.clone();
        for cut in 0..whole.len() {
            let mut half = BytesMut::from(&whole[..cut]);
            assert_eq!(decode::<ClientFrame>(&mut half, 1000), Ok(None));
            assert_eq!(half.len(), cut, "nothing is taken before the frame is whole");
        }
        assert_eq!(decode(&mut bytes, 1000), Ok(Some(hello())));
        assert!(bytes.is_empty());
    }

    #[test]
    fn the_limit_is_checked_before_the_content_comes() {
        let mut bytes = BytesMut::from(&[0xff, 0xff, 0x7f][..]);
        let error = decode::<ClientFrame>(&mut bytes, 1000).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { limit: 1000, .. }));
        let mut endless = BytesMut::from(&[0xff; 4][..]);
        assert!(matches!(decode::<ClientFrame>(&mut endless, 1000), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn the_body_is_a_slice_of_what_was_read() {
        let mut bytes = BytesMut::new();
        encode(&hello(), &mut bytes);
        let range = bytes.as_ptr_range();
        let frame: ClientFrame = decode(&mut bytes, 1000).unwrap().unwrap();
        let Some(Kind::Send(send)) = frame.kind else { panic!("not a send") };
        assert!(range.contains(&send.body.as_ptr()));
    }
}
