//! The shard process: logs commands, applies what is flushed, answers, does what follows.

use super::command::{Command, Effect, Spill};
use super::machine::Machine;
use super::proposals::Proposals;
use super::reads::{Overlay, Reader};
use super::{Outcome, Query, Reply, ShardItem};
use crate::context::Context;
use bytes::Bytes;
use prost::Message;
use proto::{Code, Seq, ShardId, UserId, ids::SHARDS, stored};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use storage::{LogError, Row, StorageError};
use supervision::{Flow, Inbox, Process, ProcessError};
use tracing::{error, info, warn};

/// Bytes logged after which a shard makes a checkpoint early: bounds the bodies it keeps in memory.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes logged beyond the last checkpoint while the tables still write it, at which nothing more
/// is proposed: senders wait rather than memory grow.
const BACKLOG_BYTES: u64 = 4 * CHECKPOINT_BYTES;

/// Wait before something that failed for lack of space or of an answer is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often [`ShardItem::TickDue`] comes, in ms. Chores count ticks, not the clock, which may jump.
pub const TICK_MS: u64 = 1_000;

/// How often stored entries are searched for ended times to live, in ticks.
const EXPIRY_EVERY_TICKS: u64 = 10;

/// Expired entries taken out by one command.
const EXPIRY_BATCH: usize = 1_000;

/// Why a shard actor is not started twice: what was logged since the tables were written is read
/// when the node starts. The node ends, and its next start finds everything.
const STATE_LOST: &str = "a shard failed: the node must start again to read its log";

/// What a shard actor is started with.
#[derive(Clone, Debug)]
pub struct ShardArgs {
    /// Which shard.
    pub shard: ShardId,
    /// What it may touch.
    pub context: Arc<Context>,
}

/// What another shard was offered and has not confirmed.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    up_to: u64,
    under_way: bool,
}

/// How far a checkpoint has come. Stored entries are not searched for expired ones meanwhile, so
/// that none is found twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checkpoint {
    Idle,
    Proposed,
    Writing,
}

/// One replica of one shard.
pub struct ShardActor {
    shard: ShardId,
    context: Arc<Context>,
    inbox: Arc<Inbox<ShardItem>>,
    machine: Machine,
    proposals: Proposals,
    /// Index of the last record in the log.
    index: u64,
    logged_bytes: u64,
    overlay: Overlay,
    checkpoint: Checkpoint,
    ticks_since_checkpoint: u64,
    ticks_since_expiry: u64,
    reading_due: bool,
    offers: [Offer; SHARDS as usize],
    reading_origins: BTreeSet<UserId>,
}

impl std::fmt::Debug for ShardActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardActor").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Process for ShardActor {
    type Item = ShardItem;
    type Args = ShardArgs;

    async fn start(args: ShardArgs, inbox: Arc<Inbox<ShardItem>>) -> Result<Self, ProcessError> {
        let ShardArgs { shard, context } = args;
        let (storage, limits) = (context.storage.clone(), context.settings.machine);
        let records = context.records_of(shard).ok_or(STATE_LOST)?;
        let load = move || recover(&storage, Machine::new(shard, limits), records);
        let recovered = tokio::task::spawn_blocking(load).await??;
        let spread = context.settings.checkpoint_every_ms * u64::from(shard.0) / u64::from(SHARDS);
        let mut actor = Self {
            shard,
            context,
            inbox,
            machine: recovered.machine,
            proposals: Proposals::default(),
            index: recovered.index,
            logged_bytes: recovered.bytes,
            overlay: Overlay::new(),
            checkpoint: Checkpoint::Idle,
            ticks_since_checkpoint: spread / TICK_MS,
            ticks_since_expiry: u64::from(shard.0),
            reading_due: false,
            offers: [Offer::default(); SHARDS as usize],
            reading_origins: BTreeSet::new(),
        };
        actor.machine.resume();
        actor.follow_effects();
        actor.offer_notices();
        Ok(actor)
    }

    fn handle(&mut self, item: ShardItem) -> Result<Flow, ProcessError> {
        match item {
            ShardItem::Propose { command, reply } => self.admit(command, reply),
            ShardItem::ProposeLazily(command) => self.proposals.push_lazy(command),
            ShardItem::Query(query) => self.answer(query),
            ShardItem::Logged(Ok(())) => self.apply_batch(),
            ShardItem::Logged(Err(error)) => self.not_logged(error)?,
            ShardItem::OriginsRead { user, read } => self.origins_read(user, read),
            ShardItem::NoticesTaken { to, number, taken } => self.notices_taken(to, number, taken),
            ShardItem::CheckpointWritten { applied, again } => {
                self.checkpoint_written(applied, again);
            }
            ShardItem::DueRead(entries) => self.due_read(entries),
            ShardItem::TickDue => self.tick(),
        }
        Ok(Flow::Continue)
    }

    fn settle(&mut self) -> Result<Flow, ProcessError> {
        self.propose_next(false);
        Ok(Flow::Continue)
    }
}

