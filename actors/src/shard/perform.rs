//! What the core of a replica has decided is done here: with the group, the tables, other nodes and users.

use super::actor::ShardActor;
use super::ask::{Answered, Ask, Asked};
use super::chores::{EXPIRY_BATCH, RETRY};
use super::core::{Action, Hint, Item, Token};
use super::propose::SOON;
use super::reads::{OriginsRead, Page, PageRead};
use super::translate::{answer_from_wire, answer_to_wire, outcome_from_wire, question_to_wire};
use super::{
    AccountView, Answer, Came, Command, FORWARD_TIMEOUT, NotForwarded, Outcome, Query, Reply,
    origin_row,
};
use bytes::Bytes;
use links::{CallError, Lane};
use prost::Message;
use proto::cluster::{self, request, response};
use proto::{Code, NodeId, Seq, UserId, stored};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use storage::{Row, Storage, StorageError};
use supervision::{Paced, ProcessError};
use tokio::time::Instant;
use tracing::error;

/// How often it is told that PINs are used up.
const PINS_USED_UP_AGAIN: Duration = Duration::from_mins(1);

/// Rows read at once when a whole range is read.
const CHUNK: usize = 1_024;

/// Bytes read at once.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Who waits for what the core was asked, by token.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) replies: Tokens<Reply>,
    pub(super) peers: Tokens<Answer<Vec<Outcome>>>,
    pub(super) questions: Tokens<Waits>,
}

/// What tokens stand for. A place is used again once its token was taken.
pub(super) struct Tokens<T> {
    places: Vec<Option<T>>,
    free: Vec<Token>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Tokens<T> {
    pub(super) fn add(&mut self, value: T) -> Token {
        let token = self.free.pop().unwrap_or(self.places.len() as Token);
        match self.place(token) {
            Some(place) => *place = Some(value),
            None => self.places.push(Some(value)),
        }
        token
    }

    pub(super) fn take(&mut self, token: Token) -> Option<T> {
        let value = self.place(token).and_then(Option::take)?;
        self.free.push(token);
        Some(value)
    }

    /// Takes all whose tokens are not among these.
    pub(super) fn take_all_but(&mut self, kept: &BTreeSet<Token>) -> impl Iterator<Item = T> {
        let tokens = (0..self.places.len() as Token).filter(|token| !kept.contains(token));
        let taken: Vec<T> = tokens.filter_map(|token| self.take(token)).collect();
        taken.into_iter()
    }

    fn place(&mut self, token: Token) -> Option<&mut Option<T>> {
        usize::try_from(token).ok().and_then(|place| self.places.get_mut(place))
    }
}

/// Who put a question.
pub(super) enum Waits {
    Account(Answer<Result<Option<Arc<AccountView>>, Code>>),
    Owner(Answer<Result<Option<UserId>, Code>>),
    Attach(Answer<Result<Option<super::Attached>, Code>>),
    Page(Answer<Page>),
    /// Another node.
    Peer(Answer<Option<cluster::Answer>>),
}

impl Waits {
    /// A question and who put it.
    pub(super) fn split(query: Query) -> (Ask, Self) {
        match query {
            Query::Account { user, answer } => (Ask::Account(user), Self::Account(answer)),
            Query::Owner { alias, answer } => (Ask::Owner(alias), Self::Owner(answer)),
            Query::Attach { user, device, answer } => {
                (Ask::Attach(user, device), Self::Attach(answer))
            }
            Query::Page { user, after, limit, bytes_max, answer } => {
                (Ask::Page { user, after, limit, bytes_max }, Self::Page(answer))
            }
        }
    }

