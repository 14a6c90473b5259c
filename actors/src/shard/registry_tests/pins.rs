//! Stories of PINs: nobody is kept out by others, and nobody guesses.

use super::*;

#[test]
fn each_asker_has_attempts_of_their_own() {
    let mut town = Town::new();
    let owner = town.start("ada", "right").unwrap();
    let thief = town.start("ada", "other").unwrap();
    for guess in 0..LIMITS.attempts {
        let guess = format!("wrong {guess}");
        for _ in 0..9 {
            // Whoever repeats one whose answer was lost is told the same, and it counts once.
            let answer = town.prove("ada", &thief, &guess, 66);
            assert_eq!(answer, Outcome::Refused(Code::WrongPin));
        }
    }
    assert_eq!(town.prove("ada", &thief, "other", 66), Outcome::Refused(Code::NoPin));
    assert!(matches!(town.prove("ada", &owner, "right", 1), Outcome::Proven { .. }));
    assert_eq!(town.prove("ada", &owner, "right", 2), Outcome::Refused(Code::NoPin), "once");
    assert!(matches!(town.prove("ada", &owner, "right", 1), Outcome::Proven { .. }), "a retry");
}

#[test]
fn who_asks_beyond_the_hours_pins_proves_the_one_that_was_sent_last() {
    let mut town = Town::new();
    for number in 0..LIMITS.requests_per_hour {
        assert!(town.start("ada", &format!("pin {number}")).unwrap().send);
    }
    let owner = town.start("ada", "not sent").unwrap();
    assert_eq!((owner.send, owner.grant.digest.as_ref()), (false, &b"pin 4"[..]));
    assert!(matches!(town.prove("ada", &owner, "pin 4", 1), Outcome::Proven { .. }));
    town.now += 11 * MINUTE;
    assert_eq!(town.start("ada", "x").map(|asked| asked.send), Err(Code::TooFast));
    town.now += 2 * MINUTE;
    assert!(town.start("ada", "x").unwrap().send, "the next one comes after a fifth of an hour");
}

impl Town {
    /// So many strangers ask for a PIN and use all attempts up.
    fn guess(&mut self, alias: &str, strangers: u32) {
        for _ in 0..strangers {
            let thief = self.start(alias, "other").unwrap();
            for guess in 0..LIMITS.attempts {
                self.prove(alias, &thief, &format!("wrong {guess}"), 66);
            }
        }
    }
}

#[test]
fn the_tries_that_pins_of_their_own_leave_to_strangers_are_bounded() {
    let mut town = Town::new();
    let mut wrong = 0;
    for _ in 0..24 * 60 {
        let askers: Vec<_> = (0..3).filter_map(|_| town.start("ada", "right").ok()).collect();
        for asked in askers.iter().filter(|asked| !asked.grant.long) {
            for guess in 0..LIMITS.attempts + 2 {
                let answer = town.prove("ada", asked, &format!("wrong {guess}"), 66);
                wrong += u32::from(answer == Outcome::Refused(Code::WrongPin));
            }
        }
        town.now += MINUTE;
    }
    let most = LIMITS.wrong_per_day + (LIMITS.requests_per_hour + 1) * LIMITS.attempts;
    assert!(wrong <= 2 * most, "{wrong} tries at short PINs in a day and its midnight");
}

#[test]
fn whoever_waits_as_long_as_a_refusal_says_is_sent_a_pin() {
    let mut town = Town::new();
    while town.start("ada", "x").unwrap().send {}
    town.now += 11 * MINUTE;
    let start = |town: &mut Town, alias: &str, sent_per_hour| {
        let start = stored::StartRegistration {
            alias: alias.to_owned(),
            ttl_s: 600,
            limits: Some(stored::PinLimits { sent_per_hour, ..LIMITS }),
            ..Default::default()
        };
        town.apply(shard_of(alias), Kind::StartRegistration(start.into()))
    };
    let others = (0..).map(|number| format!("person-{number}"));
    let mut others = others.filter(|alias| shard_of(alias) == shard_of("ada"));
    let (first, second) = (others.next().unwrap(), others.next().unwrap());
    start(&mut town, &first, 1);
    for (alias, per_hour, code) in
        [("ada", 20_000, Code::TooFast), (second.as_str(), 1, Code::PinNotSent)]
    {
        let Outcome::Wait { code: told, after_ms } = start(&mut town, alias, per_hour) else {
            panic!("no wait")
        };
        assert_eq!((told, after_ms > 1_000), (code, true));
        town.now += u64::from(after_ms) - 1;
        let early = start(&mut town, alias, per_hour);
        assert_eq!(early, Outcome::Wait { code, after_ms: 1 });
        town.now += 1;
        let sent = start(&mut town, alias, per_hour);
        assert!(matches!(sent, Outcome::Pin { send: true, .. }), "{sent:?}");
        start(&mut town, &first, 1);
    }
}

