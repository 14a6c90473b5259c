//! False facts that the judge must find.

use super::*;

const ADA: Who = Who { user: 1, device: 1 };
const BOB: Who = Who { user: 2, device: 1 };
const BOB_TABLET: Who = Who { user: 2, device: 2 };

fn name(id: u64) -> Name {
    Name { from: ADA, id }
}

fn shown(online: bool, last_seen_ms: u64) -> Shown {
    Shown { online, last_seen_ms }
}

/// Ada has sent Bob `count` messages and each was accepted.
fn accepted(count: u64) -> Checker {
    let mut checker = Checker::default();
    checker.device(ADA);
    checker.device(BOB);
    for id in 1..=count {
        checker.sent(name(id), BOB.user, b"hello");
        checker.answered(name(id), true);
    }
    checker
}

fn deliver(checker: &mut Checker, seq: u64, id: u64) {
    checker.came(BOB, seq, name(id));
    checker.seen(BOB, name(id), b"hello");
    checker.acknowledged(BOB);
    checker.ticked(name(id));
}

#[test]
fn a_clean_history_has_nothing_wrong() {
    let mut checker = accepted(2);
    assert!(!checker.settled());
    deliver(&mut checker, 1, 1);
    checker.came(BOB, 1, name(1)); // again after a reconnect: not shown
    deliver(&mut checker, 2, 2);
    assert!(checker.settled());
    assert_eq!(checker.verdict(), []);
}

#[test]
fn a_lost_message_is_found() {
    assert_eq!(accepted(1).verdict(), [Wrong::Lost(name(1), BOB), Wrong::TickMissing(name(1))]);
}

#[test]
fn a_message_that_only_one_device_saw_is_lost_and_ticked_too_early() {
    let mut checker = accepted(1);
    checker.device(BOB_TABLET);
    deliver(&mut checker, 1, 1);
    let wrong = [Wrong::Lost(name(1), BOB_TABLET), Wrong::TickTooEarly(name(1))];
    assert_eq!(checker.verdict(), wrong);
}

#[test]
fn a_doubled_message_is_found() {
    let mut checker = accepted(1);
    deliver(&mut checker, 1, 1);
    checker.seen(BOB, name(1), b"hello");
    assert_eq!(checker.verdict(), [Wrong::Doubled(name(1), BOB)]);
}

#[test]
fn disorder_is_found() {
    let mut checker = accepted(2);
    deliver(&mut checker, 1, 2);
    deliver(&mut checker, 2, 1);
    assert_eq!(checker.verdict(), [Wrong::Disordered(name(1), BOB)]);
}

#[test]
fn an_invented_or_altered_or_misdirected_message_is_found() {
    let mut checker = accepted(1);
    checker.seen(BOB, name(1), b"hellO");
    checker.acknowledged(BOB);
    checker.ticked(name(1));
    checker.seen(BOB, name(9), b"hello");
    checker.seen(ADA, name(1), b"hello");
    let wrong = [
        Wrong::Invented(name(1), ADA),
        Wrong::Invented(name(1), BOB),
        Wrong::Invented(name(9), BOB),
    ];
    assert_eq!(checker.verdict(), wrong);
}

#[test]
fn a_refused_message_that_is_seen_is_found() {
    let mut checker = accepted(0);
    checker.sent(name(1), BOB.user, b"hello");
    checker.answered(name(1), false);
    assert_eq!(checker.verdict(), []);
    checker.seen(BOB, name(1), b"hello");
    assert_eq!(checker.verdict(), [Wrong::RefusedButSeen(name(1), BOB)]);
}

#[test]
fn missing_and_surplus_answers_are_found() {
    let mut checker = accepted(0);
    checker.sent(name(1), BOB.user, b"hello");
    assert_eq!(checker.verdict(), [Wrong::Unanswered(name(1))]);
    checker.answered(name(1), false);
    checker.answered(name(1), true);
    checker.answered(name(2), true);
    assert_eq!(checker.verdict(), [Wrong::StrayAnswer(name(1)), Wrong::StrayAnswer(name(2))]);
}

#[test]
fn ticks_too_early_twice_or_for_nothing_are_found() {
    let mut checker = accepted(1);
    checker.ticked(name(1));
    assert!(checker.verdict().contains(&Wrong::TickTooEarly(name(1))));
    deliver(&mut checker, 1, 1);
    assert!(checker.verdict().contains(&Wrong::TickTwice(name(1))));
    checker.ticked(name(7));
    assert!(checker.verdict().contains(&Wrong::StrayAnswer(name(7))));
}

#[test]
fn a_place_with_new_content_and_a_hole_are_found() {
    let mut checker = accepted(2);
    deliver(&mut checker, 1, 1);
    deliver(&mut checker, 1, 2);
    checker.hole(BOB, 4);
    assert_eq!(checker.verdict(), [Wrong::PlaceChanged(BOB, 1), Wrong::Hole(BOB, 4)]);
}

