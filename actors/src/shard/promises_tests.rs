//! What the machine promises of receipts, of devices that stay away and of room that nobody takes from
//! others.

use super::command::{Command, Judgment, Outcome};
use super::machine::MachineLimits;
use super::tests::{NOW, ack, admit, append, checkpoint, machine, people, pushed, read_origins};
use proto::stored::{self, command::Kind};
use proto::{Code, DeviceId, ShardId, UserId};
use std::collections::BTreeMap;

const DAY_MS: u64 = 24 * 3600 * 1000;

fn unlink(user: UserId, device: u32) -> Command {
    Kind::RemoveDevice(stored::RemoveDevice { user: user.0, by_device: 1, device })
}

fn mark_read(reader: UserId, from: UserId, send_ids: &[u64]) -> Command {
    let send_ids = send_ids.to_vec();
    let (user, from) = (reader.0, from.0);
    Kind::MarkRead(stored::MarkRead { user, device: 1, from, from_device: 1, send_ids })
}

fn befriend(user: UserId, other: UserId) -> Command {
    let (user, other, contact) = (user.0, other.0, true);
    Kind::SetContact(stored::SetContact { user, other, contact, by_device: 1 })
}

#[test]
fn promise_4_what_no_device_got_is_undeliverable_and_never_delivered() {
    let [ada, bob, _] = people();
    let mut table = BTreeMap::new();
    for in_tables in [false, true] {
        let mut machine = machine(MachineLimits::default());
        machine.apply(NOW, append(bob, ada, 1, "for the phone alone"));
        if in_tables {
            checkpoint(&mut machine, &mut table);
        }
        admit(&mut machine, bob, 99);
        machine.apply(NOW, ack(bob, 2, 1));
        pushed(&mut machine);
        machine.apply(NOW, unlink(bob, 1));
        if in_tables {
            assert_eq!(read_origins(&mut machine, &table), 1);
        }
        let told = pushed(&mut machine).into_iter().filter(|(user, ..)| *user == ada);
        assert_eq!(told.collect::<Vec<_>>(), [(ada, 1, "Undeliverable [1]".to_owned())]);
        machine.apply(NOW, append(bob, ada, 2, "for the tablet"));
        machine.apply(NOW, ack(bob, 2, 3));
        let told = pushed(&mut machine);
        assert!(told.iter().any(|(_, _, text)| text == "Delivered [2]"), "{told:?}");
    }
}

#[test]
fn promise_4_what_was_acknowledged_after_its_time_is_expired_unless_the_clocks_disagree() {
    let [ada, bob, _] = people();
    let (ttl_ms, mut table) = (100_000, BTreeMap::new());
    for in_tables in [false, true] {
        for (now_ms, clocks_agree, fate) in [
            (NOW + ttl_ms - 1, true, "Delivered [1]"),
            (NOW + ttl_ms, true, "Expired [1]"),
            (NOW + ttl_ms, false, "Delivered [1]"),
        ] {
            let mut machine = machine(MachineLimits::default());
            machine.apply(NOW, append(bob, ada, 1, "in time or not"));
            if in_tables {
                checkpoint(&mut machine, &mut table);
            }
            pushed(&mut machine);
            machine.set_may_expire(clocks_agree);
            machine.apply(now_ms, ack(bob, 1, 1));
            if in_tables {
                assert_eq!(read_origins(&mut machine, &table), 1);
            }
            assert_eq!(pushed(&mut machine), [(ada, 1, fate.to_owned())], "{in_tables}");
        }
    }
}

#[test]
fn promise_4_what_comes_while_no_device_is_linked_waits_for_the_next_one() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let (user, by_device, lock) = (bob.0, 1, bytes::Bytes::from("lock"));
    let set =
        stored::SetRegistrationLock { user, by_device, lock: lock.clone(), ..Default::default() };
    machine.apply(NOW, Kind::SetRegistrationLock(set));
    machine.apply(NOW, append(bob, ada, 1, "waits"));
    machine.apply(NOW, unlink(bob, 1));
    machine.apply(NOW, append(bob, ada, 2, "waits as well"));
    assert!(!pushed(&mut machine).iter().any(|(user, ..)| *user == ada), "nothing is told");
    let alias = Some(stored::AliasClaim { alias: format!("user{bob}"), claim: bob.0 });
    let (key, name) = (vec![9; 32].into(), String::new());
    let keep = stored::KeepAccount { user: bob.0, alias, key, name, lock, place: 0 };
    assert_eq!(machine.apply(NOW, Kind::KeepAccount(keep.into())), Outcome::Admitted(DeviceId(2)));
    let start = machine.mailbox(bob).unwrap().cursors().get(DeviceId(2)).unwrap().start;
    assert_eq!(start.0, 0, "it is given both");
    machine.apply(NOW, ack(bob, 2, 2));
    assert_eq!(pushed(&mut machine), [(ada, 1, "Delivered [1, 2]".to_owned())]);
}

