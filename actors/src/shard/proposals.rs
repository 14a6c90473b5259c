//! Batches: commands that arrive while one batch is under way form the next. A pure core.
//!
//! All that this node proposes to a shard goes through one such queue, whether the leader is here or
//! elsewhere, so a sender's order survives a change of leader: what was not proposed goes back to
//! the front and waits for the next one.
//!
//! # Invariants
//! 1. One batch is under way here; elsewhere up to [`BESIDE_MAX`]: beside the first go only sends and
//!    what [`may_overtake`], and no two batches have a conversation in common.
//! 2. A `Spill` is the last command of its batch, so that a checkpoint holds whole records.
//! 3. A send that was refused for want of a leader or of space is not overtaken by a later one of
//!    its device to the same user ([`RetryOrder`]). One that is stored already is accepted all the same.

use super::command::{
    Command, Conversation, Judgment, can_wait, conversation, conversation_of, held,
    may_be_repeated, may_overtake, stores, to_stored,
};
use super::core::Token;
use super::rounds::Wish;
use super::{FORWARD_TIMEOUT, Outcome, TICK_MS};
use crate::retry_order::RetryOrder;
use proto::{Code, UserId, stored};
use std::collections::{BTreeSet, VecDeque};

/// Commands in one batch. Bounds how long applying one keeps others waiting.
const BATCH_COMMANDS: usize = 1_024;

/// Batches that may be under way to a leader elsewhere: a send or an acknowledgment need not wait until
/// the batch before it is there and back.
const BESIDE_MAX: usize = 8;

/// So many commands are not kept waiting, whatever they are.
const CROWD: usize = 64;

/// Bytes of one batch, or one command if that is longer.
const BATCH_BYTES: usize = 512 * 1024;

/// Conversations that are held back at once on one node.
const HOLDS_MAX: usize = 100_000;

/// How long a send may wait in this queue, in ms, tries and all: then it is refused. A mailbox
/// remembers longer than this what its device has sent meanwhile through another node.
pub(super) const HELD_MS: u64 = 20_000;

const _: () = assert!(
    super::mailbox::recent::KEPT_MS > 2 * HELD_MS + FORWARD_TIMEOUT.as_secs() * 1000,
    "a mailbox remembers a send for longer than it may be under way"
);

/// Ticks after which a node waits no longer for what it has asked of a leader elsewhere, with one to
/// spare.
const FORWARD_TICKS: u64 = FORWARD_TIMEOUT.as_secs() * 1000 / TICK_MS + 1;

/// A moment, as a shard counts time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Ticks of the shard; none passes while the process is stopped.
    pub tick: u64,
    /// The node's clock, Unix time in ms. It may jump.
    pub ms: u64,
}

/// Who asked for a command, and is told what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Someone on this node.
    Caller(Token),
    /// Another node, whose queue this is not: it is answered [`Outcome::Elsewhere`] rather than
    /// kept for another leader.
    Peer {
        /// Which of its calls.
        number: u64,
        /// Which command of it.
        place: usize,
    },
    /// The replica itself, as long as it leads: it releases rows of this user.
    Origins(UserId),
    /// The replica itself, as long as it leads, and nothing follows.
    Nobody,
}

impl Asker {
    fn caller(self) -> Option<Token> {
        if let Self::Caller(token) = self { Some(token) } else { None }
    }

    fn is_peer(self) -> bool {
        matches!(self, Self::Peer { .. })
    }
}

struct Waiting {
    command: Command,
    asker: Asker,
    since: Moment,
}

impl Waiting {
    /// What to say if it is too old to be proposed: a send is refused, and what another node asked for
    /// it has taken back, and asked for again. A clock that was set back tells no age.
    fn is_stale(&self, now: Moment) -> Option<Outcome> {
        let sent = matches!(self.command, Command::Append(_));
        if self.asker.is_peer() && now.tick > self.since.tick + FORWARD_TICKS {
            Some(Outcome::Elsewhere)
        } else if sent && now.ms.abs_diff(self.since.ms) > HELD_MS {
            Some(Outcome::Refused(Code::Unavailable))
        } else {
            None
        }
    }
}

/// A conversation and the id of one of its sends.
type Name = (Conversation, u64);

/// What waits and what is under way.
pub struct Proposals {
    waiting: VecDeque<Waiting>,
    /// Commands that nobody waits for: they travel with others, or on the next tick.
    lazy: Vec<Command>,
    spill: bool,
    under_way: Vec<Batch>,
    holds: RetryOrder<Conversation>,
    /// Sends of any node that this one, as the leader, refused before they were logged.
    turned_away: RetryOrder<Conversation>,
    /// The last tick heard of.
    now: u64,
    numbers: u64,
    /// What became of commands, for whoever asked.
    outcomes: VecDeque<(Asker, Outcome)>,
    /// A fault: later sends do not wait for the retry of a refused one.
    overtakes: bool,
}

