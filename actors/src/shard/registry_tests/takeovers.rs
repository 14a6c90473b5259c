//! Stories of aliases that change hands.

use super::*;

#[test]
fn registering_again_with_the_same_key_keeps_that_device_and_unlinks_all_others() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.link(ada, 1, 66);
    assert_eq!(town.devices(ada), [1, 2]);
    assert_eq!(town.register("ada", 1, ""), Ok(ada));
    assert_eq!(town.devices(ada), [1], "the thief's device is out");
}

#[test]
fn who_takes_an_alias_over_is_a_new_user_and_what_waited_goes_back() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    let bob = town.register("bob", 2, "").unwrap();
    let block = stored::SetBlock { user: bob.0, other: 7, blocked: true, by_device: 1 };
    town.apply(bob.shard(), Kind::SetBlock(block));
    town.send(ada, bob, 5);
    town.receipts(ada);
    let new = town.register("bob", 3, "").unwrap();
    assert_ne!(new, bob);
    assert_eq!((town.owner("bob"), town.devices(new)), (Some(new), vec![1]));
    let account = town.of(new).account(new).unwrap();
    assert!(account.blocked.is_empty());
    assert_eq!(town.of(new).mailbox(new).unwrap().last(), Seq(0), "nothing of the old owner's");
    assert!(town.of(bob).account(bob).is_none(), "without an alias the old account is closed");
    let undeliverable = proto::wire::receipt::Kind::Undeliverable as u32;
    assert_eq!(town.receipts(ada), [undeliverable]);
    assert_eq!(town.link(bob, 1, 66), UNLINKED);
}

#[test]
fn with_the_registration_lock_the_account_stays_and_without_it_nobody_takes_the_alias() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    assert_eq!(town.set_lock(ada, "lock", ""), Outcome::Done);
    assert_eq!(town.set_lock(ada, "mine", "wrong"), Outcome::Refused(Code::WrongLock));
    assert_eq!(town.register("ada", 2, ""), Err(Code::WrongLock));
    assert_eq!(town.register("ada", 2, "guess"), Err(Code::WrongLock));
    assert_eq!(town.register("ada", 2, "lock"), Ok(ada));
    assert_eq!(town.devices(ada), [2], "the new device alone");
    assert_eq!(town.register("ada", 1, ""), Err(Code::WrongLock), "the old key is worth nothing");
}

#[test]
fn a_registration_lock_is_not_guessed() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.set_lock(ada, "lock", "");
    for guess in 0..5 {
        let guess = format!("guess {guess}");
        assert_eq!(town.register("ada", 2, &guess), Err(Code::WrongLock));
    }
    assert_eq!(town.register("ada", 2, "lock"), Err(Code::TooFast));
    town.now += DAY / 5;
    assert_eq!(town.register("ada", 2, "lock"), Ok(ada));
}

#[test]
fn who_guesses_a_lock_elsewhere_keeps_no_owner_out() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.set_lock(ada, "lock", "");
    town.place = 66;
    for guess in 0..10 {
        town.register("ada", 66, &format!("guess {guess}")).unwrap_err();
    }
    town.place = 1;
    assert_eq!(town.register("ada", 2, "lock"), Ok(ada), "the new phone of the owner");
}

#[test]
fn whoever_waits_as_long_as_a_refused_registration_says_gets_in() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.set_lock(ada, "lock", "");
    let owner = town.of(ada).account(ada).unwrap().claims();
    let owner = AliasOwner { user: ada.0, claim: owner[0].claim };
    let wait =
        (0..9).find_map(|guess| match town.keep("ada", owner, 66, &format!("guess {guess}")) {
            Outcome::Wait { code, after_ms } => Some((code, u64::from(after_ms))),
            _ => None,
        });
    let (code, after_ms) = wait.unwrap();
    assert_eq!(code, Code::TooFast);
    town.now += after_ms - 1;
    assert!(matches!(town.keep("ada", owner, 66, "lock"), Outcome::Wait { after_ms: 1, .. }));
    town.now += 1;
    assert!(matches!(town.keep("ada", owner, 66, "lock"), Outcome::Admitted(_)));
}

