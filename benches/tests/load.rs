//! The load generator against a fake node: it speaks the protocol, and notices every fault.

#![allow(clippy::float_cmp, reason = "counts that pass through JSON")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod fake;

use std::process::{Command, Output, Stdio};

use fake::{Fake, Fault};
use serde_json::Value;

/// Runs `natter-load` with these words against the fake.
fn run(fake: &Fake, words: &str) -> Output {
    let plain = words.contains("--plain");
    let address = if plain { fake.plain } else { fake.tls };
    let mut command = Command::new(env!("CARGO_BIN_EXE_natter-load"));
    command.args(words.split_whitespace());
    command.args(["--server", &address.to_string()]);
    command.args(["--server-pid", &std::process::id().to_string()]);
    if !plain {
        command.arg("--ca").arg(&fake.ca);
    }
    command.arg("--pins").arg(&fake.pins).stderr(Stdio::inherit()).output().unwrap()
}

/// The same, for a run that must come to its end.
fn load(fake: &Fake, words: &str) -> Value {
    let output = run(fake, words);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one line of JSON: {text}");
    serde_json::from_str(&text).unwrap()
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {line}"))
}

fn faults(line: &Value) -> [f64; 3] {
    ["lost", "doubled", "disordered"].map(|key| number(line, key))
}

const PAIRS: &str = "pairs 1 --rate 50 --seconds 1 --warm-up 0 --patience 5 --receipts --plain";

#[test]
fn pairs_over_tls_deliver_with_both_ticks_and_acknowledge_everything() {
    let fake = Fake::start(Fault::None);
    let line = load(&fake, "pairs 20 --rate max --seconds 1 --warm-up 1 --receipts");
    assert_eq!((line["mode"].as_str(), line["tls"].as_bool()), (Some("pairs"), Some(true)));
    assert_eq!(faults(&line), [0.0; 3]);
    for key in ["seq_breaks", "refused", "unanswered", "receipts_missing"] {
        assert_eq!(number(&line, key), 0.0, "{key}");
    }
    for key in [
        "delivered",
        "delivered_per_s",
        "lat_p50_us",
        "lat_p99_us",
        "lat_p999_us",
        "tick1_p50_us",
        "tick1_p99_us",
        "tick2_p50_us",
        "tick2_p99_us",
        "server_cpu_s_per_1000",
        "client_cpu_s_per_1000",
    ] {
        assert!(number(&line, key) > 0.0, "{key}");
    }
    assert_eq!(fake.unacknowledged(), 0);
}

#[test]
fn no_more_is_sent_than_the_rate_says_and_big_bodies_arrive_whole() {
    let fake = Fake::start(Fault::None);
    let line = load(&fake, "pairs 10 --rate 100 --seconds 2 --warm-up 0 --plain --body 70000");
    assert_eq!(faults(&line), [0.0; 3]);
    let sent = number(&line, "sent");
    assert!((100.0..=210.0).contains(&sent), "{sent}");
    assert_eq!(number(&line, "accepted"), sent);
    assert!(line["tick2_p50_us"].is_null(), "not measured without --receipts");
}

#[test]
fn a_message_that_is_lost_doubled_or_late_is_counted_as_such() {
    for (fault, expected) in [
        (Fault::Lose, [1.0, 0.0, 0.0]),
        (Fault::Double, [0.0, 1.0, 0.0]),
        (Fault::Swap, [0.0, 0.0, 1.0]),
    ] {
        let line = load(&Fake::start(fault), PAIRS);
        assert_eq!(faults(&line), expected, "{fault:?}: {line}");
    }
}

#[test]
fn a_hole_in_the_mailbox_is_counted() {
    let line = load(&Fake::start(Fault::Hole), PAIRS);
    assert_eq!((faults(&line), number(&line, "seq_breaks")), ([0.0; 3], 1.0));
}

#[test]
fn what_was_refused_is_not_lost() {
    let line = load(&Fake::start(Fault::Refuse), PAIRS);
    assert_eq!((faults(&line), number(&line, "refused")), ([0.0; 3], 1.0));
}

#[test]
fn messages_for_people_who_are_away_are_stored_then_fetched() {
    let fake = Fake::start(Fault::None);
    let line = load(&fake, "offline 100 7");
    assert_eq!(faults(&line), [0.0; 3]);
    assert_eq!((number(&line, "stored"), number(&line, "delivered")), (700.0, 700.0));
    assert_eq!(number(&line, "receipts_missing"), 0.0);
    assert!(number(&line, "store_per_s") > 0.0 && number(&line, "drain_per_s") > 0.0);
    assert_eq!(fake.unacknowledged(), 0);
}

#[test]
fn faults_are_noticed_in_what_was_stored_too() {
    for (fault, expected) in [
        (Fault::Lose, [30.0, 0.0, 0.0]),
        (Fault::Double, [0.0, 30.0, 0.0]),
        (Fault::Swap, [0.0, 0.0, 30.0]),
    ] {
        let line = load(&Fake::start(fault), "offline 30 5 --plain --patience 5");
        assert_eq!(faults(&line), expected, "{fault:?}: {line}");
    }
}

#[test]
fn users_log_in_resume_and_idle() {
    let fake = Fake::start(Fault::None);
    for (words, keys) in [
        ("login 50", ["logins_per_s", "server_cpu_ms_per_login"]),
        ("resume 50", ["logins_per_s", "server_cpu_ms_per_login"]),
        ("idle 50", ["logins_per_s", "server_kib_per_conn"]),
    ] {
        let line = load(&fake, words);
        assert_eq!(line["mode"].as_str(), words.split(' ').next());
        for key in keys {
            number(&line, key);
        }
        assert!(number(&line, "logins_per_s") > 0.0);
    }
}

#[test]
fn a_server_with_another_certificate_is_not_talked_to() {
    let (fake, other) = (Fake::start(Fault::None), Fake::start(Fault::None));
    std::fs::copy(&other.ca, &fake.ca).unwrap();
    let output = run(&fake, "login 1");
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}