impl ShardActor {
    fn admit(&mut self, command: Command, reply: Reply) {
        let stores = matches!(
            command,
            Command::Append(_) | Command::StartRegistration(_) | Command::AdmitDevice(_)
        );
        if stores && self.context.storage.nearly_full() {
            reply(Outcome::Refused(Code::StorageFull));
        } else {
            self.proposals.push(command, reply);
        }
    }

    fn answer(&self, query: Query) {
        let Self { machine, overlay, context, .. } = self;
        Reader { machine, overlay, storage: &context.storage }.answer(query);
    }

    fn propose_next(&mut self, lazily: bool) {
        if self.checkpoint == Checkpoint::Writing && self.logged_bytes >= BACKLOG_BYTES {
            return;
        }
        if self.logged_bytes >= CHECKPOINT_BYTES {
            self.propose_checkpoint();
        }
        let now_ms = self.context.clock.now_ms();
        let Some(record) = self.proposals.next(self.index + 1, now_ms, lazily) else { return };
        self.index += 1;
        self.logged_bytes += record.len() as u64;
        let inbox = self.inbox.clone();
        let done = Box::new(move |flushed| inbox.force(ShardItem::Logged(flushed)));
        self.context.storage.log().append(self.shard, self.index, record, done);
    }

    fn apply_batch(&mut self) {
        let Some(batch) = self.proposals.flushed() else { return };
        let (index, now_ms) = (batch.index, batch.content.now_ms);
        for (command, reply) in batch.into_commands() {
            let outcome = self.machine.apply(now_ms, command);
            if let Some(reply) = reply {
                reply(outcome);
            }
        }
        debug_assert_eq!(index, self.index);
        self.follow_effects();
        self.offer_notices();
    }

    fn not_logged(&mut self, error: LogError) -> Result<(), ProcessError> {
        let code = match error {
            LogError::Full => Code::StorageFull,
            LogError::Failed => Code::Unavailable,
        };
        warn!(shard = %self.shard, %error, "batch not logged");
        self.index -= 1;
        if self.checkpoint == Checkpoint::Proposed {
            self.checkpoint = Checkpoint::Idle;
        }
        self.proposals.refuse_all(code);
        // Nobody knows what the disk has: only a new start of the node can read it.
        if error == LogError::Failed { Err("the log is shut".into()) } else { Ok(()) }
    }

    fn follow_effects(&mut self) {
        for effect in self.machine.take_effects() {
            match effect {
                Effect::Push { user, seq, envelope } => {
                    self.context.users.push(user, seq, envelope);
                }
                Effect::ReadOrigins { user, first, up_to } => self.read_origins(user, first, up_to),
                Effect::AccountChanged { user, account } => {
                    self.context.users.account_changed(user, account);
                }
                Effect::Checkpoint(spill) => self.begin_checkpoint(spill),
            }
        }
    }

