//! What the machine promises, told without clock, disk or tasks.

#![allow(clippy::wildcard_enum_match_arm, reason = "a story looks at what it is about")]

use super::command::{Command, Effect, Outcome, Spill};
use super::machine::{Machine, MachineLimits};
use super::privacy::{Audience, Privacy};
use crate::shard::mailbox::usage::Usage;
use proto::stored::{self, command::Kind, envelope::Content, notice::What};
use proto::wire::receipt::Kind as ReceiptKind;
use proto::{Code, Seq, ShardId, UserId};
use std::collections::BTreeMap;
use storage::Row;

pub(super) const NOW: u64 = 1_000_000;

/// Users whose shard is the first, so that all of a story happens in one machine.
pub(super) fn people() -> [UserId; 3] {
    let mut here = (1..).map(UserId).filter(|user| user.shard() == ShardId(0));
    [here.next().unwrap(), here.next().unwrap(), here.next().unwrap()]
}

/// A machine with people in it, each with one device.
pub(super) fn machine(limits: MachineLimits) -> Machine {
    let mut machine = Machine::new(ShardId(0), limits);
    for (number, user) in (1..).zip(people()) {
        let alias = Some(stored::AliasClaim { alias: format!("user{user}"), claim: user.0 });
        let open = stored::OpenAccount { alias, key: key(user.0), name: String::new() };
        let what = Some(What::OpenAccount(open));
        let notices = vec![stored::Notice { number, user: user.0, what }];
        let taken = stored::TakeNotices { from_shard: 9, notices };
        assert_eq!(machine.apply(NOW, Kind::TakeNotices(taken)), Outcome::Done);
        assert_eq!(machine.account(user).unwrap().devices().len(), 1);
    }
    machine.take_effects();
    machine
}

fn key(key: u64) -> bytes::Bytes {
    key.to_be_bytes().to_vec().into()
}

/// Links a device, by the first one.
pub(super) fn admit(machine: &mut Machine, user: UserId, number: u64) -> Outcome {
    let admit =
        stored::AdmitDevice { user: user.0, by_device: 1, key: key(number), ..Default::default() };
    machine.apply(NOW, Kind::AdmitDevice(admit))
}

pub(super) fn append(to: UserId, from: UserId, send_id: u64, body: &'static str) -> Command {
    Kind::Append(stored::Append {
        to: to.0,
        from: from.0,
        from_device: 1,
        send_id,
        ttl_s: 100,
        body: body.into(),
        ..Default::default()
    })
}

pub(super) fn ack(user: UserId, device: u32, seq: u64) -> Command {
    Kind::Ack(stored::Ack { user: user.0, device, seq })
}

/// The entries pushed since the last call: whose, where, and what they say.
pub(super) fn pushed(machine: &mut Machine) -> Vec<(UserId, u64, String)> {
    let told = |effect| match effect {
        Effect::Push { user, seq, envelope } => Some((user, seq.0, say(&envelope))),
        Effect::ReadOrigins { .. }
        | Effect::AccountChanged { .. }
        | Effect::WrongPins { .. }
        | Effect::PinsUsedUp
        | Effect::Checkpoint(_) => None,
    };
    machine.take_effects().into_iter().filter_map(told).collect()
}

fn say(envelope: &stored::Envelope) -> String {
    match envelope.content.as_ref().unwrap() {
        Content::Message(message) => String::from_utf8(message.body.to_vec()).unwrap(),
        Content::Receipt(receipt) => {
            let kind = ReceiptKind::try_from(receipt.kind.cast_signed()).unwrap();
            format!("{kind:?} {:?}", receipt.send_ids)
        }
        Content::SentCopy(copy) => format!("sent {}", copy.send_id),
        Content::ReadCopy(copy) => format!("read {:?}", copy.send_ids),
        Content::DeviceNotice(notice) => format!("device {}: {}", notice.device, notice.kind),
    }
}

/// Applies a checkpoint and plays storage: keeps the rows in a table.
pub(super) fn checkpoint(
    machine: &mut Machine,
    table: &mut BTreeMap<(UserId, Seq), stored::Envelope>,
) -> Spill {
    machine.apply(NOW, Kind::Spill(stored::Spill {}));
    let Some(Effect::Checkpoint(spill)) = machine.take_effects().pop() else { panic!("no spill") };
    for row in &spill.rows {
        match row {
            Row::Message(user, seq, Some(envelope)) => {
                table.insert((*user, *seq), envelope.clone());
            }
            Row::Message(user, seq, None) => {
                table.remove(&(*user, *seq));
            }
            Row::MessagesGone { user, first, last } => {
                table.retain(|(u, seq), _| u != user || seq < first || seq > last);
            }
            _ => {}
        }
    }
    spill
}