#[test]
fn promise_4_only_what_was_sent_is_read_and_each_message_once() {
    let [ada, bob, eve] = people();
    let mut machine = machine(MachineLimits::default());
    for id in 1..=3 {
        machine.apply(NOW, append(bob, ada, id, "hello"));
    }
    machine.apply(NOW, ack(bob, 1, 3));
    pushed(&mut machine);
    machine.apply(NOW, mark_read(bob, ada, &[1, 2, 2, 77]));
    assert_eq!(pushed(&mut machine), [(ada, 2, "Read [1, 2]".to_owned())]);
    machine.apply(NOW, mark_read(bob, ada, &[1, 2, 3]));
    assert_eq!(pushed(&mut machine), [(ada, 3, "Read [3]".to_owned())], "each once");
    for id in 1..=30 {
        machine.apply(NOW, mark_read(eve, ada, &[id]));
    }
    assert_eq!(pushed(&mut machine), [], "she never got anything");
}

#[test]
fn promise_5_what_strangers_and_own_devices_make_leaves_room_for_receipts() {
    let [ada, bob, eve] = people();
    let limits = MachineLimits { mailbox_messages: 20, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    admit(&mut machine, ada, 99);
    for id in 1..=60 {
        // Ada's tablet has a copy of each and fetches none; Eve reads all at once and says so.
        let Kind::Append(sent) = append(eve, ada, id, "hello") else { unreachable!() };
        machine.apply(NOW, Kind::Append(stored::Append { copy: true, ..sent }));
        machine.apply(NOW, ack(eve, 1, id));
        machine.apply(NOW, mark_read(eve, ada, &[id]));
    }
    machine.apply(NOW, append(bob, ada, 61, "to a friend"));
    pushed(&mut machine);
    machine.apply(NOW, ack(bob, 1, 1));
    let told = pushed(&mut machine);
    assert!(told.iter().any(|(_, _, text)| text == "Delivered [61]"), "{told:?}");
}

#[test]
fn promise_4_a_device_that_stays_away_is_set_aside_and_told_when_it_comes_back() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    admit(&mut machine, bob, 99);
    machine.apply(NOW, append(bob, ada, 1, "hello"));
    machine.apply(NOW, ack(bob, 1, 1));
    let idle = |machine: &super::Machine, now_ms| {
        machine.idle_devices(UserId(0), 100, 30 * DAY_MS, now_ms).0
    };
    assert_eq!(idle(&machine, NOW + 29 * DAY_MS), []);
    let later = NOW + 31 * DAY_MS;
    machine.apply(later, append(bob, ada, 2, "again"));
    machine.apply(later, ack(bob, 1, 2));
    assert_eq!(idle(&machine, later), [(bob, DeviceId(2))]);
    pushed(&mut machine);
    let set = stored::SetAside { user: bob.0, device: 2, idle_ms: 30 * DAY_MS };
    machine.apply(later, Kind::SetAside(set));
    let told = pushed(&mut machine);
    assert!(told.iter().any(|(_, _, text)| text == "Delivered [1, 2]"), "{told:?}");
    assert!(told.iter().any(|(user, _, text)| *user == bob && text == "device 2: 1"), "{told:?}");
    assert!(
        machine.account(bob).unwrap().view(bob).devices.get(&DeviceId(2)).unwrap().set_aside_ms > 0
    );

    let readmit = stored::Readmit { user: bob.0, device: 2 };
    assert_eq!(machine.apply(later, Kind::Readmit(readmit)), Outcome::Done);
    let cursor = machine.mailbox(bob).unwrap().cursors().get(DeviceId(2)).unwrap();
    assert_eq!((cursor.start.0, cursor.acknowledged.0), (3, 3), "from now on");
    let told = pushed(&mut machine);
    assert!(told.iter().any(|(user, _, text)| *user == bob && text == "device 2: 2"), "{told:?}");
}

#[test]
fn promise_5_a_device_that_never_comes_does_not_fill_the_mailbox_for_the_others() {
    let [ada, bob, _] = people();
    let limits = MachineLimits { mailbox_messages: 200, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    admit(&mut machine, bob, 99);
    machine.apply(NOW, befriend(bob, ada));
    let mut id = 0;
    for _ in 0..600 {
        id += 1;
        let outcome = machine.apply(NOW, append(bob, ada, id, "hello"));
        if outcome == Outcome::Refused(Code::MailboxFull) {
            let again = machine.apply(NOW, append(bob, ada, id, "hello"));
            assert_eq!(again, Outcome::Accepted { at_ms: NOW }, "the tablet was set aside");
        }
        let last = machine.mailbox(bob).unwrap().last();
        machine.apply(NOW, ack(bob, 1, last.0));
    }
    assert!(machine.mailbox(bob).unwrap().cursors().get(DeviceId(2)).is_none());
    assert!(machine.mailbox(bob).unwrap().usage().messages < 200);
}

#[test]
fn promise_5_a_stranger_leaves_room_for_contacts() {
    let [ada, bob, eve] = people();
    let limits = MachineLimits { mailbox_messages: 100, ..MachineLimits::default() };
    let mut machine = machine(limits);
    machine.apply(NOW, befriend(bob, ada));
    let fits = |machine: &mut super::Machine, from, ids: std::ops::Range<u64>| {
        let accepted = |id: &u64| {
            let outcome = machine.apply(NOW, append(bob, from, *id, "x"));
            outcome == Outcome::Accepted { at_ms: NOW }
        };
        ids.filter(accepted).count()
    };
    assert_eq!(fits(&mut machine, eve, 1..90), 10, "a tenth");
    assert_eq!(fits(&mut machine, ada, 1..90), 50, "half of it");
    let Kind::Append(refused) = append(bob, eve, 99, "x") else { unreachable!() };
    let full = Judgment::Refused(Code::MailboxFull);
    assert_eq!(machine.judge(&refused), full, "before it is logged");
    let again = stored::Append { send_id: 1, ..refused };
    assert_eq!(machine.judge(&again), Judgment::Stored);
    machine.apply(NOW, befriend(bob, eve));
    assert_eq!(fits(&mut machine, eve, 100..200), 0, "held back for ten seconds");
}

#[test]
fn promise_5_linking_and_unlinking_in_a_circle_costs_no_memory() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    for device in 1..=100u32 {
        for id in 0..40 {
            let Kind::Append(sent) = append(bob, ada, 1 + id * 2, "x") else { unreachable!() };
            machine.apply(NOW, Kind::Append(stored::Append { from_device: device, ..sent }));
        }
    }
    assert_eq!(machine.mailbox(bob).unwrap().recent_senders().count(), 16);
}

