//! What a leader does of its own accord: checkpoints, receipts for other shards, ends of times to
//! live, origins of released rows. Checkpoints are written by every replica.

use super::command::{Command, Spill};
use super::core::{Action, Hint, Item, ReplicaCore};
use super::fault::Fault;
use super::proposals::Asker;
use super::reads::{Overlay, Reader};
use super::surroundings::Surroundings;
use super::{Outcome, TICK_MS};
use proto::{Seq, ShardId, UserId, ids::SHARDS, stored};
use std::collections::BTreeSet;
use std::time::Duration;
use storage::Row;

/// Wait before something that failed for lack of space or of an answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Bytes logged after which a shard makes a checkpoint early: bounds the bodies it keeps in memory.
const CHECKPOINT_BYTES: usize = 4 * 1024 * 1024;

/// Bytes logged beyond the last checkpoint while the tables still write it, at which nothing more
/// is proposed: senders wait rather than memory grow.
const BACKLOG_BYTES: usize = 4 * CHECKPOINT_BYTES;

/// Tries to write a checkpoint, [`RETRY`] apart, that may fail for another reason than a full disk.
const CHECKPOINT_TRIES: u32 = 10;

/// How often stored entries are searched for ended times to live, in ticks.
const EXPIRY_EVERY_TICKS: u64 = 10;

/// Expired entries taken out by one command.
pub(super) const EXPIRY_BATCH: usize = 1_000;

/// Users whose devices are looked at in one tick: a million in a shard within a quarter of an hour, and
/// 50 µs of work.
const USERS_PER_TICK: usize = 1_000;

/// What another shard was offered and has not confirmed.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    up_to: u64,
    /// Which offer is under way, if one is: an answer to an earlier one says nothing of it.
    under_way: Option<u64>,
}

/// How far a checkpoint has come. Stored entries are not searched for expired ones meanwhile, so
/// that none is found twice. One that nobody knows the outcome of is still `Proposed`: it is in the
/// log as long as this node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checkpoint {
    Idle,
    Proposed,
    Writing,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Chores {
    checkpoint: Checkpoint,
    failed_tries: u32,
    logged_bytes: usize,
    ticks_since_checkpoint: u64,
    ticks_since_expiry: u64,
    /// Seconds of Unix time in which stored entries end that came with less than an hour to live.
    ends_s: BTreeSet<u64>,
    reading_due: bool,
    /// What is being read was asked for in an earlier term: it may be from before a checkpoint.
    due_outdated: bool,
    offers: [Offer; SHARDS as usize],
    offers_made: u64,
    /// The last user whose devices were looked at.
    looked_at_users_to: UserId,
    reading_origins: BTreeSet<UserId>,
    /// Whether [`Item::RetryDue`] is on its way: nothing is proposed until it is there.
    pub(super) retry_asked: bool,
}

impl Chores {
    /// Shards make their checkpoints at different times.
    pub(super) fn new(shard: ShardId, checkpoint_every_ms: u64) -> Self {
        let spread = checkpoint_every_ms * u64::from(shard.0) / u64::from(SHARDS);
        Self {
            checkpoint: Checkpoint::Idle,
            failed_tries: 0,
            logged_bytes: 0,
            ticks_since_checkpoint: spread / TICK_MS,
            ticks_since_expiry: u64::from(shard.0),
            ends_s: BTreeSet::new(),
            reading_due: false,
            due_outdated: false,
            offers: [Offer::default(); SHARDS as usize],
            offers_made: 0,
            looked_at_users_to: UserId::default(),
            reading_origins: BTreeSet::new(),
            retry_asked: false,
        }
    }

    /// This node has ceased to lead.
    pub(super) fn not_leading(&mut self) {
        self.offers = [Offer::default(); SHARDS as usize];
        self.reading_origins.clear();
        self.due_outdated = self.reading_due;
        self.checkpoint_not_proposed();
    }

    pub(super) fn checkpoint_not_proposed(&mut self) {
        if self.checkpoint == Checkpoint::Proposed {
            self.checkpoint = Checkpoint::Idle;
        }
    }