/// Plays the shard actor: reads the origins that the machine asks for.
pub(super) fn read_origins(
    machine: &mut Machine,
    table: &BTreeMap<(UserId, Seq), stored::Envelope>,
) -> usize {
    let effects = machine.take_effects();
    let asked = effects.into_iter().filter_map(|effect| match effect {
        Effect::ReadOrigins { user, first, up_to } => Some((user, first, up_to)),
        Effect::Push { .. }
        | Effect::AccountChanged { .. }
        | Effect::WrongPins { .. }
        | Effect::PinsUsedUp
        | Effect::Checkpoint(_) => None,
    });
    let asked: Vec<_> = asked.collect();
    for (user, first, up_to) in &asked {
        let rows = table.range((*user, *first)..=(*user, *up_to));
        let origins = rows.map(|((_, seq), row)| super::machine::origin_row(*seq, row)).collect();
        let (user, up_to, ended_by_ms) = (user.0, up_to.0, machine.ends_by_ms);
        machine.apply(NOW, Kind::Release(stored::Release { user, up_to, origins, ended_by_ms }));
    }
    asked.len()
}

#[test]
fn promise_3_a_retried_send_is_stored_once() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    for _ in 0..3 {
        let outcome = machine.apply(NOW, append(bob, ada, 7, "hello"));
        assert_eq!(outcome, Outcome::Accepted { at_ms: NOW });
    }
    assert_eq!(pushed(&mut machine), [(bob, 1, "hello".to_owned())]);
    machine.apply(NOW, ack(bob, 1, 1));
    machine.apply(NOW, append(bob, ada, 7, "hello"));
    assert_eq!(machine.mailbox(bob).unwrap().usage().messages, 0, "also after it was delivered");
}

#[test]
fn promise_4_the_last_device_to_acknowledge_releases_and_tells() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    assert_eq!(admit(&mut machine, bob, 99), Outcome::Admitted(proto::DeviceId(2)));
    machine.apply(NOW, append(bob, ada, 7, "hello"));
    pushed(&mut machine);

    machine.apply(NOW, ack(bob, 1, 1));
    assert_eq!(pushed(&mut machine), [], "one device still lacks it");
    machine.apply(NOW, ack(bob, 2, 1));
    assert_eq!(pushed(&mut machine), [(ada, 1, "Delivered [7]".to_owned())]);
    assert_eq!(machine.mailbox(bob).unwrap().usage(), &Usage::default());
}

#[test]
fn promise_4_what_went_to_the_tables_is_told_and_let_go_as_well() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let mut table = BTreeMap::new();
    machine.apply(NOW, append(bob, ada, 1, "one"));
    machine.apply(NOW, append(bob, ada, 2, "two"));
    checkpoint(&mut machine, &mut table);
    assert_eq!(table.len(), 2);
    machine.apply(NOW, append(bob, ada, 3, "three"));
    machine.apply(NOW, ack(bob, 1, 3));
    assert_eq!(read_origins(&mut machine, &table), 1);
    assert_eq!(pushed(&mut machine), [(ada, 2, "Delivered [1, 2]".to_owned())]);
    assert_eq!(machine.mailbox(bob).unwrap().usage(), &Usage::default());
    checkpoint(&mut machine, &mut table);
    assert!(!table.keys().any(|(user, _)| *user == bob), "no row of it is left");
}