impl Default for Proposals {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            lazy: Vec::new(),
            spill: false,
            under_way: Vec::new(),
            holds: RetryOrder::new(HOLDS_MAX),
            turned_away: RetryOrder::new(HOLDS_MAX),
            now: 0,
            numbers: 0,
            outcomes: VecDeque::new(),
            overtakes: false,
        }
    }
}

/// What becomes of a batch that did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was not proposed: all of it waits for another leader.
    NotProposed,
    /// It may take effect or not: what can be proposed twice waits, the rest is refused.
    Unknown,
    /// It is refused.
    Refused(Code),
}

/// One batch under way.
pub struct Batch {
    /// Which one; never 0.
    pub number: u64,
    /// What to propose, in this order.
    pub commands: Vec<stored::Command>,
    /// Of the first commands; those behind are lazy.
    askers: Vec<(Asker, Moment)>,
}

impl Proposals {
    /// Someone asks for a command, at this moment.
    pub fn push(&mut self, command: Command, asker: Asker, since: Moment) {
        self.now = since.tick;
        self.waiting.push_back(Waiting { command, asker, since });
    }

    /// What became of a command, and who is to be told: the oldest that was not taken yet.
    pub fn next_outcome(&mut self) -> Option<(Asker, Outcome)> {
        self.outcomes.pop_front()
    }

    /// Builds [`super::Fault::OvertakenRetry`] in.
    pub(super) fn let_overtake(&mut self) {
        self.overtakes = true;
    }

    /// Who is written to by sends that wait.
    pub(super) fn recipients(&self) -> impl Iterator<Item = UserId> {
        self.waiting.iter().filter_map(|waiting| {
            let Command::Append(append) = &waiting.command else { return None };
            Some(UserId(append.to))
        })
    }

    /// Someone asks for a command that may wait.
    pub fn push_lazy(&mut self, command: Command) {
        self.lazy.push(command);
    }