    pub(super) fn snapshot_taken(&mut self) {
        self.logged_bytes = 0;
    }

    pub(super) fn is_writing(&self) -> bool {
        self.checkpoint == Checkpoint::Writing
    }

    /// The checkpoint could not be written. Whether it is tried again: space will come, but tables that
    /// fail otherwise do not get well before the node starts again.
    fn tries_again(&mut self, disk_is_full: bool) -> bool {
        self.failed_tries = if disk_is_full { 0 } else { self.failed_tries + 1 };
        self.failed_tries < CHECKPOINT_TRIES
    }

    fn is_written(&mut self) {
        self.checkpoint = Checkpoint::Idle;
        self.failed_tries = 0;
    }

    pub(super) fn must_wait_for_tables(&self) -> bool {
        self.is_writing() && self.logged_bytes >= BACKLOG_BYTES
    }

    pub(super) fn count_logged(&mut self, bytes: usize) {
        self.logged_bytes += bytes;
    }

    /// Starts a checkpoint if so much was logged that one is due; it counts as proposed then.
    pub(super) fn start_checkpoint_if_due(&mut self) -> bool {
        self.logged_bytes >= CHECKPOINT_BYTES && self.begin_checkpoint()
    }

    /// Starts a search of the stored entries for times to live that have ended: now and then, and at once when
    /// some are known to have ended.
    fn start_search_if_due(&mut self, now_ms: u64) -> bool {
        let free = self.checkpoint == Checkpoint::Idle && !self.reading_due;
        let is_known = self.ends_s.first().is_some_and(|end_s| end_s * 1_000 <= now_ms);
        let starts = free && (is_known || self.ticks_since_expiry >= EXPIRY_EVERY_TICKS);
        if starts {
            self.ticks_since_expiry = 0;
            self.ends_s = self.ends_s.split_off(&(now_ms / 1_000 + 1));
            self.reading_due = true;
        }
        starts
    }

    fn begin_checkpoint(&mut self) -> bool {
        let free = self.checkpoint == Checkpoint::Idle && !self.reading_due;
        if free {
            self.ticks_since_checkpoint = 0;
            self.checkpoint = Checkpoint::Proposed;
        }
        free
    }
}

impl ReplicaCore {
    /// What a leader does each second.
    pub(super) fn do_chores(&mut self, around: &Surroundings) {
        let now_ms = self.moment().ms;
        self.chores.ticks_since_checkpoint += 1;
        self.chores.ticks_since_expiry += 1;
        self.offer_notices();
        // Also when nothing is dirty: what is logged keeps segments of the log on the disk.
        let every = (around.checkpoint_every_ms / TICK_MS).max(1);
        let due = self.chores.ticks_since_checkpoint >= every && self.chores.logged_bytes > 0;
        if due && self.chores.begin_checkpoint() {
            self.proposals.push_spill();
        }
        if around.may_expire {
            let idle_max_ms = u64::from(around.settings.device_idle_max_s) * 1000;
            self.end_what_is_over(idle_max_ms, now_ms);
        }
    }

    /// What ends by the clock, of which a majority of the members must agree that it is right.
    fn end_what_is_over(&mut self, idle_ms: u64, now_ms: u64) {
        if self.machine.has_due(now_ms) {
            self.expire(Vec::new(), now_ms);
        }
        self.look_for_idle_devices(idle_ms, now_ms);
        if self.chores.start_search_if_due(now_ms) {
            self.actions.push(Action::ReadDue(now_ms));
        }
    }

    /// Looks at some users, all of them in turn, and sets aside the devices that stay away.
    fn look_for_idle_devices(&mut self, idle_ms: u64, now_ms: u64) {
        let after = self.chores.looked_at_users_to;
        let (idle, seen) = self.machine.idle_devices(after, USERS_PER_TICK, idle_ms, now_ms);
        self.chores.looked_at_users_to = seen.unwrap_or_default();
        for (user, device) in idle {
            let set = stored::SetAside { user: user.0, device: device.0, idle_ms };
            self.propose_own(Command::SetAside(set), Asker::Nobody);
        }
    }