#[test]
fn promise_5_a_full_mailbox_refuses_and_stores_nothing() {
    let [ada, bob, _] = people();
    let limits = MachineLimits { mailbox_messages: 2, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    machine.apply(NOW, append(bob, ada, 1, "one"));
    machine.apply(NOW, append(bob, ada, 2, "two"));
    let refused = Outcome::Refused(Code::MailboxFull);
    assert_eq!(machine.apply(NOW, append(bob, ada, 3, "three")), refused);
    machine.apply(NOW, ack(bob, 1, 1));
    let accepted = Outcome::Accepted { at_ms: NOW };
    assert_eq!(
        machine.apply(NOW, append(bob, ada, 3, "three")),
        accepted,
        "its id was not used up"
    );
}

#[test]
fn promise_3_what_was_sent_after_a_refused_message_does_not_overtake_it() {
    let [ada, bob, eve] = people();
    let limits = MachineLimits { mailbox_messages: 1, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    let (full, accepted) = (Outcome::Refused(Code::MailboxFull), Outcome::Accepted { at_ms: NOW });
    assert_eq!(machine.apply(NOW, append(bob, ada, 1, "one")), accepted);
    assert_eq!(machine.apply(NOW, append(bob, ada, 2, "two")), full);
    machine.apply(NOW, ack(bob, 1, 1));
    assert_eq!(machine.apply(NOW, append(bob, ada, 3, "three")), full, "two comes first");
    assert_eq!(machine.apply(NOW, append(bob, ada, 2, "two")), accepted);
    machine.apply(NOW, ack(bob, 1, 2));
    assert_eq!(machine.apply(NOW, append(bob, ada, 3, "three")), accepted);
    machine.apply(NOW, ack(bob, 1, 3));
    assert_eq!(machine.apply(NOW, append(bob, eve, 9, "other")), accepted);
    assert_eq!(machine.apply(NOW, append(bob, ada, 4, "four")), full);
    machine.apply(NOW, ack(bob, 1, 4));
    let later = machine.apply(NOW + 10_000, append(bob, ada, 5, "five"));
    assert_eq!(later, Outcome::Accepted { at_ms: NOW + 10_000 }, "four was given up");
}

#[test]
fn the_sender_is_told_when_the_time_to_live_ends() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let mut table = BTreeMap::new();
    machine.apply(NOW, append(bob, ada, 1, "stored"));
    checkpoint(&mut machine, &mut table);
    machine.apply(NOW, append(bob, ada, 2, "in memory"));
    pushed(&mut machine);

    let later = NOW + 100_000;
    assert!(machine.has_due(later) && !machine.has_due(later - 1));
    let due = table.iter().map(|((user, seq), envelope)| stored::Expired {
        user: user.0,
        origin: Some(super::machine::origin_row(*seq, envelope)),
    });
    let expire = Kind::Expire(stored::Expire { entries: due.collect(), until_ms: later });
    machine.apply(later, expire.clone());
    machine.apply(later, expire);
    let mut told = pushed(&mut machine);
    told.sort();
    let expired = |seq, id| (ada, seq, format!("Expired [{id}]"));
    assert_eq!(told, [expired(1, 2), expired(2, 1)], "each once");
    assert_eq!(machine.mailbox(bob).unwrap().usage(), &Usage::default());
}

#[test]
fn a_retry_is_recognized_after_any_jump_of_the_time() {
    let [ada, bob, _] = people();
    for jump_ms in [31 * 24 * 3_600_000, -31 * 24 * 3_600_000] {
        let mut machine = machine(MachineLimits::default());
        let mut table = BTreeMap::new();
        machine.apply(NOW, append(bob, ada, 1, "once"));
        let later = NOW.saturating_add_signed(jump_ms);
        machine.apply(later, ack(bob, 1, 1));
        checkpoint(&mut machine, &mut table);
        machine.apply(later, append(bob, ada, 1, "once"));
        assert_eq!(machine.mailbox(bob).unwrap().usage().messages, 0, "stored twice");
    }
}

#[test]
fn the_time_stands_still_for_a_slow_clock_and_goes_back_for_a_correction() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let mut at = |now_ms, id| machine.apply(now_ms, append(bob, ada, id, "x"));
    assert_eq!(at(NOW, 1), Outcome::Accepted { at_ms: NOW });
    assert_eq!(at(NOW - 60_000, 2), Outcome::Accepted { at_ms: NOW });
    let year = NOW + 365 * 24 * 3_600_000;
    assert_eq!(at(year, 3), Outcome::Accepted { at_ms: year });
    assert_eq!(at(NOW + 5, 4), Outcome::Accepted { at_ms: NOW + 5 });
}

#[test]
fn what_is_in_memory_ends_by_what_the_command_says_and_not_by_the_time() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    machine.apply(NOW, append(bob, ada, 1, "kept"));
    let expire = |until_ms| Kind::Expire(stored::Expire { entries: Vec::new(), until_ms });
    machine.apply(NOW + 40 * 24 * 3_600_000, expire(NOW));
    assert_eq!(machine.mailbox(bob).unwrap().usage().messages, 1);
    machine.apply(NOW, expire(NOW + 100_000));
    assert_eq!(machine.mailbox(bob).unwrap().usage().messages, 0);
}

