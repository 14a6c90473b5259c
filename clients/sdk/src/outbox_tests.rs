//! The outbox's promises, without a socket.

use super::*;
use proto::Code;

const ADA: Recipient = Recipient::User(UserId(1));
const BOB: Recipient = Recipient::User(UserId(2));

fn outbox(sends: &[(u64, &Recipient)]) -> Outbox<u64> {
    let mut outbox = Outbox::new(64);
    for (id, to) in sends {
        outbox.push(*id, (*to).clone(), wire::Send::default(), Some(*id));
    }
    outbox
}

fn take(outbox: &mut Outbox<u64>, now: Instant) -> Vec<u64> {
    outbox.release(now);
    std::iter::from_fn(|| outbox.next().map(|(id, _)| id)).collect()
}

fn refusal(code: Code, ms: u64) -> Refusal {
    Refusal { code, text: String::new(), retry_after: Duration::from_millis(ms) }
}

#[test]
fn sends_leave_in_order_and_at_most_a_window_is_unanswered() {
    let now = Instant::now();
    let mut outbox = outbox(&[]);
    outbox.set_window(3);
    for id in 1..=5 {
        outbox.push(id, ADA, wire::Send::default(), Some(id));
    }
    assert_eq!(take(&mut outbox, now), [1, 2, 3]);
    assert_eq!(outbox.accepted(2, UserId(0)), Accepted::Settled { answer: Some(2) });
    assert_eq!(take(&mut outbox, now), [4]);
    assert_eq!(outbox.accepted(2, UserId(0)), Accepted::Unknown, "an answer twice is none");
}

#[test]
fn after_a_reconnect_unanswered_sends_leave_again_in_their_original_order() {
    let now = Instant::now();
    let mut outbox = outbox(&[(1, &ADA), (2, &BOB), (3, &ADA)]);
    assert_eq!(take(&mut outbox, now), [1, 2, 3]);
    outbox.push(4, ADA, wire::Send::default(), None);
    outbox.accepted(1, UserId(0));
    outbox.disconnected();
    assert_eq!(take(&mut outbox, now), [2, 3, 4]);
}

#[test]
fn a_refused_conversation_is_held_back_and_the_others_go_on() {
    let now = Instant::now();
    let mut outbox = outbox(&[(1, &ADA), (2, &ADA), (3, &BOB)]);
    assert_eq!(take(&mut outbox, now), [1, 2, 3]);
    let kept = outbox.refused(1, &refusal(Code::TooFast, 1000), now, 0.0);
    assert_eq!(kept, Refused::Kept { reconnect: false });
    outbox.push(4, BOB, wire::Send::default(), None);
    assert_eq!(take(&mut outbox, now), [4]);
    assert_eq!(outbox.next_due(), Some(now + Duration::from_secs(1)));

    let later = now + Duration::from_secs(2);
    assert_eq!(take(&mut outbox, later), [0u64; 0], "2 is unanswered: 1 would overtake nothing");
    outbox.refused(2, &refusal(Code::TooFast, 1), later, 0.0);
    assert_eq!(take(&mut outbox, later + Duration::from_secs(1)), [1, 2]);
}

#[test]
fn what_waiting_does_not_cure_is_given_up() {
    let now = Instant::now();
    let mut outbox = outbox(&[(1, &ADA), (2, &ADA)]);
    take(&mut outbox, now);
    let gone = outbox.refused(1, &refusal(Code::Blocked, 0), now, 0.0);
    assert_eq!(gone, Refused::GivenUp { answer: Some(1) });
    let mut now = now;
    for _ in 1..REFUSALS_MAX {
        let kept = outbox.refused(2, &refusal(Code::MailboxFull, 0), now, 1.0);
        assert_eq!(kept, Refused::Kept { reconnect: false });
        now += HOLD_MAX * 2;
        assert_eq!(take(&mut outbox, now), [2]);
    }
    let gone = outbox.refused(2, &refusal(Code::MailboxFull, 0), now, 1.0);
    assert_eq!(gone, Refused::GivenUp { answer: Some(2) });
    assert_eq!(outbox.len(), 0);
}

#[test]
fn a_fault_of_the_server_is_waited_out_however_long_it_takes() {
    let mut now = Instant::now();
    let mut outbox = outbox(&[(1, &ADA)]);
    for _ in 0..100 {
        assert_eq!(take(&mut outbox, now), [1]);
        let kept = outbox.refused(1, &refusal(Code::Unavailable, 0), now, 0.5);
        assert_eq!(kept, Refused::Kept { reconnect: false });
        now += HOLD_MAX * 2;
    }
}

#[test]
fn an_alias_and_its_user_are_one_conversation() {
    let now = Instant::now();
    let alias = Recipient::Alias(Alias::parse("ada").unwrap());
    let mut outbox = outbox(&[(1, &alias)]);
    take(&mut outbox, now);
    outbox.accepted(1, UserId(1));
    outbox.push(2, alias, wire::Send::default(), None);
    outbox.push(3, ADA, wire::Send::default(), None);
    assert_eq!(take(&mut outbox, now), [2, 3]);
    outbox.refused(2, &refusal(Code::TooFast, 1000), now, 0.0);
    outbox.refused(3, &refusal(Code::TooFast, 0), now, 0.0);
    assert_eq!(take(&mut outbox, now + Duration::from_secs(1)), [2, 3]);
}
