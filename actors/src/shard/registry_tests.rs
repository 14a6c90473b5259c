//! Stories of accounts, aliases and PINs, told to the machines of all shards.

#![allow(clippy::wildcard_enum_match_arm, reason = "a story looks at what it is about")]

use super::command::{Command, Effect, Outcome};
use super::machine::{Machine, MachineLimits};
use proto::stored::{self, AliasClaim, AliasOwner, PinGrant, command::Kind};
use proto::{Alias, Code, DeviceId, Seq, ShardId, UserId};
use std::collections::BTreeMap;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const MINUTE: u64 = 60_000;

const LIMITS: stored::PinLimits =
    stored::PinLimits { requests_per_hour: 5, attempts: 3, wrong_per_day: 7, wrong_per_hour: 100 };

/// All shards of a cluster, and the notices between them.
struct Town {
    machines: Vec<Machine>,
    now: u64,
    tokens: u64,
}

impl Town {
    fn new() -> Self {
        let machine = |shard| Machine::new(ShardId(shard), MachineLimits::default());
        Self { machines: (0..16).map(machine).collect(), now: 100 * DAY, tokens: 0 }
    }

    fn apply(&mut self, shard: ShardId, command: Command) -> Outcome {
        self.machines[usize::from(shard.0)].apply(self.now, command)
    }

    fn of(&self, user: UserId) -> &Machine {
        &self.machines[usize::from(user.shard().0)]
    }

    fn devices(&self, user: UserId) -> Vec<u32> {
        let account = self.of(user).account(user);
        account.iter().flat_map(|account| account.devices.keys()).map(|id| id.0).collect()
    }

    fn owner(&self, alias: &str) -> Option<UserId> {
        let alias = Alias::parse(alias).unwrap();
        self.machines[usize::from(alias.shard().0)].owner(&alias)
    }

    /// Hands the notices over that are owed; some are offered twice.
    fn settle(&mut self) {
        for _ in 0..3 {
            for (from, to) in (0..16).flat_map(|from| (0..16).map(move |to| (from, to))) {
                let notices = self.machines[from].streams().offer(ShardId(to), 0);
                let Some(last) = notices.last().map(|notice| notice.number) else { continue };
                let from_shard = u32::try_from(from).unwrap();
                let taken = stored::TakeNotices { from_shard, notices };
                for _ in 0..2 {
                    self.apply(ShardId(to), Kind::TakeNotices(taken.clone()));
                }
                let settled = stored::SettleNotices { to_shard: to.into(), number: last };
                self.apply(ShardId(u16::try_from(from).unwrap()), Kind::SettleNotices(settled));
            }
        }
    }