#[test]
fn promise_5_a_shard_without_a_leader_is_owed_a_bounded_number_of_receipts() {
    let [_, bob, eve] = people();
    let limits = MachineLimits { mailbox_messages: 1 << 20, ..MachineLimits::default() };
    let mut machine = machine(limits.unshared());
    let of_shard =
        |shard| (1..1_000).map(UserId).find(|user| user.shard() == ShardId(shard)).unwrap();
    let (far, further) = (of_shard(5), of_shard(6));
    let accepted = Outcome::Accepted { at_ms: NOW };
    machine.apply(NOW, append(eve, far, 1, "waits"));
    let mut id = 0;
    while machine.apply(NOW, append(bob, far, id + 1, "hello")) == accepted {
        id += 1;
        assert!(id <= 20_000, "a receipt is owed for each");
        machine.apply(NOW, ack(bob, 1, id));
        machine.take_effects();
    }
    let refused = Outcome::Refused(Code::Unavailable);
    assert_eq!(machine.apply(NOW, append(bob, far, id + 1, "hello")), refused);
    let Kind::Append(next) = append(bob, far, id + 1, "hello") else { unreachable!() };
    assert_eq!(machine.judge(&next), Judgment::Refused(Code::Unavailable), "before it is logged");
    assert_eq!(machine.apply(NOW, append(bob, far, id, "hello")), accepted, "it was stored");
    let read = mark_read(bob, far, &[id]);
    assert_eq!(machine.apply(NOW, read.clone()), refused);
    assert_eq!(machine.apply(NOW, append(bob, further, 1, "hello")), accepted, "another shard");
    let owed = |machine: &super::Machine| machine.streams().offer(ShardId(5), id - 1).len();
    machine.apply(NOW, ack(eve, 1, 1));
    assert_eq!(owed(&machine), 2, "what was accepted is told");

    let number = id + 1;
    machine.apply(NOW, Kind::SettleNotices(stored::SettleNotices { to_shard: 5, number }));
    assert_eq!(machine.apply(NOW, append(bob, far, number, "hello")), accepted);
    assert_eq!(machine.apply(NOW, read), Outcome::Done);
}

#[test]
fn promise_2_a_send_that_is_held_back_is_accepted_if_it_is_stored_and_else_changes_nothing() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    machine.apply(NOW, append(bob, ada, 9, "hello"));
    pushed(&mut machine);
    let held = |id| {
        let Kind::Append(sent) = append(bob, ada, id, "") else { unreachable!() };
        Kind::Append(stored::Append { held: Code::MailboxFull.number(), ..sent })
    };
    assert_eq!(machine.apply(NOW, held(9)), Outcome::Accepted { at_ms: NOW });
    assert_eq!(machine.apply(NOW, held(10)), Outcome::Refused(Code::MailboxFull));
    assert_eq!(pushed(&mut machine), []);
    assert_eq!(
        machine.apply(NOW, append(bob, ada, 11, "later")),
        Outcome::Accepted { at_ms: NOW },
        "it holds nothing back itself"
    );
}

#[test]
fn a_copy_is_for_other_devices_that_are_there_when_it_comes() {
    let [ada, bob, _] = people();
    let mut machine = machine(MachineLimits::default());
    let copied = |id| {
        let Kind::Append(sent) = append(bob, ada, id, "hello") else { unreachable!() };
        Kind::Append(stored::Append { copy: true, ..sent })
    };
    machine.apply(NOW, copied(1));
    assert_eq!(pushed(&mut machine), [(bob, 1, "hello".to_owned())]);
    admit(&mut machine, ada, 99);
    pushed(&mut machine);
    machine.apply(NOW, copied(2));
    assert!(pushed(&mut machine).iter().any(|(user, _, text)| *user == ada && text == "sent 2"));
}
