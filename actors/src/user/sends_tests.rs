//! Sends: what waits for the retry of a rejected one, and whose alias is remembered for how long.

use super::super::items::Item;
use super::*;
use crate::rates::TooFast;
use crate::shard::{Attached, account_from_wire};
use crate::unanswered::Standing;
use proto::wire::{ClientFrame, client_frame::Kind as Ask};
use proto::{Seq, cluster};

const USER: UserId = UserId(7);

/// A user with two devices, each with a session on a connection of the same number.
fn two_devices() -> UserCore {
    let mut core = UserCore::new(USER);
    let now = Now { ms: 0, message_ttl_max_s: 60 };
    for device in 1..=2 {
        let connection = ConnectionId(u64::from(device));
        core.step(Item::Attach { connection, device: DeviceId(device) }, now);
        let account = cluster::Account { user: USER.0, ..cluster::Account::default() };
        let account = account_from_wire(&account).unwrap();
        let (acknowledged, start, last) = (Seq(0), Seq(0), Seq(0));
        let attached = Attached { account, acknowledged, start, set_aside: false, last };
        let attached = Ok(Some(Box::new(attached)));
        core.step(Item::Attached(connection, attached, Standing::Login(Seq(0))), now);
    }
    core
}

/// One more send while the bucket holds `left`; with which code and wait it is refused.
fn admit(
    core: &mut UserCore,
    (device, id): (u32, u64),
    left: bool,
    ms: u64,
) -> Result<(), (Code, u32)> {
    let now = Now { ms, message_ttl_max_s: 60 };
    let send = wire::Send { to: Some(To::User(9)), ..wire::Send::default() };
    let frame = Box::new(ClientFrame { id, kind: Some(Ask::Send(send)) });
    while core.next_action().is_some() {}
    core.step(Item::Frame(ConnectionId(u64::from(device)), frame), now);
    let mut action = core.next_action();
    if let Some(Action::CheckSend(checking)) = action {
        let verdict = if left { Ok(()) } else { Err(Rejected::TooFast(TooFast { after_ms: 20 })) };
        core.step(Item::SendChecked(checking, verdict), now);
        action = core.next_action();
    }
    match action {
        Some(Action::Propose(_, append, _)) if append.send_id == id => Ok(()),
        Some(Action::Refuse(_, _, refused)) => {
            Err((Code::from_number(refused.code), refused.retry_after_ms))
        }
        other => panic!("a send is neither proposed nor refused: {other:?}"),
    }
}

#[test]
fn sends_after_one_that_was_too_fast_wait_for_its_retry() {
    let mut core = two_devices();
    let held = Err((Code::TooFast, 1_000));
    assert_eq!(admit(&mut core, (1, 1), true, 100_000), Ok(()));
    assert_eq!(admit(&mut core, (1, 2), false, 100_000), Err((Code::TooFast, 20)));
    assert_eq!(admit(&mut core, (1, 3), true, 101_000), held, "it would overtake");
    assert_eq!(admit(&mut core, (2, 3), true, 101_000), Ok(()), "another device");
    assert_eq!(admit(&mut core, (1, 2), true, 102_000), Ok(()));
    assert_eq!(admit(&mut core, (1, 3), true, 103_000), Ok(()));
}

#[test]
fn new_sends_do_not_prolong_the_wait_for_one_that_never_comes_again() {
    let mut core = two_devices();
    assert!(admit(&mut core, (1, 2), false, 100_000).is_err());
    for second in 1..10 {
        let admitted = admit(&mut core, (1, 2 + second), true, 100_000 + second * 1000);
        assert!(admitted.is_err(), "{second}");
    }
    assert_eq!(admit(&mut core, (1, 20), true, 110_000), Ok(()));
}

#[test]
fn the_owner_of_an_alias_is_not_remembered_for_long() {
    let (mut sends, alias) = (Sends::default(), Alias::parse("cyx").unwrap());
    sends.remember_owner(alias.clone(), UserId(7), 1_000);
    assert_eq!(sends.owner(&alias, 1_001), Some(UserId(7)));
    assert_eq!(sends.owner(&alias, 1_000 + OWNER_KEPT_MS), None);
}