#[test]
fn a_pin_that_was_not_sent_does_not_count() {
    let mut town = Town::new();
    for _ in 0..50 {
        assert!(town.start("ada", "lost").unwrap().send);
        let digest = "lost".into();
        let not_sent = stored::PinNotSent { alias: "ada".into(), digest, limits: Some(LIMITS) };
        assert_eq!(town.apply(shard_of("ada"), Kind::PinNotSent(not_sent)), Outcome::Done);
    }
    for _ in 0..LIMITS.requests_per_hour {
        assert!(town.start("ada", "there").unwrap().send);
    }
}

#[test]
fn after_a_days_wrong_pins_only_long_ones_count_and_nobody_is_locked_out() {
    let mut town = Town::new();
    let before = town.start("ada", "right").unwrap();
    assert!(!before.grant.long);
    for number in 1..LIMITS.requests_per_hour {
        town.start("ada", &format!("pin {number}")).unwrap();
    }
    let shared = town.start("ada", "not sent").unwrap();
    town.guess("ada", 3);
    assert_eq!(town.prove("ada", &shared, "pin 4", 1), Outcome::Refused(Code::NoPin));
    let owner = town.start("ada", "new").unwrap();
    assert!(owner.grant.long && owner.send);
    assert!(matches!(town.prove("ada", &owner, "long new", 1), Outcome::Proven { .. }));
    let proven = town.prove("ada", &before, "right", 2);
    assert!(
        matches!(proven, Outcome::Proven { .. }),
        "nobody voids what was sent for another: {proven:?}"
    );
    town.now += DAY;
    assert!(!town.start("ada", "tomorrow").unwrap().grant.long);
}

#[test]
fn guessing_over_many_aliases_is_stopped_for_the_hour_and_told_once() {
    let mut town = Town::new();
    let aliases = (0..).map(|number| format!("person-{number}"));
    let aliases: Vec<_> = aliases.filter(|alias| shard_of(alias) == ShardId(3)).take(400).collect();
    let asked: Vec<_> = aliases.iter().map(|alias| town.start(alias, "right").unwrap()).collect();
    let mut wrong = 0;
    for (alias, asked) in aliases.iter().zip(&asked) {
        let outcome = town.prove(alias, asked, "wrong", 66);
        wrong += u32::from(outcome == Outcome::Refused(Code::WrongPin));
    }
    assert_eq!(wrong, LIMITS.wrong_per_hour);
    let alarms = town.machines[3].take_effects();
    let alarms = alarms.iter().filter(|effect| matches!(effect, Effect::WrongPins { .. }));
    assert_eq!(alarms.count(), 1);
    assert!(town.start(&aliases[0], "new").unwrap().grant.long);
    town.now += HOUR;
    assert!(!town.start("person-5", "new").unwrap().grant.long);
}

#[test]
fn strangers_that_ask_for_ever_more_aliases_take_no_more_room() {
    let mut town = Town::new();
    let aliases = (0..).map(|number| format!("person-{number}"));
    let mut here = aliases.filter(|alias| shard_of(alias) == ShardId(3));
    let first = here.next().unwrap();
    let owner = town.start(&first, "right").unwrap();
    for alias in here.take(12_000) {
        town.start(&alias, "x").unwrap();
    }
    assert!(town.machines[3].pins.len() <= 10_000);
    let proven = town.prove(&first, &owner, "right", 1);
    assert!(matches!(proven, Outcome::Proven { .. }), "nobody pushes a token out: {proven:?}");
}

