//! What a leader proposes, and when: in the rounds of its node, see [`super::rounds`].

use super::actor::{Proposed, SOON, ShardActor, ends_in_spill};
use super::admission::Admission;
use super::command::knows_notices;
use super::proposals::{Failure, Who};
use super::rounds::{Rounds, Takers, Turn, Wish};
use super::{Answer, Outcome, ShardItem, Shards};
use bytes::Bytes;
use consensus::ProposeError;
use prost::Message;
use proto::{Code, ShardId, stored};
use std::sync::PoisonError;
use supervision::{ProcessError, timer};
use tokio::time::Instant;

/// The rounds in which the shards of this node propose.
#[derive(Default)]
pub(super) struct Pacing {
    rounds: Rounds,
    /// Somebody looks then whether the next round is due.
    watched: Option<Instant>,
}

impl Shards {
    /// Whether this shard may propose now; otherwise [`ShardItem::RoundBegins`] says when.
    fn wants_round(&self, shard: ShardId, wish: Wish) -> bool {
        self.pace(|pacing, now| pacing.rounds.wants(shard, wish, now))
    }

    /// This shard's batch is no longer under way; it may want the next round, and gets it now or hears
    /// of it later.
    fn round_ended(&self, batch: (ShardId, Takers), wish: Option<Wish>) -> bool {
        self.pace(|pacing, now| pacing.rounds.ended(batch, wish, now))
    }

    fn pace(&self, step: impl FnOnce(&mut Pacing, Instant) -> Turn) -> bool {
        let mut pacing = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = step(&mut pacing, Instant::now());
        if let Some(due) = pacing.rounds.due()
            && pacing.watched.is_none_or(|watched| due < watched)
        {
            pacing.watched = Some(due);
            self.look_again(due);
        }
        drop(pacing);
        for shard in turn.others {
            self.inbox(shard).force(ShardItem::RoundBegins);
        }
        turn.mine
    }

    #[allow(clippy::disallowed_methods, reason = "the task does nothing that can fail")]
    fn look_again(&self, due: Instant) {
        let shards = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            shards.pace(|pacing, now| {
                pacing.watched.take_if(|watched| *watched <= due);
                pacing.rounds.looked_at(now)
            });
        });
    }
}

impl ShardActor {
    pub(super) fn take_all(
        &mut self,
        commands: Vec<stored::Command>,
        answer: Answer<Vec<Outcome>>,
    ) {
        if !self.standing.me_leads {
            answer(vec![Outcome::Elsewhere; commands.len()]);
            return;
        }
        let count = commands.len();
        let (collect, now) = (super::forward::collect(count, answer), self.moment());
        for (place, command) in commands.into_iter().enumerate() {
            let Some(command) = command.kind.filter(knows_notices) else {
                collect.put(place, Outcome::Refused(Code::NotSupported));
                continue;
            };
            let collect = collect.clone();
            let reply = Box::new(move |outcome| collect.put(place, outcome));
            self.proposals.push(command, reply, Who::Peer, now);
        }
    }

    /// It is this shard's turn.
    pub(super) fn round_begins(&mut self) {
        self.in_round = true;
        self.propose_next(true);
    }

    /// This shard's part of the round is over, or nothing came of it.
    pub(super) fn leave_round(&mut self) {
        if self.in_round && self.proposed.is_none() {
            let may = self.standing.me_leads && self.may_propose();
            let wish = self.proposals.wish(false).filter(|_| may);
            let takers =
                if self.standing.voters.len() > 1 { Takers::Several } else { Takers::Alone };
            self.in_round = self.context.shards.round_ended((self.shard, takers), wish);
        }
    }

    pub(super) fn propose_next(&mut self, lazily: bool) {
        if self.chores.retry_asked {
            return;
        }
        if self.standing.me_leads {
            if self.proposals.is_idle() {
                self.propose_here(lazily);
            }
        } else if let Some(leader) = self.leader() {
            self.proposals.not_leading();
            self.forward_next(leader, lazily);
        }
    }

    fn may_propose(&self) -> bool {
        !self.chores.retry_asked && !self.chores.must_wait_for_tables()
    }

    fn propose_here(&mut self, lazily: bool) {
        if !self.may_propose() {
            self.stuck_since.get_or_insert(self.ticks);
            return;
        }
        if self.context.storage.nearly_full() {
            if self.group.gives_way() {
                self.try_soon();
                return;
            }
            self.proposals.refuse_storing();
        }
        if self.is_ready() && self.chores.wants_checkpoint_now() {
            self.proposals.push_spill();
        }
        if !self.in_round
            && let Some(wish) = self.proposals.wish(lazily)
        {
            self.in_round = self.context.shards.wants_round(self.shard, wish);
        }
        if !self.in_round {
            return;
        }
        let now = self.moment();
        // Only a leader that is followed may refuse by what it knows: another may know better.
        let knows = self.is_ready() && self.group.is_followed();
        let Self { machine, context, byte_rates, .. } = self;
        let mut admission = Admission::new(machine, context, byte_rates, now.ms);
        let refuses = |append: &stored::Append| knows.then(|| admission.refuses(append)).flatten();
        let Some(batch) = self.proposals.next_admitted(lazily, now, refuses) else { return };
        let limits = self.context.settings().machine;
        let number = batch.number;
        let mut head = stored::Batch {
            now_ms: self.context.clock.now_ms(),
            commands: std::mem::take(&mut batch.commands),
            proposer: self.context.node.0,
            number,
            limits: Some(limits.to_stored()),
        };
        let record = Bytes::from(head.encode_to_vec());
        let spills = ends_in_spill(&head);
        batch.commands = std::mem::take(&mut head.commands);
        self.proposed = Some(Proposed { record: record.clone(), head, spills });
        let inbox = self.inbox.clone();
        let failed = Box::new(move |error| inbox.force(ShardItem::NotProposed(number, error)));
        self.group.propose(record, failed);
    }

    pub(super) fn not_proposed(
        &mut self,
        number: u64,
        error: ProposeError,
    ) -> Result<(), ProcessError> {
        let failure = match error {
            ProposeError::NotLeader(_) | ProposeError::NoMajority | ProposeError::Busy => {
                Failure::NotProposed
            }
            ProposeError::Unknown => Failure::Unknown,
            ProposeError::Full if self.group.gives_way() => Failure::NotProposed,
            ProposeError::Full => Failure::Refused(Code::StorageFull),
            ProposeError::Failed => Failure::Refused(Code::Unavailable),
        };
        let proposed = self.proposed.take_if(|proposed| proposed.head.number == number);
        if failure != Failure::Unknown && proposed.is_some_and(|proposed| proposed.spills) {
            self.chores.checkpoint_failed();
        }
        self.proposals.failed(number, failure);
        if error == ProposeError::Failed {
            // Nobody knows what the disk has: only a new start of the node can read it.
            return Err("the log is shut".into());
        }
        self.try_soon();
        Ok(())
    }

    /// Waits a moment before the next batch is proposed.
    pub(super) fn try_soon(&mut self) {
        self.stuck_since.get_or_insert(self.ticks);
        if !self.chores.retry_asked {
            self.chores.retry_asked = true;
            timer::push_after(&self.inbox, SOON, ShardItem::RetryDue);
        }
    }

    /// The leader takes commands.
    pub(super) fn not_stuck(&mut self) {
        self.stuck_since = None;
    }
}