    /// Asks for a PIN; the digests of PINs are texts here.
    fn start(&mut self, alias: &str, pin: &str) -> Result<Asked, Code> {
        let start = stored::StartRegistration {
            alias: alias.to_owned(),
            short_digest: pin.to_owned().into(),
            long_digest: format!("long {pin}").into(),
            ttl_s: 600,
            limits: Some(LIMITS),
        };
        self.tokens += 1;
        let token = self.tokens;
        match self.apply(shard_of(alias), Kind::StartRegistration(start)) {
            Outcome::Pin { grant, send } => Ok(Asked { token, grant, send }),
            Outcome::Refused(code) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn prove(&mut self, alias: &str, asked: &Asked, pin: &str, key: u64) -> Outcome {
        let proof = stored::ProvePin {
            alias: alias.to_owned(),
            token: asked.token.to_be_bytes().to_vec().into(),
            digest: pin.to_owned().into(),
            grant: Some(asked.grant.clone()),
            key: bytes_of(key),
            user_if_new: 1_000 + self.tokens * 37 + key,
            claim_if_new: 7_000 + self.tokens,
            limits: Some(LIMITS),
        };
        self.tokens += 1;
        self.apply(shard_of(alias), Kind::ProvePin(proof))
    }

    /// All that a node does for `RegisterProve`, up to the given number of steps.
    fn register_steps(
        &mut self,
        alias: &str,
        asked: &Asked,
        who: (u64, &str),
        steps: u32,
    ) -> Result<UserId, Code> {
        let (key, lock) = who;
        let pin = std::str::from_utf8(&asked.grant.digest).unwrap().to_owned();
        let (owner, new) = match self.prove(alias, asked, &pin, key) {
            Outcome::Proven { owner, new } => (owner, new),
            Outcome::Refused(code) => return Err(code),
            other => panic!("{other:?}"),
        };
        if steps == 1 {
            return Err(Code::Unavailable);
        }
        if let Some(owner) = owner.filter(|owner| *owner != new) {
            match self.keep(alias, owner, key, lock) {
                Outcome::Admitted(_) => return Ok(UserId(owner.user)),
                Outcome::NotTheirs | Outcome::Refused(Code::UnknownUser) => {}
                Outcome::Refused(code) => return Err(code),
                other => panic!("{other:?}"),
            }
        }
        if steps == 2 {
            return Err(Code::Unavailable);
        }
        match self.claim(alias, owner, new, key) {
            Outcome::Done => {}
            Outcome::Refused(code) => return Err(code),
            other => panic!("{other:?}"),
        }
        if steps == 3 {
            return Err(Code::Unavailable);
        }
        self.settle();
        let user = UserId(new.user);
        let device = self.of(user).account(user).and_then(|a| a.device_with_key(&bytes_of(key)));
        device.map(|_| user).ok_or(Code::Unavailable)
    }

    fn keep(&mut self, alias: &str, owner: AliasOwner, key: u64, lock: &str) -> Outcome {
        let keep = stored::KeepAccount {
            user: owner.user,
            alias: Some(AliasClaim { alias: alias.to_owned(), claim: owner.claim }),
            key: bytes_of(key),
            name: "phone".into(),
            lock: lock.to_owned().into(),
        };
        self.apply(UserId(owner.user).shard(), Kind::KeepAccount(keep))
    }

    fn claim(
        &mut self,
        alias: &str,
        from: Option<AliasOwner>,
        to: AliasOwner,
        key: u64,
    ) -> Outcome {
        let (alias_text, name) = (alias.to_owned(), "phone".to_owned());
        let claim =
            stored::ClaimAlias { alias: alias_text, from, to: Some(to), key: bytes_of(key), name };
        self.apply(shard_of(alias), Kind::ClaimAlias(claim))
    }

    fn register(&mut self, alias: &str, key: u64, lock: &str) -> Result<UserId, Code> {
        self.now += 20 * MINUTE;
        let asked = self.start(alias, &format!("pin {}", self.now))?;
        self.register_steps(alias, &asked, (key, lock), 9)
    }

    fn link(&mut self, user: UserId, by_device: u32, key: u64) -> Outcome {
        let (key, name) = (bytes_of(key), String::new());
        let admit = stored::AdmitDevice { user: user.0, by_device, key, name };
        self.apply(user.shard(), Kind::AdmitDevice(admit))
    }

    fn unlink(&mut self, user: UserId, by_device: u32, device: u32) -> Outcome {
        let remove = stored::RemoveDevice { user: user.0, by_device, device };
        self.apply(user.shard(), Kind::RemoveDevice(remove))
    }

    fn delete(&mut self, user: UserId, by_device: u32) -> Outcome {
        let delete = stored::DeleteAccount { user: user.0, by_device };
        self.apply(user.shard(), Kind::DeleteAccount(delete))
    }

    fn set_lock(&mut self, user: UserId, lock: &str, current: &str) -> Outcome {
        let (lock, current) = (lock.to_owned().into(), current.to_owned().into());
        let set = stored::SetRegistrationLock { user: user.0, by_device: 1, lock, current };
        self.apply(user.shard(), Kind::SetRegistrationLock(set))
    }

    fn send(&mut self, from: UserId, to: UserId, send_id: u64) -> Outcome {
        let append = stored::Append {
            to: to.0,
            from: from.0,
            from_device: 1,
            send_id,
            ttl_s: 1_000_000,
            body: "hello".into(),
            ..Default::default()
        };
        self.apply(to.shard(), Kind::Append(append))
    }

    /// Kinds of the receipts that came to a user.
    fn receipts(&mut self, user: UserId) -> Vec<u32> {
        let effects = self.machines[usize::from(user.shard().0)].take_effects();
        let receipt = |effect| match effect {
            Effect::Push { user: to, envelope, .. } if to == user => match &envelope.content {
                Some(stored::envelope::Content::Receipt(receipt)) => Some(receipt.kind),
                _ => None,
            },
            _ => None,
        };
        effects.into_iter().filter_map(receipt).collect()
    }
}

struct Asked {
    token: u64,
    grant: PinGrant,
    send: bool,
}

fn shard_of(alias: &str) -> ShardId {
    Alias::parse(alias).unwrap().shard()
}

fn bytes_of(key: u64) -> bytes::Bytes {
    key.to_be_bytes().to_vec().into()
}

const UNLINKED: Outcome = Outcome::Refused(Code::Unlinked);

// ---- PINs ------------------------------------------------------------------------------------

#[test]
fn each_asker_has_attempts_of_their_own() {
    let mut town = Town::new();
    let owner = town.start("ada", "right").unwrap();
    let thief = town.start("ada", "other").unwrap();
    for _ in 0..LIMITS.attempts {
        assert_eq!(town.prove("ada", &thief, "wrong", 66), Outcome::Refused(Code::WrongPin));
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
    for _ in 0..3 {
        let thief = town.start("ada", "other").unwrap();
        for _ in 0..LIMITS.attempts {
            town.prove("ada", &thief, "wrong", 66);
        }
    }
    assert_eq!(town.prove("ada", &before, "right", 1), Outcome::Refused(Code::NoPin));
    let owner = town.start("ada", "new").unwrap();
    assert!(owner.grant.long && owner.send);
    assert!(matches!(town.prove("ada", &owner, "long new", 1), Outcome::Proven { .. }));
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

// ---- Devices ---------------------------------------------------------------------------------

#[test]
fn an_unlinked_device_changes_nothing_any_longer() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    assert_eq!(town.link(ada, 1, 2), Outcome::Admitted(DeviceId(2)));
    assert_eq!(town.unlink(ada, 1, 2), Outcome::Done);
    let user = ada.0;
    let block = stored::SetBlock { user, other: 7, blocked: true, by_device: 2 };
    let contact = stored::SetContact { user, other: 7, contact: true, by_device: 2 };
    let privacy = stored::SetPrivacy { user, by_device: 2, ..Default::default() };
    let read = stored::MarkRead { user, device: 2, from: 7, ..Default::default() };
    let lock = stored::SetRegistrationLock {
        user,
        by_device: 2,
        lock: "1234".into(),
        ..Default::default()
    };
    for command in [
        Kind::SetBlock(block),
        Kind::SetContact(contact),
        Kind::SetPrivacy(privacy),
        Kind::MarkRead(read),
        Kind::SetRegistrationLock(lock),
    ] {
        assert_eq!(town.apply(ada.shard(), command.clone()), UNLINKED, "{command:?}");
    }
    assert_eq!(town.link(ada, 2, 3), UNLINKED);
    assert_eq!(town.link(ada, 0, 3), UNLINKED);
    assert_eq!(town.unlink(ada, 2, 1), UNLINKED);
    assert_eq!(town.delete(ada, 2), UNLINKED);
    assert_eq!(town.devices(ada), [1]);
}

#[test]
fn an_unlinked_device_is_remembered_with_its_key_so_that_it_can_be_told() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    for key in 2..30 {
        let Outcome::Admitted(device) = town.link(ada, 1, key) else { panic!() };
        assert_eq!(town.unlink(ada, 1, device.0), Outcome::Done);
    }
    let view = town.of(ada).account(ada).unwrap().view(ada);
    let last = view.unlinked.last().map(|unlinked| (unlinked.device, unlinked.key.clone()));
    assert_eq!(last, Some((29, bytes_of(29))));
    assert_eq!(view.unlinked.len(), 8);
}

// ---- Taking over -----------------------------------------------------------------------------

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
    for _ in 0..5 {
        assert_eq!(town.register("ada", 2, "guess"), Err(Code::WrongLock));
    }
    assert_eq!(town.register("ada", 2, "lock"), Err(Code::TooFast));
    town.now += DAY;
    assert_eq!(town.register("ada", 2, "lock"), Ok(ada));
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
    let found: BTreeMap<_, _> = [("ada", town.owner("ada"))].into();
    assert_eq!(found["ada"], Some(new));
}
