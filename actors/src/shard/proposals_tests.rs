//! Batches: what goes together, what waits, what is refused.

#![allow(clippy::wildcard_enum_match_arm, reason = "a story looks at what it is about")]
use super::*;

/// Somebody here sends; the token is the id.
fn push(proposals: &mut Proposals, send_id: u64, ms: u64) {
    let append = stored::Append { from: 1, from_device: 1, to: 2, send_id, ..Default::default() };
    proposals.push(Command::Append(append), Asker::Caller(send_id), Moment { tick: 1, ms });
}

/// What became of commands since the last call.
fn outcomes(proposals: &mut Proposals) -> Vec<(Asker, Outcome)> {
    std::iter::from_fn(|| proposals.next_outcome()).collect()
}

fn ids(batch: &Batch) -> Vec<u64> {
    let ids = batch.commands.iter().filter_map(|command| match &command.kind {
        Some(Command::Append(append)) => Some(append.send_id),
        _ => None,
    });
    ids.collect()
}

#[test]
fn a_conversation_has_one_batch_under_way_and_others_need_not_wait_for_it() {
    let (mut proposals, now) = (Proposals::default(), Moment { tick: 1, ms: 0 });
    let append = |from, send_id| {
        Command::Append(stored::Append { from, to: 9, send_id, ..Default::default() })
    };
    let push = |proposals: &mut Proposals, command| {
        proposals.push(command, Asker::Caller(0), now);
    };
    push(&mut proposals, append(1, 11));
    let first = proposals.next_beside(false, now).unwrap().number;
    push(&mut proposals, append(2, 21));
    push(&mut proposals, append(2, 22));
    push(&mut proposals, append(1, 12));
    push(&mut proposals, append(3, 31));
    let beside = proposals.next_beside(false, now).unwrap();
    assert_eq!(ids(beside), [21, 22], "up to 12");
    assert!(proposals.next_beside(false, now).is_none(), "12 waits for 11");
    assert!(proposals.next(false, now).is_none(), "here one batch at a time");

    proposals.failed(first, Failure::NotProposed);
    let again = proposals.next_beside(false, now).unwrap();
    assert_eq!(ids(again), [11, 12, 31], "in their order");
}

#[test]
fn what_must_keep_its_order_is_overtaken_by_nothing() {
    let (mut proposals, now) = (Proposals::default(), Moment { tick: 1, ms: 0 });
    let append = |from| Command::Append(stored::Append { from, to: 9, ..Default::default() });
    let privacy = Command::SetPrivacy(stored::SetPrivacy::default());
    let ack = Command::Ack(stored::Ack::default());
    for command in [append(1), ack, privacy, append(2)] {
        proposals.push(command, Asker::Caller(0), now);
        proposals.next_beside(false, now);
    }
    assert_eq!(proposals.under_way.len(), 2, "a setting waits, and what is behind it");
}

#[test]
fn what_another_node_has_asked_for_again_is_not_proposed_twice() {
    let mut proposals = Proposals::default();
    for tick in [1, 2] {
        let moment = Moment { tick, ms: tick * TICK_MS };
        let asker = Asker::Peer { number: tick, place: 0 };
        proposals.push(Command::Ack(stored::Ack::default()), asker, moment);
    }
    let tick = 2 + FORWARD_TICKS;
    let batch = proposals.next(false, Moment { tick, ms: tick * TICK_MS }).unwrap();
    assert_eq!(batch.commands.len(), 1);
    let first = Asker::Peer { number: 1, place: 0 };
    assert_eq!(outcomes(&mut proposals), [(first, Outcome::Elsewhere)]);
}

#[test]
fn what_was_perhaps_removed_is_not_asked_for_again() {
    let (mut proposals, now) = (Proposals::default(), Moment { tick: 1, ms: 0 });
    let delete = Command::DeleteAccount(stored::DeleteAccount::default());
    proposals.push(delete, Asker::Caller(1), now);
    let number = proposals.next(false, now).unwrap().number;
    proposals.failed(number, Failure::Unknown);
    let refused = Outcome::Refused(Code::Unavailable);
    assert_eq!(outcomes(&mut proposals), [(Asker::Caller(1), refused)]);
}

