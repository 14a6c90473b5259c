//! What a leader does of its own accord, and how checkpoints are written: as `shard/chores.rs`.

use crate::seat::Seat;
use crate::stage::{NodeEvent, Stage};
use crate::table::Applied;
use actors::shard::{Command, Outcome, Spill, Who, origin_row};
use proto::stored;
use proto::{Seq, ShardId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use storage::Row;

/// Wait before something that failed is tried again, in ms.
pub(crate) const AGAIN_MS: u64 = 500;

#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    up_to: u64,
    under_way: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Checkpoint {
    #[default]
    Idle,
    Proposed,
    Writing,
}

#[derive(Debug, Default)]
pub(crate) struct Chores {
    checkpoint: Checkpoint,
    writing: Option<(Applied, Vec<Row>)>,
    pub(crate) logged: u64,
    offers: BTreeMap<ShardId, Offer>,
    offers_made: u64,
    reading_origins: BTreeSet<UserId>,
    reading_due: bool,
    due_outdated: bool,
    pub(crate) retry_asked: bool,
}

impl Chores {
    pub(crate) fn not_leading(&mut self) {
        self.offers.clear();
        self.reading_origins.clear();
        self.due_outdated = self.reading_due;
        self.checkpoint_failed();
    }

    pub(crate) fn checkpoint_failed(&mut self) {
        if self.checkpoint == Checkpoint::Proposed {
            self.checkpoint = Checkpoint::Idle;
        }
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.checkpoint == Checkpoint::Writing
    }
}

impl Seat {
    pub(crate) fn do_chores(&mut self, stage: &mut Stage) {
        self.offer_notices(stage);
        let idle = self.chores.checkpoint == Checkpoint::Idle && !self.chores.reading_due;
        if idle && self.chores.logged > 0 && stage.chance.one_in(2) {
            self.chores.checkpoint = Checkpoint::Proposed;
            self.proposals.push_spill();
        }
        let now_ms = stage.clock(self.me);
        if self.machine.has_due(now_ms) {
            self.expire(Vec::new(), now_ms, stage);
        }
        if self.chores.checkpoint == Checkpoint::Idle && !self.chores.reading_due {
            self.chores.reading_due = true;
            let due = self.table.due(now_ms).map(|(user, seq, envelope)| stored::Expired {
                user: user.0,
                origin: Some(origin_row(seq, envelope)),
            });
            let due = due.collect();
            let late = stage.table_delay();
            stage.local(self.me, late, NodeEvent::DueRead(self.shard, due));
        }
    }

    pub(crate) fn due_read(&mut self, entries: Vec<stored::Expired>, stage: &Stage) {
        self.chores.reading_due = false;
        let outdated = std::mem::take(&mut self.chores.due_outdated);
        if !entries.is_empty() && !outdated {
            self.expire(entries, 0, stage);
        }
    }

    fn expire(&mut self, entries: Vec<stored::Expired>, until_ms: u64, stage: &Stage) {
        if self.is_ready() {
            let expire = Command::Expire(stored::Expire { entries, until_ms });
            self.proposals.push(expire, Box::new(|_| ()), Who::Own, self.moment(stage));
        }
    }

    // ---- Checkpoints -------------------------------------------------------------------------

    pub(crate) fn begin_checkpoint(&mut self, spill: Spill, stage: &mut Stage) {
        self.chores.logged = 0;
        self.chores.checkpoint = Checkpoint::Writing;
        self.overlay = spill.entries.into_iter().collect();
        self.gone = spill.gone;
        self.chores.writing = Some((self.applied, spill.rows));
        let late = stage.table_delay();
        stage.local(self.me, late, NodeEvent::CheckpointWritten(self.shard));
    }

    pub(crate) fn checkpoint_written(&mut self, stage: &mut Stage) {
        let Some((applied, rows)) = self.chores.writing.take() else { return };
        // Tables that a snapshot has replaced meanwhile are not written over.
        if applied.place.index > self.table.applied.place.index {
            self.table.write(applied, rows);
            self.raft.purge(applied.place);
        }
        self.overlay.clear();
        self.gone.clear();
        self.chores.checkpoint = Checkpoint::Idle;
        self.apply(stage);
    }

    // ---- Origins of released rows ------------------------------------------------------------

    pub(crate) fn read_origins(&mut self, user: UserId, first: Seq, up_to: Seq, stage: &mut Stage) {
        if !self.chores.reading_origins.insert(user) {
            return;
        }
        let overlay = self.overlay.get(&user).cloned().unwrap_or_default();
        let inside = overlay.iter().filter(|entry| entry.seq >= first && entry.seq <= up_to);
        let inside = inside.map(|entry| origin_row(entry.seq, &entry.envelope));
        let table_to = overlay.front().map_or(up_to, |entry| up_to.min(Seq(entry.seq.0 - 1)));
        let rows = self.table.messages(user, Seq(first.0.saturating_sub(1)), table_to);
        let rows = rows.map(|(seq, envelope)| origin_row(seq, envelope));
        let all = rows.chain(inside);
        let origins = all.filter(|origin| !self.is_expired(user, Seq(origin.seq))).collect();
        let release = stored::Release { user: user.0, up_to: up_to.0, origins };
        let late = stage.table_delay();
        stage.local(self.me, late, NodeEvent::OriginsRead(self.shard, user, Some(release)));
    }

    pub(crate) fn origins_read(
        &mut self,
        user: UserId,
        read: Option<stored::Release>,
        stage: &mut Stage,
    ) {
        if !self.is_ready() {
            return;
        }
        let Some(release) = read else {
            self.chores.reading_origins.remove(&user);
            let owed = self.machine.mailbox(user).and_then(|mailbox| mailbox.origins_owed());
            if let Some(up_to) = owed {
                self.read_origins(user, Seq(1), up_to, stage);
            }
            return;
        };
        let (voice, shard) = (stage.voice(self.me), self.shard);
        let again = Box::new(move |outcome| match outcome {
            Outcome::Elsewhere => {}
            Outcome::Refused(_)
            | Outcome::Done
            | Outcome::Accepted { .. }
            | Outcome::Pin { .. }
            | Outcome::Proven { .. }
            | Outcome::NotTheirs
            | Outcome::Admitted(_) => voice.say(NodeEvent::OriginsRead(shard, user, None)),
        });
        let now = self.moment(stage);
        self.proposals.push(Command::Release(release), again, Who::Own, now);
    }

    // ---- Notices -----------------------------------------------------------------------------

    pub(crate) fn offer_notices(&mut self, stage: &mut Stage) {
        if !self.is_ready() {
            return;
        }
        for to in stage.shards() {
            let offer = self.chores.offers.entry(to).or_default();
            if offer.under_way.is_some() || !self.machine.streams().has_news(to, offer.up_to) {
                continue;
            }
            let notices = self.machine.streams().offer(to, offer.up_to);
            let Some(number) = notices.last().map(|notice| notice.number) else { continue };
            self.chores.offers_made += 1;
            let which = self.chores.offers_made;
            *offer = Offer { up_to: number, under_way: Some(which) };
            let (voice, shard) = (stage.voice(self.me), self.shard);
            let reply = Box::new(move |outcome| {
                let taken = (outcome == Outcome::Done).then_some(number);
                voice.say(NodeEvent::NoticesTaken { shard, to, which, taken });
            });
            let taken = stored::TakeNotices { from_shard: u32::from(self.shard.0), notices };
            let command = Command::TakeNotices(taken);
            stage.local(self.me, 0, NodeEvent::Propose(to, command, reply));
        }
    }

    pub(crate) fn notices_taken(
        &mut self,
        to: ShardId,
        which: u64,
        taken: Option<u64>,
        stage: &mut Stage,
    ) {
        let ready = self.is_ready();
        let offer = self.chores.offers.entry(to).or_default();
        if offer.under_way.take_if(|under_way| *under_way == which).is_none() {
            return;
        }
        if !ready {
            *offer = Offer::default();
        } else if let Some(number) = taken {
            let settled = stored::SettleNotices { to_shard: u32::from(to.0), number };
            self.proposals.push_lazy(Command::SettleNotices(settled));
            self.offer_notices(stage);
        } else {
            // The next tick offers them again, from the oldest that is not settled.
            offer.up_to = 0;
        }
    }
}