#[test]
fn blocks_and_unknown_users_are_refused() {
    let [ada, bob, eve] = people();
    let mut machine = machine(MachineLimits::default());
    let block = stored::SetBlock { user: bob.0, other: eve.0, blocked: true, by_device: 1 };
    machine.apply(NOW, Kind::SetBlock(block));
    let refused = |machine: &mut Machine, command| match machine.apply(NOW, command) {
        Outcome::Refused(code) => code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut machine, append(bob, eve, 1, "x")), Code::Blocked);
    assert_eq!(refused(&mut machine, append(UserId(16), ada, 1, "x")), Code::UnknownUser);
}

#[test]
fn a_deleted_account_tells_its_senders_and_leaves_nothing() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let mut table = BTreeMap::new();
    machine.apply(NOW, append(bob, ada, 1, "stored"));
    checkpoint(&mut machine, &mut table);
    machine.apply(NOW, append(bob, ada, 2, "in memory"));
    pushed(&mut machine);
    machine.apply(NOW, Kind::DeleteAccount(stored::DeleteAccount { user: bob.0, by_device: 1 }));
    assert!(machine.account(bob).is_none());
    read_origins(&mut machine, &table);
    let spill = checkpoint(&mut machine, &mut table);
    assert!(spill.rows.iter().any(|row| matches!(row, Row::Account(user, None) if *user == bob)));
    assert!(!table.keys().any(|(user, _)| *user == bob));
    let told: Vec<String> = table.values().map(say).collect();
    assert_eq!(told, ["Undeliverable [2]", "Undeliverable [1]"]);
}

#[test]
fn reading_tells_the_sender_unless_the_reader_minds() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let read = |send_ids: &[u64]| {
        Kind::MarkRead(stored::MarkRead {
            user: bob.0,
            device: 1,
            from: ada.0,
            from_device: 1,
            send_ids: send_ids.to_vec(),
        })
    };
    for id in 4..=9 {
        machine.apply(NOW, append(bob, ada, id, "hello"));
    }
    pushed(&mut machine);
    machine.apply(NOW, read(&[4, 5]));
    assert_eq!(pushed(&mut machine), [(ada, 1, "Read [4, 5]".to_owned())]);
    let contact = stored::SetContact { user: bob.0, other: ada.0, contact: true, by_device: 1 };
    let shown_to = |read_receipts| {
        let privacy = Privacy { read_receipts, ..Privacy::default() };
        let privacy = Some(privacy.to_stored());
        Kind::SetPrivacy(stored::SetPrivacy { user: bob.0, privacy, by_device: 1 })
    };
    machine.apply(NOW, shown_to(Audience::Contacts));
    machine.apply(NOW, read(&[6]));
    assert_eq!(pushed(&mut machine), [], "she is no contact of his");
    machine.apply(NOW, Kind::SetContact(contact));
    machine.apply(NOW, read(&[7]));
    assert_eq!(pushed(&mut machine), [(ada, 2, "Read [7]".to_owned())]);
    machine.apply(NOW, shown_to(Audience::Nobody));
    machine.apply(NOW, read(&[8]));
    assert_eq!(pushed(&mut machine), []);
}