    fn read_origins(&mut self, user: UserId, first: Seq, up_to: Seq) {
        if !self.reading_origins.insert(user) {
            return;
        }
        let inbox = self.inbox.clone();
        let answer = Box::new(move |read| inbox.force(ShardItem::OriginsRead { user, read }));
        let Self { machine, overlay, context, .. } = self;
        let reader = Reader { machine, overlay, storage: &context.storage };
        reader.read_origins(user, (first, up_to), answer);
    }

    fn origins_read(&mut self, user: UserId, read: Result<stored::Release, String>) {
        match read {
            Ok(release) => {
                let inbox = self.inbox.clone();
                let again = Box::new(move |outcome| {
                    if matches!(outcome, Outcome::Refused(_)) {
                        retry_origins(&inbox, user);
                    } else {
                        let read = Err(String::new());
                        inbox.force(ShardItem::OriginsRead { user, read });
                    }
                });
                self.proposals.push(Command::Release(release), again);
            }
            Err(error) => {
                self.reading_origins.remove(&user);
                if !error.is_empty() {
                    error!(shard = %self.shard, %user, error, "released rows not read");
                    retry_origins(&self.inbox, user);
                    return;
                }
                let mailbox = self.machine.mailbox(user);
                let owed =
                    mailbox.and_then(|m| m.origins_owed().map(|up_to| (m.stored_first, up_to)));
                if let Some((first, up_to)) = owed {
                    self.read_origins(user, first.max(Seq(1)), up_to);
                }
            }
        }
    }

    fn offer_notices(&mut self) {
        for to in (0..SHARDS).map(ShardId) {
            let offer = &mut self.offers[usize::from(to.0)];
            if offer.under_way || !self.machine.streams().has_news(to, offer.up_to) {
                continue;
            }
            let notices = self.machine.streams().offer(to, offer.up_to);
            let Some(number) = notices.last().map(|notice| notice.number) else { continue };
            *offer = Offer { up_to: number, under_way: true };
            let inbox = self.inbox.clone();
            let reply = Box::new(move |outcome| {
                let taken = outcome == Outcome::Done;
                inbox.force(ShardItem::NoticesTaken { to, number, taken });
            });
            let taken = stored::TakeNotices { from_shard: u32::from(self.shard.0), notices };
            self.context.shards.propose(to, Command::TakeNotices(taken), reply);
        }
    }

    fn notices_taken(&mut self, to: ShardId, number: u64, taken: bool) {
        let offer = &mut self.offers[usize::from(to.0)];
        offer.under_way = false;
        if taken {
            let settled = stored::SettleNotices { to_shard: u32::from(to.0), number };
            self.proposals.push_lazy(Command::SettleNotices(settled));
            self.offer_notices();
        } else {
            // The next tick offers them again, from the oldest that is not settled.
            offer.up_to = 0;
        }
    }

    fn propose_checkpoint(&mut self) {
        if self.checkpoint == Checkpoint::Idle && !self.reading_due {
            self.ticks_since_checkpoint = 0;
            self.checkpoint = Checkpoint::Proposed;
            self.proposals.push_spill();
        }
    }

    fn begin_checkpoint(&mut self, spill: Spill) {
        self.logged_bytes = 0;
        self.overlay = spill.entries.into_iter().collect();
        self.write_checkpoint(self.index, spill.rows);
    }

    fn write_checkpoint(&mut self, applied: u64, rows: Vec<Row>) {
        self.checkpoint = Checkpoint::Writing;
        let (storage, inbox, shard) =
            (self.context.storage.clone(), self.inbox.clone(), self.shard);
        tokio::task::spawn_blocking(move || {
            let write = || storage.checkpoint(shard, applied, rows.clone());
            let written = catch_unwind(AssertUnwindSafe(write));
            match written.unwrap_or(Err(StorageError::Closed)) {
                Ok(()) => inbox.force(ShardItem::CheckpointWritten { applied, again: None }),
                Err(error) => {
                    error!(%shard, %error, "checkpoint not written, trying again");
                    let item = ShardItem::CheckpointWritten { applied, again: Some(rows) };
                    supervision::timer::push_after(&inbox, RETRY, item);
                }
            }
        });
    }