#[test]
fn a_send_that_comes_back_again_and_again_is_held_for_twenty_seconds_and_no_longer() {
    let mut proposals = Proposals::default();
    push(&mut proposals, 1, 0);
    push(&mut proposals, 2, HELD_MS - 1);
    for ms in (0..=HELD_MS).step_by(1_000) {
        let number = proposals.next(false, Moment { tick: 1, ms }).unwrap().number;
        proposals.failed(number, Failure::Unknown);
        assert_eq!(outcomes(&mut proposals), []);
    }
    let batch = proposals.next(false, Moment { tick: 1, ms: HELD_MS + 1 }).unwrap();
    let (sends, number) = (ids(batch), batch.number);
    let refused = Outcome::Refused(Code::Unavailable);
    assert_eq!(sends, [2]);
    assert_eq!(outcomes(&mut proposals), [(Asker::Caller(1), refused.clone())]);
    proposals.failed(number, Failure::Unknown);
    assert!(proposals.next(false, Moment { tick: 1, ms: 2 * HELD_MS }).is_none());
    assert_eq!(outcomes(&mut proposals), [(Asker::Caller(2), refused)]);
}

#[test]
fn what_a_leader_refuses_is_not_logged_and_holds_later_sends_back_for_ten_seconds() {
    let mut proposals = Proposals::default();
    let at = |tick| Moment { tick, ms: tick * TICK_MS };
    let full = |append: &stored::Append| match append.send_id {
        5 => Judgment::Refused(Code::MailboxFull),
        _ => Judgment::New,
    };
    push(&mut proposals, 5, TICK_MS);
    push(&mut proposals, 6, TICK_MS);
    assert!(proposals.next_judged(false, at(1), full).is_none(), "nothing is proposed");
    let refused = Outcome::Refused(Code::MailboxFull);
    let both = [(Asker::Caller(5), refused.clone()), (Asker::Caller(6), refused)];
    assert_eq!(outcomes(&mut proposals), both);
    push(&mut proposals, 7, 11 * TICK_MS);
    let batch = proposals.next_judged(false, at(11), full).unwrap();
    assert_eq!(ids(batch), [7]);
}

#[test]
fn a_send_that_is_stored_already_is_accepted_while_its_conversation_is_held() {
    let at = |tick| Moment { tick, ms: tick * TICK_MS };
    let judge = |append: &stored::Append| match append.send_id {
        9 => Judgment::Stored,
        _ => Judgment::Refused(Code::MailboxFull),
    };
    let refused = Outcome::Refused(Code::MailboxFull);
    let mut leader = Proposals::default();
    push(&mut leader, 5, TICK_MS);
    assert!(leader.next_judged(false, at(1), judge).is_none());
    assert_eq!(outcomes(&mut leader), [(Asker::Caller(5), refused.clone())]);
    push(&mut leader, 9, TICK_MS);
    push(&mut leader, 10, TICK_MS);
    let batch = leader.next_judged(false, at(1), judge).unwrap();
    let (sends, number) = (ids(batch), batch.number);
    assert_eq!(sends, [9]);
    assert_eq!(outcomes(&mut leader), [(Asker::Caller(10), refused.clone())]);
    let accepted = Outcome::Accepted { at_ms: 7 };
    leader.apply(number, |_| accepted.clone());
    assert_eq!(outcomes(&mut leader), [(Asker::Caller(9), accepted)]);

    // Elsewhere nobody knows what is stored: the leader is asked, and its answer prolongs nothing.
    let mut other = Proposals::default();
    let forward = |proposals: &mut Proposals, tick| {
        let batch = proposals.next_beside(false, at(tick)).unwrap();
        let Some(Command::Append(append)) = batch.commands[0].kind.clone() else {
            panic!("no send")
        };
        (batch.number, append)
    };
    push(&mut other, 5, TICK_MS);
    let (number, append) = forward(&mut other, 1);
    assert_eq!(append.held, 0);
    other.answered(number, vec![refused.clone()]);
    assert_eq!(outcomes(&mut other), [(Asker::Caller(5), refused.clone())]);
    push(&mut other, 6, 9 * TICK_MS);
    let (number, append) = forward(&mut other, 9);
    assert_eq!(append.held, Code::MailboxFull.number());
    other.answered(number, vec![refused.clone()]);
    assert_eq!(outcomes(&mut other), [(Asker::Caller(6), refused)]);
    push(&mut other, 7, 11 * TICK_MS);
    assert_eq!(forward(&mut other, 11).1.held, 0, "ten seconds after the first refusal");
}