    /// Tells the answer; `None`: there is none.
    pub(super) fn tell(self, answered: Option<Answered>) {
        match (self, answered) {
            (Self::Account(answer), Some(Answered::Account(account))) => answer(Ok(account)),
            (Self::Owner(answer), Some(Answered::Owner(owner))) => answer(Ok(owner)),
            (Self::Attach(answer), Some(Answered::Attached(attached))) => answer(Ok(attached)),
            (Self::Page(answer), Some(Answered::Page(page))) => answer(page),
            (Self::Peer(answer), answered) => answer(answered.map(answer_to_wire)),
            (Self::Account(answer), _) => answer(Err(Code::Unavailable)),
            (Self::Owner(answer), _) => answer(Err(Code::Unavailable)),
            (Self::Attach(answer), _) => answer(Err(Code::Unavailable)),
            (Self::Page(answer), _) => answer(Page::not_read()),
        }
    }
}

impl ShardActor {
    /// Carries an action out. If its answer is known at once, the core hears it before its next action.
    pub(super) fn perform(&mut self, action: Action) -> Result<(), ProcessError> {
        let (line, shards) = (&self.line, &self.context.shards);
        match action {
            Action::Answer(token, outcome) => {
                if let Some(reply) = self.waiting.replies.take(token) {
                    reply(outcome);
                }
            }
            Action::AnswerAll(token, outcomes) => {
                if let Some(answer) = self.waiting.peers.take(token) {
                    answer(outcomes);
                }
            }
            Action::Reply(token, answered) => self.reply(token, Some(answered)),
            Action::ReplyNothing(token) => self.reply(token, None),
            Action::ReadPage(token, read) => self.read_page(token, *read),
            Action::AskLeader(leader, asked) => self.ask_leader(leader, asked),
            Action::Done(token) => self.seat.handed.finish(token),
            Action::Forget(token) => self.seat.handed.give_up(token),
            Action::Load(token) => self.load(token),
            Action::Log(number, record) => {
                let line = line.clone();
                let failed = move |error| line.came(Came::NotProposed(number, error));
                self.group.propose(record, Box::new(failed));
            }
            Action::Forward(leader, number, parcel) => self.forward(leader, number, parcel),
            Action::Confirm => self.confirm(),
            Action::WantRound(wish) => {
                if shards.wants_round(self.shard, wish) {
                    self.begin_round();
                }
            }
            Action::EndRound(takers, wish) => {
                if shards.round_ended((self.shard, takers), wish) {
                    self.begin_round();
                }
            }
            Action::Later(wait, item) => line.tell_after(wait, item),
            Action::ReadOrigins(read) => self.read_origins(*read),
            Action::ReadDue(now_ms) => self.read_due(now_ms),
            Action::ReadSessions => self.read_sessions(),
            Action::WriteCheckpoint(applied, rows) => self.write_checkpoint(applied, rows),
            Action::Checkpointed(id) => self.group.checkpointed(id),
            Action::Offer { to, which, number, notices } => {
                let line = line.clone();
                let reply = Box::new(move |outcome| {
                    let taken = (outcome == Outcome::Done).then_some(number);
                    line.tell(Item::NoticesTaken { to, which, taken });
                });
                shards.propose(to, Command::TakeNotices(notices), reply);
            }
            Action::Hint(hint) => self.tell(hint),
            Action::Stop(why) => return Err(why.into()),
        }
        Ok(())
    }

    /// Tells users, other nodes and the operator.
    fn tell(&mut self, hint: Hint) {
        let (recipients, outbound) = (&self.context.recipients, &mut self.outbound);
        match hint {
            Hint::Push(user, seq, envelope) => recipients.push(outbound, user, seq, envelope),
            Hint::AccountChanged(user, account) => {
                recipients.account_changed(outbound, user, account);
            }
            Hint::LeaderAppeared(term) => {
                let lost = recipients.leader_appeared(self.shard, term);
                self.lost(lost);
            }
            Hint::TellLeader(node, term) => {
                if !recipients.leads_here(node, self.shard, term) {
                    self.lost(BTreeSet::from([node]));
                }
            }
            Hint::GrownTo(node, user, last) => {
                if !recipients.grown_to(node, user, last) {
                    self.lost(BTreeSet::from([node]));
                }
            }
            Hint::RemoveSession(user, device) => {
                if let Err(error) = self.context.sessions.remove(user, device) {
                    error!(%user, %device, %error, "session row of an unlinked device not removed");
                }
            }
            Hint::WrongPins(in_hour) => {
                self.context.wrong_pins_alarms.increment(1);
                let shard = self.shard;
                error!(%shard, in_hour, "somebody guesses PINs: until the hour ends only long ones count");
            }
            Hint::PinsUsedUp => self.pins_used_up(),
        }
    }