    fn propose_own(&mut self, command: Command, asker: Asker) {
        self.proposals.push(command, asker, self.moment());
    }

    // ---- Origins of released rows ------------------------------------------------------------

    pub(super) fn read_origins(&mut self, user: UserId, first: Seq, up_to: Seq) {
        if self.chores.reading_origins.insert(user) {
            let Self { machine, overlay, fault, .. } = self;
            let read = Reader { machine, overlay, fault: *fault }.read_origins(user, first, up_to);
            self.actions.push(Action::ReadOrigins(Box::new(read)));
        }
    }

    pub(super) fn origins_read(&mut self, user: UserId, release: Option<stored::Release>) {
        if !self.is_ready() {
            return;
        }
        match release {
            Some(release) => self.propose_own(Command::Release(release), Asker::Origins(user)),
            None => self.later(RETRY, Item::OriginsDue(user)),
        }
    }

    /// What became of a proposal to release rows: there may be more.
    pub(super) fn origins_proposed(&mut self, user: UserId, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(_) | Outcome::Wait { .. } => {
                self.later(RETRY, Item::OriginsDue(user));
            }
            Outcome::Elsewhere => {}
            Outcome::Done
            | Outcome::Accepted { .. }
            | Outcome::Pin { .. }
            | Outcome::Proven { .. }
            | Outcome::NotTheirs
            | Outcome::Admitted(_) => self.later(Duration::ZERO, Item::OriginsDue(user)),
        }
    }

    /// Reads the origins of all rows of a mailbox that are released.
    pub(super) fn origins_due(&mut self, user: UserId) {
        if !self.is_ready() {
            return;
        }
        self.chores.reading_origins.remove(&user);
        let mailbox = self.machine.mailbox(user);
        let owed = mailbox.and_then(|m| m.origins_owed().map(|up_to| (m.stored_first, up_to)));
        if let Some((first, up_to)) = owed {
            self.read_origins(user, first.max(Seq(1)), up_to);
        }
    }

    // ---- Notices -----------------------------------------------------------------------------

    pub(super) fn offer_notices(&mut self) {
        if !self.is_ready() {
            return;
        }
        for to in (0..SHARDS).map(ShardId) {
            let offer = &mut self.chores.offers[usize::from(to.0)];
            if offer.under_way.is_some() || !self.machine.streams().has_news(to, offer.up_to) {
                continue;
            }
            let notices = self.machine.streams().offer(to, offer.up_to);
            let Some(number) = notices.last().map(|notice| notice.number) else { continue };
            self.chores.offers_made += 1;
            let which = self.chores.offers_made;
            *offer = Offer { up_to: number, under_way: Some(which) };
            let notices = stored::TakeNotices { from_shard: u32::from(self.shard.0), notices };
            self.actions.push(Action::Offer { to, which, number, notices });
        }
    }

    pub(super) fn notices_taken(&mut self, to: ShardId, which: u64, taken: Option<u64>) {
        let ready = self.is_ready();
        let offer = &mut self.chores.offers[usize::from(to.0)];
        if offer.under_way.take_if(|under_way| *under_way == which).is_none() {
            return;
        }
        let dropped = (self.fault == Some(Fault::DroppedNotice)).then_some(offer.up_to);
        if !ready {
            *offer = Offer::default();
        } else if let Some(number) = taken.or(dropped) {
            let settled = stored::SettleNotices { to_shard: u32::from(to.0), number };
            self.proposals.push_lazy(Command::SettleNotices(settled));
            self.offer_notices();
        } else {
            // The next tick offers them again, from the oldest that is not settled.
            offer.up_to = 0;
        }
    }

    // ---- Checkpoints -------------------------------------------------------------------------

    /// The machine let go of entries: they are read from here until the tables have them.
    pub(super) fn begin_checkpoint(&mut self, spill: Spill) {
        self.chores.logged_bytes = 0;
        if self.is_ready() {
            // Devices that were unlinked have no session any longer, wherever it was.
            for row in &spill.rows {
                if let Row::Device(user, device, None) = row {
                    self.hint(Hint::RemoveSession(*user, *device));
                }
            }
        }
        self.chores.ends_s.extend(spill.ends_s);
        self.overlay = Overlay { entries: spill.entries.into_iter().collect(), gone: spill.gone };
        self.chores.checkpoint = Checkpoint::Writing;
        self.actions.push(Action::WriteCheckpoint(Box::new(self.applied.clone()), spill.rows));
    }

    pub(super) fn checkpoint_written(&mut self, applied: &stored::Applied) {
        self.overlay = Overlay::default();
        self.chores.is_written();
        if self.rests_when_written() {
            return;
        }
        if let Some(id) = applied.id {
            self.actions.push(Action::Checkpointed(id));
        }
        self.resume_deferred();
    }

    pub(super) fn checkpoint_failed(
        &mut self,
        applied: stored::Applied,
        rows: Vec<Row>,
        disk_is_full: bool,
    ) {
        if self.rests_when_written() {
            self.overlay = Overlay::default();
            self.chores.is_written();
        } else if self.chores.tries_again(disk_is_full) {
            self.actions.push(Action::WriteCheckpoint(Box::new(applied), rows));
        } else {
            self.actions.push(Action::Stop("checkpoints are not written".to_owned()));
        }
    }

    // ---- Ends of times to live ---------------------------------------------------------------

    pub(super) fn due_read(&mut self, mut entries: Vec<stored::Expired>) {
        self.chores.reading_due = false;
        // A row is found again until a checkpoint deletes it.
        entries.retain(|entry| {
            let mailbox = self.machine.mailbox(UserId(entry.user));
            let seq = entry.origin.as_ref().map(|origin| Seq(origin.seq));
            mailbox.zip(seq).is_some_and(|(mailbox, seq)| !mailbox.is_expired(seq))
        });
        let outdated = std::mem::take(&mut self.chores.due_outdated);
        if !entries.is_empty() && !outdated {
            self.expire(entries, 0);
        }
    }

    /// Lets go of these, and of what was due in memory at `until_ms`.
    fn expire(&mut self, entries: Vec<stored::Expired>, until_ms: u64) {
        if self.is_ready() {
            let expire = Command::Expire(stored::Expire { entries, until_ms });
            self.propose_own(expire, Asker::Nobody);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_entries_are_searched_as_soon_as_some_have_ended_and_now_and_then() {
        let mut chores = Chores::new(ShardId(0), 10_000);
        chores.ends_s.extend([100, 101, 200]);
        let starts = |chores: &mut Chores, now_ms| {
            let starts = chores.start_search_if_due(now_ms);
            chores.reading_due = false;
            starts
        };
        assert!(!starts(&mut chores, 99_999));
        assert!(starts(&mut chores, 100_000) && !starts(&mut chores, 100_500));
        assert!(starts(&mut chores, 150_000), "101 has passed");
        assert!(!starts(&mut chores, 160_000));
        chores.ticks_since_expiry = EXPIRY_EVERY_TICKS;
        assert!(starts(&mut chores, 160_000) && !starts(&mut chores, 199_000));
        chores.checkpoint = Checkpoint::Writing;
        assert!(!starts(&mut chores, 200_000), "none is found twice");
        chores.is_written();
        assert!(starts(&mut chores, 200_000));
    }

    #[test]
    fn a_checkpoint_waits_for_space_as_long_as_it_takes_and_for_nothing_else() {
        let mut chores = Chores::new(ShardId(0), 10_000);
        let last = CHECKPOINT_TRIES - 1;
        assert!((0..last).all(|_| chores.tries_again(false)));
        assert!((0..100).all(|_| chores.tries_again(true)));
        assert!((0..last).all(|_| chores.tries_again(false)));
        chores.is_written();
        assert!((0..last).all(|_| chores.tries_again(false)));
        assert!(!chores.tries_again(false), "the tables do not get well");
    }
}
