//! The registration lock of an account, and how many wrong ones are taken. A pure core.
//!
//! Whoever can read an account's PINs may guess its lock, and must not keep its owner out. So wrong ones
//! are counted for each place that they come from, a linked device or an address, and for all places
//! together. Places that guess use up their own tries; only with several of them those of all.
//!
//! # Invariants
//! 1. Whether a lock is right is not said while there is no try left.
//! 2. The same wrong lock from the same place does not count again: its answer may have been lost.

use super::bucket::Bucket;
use super::command::Outcome;
use bytes::Bytes;
use proto::{Code, DeviceId, stored};

/// A day, in ms.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Wrong locks from one place: a person mistypes, and after five hours there is one more try.
const OF_PLACE: Bucket = Bucket { whole: DAY_MS, count: 5, credit: false };

/// Wrong locks from all places together: with four digits one account of 500 in a day of guessing, and
/// after 72 minutes there is one more try for whoever comes first.
const OF_ALL: Bucket = Bucket { whole: DAY_MS, count: 20, credit: false };

/// A lock, and who tried to open it. Places are at most as many as wrong locks in a day.
#[derive(Clone, Debug, Default)]
pub(super) struct Lock(stored::RegistrationLock);

/// Why a lock does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// It is not this one.
    Wrong,
    /// There were too many wrong ones. Another may come after so many ms.
    Wait(u64),
}

impl Locked {
    /// The answer.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Wrong => Outcome::Refused(Code::WrongLock),
            Self::Wait(after_ms) => Outcome::wait(Code::TooFast, after_ms),
        }
    }
}

impl Lock {
    pub(super) fn from_row(row: Option<&stored::RegistrationLock>) -> Self {
        Self(row.cloned().unwrap_or_default())
    }

    pub(super) fn to_row(&self) -> stored::RegistrationLock {
        self.0.clone()
    }

    /// True if there is a lock.
    pub(super) fn is_set(&self) -> bool {
        !self.0.digest.is_empty()
    }

    /// Tries to open it from a place. All locks are digests.
    ///
    /// # Errors
    /// [`Locked`].
    pub(super) fn open(&mut self, lock: &[u8], place: u64, now_ms: u64) -> Result<(), Locked> {
        let is_right = self.0.digest == lock;
        self.attempt(is_right, lock.to_vec().into(), place, now_ms)
    }

    /// Sets it, or removes it if `lock` is empty. Whether that changed anything: a device that says the
    /// same again has heard no answer.
    ///
    /// # Errors
    /// [`Locked`], if there is a lock and `current` is not it.
    pub(super) fn set(
        &mut self,
        (current, lock): (Bytes, Bytes),
        by: DeviceId,
        now_ms: u64,
    ) -> Result<bool, Locked> {
        let again = self.0.by_device == by.0 && self.0.digest == lock && self.0.before == current;
        if self.is_set() {
            let is_right = again || self.0.digest == current;
            // Both: whoever guesses the new one must not do so for nothing.
            let said = [&current[..], &lock[..]].concat();
            self.attempt(is_right, said.into(), by.0.into(), now_ms)?;
        }
        if self.0.digest == lock {
            return Ok(false);
        }
        let before = std::mem::take(&mut self.0.digest);
        self.0 = stored::RegistrationLock {
            digest: lock,
            before,
            by_device: by.0,
            ..Default::default()
        };
        Ok(true)
    }