    /// A checkpoint is due.
    pub fn push_spill(&mut self) {
        self.spill = true;
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// How much it hurries, if there is something to propose; `lazily` as in [`Proposals::next`].
    pub(super) fn wish(&self, lazily: bool) -> Option<Wish> {
        let hurried = |waiting: &Waiting| !can_wait(&waiting.command);
        if self.waiting.len() >= CROWD || self.waiting.iter().any(hurried) {
            return Some(Wish::Hurried);
        }
        let some = self.spill || !self.waiting.is_empty() || (lazily && !self.lazy.is_empty());
        some.then_some(Wish::Patient)
    }

    /// Makes the next batch, if there is something to propose and nothing under way. `lazily`: lazy
    /// commands are reason enough. Sends that may not overtake a refused one are refused here: when
    /// they came, that one may still have been under way. So are those that have waited too long.
    pub fn next(&mut self, lazily: bool, now: Moment) -> Option<&mut Batch> {
        self.next_judged(lazily, now, |_| Judgment::Unknown)
    }

    /// The same for a leader, who judges sends before they are logged. Those that come later than one
    /// that it refused wait for its retry, wherever they come from.
    pub fn next_judged(
        &mut self,
        lazily: bool,
        now: Moment,
        judge: impl Fn(&stored::Append) -> Judgment,
    ) -> Option<&mut Batch> {
        if self.is_idle() { self.make(lazily, now, |_| true, &judge) } else { None }
    }

    /// The same for a leader elsewhere. Beside what is under way go sends of other conversations and what
    /// [`may_overtake`], up to the first command that is neither.
    pub fn next_beside(&mut self, lazily: bool, now: Moment) -> Option<&mut Batch> {
        if self.is_idle() {
            return self.next(lazily, now);
        }
        self.now = now.tick;
        if self.waiting.is_empty() || self.under_way.len() >= BESIDE_MAX {
            return None;
        }
        let commands = self.under_way.iter().flat_map(|batch| &batch.commands);
        let taken: BTreeSet<_> = commands.filter_map(conversation_of).collect();
        let may_go = |append: &stored::Append| !taken.contains(&conversation(append));
        let may_go = |command: &Command| {
            may_overtake(command) || matches!(command, Command::Append(a) if may_go(a))
        };
        self.make(false, now, may_go, &|_| Judgment::Unknown)
    }

    fn make(
        &mut self,
        lazily: bool,
        now: Moment,
        may_go: impl Fn(&Command) -> bool,
        judge: &impl Fn(&stored::Append) -> Judgment,
    ) -> Option<&mut Batch> {
        self.now = now.tick;
        let likely = self.waiting.len().min(BATCH_COMMANDS);
        let mut commands = Vec::with_capacity(likely + self.lazy.len() + 1);
        let mut askers = Vec::with_capacity(likely);
        let mut bytes = 0;
        while bytes < BATCH_BYTES && askers.len() < BATCH_COMMANDS {
            let next = self.waiting.pop_front_if(|waiting| may_go(&waiting.command));
            let Some(mut waiting) = next else { break };
            if let Some(outcome) = waiting.is_stale(now) {
                self.tell(&waiting, outcome);
                continue;
            }
            if let Some(code) = self.holds_back(&waiting) {
                waiting.command = held(waiting.command, code);
            }
            if let Some(code) = self.turns_away(&waiting.command, judge) {
                self.tell(&waiting, Outcome::Refused(code));
                continue;
            }
            bytes += waiting.command.encoded_len();
            commands.push(to_stored(waiting.command));
            askers.push((waiting.asker, waiting.since));
        }
        if commands.is_empty() && !self.spill && (!lazily || self.lazy.is_empty()) {
            return None;
        }
        commands.extend(self.lazy.drain(..).map(to_stored));
        if std::mem::take(&mut self.spill) {
            commands.push(to_stored(Command::Spill(stored::Spill {})));
        }
        self.numbers += 1;
        self.under_way.push(Batch { number: self.numbers, commands, askers });
        self.under_way.last_mut()
    }

    /// The batch under way, if it is this one, has come through: each command is applied in its turn,
    /// and whoever waits is told. False if it is another.
    pub fn apply(&mut self, number: u64, mut apply: impl FnMut(Command) -> Outcome) -> bool {
        let Some(batch) = self.through(number) else { return false };
        for (waiting, _) in batch.into_parts() {
            let name = name_of(&waiting);
            let Waiting { command, asker, .. } = waiting;
            let outcome = apply(command);
            if let (Some(name), Some(code)) = (name, outcome.refusal()) {
                self.note_refused(name, code);
            }
            self.outcomes.push_back((asker, outcome));
        }
        true
    }

    /// Whether this batch is under way.
    pub fn is_under_way(&self, number: u64) -> bool {
        self.under_way.iter().any(|batch| batch.number == number)
    }

    fn through(&mut self, number: u64) -> Option<Batch> {
        let place = self.under_way.iter().position(|batch| batch.number == number)?;
        Some(self.under_way.remove(place))
    }

    /// The batch under way, if it is this one, has not come through.
    pub fn failed(&mut self, number: u64, failure: Failure) {
        let Some(batch) = self.through(number) else { return };
        let outcomes = batch.into_parts().map(|(waiting, lazy)| {
            let again = match failure {
                Failure::NotProposed => true,
                Failure::Unknown => may_be_repeated(&waiting.command),
                Failure::Refused(_) => lazy,
            };
            (waiting, lazy, again)
        });
        let code = if let Failure::Refused(code) = failure { code } else { Code::Unavailable };
        self.put_back(outcomes.collect(), code);
        if matches!(failure, Failure::Refused(_)) {
            self.refuse_waiting(code, |_| true);
        }
    }

    /// Another node has answered the batch under way: what it did not propose waits again.
    pub fn answered(&mut self, number: u64, outcomes: Vec<Outcome>) {
        let Some(batch) = self.through(number) else { return };
        let mut outcomes = outcomes.into_iter();
        let mut again = Vec::new();
        for (waiting, lazy) in batch.into_parts() {
            match outcomes.next() {
                Some(Outcome::Elsewhere) => again.push((waiting, lazy, true)),
                Some(outcome) => self.tell(&waiting, outcome),
                None => {
                    let repeat = may_be_repeated(&waiting.command);
                    again.push((waiting, lazy, repeat));
                }
            }
        }
        self.put_back(again, Code::Unavailable);
    }

    /// This node does not lead: what others want of the leader is theirs again, and what the shard
    /// wanted itself is void.
    pub fn not_leading(&mut self) {
        self.spill = false;
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting {
            if waiting.asker.caller().is_some() {
                self.waiting.push_back(waiting);
            } else {
                self.outcomes.push_back((waiting.asker, Outcome::Elsewhere));
            }
        }
    }

    /// The replica is read again: nobody knows what became of what is under way.
    pub(super) fn left(mut self) -> Self {
        while let Some(number) = self.under_way.last().map(|batch| batch.number) {
            self.failed(number, Failure::Unknown);
        }
        self.not_leading();
        self.outcomes.retain(|(asker, _)| asker.caller().is_some());
        self
    }

    /// Who on this node is to be told something.
    pub(super) fn callers(&self) -> impl Iterator<Item = Token> {
        let told = self.outcomes.iter().map(|(asker, _)| *asker);
        let askers = self.waiting.iter().map(|waiting| waiting.asker).chain(told);
        askers.filter_map(Asker::caller)
    }

    /// Nobody takes commands: everything is refused if the oldest has waited since `tick`.
    pub fn give_up(&mut self, tick: u64) {
        if self.waiting.front().is_some_and(|oldest| oldest.since.tick <= tick) {
            self.refuse_waiting(Code::Unavailable, |_| true);
        }
    }

    /// There is no space: refuses what would store something new. `knows`: a send is stored already.
    pub fn refuse_storing(&mut self, knows: impl Fn(&stored::Append) -> bool) {
        let is_known = |command: &Command| matches!(command, Command::Append(a) if knows(a));
        self.refuse_waiting(Code::StorageFull, |command| stores(command) && !is_known(command));
    }

    fn refuse_waiting(&mut self, code: Code, which: impl Fn(&Command) -> bool) {
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting {
            if which(&waiting.command) {
                self.tell(&waiting, Outcome::Refused(code));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    fn tell(&mut self, waiting: &Waiting, outcome: Outcome) {
        if let (Some(code), Some(name)) = (outcome.refusal(), name_of(waiting)) {
            self.note_refused(name, code);
        }
        self.outcomes.push_back((waiting.asker, outcome));
    }

    /// The code of an earlier refused send that this one must not overtake.
    fn holds_back(&mut self, waiting: &Waiting) -> Option<Code> {
        let (conversation, send_id) = name_of(waiting).filter(|_| !self.overtakes)?;
        self.holds.holds_back(&conversation, send_id, self.now * TICK_MS)
    }

    fn turns_away(
        &mut self,
        command: &Command,
        judge: &impl Fn(&stored::Append) -> Judgment,
    ) -> Option<Code> {
        let Command::Append(append) = command else { return None };
        let (judgment, now_ms) = (judge(append), self.now * TICK_MS);
        if judgment == Judgment::Stored {
            return None;
        }
        if append.held != 0 {
            let is_new = judgment != Judgment::Unknown;
            return is_new.then(|| Code::from_number(append.held));
        }
        let conversation = conversation(append);
        let held = self.turned_away.holds_back(&conversation, append.send_id, now_ms);
        held.or_else(|| {
            let Judgment::Refused(code) = judgment else { return None };
            self.turned_away.refused(conversation, append.send_id, code, now_ms);
            Some(code)
        })
    }

    fn note_refused(&mut self, (conversation, send_id): Name, code: Code) {
        self.holds.refused(conversation, send_id, code, self.now * TICK_MS);
    }

    fn put_back(&mut self, parts: Vec<(Waiting, bool, bool)>, code: Code) {
        let mut front = VecDeque::new();
        for (waiting, lazy, again) in parts {
            match (lazy, again) {
                (true, true) if !matches!(waiting.command, Command::Spill(_)) => {
                    self.lazy.push(waiting.command);
                }
                (true, _) => {}
                (false, true) => front.push_back(waiting),
                (false, false) => self.tell(&waiting, Outcome::Refused(code)),
            }
        }
        front.append(&mut self.waiting);
        self.waiting = front;
    }
}

impl Batch {
    /// Its commands as they waited, and whether they were lazy.
    fn into_parts(self) -> impl Iterator<Item = (Waiting, bool)> {
        let askers = self.askers.into_iter().map(Some).chain(std::iter::repeat(None));
        // Each has a kind: it was wrapped here.
        let commands = self.commands.into_iter().filter_map(|command| command.kind);
        let part = |(command, asker): (Command, Option<(Asker, Moment)>)| {
            let lazy = asker.is_none();
            let (asker, since) = asker.unwrap_or((Asker::Nobody, Moment::default()));
            (Waiting { command, asker, since }, lazy)
        };
        commands.zip(askers).map(part)
    }
}

/// The name of a send of someone on this node, unless it is held back.
fn name_of(waiting: &Waiting) -> Option<Name> {
    let Command::Append(append) = &waiting.command else { return None };
    let is_named = append.held == 0 && waiting.asker.caller().is_some();
    is_named.then(|| (conversation(append), append.send_id))
}

#[cfg(test)]
#[path = "proposals_tests.rs"]
mod tests;
