//! Properties of the codec and of parsing that hold for any bytes and any frame.

use crate::any::{client_frame, server_frame};
use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*, sample::Index};
use proto::frame::{FrameError, decode, decode_whole, encode};
use proto::wire::{ClientFrame, ServerFrame};
use proto::{Alias, Code, limits::FRAME_BYTES_MAX, stored};

/// What came out of a stream: the frames, and how it ended.
type Outcome<F> = (Vec<F>, Option<FrameError>);

/// Decodes `stream` as it would come from a socket in pieces that end at `cuts`.
fn in_pieces<F: prost::Message + Default>(stream: &[u8], cuts: &[usize]) -> Outcome<F> {
    let mut ends: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < stream.len()).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let (mut buffer, mut frames, mut from) = (BytesMut::new(), Vec::new(), 0);
    for end in ends {
        buffer.extend_from_slice(&stream[from..end]);
        from = end;
        loop {
            match decode(&mut buffer, FRAME_BYTES_MAX) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn comes_back<F: prost::Message + Default + PartialEq + std::fmt::Debug>(frame: &F) {
    let mut bytes = BytesMut::new();
    encode(frame, &mut bytes);
    bytes.extend_from_slice(b"next");
    let back: F = decode(&mut bytes, FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(&back, frame);
    assert_eq!(&bytes[..], b"next", "exactly one frame is taken");
}

proptest! {
    #[test]
    fn any_client_frame_comes_back(frame in client_frame()) {
        comes_back(&frame);
    }

    #[test]
    fn any_server_frame_comes_back(frame in server_frame()) {
        comes_back(&frame);
    }

    #[test]
    fn any_split_of_a_stream_decodes_the_same(
        frames in vec(client_frame(), 0..6),
        rubbish in vec(any::<u8>(), 0..12),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let mut stream = BytesMut::new();
        for frame in &frames {
            encode(frame, &mut stream);
        }
        stream.extend_from_slice(&rubbish);
        let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        let every: Vec<usize> = (0..stream.len()).collect();
        let whole: Outcome<ClientFrame> = in_pieces(&stream, &[]);
        prop_assert_eq!(&whole.0[..frames.len()], &frames[..]);
        prop_assert_eq!(&whole, &in_pieces(&stream, &cuts));
        prop_assert_eq!(&whole, &in_pieces(&stream, &every));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..300), limit in 0usize..400) {
        let mut stream = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decode::<ClientFrame>(&mut stream, limit) {}
        let mut stream = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decode::<ServerFrame>(&mut stream, limit) {}
        let content = Bytes::from(bytes);
        drop(decode_whole::<ClientFrame>(content.clone(), limit));
        drop(decode_whole::<stored::Envelope>(content.clone(), limit));
        drop(decode_whole::<stored::Batch>(content, limit));
    }

    #[test]
    fn one_broken_byte_never_makes_the_decoder_panic(
        frame in client_frame(), place in any::<Index>(), byte in any::<u8>(),
    ) {
        let mut stream = BytesMut::new();
        encode(&frame, &mut stream);
        let place = place.index(stream.len());
        stream[place] = byte;
        while let Ok(Some(_)) = decode::<ClientFrame>(&mut stream, FRAME_BYTES_MAX) {}
    }

    #[test]
    fn fields_of_a_newer_peer_are_ignored(frame in client_frame(), tag in 900u32..2000, value: u64) {
        let mut content = prost::Message::encode_to_vec(&frame);
        prost::encoding::uint64::encode(tag, &value, &mut content);
        let back: ClientFrame = decode_whole(content.into(), FRAME_BYTES_MAX).unwrap();
        prop_assert_eq!(back, frame);
    }

    #[test]
    fn a_stored_alias_parses_to_itself(text in prop_oneof![
        any::<String>(),
        "\\+?[0-9 ()-]{0,20}",
        "[a-zA-Z0-9._İΣß]{1,40}@[a-zİΣ]{1,200}\\.[a-z]{2}",
        "[a-zA-Z][a-zA-Z0-9._-]{1,34}",
    ]) {
        if let Ok(alias) = Alias::parse(&text) {
            let again = Alias::parse(alias.as_str());
            prop_assert_eq!(again, Ok(alias.clone()));
            prop_assert!(alias.as_str().len() <= 254);
        }
    }

    #[test]
    fn every_code_number_comes_back(number: u32) {
        prop_assert_eq!(Code::from_number(number).number(), number);
    }
}

#[test]
fn a_frame_of_an_unknown_kind_keeps_its_id_and_has_no_kind() {
    let mut content = Vec::new();
    prost::encoding::uint64::encode(1, &42, &mut content);
    prost::encoding::bytes::encode(99, &b"from the future".to_vec(), &mut content);
    let frame: ClientFrame = decode_whole(content.into(), FRAME_BYTES_MAX).unwrap();
    assert_eq!(frame, ClientFrame { id: 42, kind: None });
}
