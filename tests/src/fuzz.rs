//! The body of the fuzz target: whatever a stranger can make us parse.
//!
//! Run by `cargo fuzz run frames` (see `tests/fuzz`), and for a bounded number of seeded rounds by
//! `cargo test`. The module knows only `proto`, so that the fuzzer does not build a server.
//!
//! **Invariant:** [`frames`] panics only if the codec or a parser breaks its promise.

use bytes::{Bytes, BytesMut};
use proto::frame::{FrameError, decode, decode_whole, encode};
use proto::wire::{ClientFrame, ServerFrame};
use proto::{Alias, Code, stored};
use std::fmt::Debug;

/// A small limit, so that the fuzzer meets it often, in bytes.
const LIMIT: usize = 1024;

/// Feeds `data` to every parser and checks what must hold of the result.
pub fn frames(data: &[u8]) {
    stream::<ClientFrame>(data);
    stream::<ServerFrame>(data);
    message::<ClientFrame>(data);
    message::<ServerFrame>(data);
    message::<stored::Envelope>(data);
    message::<stored::Batch>(data);
    message::<stored::Session>(data);
    if let Ok(text) = std::str::from_utf8(data) {
        alias(text);
    }
}

/// A stream decodes the same in one piece and byte by byte, and each frame comes back.
fn stream<F: prost::Message + Default + PartialEq + Debug>(data: &[u8]) {
    let mut whole = BytesMut::from(data);
    let at_once = take_all::<F>(&mut whole);
    let mut buffer = BytesMut::new();
    let mut pieces = (Vec::new(), None);
    for byte in data {
        buffer.extend_from_slice(&[*byte]);
        let (frames, error) = take_all::<F>(&mut buffer);
        pieces.0.extend(frames);
        if error.is_some() {
            pieces.1 = error;
            break;
        }
    }
    assert_eq!(at_once, pieces, "the split of the stream showed");
    if let Some(error) = &at_once.1 {
        assert!(matches!(error.code(), Code::BadFrame | Code::FrameTooLarge));
    }
}

fn take_all<F: prost::Message + Default>(buffer: &mut BytesMut) -> (Vec<F>, Option<FrameError>) {
    let mut frames = Vec::new();
    loop {
        match decode(buffer, LIMIT) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

/// What decodes also encodes, to something that decodes to the same.
fn message<M: prost::Message + Default + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = decode_whole::<M>(Bytes::copy_from_slice(data), usize::MAX) else { return };
    let mut again = BytesMut::new();
    encode(&message, &mut again);
    if again.len() < 1 << 28 {
        assert_eq!(decode::<M>(&mut again, usize::MAX), Ok(Some(message)));
        assert!(again.is_empty());
    }
}

/// A stored spelling is its own stored spelling.
fn alias(text: &str) {
    if let Ok(alias) = Alias::parse(text) {
        assert_eq!(Alias::parse(alias.as_str()), Ok(alias));
    }
}

#[cfg(test)]
mod tests {
    use super::frames;
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

    /// Enough to meet every branch of the codec, in about two seconds of an unoptimized build.
    const ROUNDS: u32 = 10_000;

    /// The golden frames, as the fuzzer's first inputs.
    fn golden() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/golden");
        let hex = |text: String| -> Vec<u8> {
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
            digits.chunks(2).map(pair).collect()
        };
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|file| hex(std::fs::read_to_string(file.unwrap().path()).unwrap())).collect()
    }

    /// One change of the kind that libFuzzer makes.
    fn mutate(data: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut StdRng) {
        let place = rng.random_range(0..=data.len());
        match rng.random_range(0..6) {
            0 => data.insert(place, rng.random()),
            1 => data.truncate(place),
            2 => data.extend_from_slice(others.choose(rng).unwrap()),
            3 => drop(data.splice(place.., others.choose(rng).unwrap().iter().copied())),
            4 if place < data.len() => data[place] ^= 1 << rng.random_range(0..8),
            _ if place < data.len() => data[place] = *[0, 0x7f, 0x80, 0xff].choose(rng).unwrap(),
            _ => data.push(rng.random()),
        }
    }

    #[test]
    fn seeded_rounds_of_the_fuzz_target_find_nothing() {
        let golden = golden();
        assert!(golden.len() > 40, "no golden bytes to start from");
        let mut rng = StdRng::seed_from_u64(7);
        for round in 0..ROUNDS {
            let mut data = golden.choose(&mut rng).unwrap().clone();
            for _ in 0..rng.random_range(0..8) {
                mutate(&mut data, &golden, &mut rng);
            }
            if round % 8 == 0 {
                data = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
            }
            frames(&data);
        }
    }
}