    fn pins_used_up(&self) {
        static SAID: Paced = Paced::new(PINS_USED_UP_AGAIN);
        self.context.pins_used_up.increment(1);
        if let Some(times) = SAID.count(Instant::now()) {
            error!(times, "PINs not sent: registration.pins_per_hour is used up for now");
        }
    }

    fn confirm(&self) {
        let (group, line) = (self.group.clone(), self.line.clone());
        self.context.tasks.spawn("confirm", async move {
            line.tell(Item::Confirmed(group.confirm_leadership().await.is_ok()));
        });
    }

    fn begin_round(&mut self) {
        let (around, now_ms) = self.surroundings();
        self.core.step(Item::RoundBegins(around), now_ms);
    }

    fn reply(&mut self, token: Token, answered: Option<Answered>) {
        if let Some(waits) = self.waiting.questions.take(token) {
            waits.tell(answered);
        }
    }

    // ---- Other nodes -------------------------------------------------------------------------

    /// Passes a batch on.
    fn forward(&self, leader: NodeId, number: u64, parcel: Bytes) {
        let call = self.context.peers.call(leader, Lane::Normal, parcel, FORWARD_TIMEOUT);
        let line = self.line.clone();
        let forwarded = move |outcomes| line.tell(Item::Forwarded(number, outcomes));
        let told = forwarded.clone();
        let spawned = self.context.tasks.spawn("forward", async move {
            told(match call.await {
                Ok(parcel) => outcomes_of(parcel),
                Err(CallError::NotUp | CallError::Full) => Err(NotForwarded::NotProposed),
                Err(CallError::Broken | CallError::TimedOut) => Err(NotForwarded::Unknown),
            });
        });
        if !spawned {
            forwarded(Err(NotForwarded::NotProposed));
        }
    }

    /// Puts a question to a leader elsewhere.
    fn ask_leader(&self, leader: NodeId, asked: Asked) {
        let ask = question_to_wire(u32::from(self.shard.0), &asked.ask);
        let request = cluster::Request { kind: Some(request::Kind::Ask(ask)) };
        let parcel = Bytes::from(request.encode_to_vec());
        let call = self.context.peers.call(leader, Lane::Normal, parcel, FORWARD_TIMEOUT);
        let line = self.line.clone();
        self.context.tasks.spawn("ask", async move {
            let response =
                call.await.ok().and_then(|parcel| cluster::Response::decode(parcel).ok());
            let answered = match response.and_then(|response| response.kind) {
                Some(response::Kind::Answer(answer)) => answer_from_wire(&asked.ask, answer),
                _ => None,
            };
            if let Some(answered) = answered {
                line.came(Came::Replied(asked.token, answered));
            } else {
                line.tell_after(SOON, Box::new(Item::AskAgain(asked)));
            }
        });
    }

    // ---- The tables --------------------------------------------------------------------------

    fn load(&self, token: Token) {
        let (context, shard, line) = (self.context.clone(), self.shard, self.line.clone());
        self.context.tasks.spawn("reload", async move {
            let item = match super::seat::load(&context, shard).await {
                Ok(loaded) => Item::Loaded(Box::new(loaded), token),
                Err(error) => {
                    error!(%shard, %error, "snapshot not loaded");
                    Item::NotLoaded(token)
                }
            };
            line.tell(item);
        });
    }

