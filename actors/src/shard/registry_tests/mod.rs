//! Stories of accounts, aliases and PINs, told to the machines of all shards.

#![allow(clippy::wildcard_enum_match_arm, reason = "a story looks at what it is about")]

mod pins;
mod takeovers;

use super::command::{Command, Effect, Outcome};
use super::machine::{Machine, MachineLimits};
use proto::stored::{self, AliasClaim, AliasOwner, PinGrant, command::Kind};
use proto::{Alias, Code, DeviceId, Seq, ShardId, UserId};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const MINUTE: u64 = 60_000;

const LIMITS: stored::PinLimits = stored::PinLimits {
    requests_per_hour: 5,
    attempts: 3,
    wrong_per_day: 7,
    wrong_per_hour: 100,
    sent_per_hour: 20_000,
};

/// All shards of a cluster, and the notices between them.
struct Town {
    machines: Vec<Machine>,
    now: u64,
    tokens: u64,
    /// Where people are who register.
    place: u64,
}

impl Town {
    fn new() -> Self {
        let machine = |shard| Machine::new(ShardId(shard), MachineLimits::default());
        Self { machines: (0..16).map(machine).collect(), now: 100 * DAY, tokens: 0, place: 0 }
    }

    fn apply(&mut self, shard: ShardId, command: Command) -> Outcome {
        self.machines[usize::from(shard.0)].apply(self.now, command)
    }

    fn of(&self, user: UserId) -> &Machine {
        &self.machines[usize::from(user.shard().0)]
    }

    fn devices(&self, user: UserId) -> Vec<u32> {
        let account = self.of(user).account(user);
        account.iter().flat_map(|account| account.devices().keys()).map(|id| id.0).collect()
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
        self.start_with(alias, pin, LIMITS)
    }

    fn start_with(
        &mut self,
        alias: &str,
        pin: &str,
        limits: stored::PinLimits,
    ) -> Result<Asked, Code> {
        let start = stored::StartRegistration {
            alias: alias.to_owned(),
            short_digest: pin.to_owned().into(),
            long_digest: format!("long {pin}").into(),
            ttl_s: 600,
            limits: Some(limits),
        };
        self.tokens += 1;
        let token = self.tokens;
        match self.apply(shard_of(alias), Kind::StartRegistration(start.into())) {
            Outcome::Pin { grant, send } => Ok(Asked { token, grant, send }),
            Outcome::Refused(code) | Outcome::Wait { code, .. } => Err(code),
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
        self.apply(shard_of(alias), Kind::ProvePin(proof.into()))
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
                Outcome::Refused(code) | Outcome::Wait { code, .. } => return Err(code),
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
            place: 1 << 63 | self.place,
        };
        self.apply(UserId(owner.user).shard(), Kind::KeepAccount(keep.into()))
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
        self.apply(shard_of(alias), Kind::ClaimAlias(claim.into()))
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
fn the_other_devices_are_told_who_came_and_who_went() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    let notices = |town: &mut Town| {
        let effects = town.machines[usize::from(ada.shard().0)].take_effects();
        let notice = |effect| match effect {
            Effect::Push { envelope, .. } => match envelope.content.clone() {
                Some(stored::envelope::Content::DeviceNotice(n)) => {
                    Some((n.kind, n.device, n.by_device))
                }
                _ => None,
            },
            _ => None,
        };
        effects.into_iter().filter_map(notice).collect::<Vec<_>>()
    };
    town.link(ada, 1, 2);
    assert_eq!(notices(&mut town), [], "there is nobody else to be told");
    town.link(ada, 2, 3);
    assert_eq!(notices(&mut town), [(3, 3, 2)]);
    town.link(ada, 2, 3);
    assert_eq!(notices(&mut town), [], "a repeated request links nobody");
    town.unlink(ada, 1, 3);
    assert_eq!(notices(&mut town), [(4, 3, 1)]);
    town.set_lock(ada, "lock", "");
    assert_eq!(notices(&mut town), [(5, 1, 1)]);
}

#[test]
fn a_device_that_is_unlinked_twice_hears_the_first_answer() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.link(ada, 1, 2);
    for _ in 0..2 {
        assert_eq!(town.unlink(ada, 1, 2), Outcome::Done);
    }
    assert_eq!(town.unlink(ada, 1, 3), Outcome::Refused(Code::UnknownDevice));
    assert_eq!(town.unlink(ada, 1, 0), Outcome::Refused(Code::UnknownDevice));
}

#[test]
fn a_lock_that_is_set_twice_is_set_and_told_once() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.link(ada, 1, 2);
    let told = |town: &mut Town| {
        let effects = town.machines[usize::from(ada.shard().0)].take_effects();
        effects.iter().filter(|effect| matches!(effect, Effect::Push { .. })).count()
    };
    told(&mut town);
    for (lock, current) in [("lock", ""), ("next", "lock"), ("", "next")] {
        for _ in 0..3 {
            assert_eq!(town.set_lock(ada, lock, current), Outcome::Done);
        }
        assert_eq!(told(&mut town), 1, "the other device hears of it once");
    }
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

#[test]
fn a_checkpoint_keeps_all_of_an_account() {
    let mut town = Town::new();
    let ada = town.register("ada", 1, "").unwrap();
    town.link(ada, 1, 2);
    town.link(ada, 1, 3);
    town.unlink(ada, 1, 3);
    let user = ada.0;
    let block = stored::SetBlock { user, other: 7, blocked: true, by_device: 1 };
    let contact = stored::SetContact { user, other: 8, contact: true, by_device: 1 };
    let privacy = stored::Privacy { last_seen: 3, online: 1, read_receipts: 2 };
    let privacy = stored::SetPrivacy { user, privacy: Some(privacy), by_device: 1 };
    for command in [Kind::SetBlock(block), Kind::SetContact(contact), Kind::SetPrivacy(privacy)] {
        assert_eq!(town.apply(ada.shard(), command), Outcome::Done);
    }
    town.set_lock(ada, "lock", "");
    let view = |town: &Town| format!("{:?}", town.of(ada).account(ada).unwrap().view(ada));
    let before = view(&town);
    assert!(before.contains("blocked: {UserId(7)}"), "{before}");
    let shard = usize::from(ada.shard().0);
    let mut restarted = Machine::new(ada.shard(), MachineLimits::default());
    town.machines[shard].spill().rows.into_iter().for_each(|row| restarted.load(row));
    town.machines[shard] = restarted;
    assert_eq!(view(&town), before);
    assert_eq!(town.set_lock(ada, "mine", ""), Outcome::Refused(Code::WrongLock));
    assert_eq!(town.link(ada, 1, 4), Outcome::Admitted(DeviceId(4)), "no number is given twice");
}