#[test]
fn two_ticks_for_a_message_that_no_device_has_acknowledged_are_found() {
    // Bob's only device was unlinked before it got it: nobody is left who must have it, and yet.
    let mut checker = accepted(1);
    checker.left(BOB);
    checker.ticked(name(1));
    assert_eq!(checker.verdict(), [Wrong::TickForNobody(name(1))]);
}

#[test]
fn two_ticks_stay_true_of_a_device_that_left_after_it_had_the_message() {
    let mut checker = accepted(1);
    checker.came(BOB, 1, name(1));
    checker.seen(BOB, name(1), b"hello");
    checker.acknowledged(BOB);
    checker.left(BOB);
    checker.ticked(name(1));
    assert_eq!(checker.verdict(), []);
}

#[test]
fn a_message_comes_back_only_if_nobody_is_there_to_take_it() {
    let mut checker = accepted(2);
    checker.returned(name(1));
    assert!(checker.verdict().contains(&Wrong::Returned(name(1), BOB)));
    checker.left(BOB);
    checker.returned(name(2));
    checker.ticked(name(2));
    assert!(checker.verdict().contains(&Wrong::TickForNobody(name(2))));
    let mut checker = accepted(1);
    checker.left(BOB);
    checker.returned(name(1));
    assert_eq!(checker.verdict(), []);
    checker.returned(name(1));
    assert_eq!(checker.verdict(), [Wrong::TickTwice(name(1))]);
}

#[test]
fn a_subscriber_who_sees_something_else_than_is_is_found() {
    let mut checker = accepted(0);
    checker.stands(BOB, Standing::There);
    checker.stands(BOB_TABLET, Standing::Away);
    checker.sees(ADA, BOB.user, Some(shown(true, 0)));
    assert!(checker.settled());
    checker.stands(BOB, Standing::Unknown);
    assert!(checker.settled(), "nobody knows yet");
    checker.stands(BOB, Standing::Away);
    assert!(!checker.settled(), "on all devices away, and still shown as there");
    assert_eq!(checker.verdict(), [Wrong::StalePresence(ADA, BOB.user, true)]);
    checker.sees(ADA, BOB.user, Some(shown(false, 0)));
    assert!(checker.settled());
    checker.stands(BOB_TABLET, Standing::There);
    assert_eq!(checker.verdict(), [Wrong::StalePresence(ADA, BOB.user, false)]);
    checker.sees(ADA, BOB.user, None);
    assert!(checker.settled(), "who is not subscribed sees nothing");
}

#[test]
fn a_ticket_that_opens_twice_is_found() {
    let mut checker = accepted(0);
    checker.opened_twice(BOB);
    assert_eq!(checker.verdict(), [Wrong::OpenedTwice(BOB)]);
}

#[test]
fn what_is_sent_to_people_who_stay_away_waits_and_must_arrive_when_they_come_back() {
    let mut checker = accepted(1);
    checker.stays_away(BOB.user);
    assert!(checker.settled());
    checker.forget();
    assert_eq!(checker.accepted(), 0, "of the next round");
    checker.come_back();
    assert_eq!(checker.verdict(), [Wrong::Lost(name(1), BOB), Wrong::TickMissing(name(1))]);
    deliver(&mut checker, 1, 1);
    assert_eq!(checker.verdict(), []);
    checker.seen(BOB, name(1), b"hello");
    assert_eq!(checker.verdict(), [Wrong::Doubled(name(1), BOB)]);
}

#[test]
fn two_ticks_for_somebody_who_stays_away_are_found() {
    let mut checker = accepted(1);
    checker.stays_away(BOB.user);
    checker.ticked(name(1));
    let wrong = [Wrong::TickTooEarly(name(1)), Wrong::TickForNobody(name(1))];
    assert_eq!(checker.verdict(), wrong);
}

#[test]
fn an_answer_to_somebody_who_stays_away_is_missing_when_they_come_back() {
    let mut checker = accepted(0);
    checker.sent(name(1), BOB.user, b"hello");
    checker.stays_away(ADA.user);
    assert!(checker.settled());
    checker.forget();
    checker.come_back();
    assert_eq!(checker.verdict(), [Wrong::Unanswered(name(1))]);
}

#[test]
fn of_somebody_who_stays_away_all_subscribers_see_one_time_of_leaving() {
    let eve = Who { user: 3, device: 1 };
    let mut checker = accepted(0);
    checker.stands(BOB, Standing::Gone);
    checker.stays_away(BOB.user);
    checker.sees(ADA, BOB.user, Some(shown(false, 500)));
    checker.sees(eve, BOB.user, Some(shown(false, 500)));
    assert_eq!(checker.verdict(), []);
    for other in [0, 501] {
        checker.sees(eve, BOB.user, Some(shown(false, other)));
        assert_eq!(checker.verdict(), [Wrong::LastSeen(BOB.user)]);
    }
    checker.come_back();
    assert_eq!(checker.verdict(), [], "of others it may differ for a moment");
}