#[test]
fn contacts_are_bounded_and_come_back_from_a_checkpoint() {
    let [_, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let mut set = |other, contact| {
        machine.apply(
            NOW,
            Kind::SetContact(stored::SetContact { user: bob.0, other, contact, by_device: 1 }),
        )
    };
    let most = proto::limits::CONTACTS_MAX as u64;
    assert!((1..=most).all(|other| set(other, true) == Outcome::Done));
    assert_eq!(set(most + 1, true), Outcome::Refused(Code::TooMany));
    assert_eq!(set(1, true), Outcome::Done, "a second time is no news");
    assert_eq!(set(1, false), Outcome::Done);
    assert_eq!(set(most + 1, true), Outcome::Done);
    let row = machine.account(bob).unwrap().to_row();
    let mut again = super::account::Account::default();
    again.load_row(&row);
    assert_eq!(again.view(bob).contacts, machine.account(bob).unwrap().view(bob).contacts);
}

/// Rows of a checkpoint, loaded into a new machine, bring the whole state back.
#[test]
fn a_checkpoint_brings_everything_back() {
    let [ada, bob, eve] = people();
    let elsewhere = (1..99).map(UserId).find(|user| user.shard() == ShardId(1)).unwrap();
    let mut machine = machine(MachineLimits::default());
    let mut table = BTreeMap::new();
    machine.apply(NOW, append(bob, elsewhere, 1, "from elsewhere"));
    machine.apply(NOW, append(bob, ada, 1, "hello"));
    machine.apply(NOW, ack(bob, 1, 1));
    machine.apply(
        NOW,
        Kind::SetBlock(stored::SetBlock { user: bob.0, other: eve.0, blocked: true, by_device: 1 }),
    );
    let spill = checkpoint(&mut machine, &mut table);

    let mut back = Machine::new(ShardId(0), MachineLimits::default());
    spill.rows.into_iter().for_each(|row| back.load(row));
    assert_eq!(back.apply(NOW, append(bob, eve, 9, "x")), Outcome::Refused(Code::Blocked));
    assert_eq!(back.apply(NOW, append(bob, ada, 1, "hello")), Outcome::Accepted { at_ms: NOW });
    assert_eq!(back.mailbox(bob).unwrap().usage().messages, 1, "the retry was recognized");
    assert_eq!(back.streams().offer(ShardId(1), 0).len(), 1, "the receipt is still owed");
    back.apply(NOW, ack(bob, 1, 2));
    read_origins(&mut back, &table);
    assert_eq!(pushed(&mut back), [(ada, 1, "Delivered [1]".to_owned())]);
}

#[test]
fn notices_are_taken_in_their_order_or_refused() {
    let mut machine = machine(MachineLimits::default());
    let [ada, ..] = people();
    let receipt = |number: u64| {
        let receipt = stored::Receipt { send_ids: vec![number], ..Default::default() };
        let content = Some(Content::Receipt(receipt));
        let what = What::Envelope(stored::Envelope { content, ..Default::default() });
        stored::Notice { number, user: ada.0, what: Some(what) }
    };
    let take = |machine: &mut Machine, numbers: &[u64]| {
        let notices = numbers.iter().copied().map(receipt).collect();
        let taken = stored::TakeNotices { from_shard: 7, notices };
        machine.apply(NOW, Kind::TakeNotices(taken))
    };
    let early = Outcome::Refused(Code::Unavailable);
    assert_eq!(take(&mut machine, &[3, 4]), early, "whoever confirms them would lose 1 and 2");
    assert_eq!(take(&mut machine, &[1, 2]), Outcome::Done);
    assert_eq!(take(&mut machine, &[1, 2, 3, 4]), Outcome::Done);
    let seqs: Vec<u64> = pushed(&mut machine).into_iter().map(|(_, seq, _)| seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4], "each once");
}

#[test]
fn promise_5_new_messages_come_ten_seconds_after_a_refusal_however_often_they_are_tried() {
    let [ada, bob, _] = people();
    let limits = MachineLimits { mailbox_messages: 2, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    for id in 1..=2 {
        machine.apply(NOW, append(bob, ada, id, "fits"));
    }
    let full = Outcome::Refused(Code::MailboxFull);
    assert_eq!(machine.apply(NOW, append(bob, ada, 3, "too much")), full);
    machine.apply(NOW, ack(bob, 1, 2));
    for second in 1..10 {
        let now_ms = NOW + second * 1_000;
        assert_eq!(machine.apply(now_ms, append(bob, ada, 3 + second, "waits")), full, "{second}");
    }
    let now_ms = NOW + 10_000;
    let accepted = Outcome::Accepted { at_ms: now_ms };
    assert_eq!(machine.apply(now_ms, append(bob, ada, 20, "in time")), accepted);
}

#[test]
fn an_unknown_notice_is_never_confirmed() {
    let mut machine = Machine::new(ShardId(0), MachineLimits::default());
    let [ada, ..] = people();
    let take = |what| {
        let notices = vec![stored::Notice { number: 1, user: ada.0, what }];
        Kind::TakeNotices(stored::TakeNotices { from_shard: 9, notices })
    };
    let unreadable = Some(What::Envelope(stored::Envelope::default()));
    for unknown in [None, unreadable] {
        assert!(!super::command::knows_notices(&take(unknown.clone())));
        assert_eq!(machine.apply(NOW, take(unknown)), Outcome::Refused(Code::NotSupported));
    }
    let alias = Some(stored::AliasClaim { alias: "ada".to_owned(), claim: 1 });
    let open = stored::OpenAccount { alias, key: key(1), name: String::new() };
    assert_eq!(machine.apply(NOW, take(Some(What::OpenAccount(open)))), Outcome::Done);
    assert!(machine.account(ada).is_some(), "number 1 was still to come");
}
