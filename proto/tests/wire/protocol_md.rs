//! PROTOCOL.md is a promise to people who write clients: its tables and examples equal the code.

use crate::known::{ADA, counting};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use proto::{Alias, Code, DeviceId, Fault, Retry, UserId, limits, signed};
use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../PROTOCOL.md");

/// The rows of the table under `## title`, without its head.
fn table(title: &str) -> Vec<Vec<String>> {
    let (_, section) = PAGE.split_once(&format!("\n## {title}\n")).expect(title);
    let section = section.split("\n## ").next().unwrap();
    section
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
        })
        .collect()
}

#[test]
fn the_table_of_codes_is_the_codes() {
    let page: Vec<Vec<String>> = table("Codes").into_iter().map(|row| row[..4].to_vec()).collect();
    let code: Vec<Vec<String>> = Code::ALL
        .iter()
        .map(|code| {
            let fault = match code.fault() {
                Fault::Client => "client",
                Fault::Server => "server",
            };
            let retry = match code.retry() {
                Retry::Never => "never",
                Retry::SameConnection => "same connection",
                Retry::Reconnect => "reconnect",
                Retry::After => "after",
            };
            [&code.number().to_string(), code.name(), fault, retry].map(String::from).to_vec()
        })
        .collect();
    assert_eq!(page, code, "write each code of src/codes.rs into PROTOCOL.md, in that order");
}

#[test]
fn the_table_of_limits_is_the_limits() {
    macro_rules! values {
        ($($name:ident)+) => { BTreeMap::from([$((stringify!($name), limits::$name.to_string())),+]) };
    }
    let values = values! {
        FRAME_BYTES_MAX BODY_BYTES_MAX FRAME_BYTES_MAX_BEFORE_LOGIN SIGNAL_BYTES_MAX UNANSWERED_MAX
        RECENT_IDS RECENT_S RECENT_RUNS_MAX HOLD_S WINDOW_MESSAGES WINDOW_BYTES TTL_S_MAX MAILBOX_MESSAGES
        CONTACT_SHARE STRANGER_SHARE STRANGERS_SHARE DEVICE_IDLE_S_MAX
        MAILBOX_BYTES DEVICES_MAX BLOCKS_MAX CONTACTS_MAX SUBSCRIPTIONS_MAX DEVICE_NAME_BYTES_MAX
        LOCK_BYTES_MIN LOCK_BYTES_MAX READ_IDS_MAX
        MARK_READ_BYTES_MAX NONCE_BYTES
    };
    let source = include_str!("../../src/limits.rs");
    let declared = source.lines().filter_map(|line| line.strip_prefix("pub const "));
    for name in declared.map(|rest| rest.split(':').next().unwrap()) {
        assert!(values.contains_key(name), "add {name} to this test and to PROTOCOL.md");
    }
    let page: BTreeMap<String, String> =
        table("Limits").into_iter().map(|row| (row[0].clone(), row[1].replace(',', ""))).collect();
    let code: BTreeMap<String, String> =
        values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(page, code, "PROTOCOL.md, table of limits");
}

/// The lines under `title` in the worked example, joined.
fn example(title: &str) -> String {
    let (_, rest) = PAGE.split_once(&format!("\n    {title}\n")).expect(title);
    rest.lines().take_while(|line| line.starts_with("      ")).map(str::trim).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn the_worked_example_of_signing_is_true() {
    let (seed, nonce) = (counting(0, 32), counting(0x20, 32));
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let login = signed::login(&nonce, UserId(ADA), DeviceId(2));
    let register = signed::register(&nonce, &Alias::parse("+49 151 12345678").unwrap());
    let truth = [
        ("seed (private key)", hex(&seed)),
        ("public key", hex(key.public_key().as_ref())),
        ("nonce", hex(&nonce)),
        ("login, signed bytes", hex(&login)),
        ("login, signature", hex(key.sign(&login).as_ref())),
        ("register, signed bytes", hex(&register)),
        ("register, signature", hex(key.sign(&register).as_ref())),
    ];
    let page: Vec<_> = truth.iter().map(|(title, _)| (*title, example(title))).collect();
    assert_eq!(page, truth.to_vec());
}

#[test]
fn the_frame_drawn_byte_by_byte_is_the_golden_one() {
    let (_, drawn) = PAGE.split_once("in full:\n\n").unwrap();
    let drawn: String = drawn
        .lines()
        .take_while(|line| line.starts_with("    "))
        .flat_map(|line| line[4..].get(..26).unwrap_or(&line[4..]).split_whitespace())
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/client-send.hex");
    let golden = std::fs::read_to_string(path).unwrap().replace('\n', "");
    assert_eq!(drawn, golden);
}

#[test]
fn every_request_of_the_schema_has_its_answer_in_the_page() {
    let (_, section) = PAGE.split_once("\n## Requests and answers\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for (name, frame) in crate::known::client() {
        let field = name.split('-').nth(1).unwrap();
        let message: String =
            field.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        assert!(section.contains(&format!("`{message}`")), "{message} ({name}) has no answer");
        assert_eq!(frame.id == 0, ["ack", "signal", "ping", "pong"].contains(&field), "{name}");
    }
}