#[test]
fn an_alias_whose_account_was_silent_for_a_week_is_free_for_its_next_owner() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.set_lock(ada, "lock", "");
    town.now += 6 * DAY;
    assert_eq!(town.register("ada", 2, ""), Err(Code::WrongLock));
    town.now += DAY;
    let new = town.register("ada", 2, "").unwrap();
    assert_ne!(new, ada);
}

#[test]
fn a_registration_that_broke_off_between_any_two_steps_is_healed_by_a_retry() {
    for had_owner in [false, true] {
        for steps in 1..=3 {
            let mut town = Town::new();
            let old = had_owner.then(|| town.register("ada", 1, "").unwrap());
            town.now += 20 * MINUTE;
            let asked = town.start("ada", "pin").unwrap();
            let broken = town.register_steps("ada", &asked, (2, ""), steps);
            assert_eq!(broken, Err(Code::Unavailable));
            let owner = town.owner("ada");
            let whole = town.register_steps("ada", &asked, (2, ""), 9).unwrap();
            assert_eq!((town.owner("ada"), town.devices(whole)), (Some(whole), vec![1]));
            if let Some(old) = old {
                assert!(owner == Some(old) || owner == Some(whole));
                assert!(town.of(old).account(old).is_none());
            }
            assert_eq!(town.register_steps("ada", &asked, (2, ""), 9), Ok(whole), "and once more");
        }
    }
}

#[test]
fn one_that_never_comes_back_leaves_an_alias_that_the_next_one_gets() {
    let mut town = Town::new();
    let asked = town.start("ada", "pin").unwrap();
    town.register_steps("ada", &asked, (2, ""), 3).unwrap_err();
    let next = town.register("ada", 3, "").unwrap();
    assert_eq!(town.owner("ada"), Some(next));
    let accounts: u64 = town.machines.iter().map(Machine::accounts).sum();
    assert_eq!(accounts, 1, "no account lives whose alias belongs to another");
}

#[test]
fn of_two_who_register_at_once_the_later_claim_wins_and_the_other_is_told() {
    let mut town = Town::new();
    let old = town.register("ada", 1, "").unwrap();
    town.now += 20 * MINUTE;
    let (first, second) = (town.start("ada", "a").unwrap(), town.start("ada", "b").unwrap());
    let proven = |outcome| match outcome {
        Outcome::Proven { owner, new } => (owner, new),
        other => panic!("{other:?}"),
    };
    let (owner, a) = proven(town.prove("ada", &first, "a", 2));
    let (_, b) = proven(town.prove("ada", &second, "b", 3));
    assert_eq!(town.claim("ada", owner, a, 2), Outcome::Done);
    assert_eq!(town.claim("ada", owner, b, 3), Outcome::Refused(Code::Unavailable), "prove again");
    let winner = town.register_steps("ada", &second, (3, ""), 9).unwrap();
    assert_eq!((town.owner("ada"), winner), (Some(winner), UserId(b.user)));
    for loser in [old, UserId(a.user)] {
        assert!(town.of(loser).account(loser).is_none());
    }
    let again = town.register_steps("ada", &first, (2, ""), 9);
    assert_eq!(again, Err(Code::NoPin), "a claim that was lost is not made twice");
    assert_eq!(town.owner("ada"), Some(winner));
}

#[test]
fn news_that_an_alias_was_freed_changes_nothing_of_a_later_claim() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    assert_eq!(town.delete(ada, 1), Outcome::Done);
    // The other shard has not heard of it when somebody registers.
    town.now += 20 * MINUTE;
    let asked = town.start("ada", "pin").unwrap();
    let new = town.register_steps("ada", &asked, (2, ""), 9).unwrap();
    town.settle();
    assert_eq!((town.owner("ada"), town.devices(new)), (Some(new), vec![1]));
}