#[test]
fn an_owner_whose_pins_strangers_spent_and_made_worthless_is_sent_a_long_one_at_once() {
    let mut town = Town::new();
    for _ in 0..LIMITS.requests_per_hour {
        assert!(town.start("ada", "short").unwrap().send);
    }
    town.guess("ada", 3);
    let owner = town.start("ada", "new").unwrap();
    assert!(owner.send && owner.grant.long);
    // Whoever asks on gets a token for it, and no phone is flooded.
    for _ in 0..50 {
        town.now += MINUTE / 10;
        assert!(!town.start("ada", "no more").unwrap().send);
    }
    assert!(matches!(town.prove("ada", &owner, "long new", 1), Outcome::Proven { .. }));
}

#[test]
fn an_alias_that_strangers_ask_for_all_the_time_is_sent_no_more_than_its_hours_pins_and_one() {
    let mut town = Town::new();
    let (mut sent, mut longest_wait, mut last_good) = (0, 0, town.now);
    for _ in 0..6 * 60 {
        match town.start("ada", "x") {
            Ok(asked) => {
                sent += u32::from(asked.send);
                last_good = town.now;
                town.prove("ada", &asked, &format!("wrong {}", town.now), 66);
            }
            Err(code) => assert_eq!(code, Code::TooFast),
        }
        longest_wait = longest_wait.max(town.now - last_good);
        town.now += MINUTE / 2;
    }
    assert!(town.start("ada", "x").is_err() || town.start("ada", "x").unwrap().grant.long);
    assert!(sent <= LIMITS.requests_per_hour * 4 + 1, "{sent} PINs in three hours");
    assert!(longest_wait <= 2 * MINUTE, "nobody gets a PIN for {longest_wait} ms");
}

#[test]
fn all_aliases_together_are_sent_no_more_pins_than_the_hour_brings() {
    let mut town = Town::new();
    let limits = stored::PinLimits { sent_per_hour: 60, ..LIMITS };
    let aliases = (0..).map(|number| format!("person-{number}"));
    let mut here = aliases.filter(|alias| shard_of(alias) == ShardId(3));
    let first = here.next().unwrap();
    let owner = town.start_with(&first, "right", limits).unwrap();
    let mut start = |town: &mut Town| town.start_with(&here.next().unwrap(), "x", limits);
    let sent = (0..200).filter(|_| start(&mut town).is_ok()).count();
    assert_eq!(sent, 59);
    let told = town.machines[3].take_effects().into_iter();
    assert_eq!(told.filter(|effect| matches!(effect, Effect::PinsUsedUp)).count(), 141);
    assert_eq!(start(&mut town).map(|_| ()), Err(Code::PinNotSent));
    let again = town.start_with(&first, "not sent", limits).unwrap();
    assert!(!again.send, "who was sent one before can ask for it again");
    assert!(matches!(town.prove(&first, &owner, "right", 1), Outcome::Proven { .. }));
    town.now += MINUTE;
    assert!(start(&mut town).unwrap().send, "a sixtieth of an hour brings one");
    assert_eq!(start(&mut town).map(|_| ()), Err(Code::PinNotSent));
    // A replica that starts from a checkpoint counts on.
    let mut applied = stored::Applied::default();
    town.machines[3].note_clock(&mut applied);
    let mut restarted = Machine::new(ShardId(3), MachineLimits::default());
    restarted.set_clock(&applied);
    town.machines[3] = restarted;
    assert_eq!(start(&mut town).map(|_| ()), Err(Code::PinNotSent));
}

#[test]
fn a_clock_that_is_set_back_keeps_no_alias_from_its_pins_for_longer_than_an_hour() {
    let mut town = Town::new();
    for _ in 0..LIMITS.requests_per_hour {
        town.start("ada", "x").unwrap();
    }
    town.now -= 50 * DAY;
    town.start("ada", "the clock is corrected").ok();
    town.now += HOUR;
    assert!(town.start("ada", "x").unwrap().send);
}