    fn read_page(&mut self, token: Token, read: PageRead) {
        let Some(waits) = self.waiting.questions.take(token) else { return };
        let storage = self.context.storage.clone();
        tokio::task::spawn_blocking(move || {
            let (limit, bytes_max) = read.limits;
            let rows = storage.messages(read.user, read.after, read.up_to, limit, bytes_max);
            let page = match rows {
                Ok(rows) => read.finish(rows),
                Err(error) => {
                    error!(%error, "mailbox not read");
                    Page::not_read()
                }
            };
            waits.tell(Some(Answered::Page(page)));
        });
    }

    fn read_origins(&self, read: OriginsRead) {
        let (storage, line, shard) = (self.context.storage.clone(), self.line.clone(), self.shard);
        tokio::task::spawn_blocking(move || {
            let user = read.user;
            let rows = origins_of(&storage, user, (read.after, read.up_to));
            let release = rows.map(|rows| read.finish(rows)).inspect_err(|error| {
                error!(%shard, %user, %error, "released rows not read");
            });
            line.tell(Item::OriginsRead(user, release.ok()));
        });
    }

    fn read_due(&self, now_ms: u64) {
        let (storage, line, shard) = (self.context.storage.clone(), self.line.clone(), self.shard);
        tokio::task::spawn_blocking(move || {
            let due = storage.due(shard, now_ms, EXPIRY_BATCH).unwrap_or_else(|error| {
                error!(%shard, %error, "expired messages not read");
                Vec::new()
            });
            let entry = |(user, seq, envelope): (UserId, Seq, stored::Envelope)| stored::Expired {
                user: user.0,
                origin: Some(origin_row(seq, &envelope)),
            };
            line.tell(Item::DueRead(due.into_iter().map(entry).collect()));
        });
    }

    fn write_checkpoint(&self, applied: Box<stored::Applied>, rows: Vec<Row>) {
        let writes = self.seat.writes();
        let (storage, line, shard) = (self.context.storage.clone(), self.line.clone(), self.shard);
        tokio::task::spawn_blocking(move || {
            let write = || storage.checkpoint(shard, (*applied).clone(), rows.clone());
            let written = catch_unwind(AssertUnwindSafe(write));
            drop(writes);
            match written.unwrap_or(Err(StorageError::Closed)) {
                // Outdated: a snapshot has replaced the tables meanwhile.
                Ok(()) | Err(StorageError::Outdated { .. }) => {
                    line.tell(Item::CheckpointWritten(applied));
                }
                Err(error) => {
                    error!(%shard, %error, "checkpoint not written");
                    let full = matches!(error, StorageError::DiskFull { .. });
                    let disk_is_full = full || storage.nearly_full();
                    let item = Item::CheckpointFailed { applied, rows, disk_is_full };
                    line.tell_after(RETRY, Box::new(item));
                }
            }
        });
    }
}

fn origins_of(
    storage: &Storage,
    user: UserId,
    (mut after, up_to): (Seq, Seq),
) -> Result<Vec<stored::Origin>, StorageError> {
    let mut origins = Vec::new();
    while after < up_to {
        let rows = storage.messages(user, after, up_to, CHUNK, CHUNK_BYTES)?;
        let Some((seq, _)) = rows.last() else { break };
        after = *seq;
        origins.extend(rows.iter().map(|(seq, envelope)| origin_row(*seq, envelope)));
    }
    Ok(origins)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "an answer to something else is no answer")]
fn outcomes_of(parcel: Bytes) -> Result<Vec<Outcome>, NotForwarded> {
    match cluster::Response::decode(parcel).ok().and_then(|response| response.kind) {
        Some(response::Kind::Outcomes(outcomes)) => {
            Ok(outcomes.outcomes.iter().map(outcome_from_wire).collect())
        }
        Some(response::Kind::NotLeader(_)) => Err(NotForwarded::NotProposed),
        _ => Err(NotForwarded::Unknown),
    }
}