    fn attempt(
        &mut self,
        is_right: bool,
        said: Bytes,
        place: u64,
        now_ms: u64,
    ) -> Result<(), Locked> {
        let tries = &mut self.0.tries;
        let known = tries.iter().position(|tries| tries.place == place);
        if !is_right && known.is_some_and(|known| tries[known].last == said) {
            return Err(Locked::Wrong);
        }
        let mut of_place = known.map_or(0, |known| tries[known].paid_to_ms);
        let place_paid_to = OF_PLACE.pay(&mut of_place, now_ms);
        let all_paid_to = OF_ALL.pay(&mut self.0.paid_to_ms, now_ms);
        let (place_paid_to, all_paid_to) = match (place_paid_to, all_paid_to) {
            (Ok(of_place), Ok(of_all)) => (of_place, of_all),
            (of_place, of_all) => {
                let wait = |paid: Result<u64, u64>| paid.err().unwrap_or_default();
                return Err(Locked::Wait(wait(of_place).max(wait(of_all))));
            }
        };
        if is_right {
            return Ok(());
        }
        tries.retain(|tries| tries.place != place && tries.paid_to_ms > now_ms);
        tries.push(stored::LockTries { place, paid_to_ms: place_paid_to, last: said });
        self.0.paid_to_ms = all_paid_to;
        Err(Locked::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const ADA: DeviceId = DeviceId(1);
    const THIEF: u64 = 1 << 40;
    const NEW_PHONE: u64 = 1 << 41;

    fn bytes(text: &str) -> Bytes {
        text.to_owned().into()
    }

    fn locked() -> Lock {
        let mut lock = Lock::default();
        assert_eq!(lock.set((bytes(""), bytes("right")), ADA, 0), Ok(true));
        lock
    }

    #[test]
    fn a_thief_who_reads_the_pins_uses_up_the_own_tries_and_not_the_owners() {
        let mut lock = locked();
        for guess in 0..5 {
            assert_eq!(lock.open(format!("{guess}").as_bytes(), THIEF, 0), Err(Locked::Wrong));
        }
        let wait = 24 * HOUR / 5;
        assert_eq!(lock.open(b"more", THIEF, 0), Err(Locked::Wait(wait)));
        assert_eq!(
            lock.open(b"right", THIEF, wait - 1),
            Err(Locked::Wait(1)),
            "and is told nothing"
        );
        assert_eq!(lock.open(b"right", NEW_PHONE, 0), Ok(()));
        assert_eq!(lock.open(b"more", THIEF, wait), Err(Locked::Wrong));
    }

    #[test]
    fn thieves_in_many_places_have_twenty_tries_a_day_and_the_owner_one_within_72_minutes() {
        let mut lock = locked();
        let mut guess = |place: u64, now_ms| lock.open(&place.to_be_bytes(), place, now_ms);
        let wrong = (0..100).filter(|n| guess(THIEF + n, 0) == Err(Locked::Wrong)).count();
        assert_eq!(wrong, 20);
        let trickle = 24 * HOUR / 20;
        assert_eq!(lock.open(b"right", NEW_PHONE, 0), Err(Locked::Wait(trickle)));
        assert_eq!(lock.open(b"right", NEW_PHONE, trickle), Ok(()));
        let (mut wrong, mut places) = (0, 0);
        for now_ms in (0..10 * 24 * HOUR).step_by(60_000) {
            let place = THIEF + now_ms;
            let answer = lock.open(&place.to_be_bytes(), place, now_ms);
            wrong += u32::from(answer == Err(Locked::Wrong));
            places = places.max(lock.0.tries.len());
        }
        assert!(wrong <= 20 * 11, "{wrong} in ten days");
        assert!(places <= 40, "{places} places are remembered");
    }

    #[test]
    fn whatever_is_said_again_hears_the_first_answer_and_counts_once() {
        let mut lock = locked();
        let mut set = |current: &str, new: &str| lock.set((bytes(current), bytes(new)), ADA, 0);
        for _ in 0..20 {
            assert_eq!(set("", "right"), Ok(false));
            assert_eq!(set("wrong", "x"), Err(Locked::Wrong));
        }
        assert_eq!(set("right", "next"), Ok(true));
        assert_eq!(set("right", "next"), Ok(false));
        assert_eq!(set("next", ""), Ok(true));
        assert_eq!(set("next", ""), Ok(false));
        let mut lock = locked();
        for _ in 0..20 {
            assert_eq!(lock.open(b"wrong", THIEF, 0), Err(Locked::Wrong));
        }
        assert_eq!(lock.open(b"right", THIEF, 0), Ok(()));
    }

    #[test]
    fn what_a_repetition_is_recognized_by_opens_nothing_to_whoever_guesses_it() {
        let mut lock = locked();
        let mut guess = |number: u32| lock.set((bytes(""), bytes(&number.to_string())), ADA, 0);
        let told = (0..100).filter(|number| guess(*number) == Err(Locked::Wrong)).count();
        assert_eq!(told, 5, "the device that set the lock has as many tries as any place");
        assert!(matches!(lock.set((bytes(""), bytes("right")), ADA, 0), Err(Locked::Wait(_))));
        let mut lock = locked();
        let other = DeviceId(2);
        assert_eq!(lock.set((bytes(""), bytes("right")), other, 0), Err(Locked::Wrong));
    }
}