    fn checkpoint_written(&mut self, applied: u64, again: Option<Vec<Row>>) {
        if let Some(rows) = again {
            self.write_checkpoint(applied, rows);
        } else {
            self.overlay.clear();
            self.checkpoint = Checkpoint::Idle;
        }
    }

    fn tick(&mut self) {
        let now_ms = self.context.clock.now_ms();
        self.ticks_since_checkpoint += 1;
        self.ticks_since_expiry += 1;
        self.offer_notices();
        // Also when nothing is dirty: what is logged keeps segments of the log on the disk.
        let every = (self.context.settings.checkpoint_every_ms / TICK_MS).max(1);
        if self.ticks_since_checkpoint >= every && self.logged_bytes > 0 {
            self.propose_checkpoint();
        }
        if self.machine.has_due(now_ms) {
            self.due_read(Vec::new());
        }
        let idle = self.checkpoint == Checkpoint::Idle && !self.reading_due;
        if self.ticks_since_expiry >= EXPIRY_EVERY_TICKS && idle {
            self.ticks_since_expiry = 0;
            self.read_due(now_ms);
        }
        self.propose_next(true);
    }

    fn read_due(&mut self, now_ms: u64) {
        self.reading_due = true;
        let (storage, inbox, shard) =
            (self.context.storage.clone(), self.inbox.clone(), self.shard);
        tokio::task::spawn_blocking(move || {
            let due = storage.due(shard, now_ms, EXPIRY_BATCH).unwrap_or_else(|error| {
                error!(%shard, %error, "expired messages not read");
                Vec::new()
            });
            let entry = |(user, seq, envelope): (UserId, Seq, stored::Envelope)| stored::Expired {
                user: user.0,
                origin: Some(super::machine::origin_row(seq, &envelope)),
            };
            inbox.force(ShardItem::DueRead(due.into_iter().map(entry).collect()));
        });
    }

    fn due_read(&mut self, entries: Vec<stored::Expired>) {
        self.reading_due = false;
        if !entries.is_empty() || self.machine.has_due(self.context.clock.now_ms()) {
            let expire = Command::Expire(stored::Expire { entries });
            self.proposals.push(expire, Box::new(|_| ()));
        }
    }
}

fn retry_origins(inbox: &Arc<Inbox<ShardItem>>, user: UserId) {
    let again = ShardItem::OriginsRead { user, read: Err(String::new()) };
    supervision::timer::push_after(inbox, RETRY, again);
}

struct Recovered {
    machine: Machine,
    index: u64,
    /// Of records that no checkpoint holds.
    bytes: u64,
}

/// Reads the tables, then applies what the log holds beyond them. Effects of the past are not
/// repeated: devices read their mailboxes when they attach, and notices are still in the streams.
fn recover(
    storage: &storage::Storage,
    mut machine: Machine,
    records: Vec<(u64, Bytes)>,
) -> Result<Recovered, ProcessError> {
    let shard = machine.shard;
    let mut index = storage.load(shard, &mut |row| machine.load(row))?;
    let (mut replayed, mut bytes) = (0u64, 0);
    for (at, record) in records {
        if at != index + 1 {
            let gap = format!("the log of shard {shard} goes on at {at} after {index}");
            return Err(gap.into());
        }
        bytes += record.len() as u64;
        let batch = stored::Batch::decode(record)?;
        for command in batch.commands.into_iter().filter_map(|command| command.kind) {
            machine.apply(batch.now_ms, command);
        }
        index = at;
        replayed += 1;
        for effect in machine.take_effects() {
            if let Effect::Checkpoint(spill) = effect {
                storage.checkpoint(shard, at, spill.rows)?;
                bytes = 0;
            }
        }
    }
    info!(%shard, index, replayed, "shard recovered");
    Ok(Recovered { machine, index, bytes })
}
