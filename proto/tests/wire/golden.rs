//! Golden bytes: every known frame encodes to exactly the bytes in `proto/golden/`, and back.
//!
//! **Invariant:** a file there is added, never edited: a client in the field was built from it.

use crate::known;
use bytes::BytesMut;
use proto::{frame, limits::FRAME_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Hex text, 32 bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn check<F: prost::Message + Default + PartialEq + std::fmt::Debug>(name: &str, known: &F) {
    let mut encoded = BytesMut::new();
    frame::encode(known, &mut encoded);
    let path = folder().join(format!("{name}.hex"));
    let Ok(text) = std::fs::read_to_string(&path) else {
        panic!("golden/{name}.hex is missing; it should hold\n{}", to_hex(&encoded));
    };
    assert_eq!(to_hex(&encoded), text, "{name}: the encoding changed, and no client was told");
    let mut frozen = BytesMut::from(&from_hex(&text)[..]);
    let decoded: F = frame::decode(&mut frozen, FRAME_BYTES_MAX).unwrap().expect("a whole frame");
    assert_eq!(&decoded, known, "{name}");
    assert!(frozen.is_empty(), "{name}: bytes behind the frame");
}

#[test]
fn every_known_frame_has_its_frozen_bytes() {
    for (name, frame) in known::client() {
        check(name, &frame);
    }
    for (name, frame) in known::server() {
        check(name, &frame);
    }
}

#[test]
fn no_golden_file_is_without_its_value() {
    let known: BTreeSet<String> = known::client()
        .into_iter()
        .map(|(name, _)| name)
        .chain(known::server().into_iter().map(|(name, _)| name))
        .map(|name| format!("{name}.hex"))
        .collect();
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, known, "add a value to tests/wire/known.rs for each file and back");
}

/// The fields of the oneof of `message` in the schema: name to tag.
fn oneof(message: &str) -> BTreeMap<String, u64> {
    let schema = include_str!("../../schema/client.proto");
    let (_, rest) = schema.split_once(&format!("message {message} {{")).unwrap();
    let (_, fields) = rest.split_once("oneof kind {").unwrap();
    let (fields, _) = fields.split_once('}').unwrap();
    fields
        .split(';')
        .filter_map(|field| field.split_once('='))
        .map(|(left, tag)| {
            let name = left.split_whitespace().last().unwrap().to_owned();
            (name, tag.trim().parse().unwrap())
        })
        .collect()
}

/// The tag of the last field at the top of an encoded frame: the kind comes after the id.
fn tag_of_kind(frame: &impl prost::Message) -> u64 {
    let bytes = frame.encode_to_vec();
    let mut rest = &bytes[..];
    let mut tag = 0;
    while !rest.is_empty() {
        let key = prost::encoding::decode_varint(&mut rest).unwrap();
        tag = key >> 3;
        let value = prost::encoding::decode_varint(&mut rest).unwrap();
        if key & 7 == 2 {
            rest = &rest[usize::try_from(value).unwrap()..];
        }
    }
    tag
}

fn covered<'a, F: prost::Message>(
    side: &str,
    message: &str,
    frames: impl Iterator<Item = (&'a str, F)>,
) {
    let schema = oneof(message);
    assert!(schema.len() > 10, "the schema was not understood: {schema:?}");
    let mut seen = BTreeSet::new();
    for (name, frame) in frames {
        let field = name.split('-').nth(1).unwrap();
        assert!(name.starts_with(side), "{name}");
        assert_eq!(Some(&tag_of_kind(&frame)), schema.get(field), "{name}: tag in the schema");
        seen.insert(field.to_owned());
    }
    let missing: Vec<_> = schema.keys().filter(|field| !seen.contains(*field)).collect();
    assert!(missing.is_empty(), "{message} has frames without golden bytes: {missing:?}");
}

#[test]
fn every_frame_of_the_schema_is_frozen() {
    covered("client-", "ClientFrame", known::client().into_iter());
    covered("server-", "ServerFrame", known::server().into_iter());
}
