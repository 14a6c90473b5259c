//! What a replica proposes, and when: a leader in the rounds of its node, see [`super::rounds`]; whoever does
//! not lead sends its commands to the leader.

use super::admission::Admission;
use super::apply::{Proposed, ends_in_spill};
use super::command::{Command, Judgment, knows_notices};
use super::core::{Action, Gathering, Item, ReplicaCore, Token};
use super::machine::MachineLimits;
use super::proposals::{Asker, Failure};
use super::rounds::Takers;
use super::surroundings::{Disk, Surroundings};
use super::{NotForwarded, Outcome};
use bytes::Bytes;
use prost::Message;
use proto::cluster::{self, request};
use proto::{Code, NodeId, stored};
use std::time::Duration;

/// Wait before a batch or question is put to a leader again that was not there.
pub(super) const SOON: Duration = Duration::from_millis(50);

impl ReplicaCore {
    pub(super) fn propose(&mut self, command: Command, token: Token) {
        if knows_notices(&command) {
            self.proposals.push(command, Asker::Caller(token), self.moment());
        } else {
            self.actions.push(Action::Answer(token, Outcome::Refused(Code::NotSupported)));
        }
    }

    /// Another node's commands.
    pub(super) fn propose_all(&mut self, commands: Vec<stored::Command>, token: Token) {
        let (count, now) = (commands.len(), self.moment());
        if !self.standing.me_leads || count == 0 {
            self.actions.push(Action::AnswerAll(token, vec![Outcome::Elsewhere; count]));
            return;
        }
        self.gatherings += 1;
        let number = self.gatherings;
        let gathering = Gathering { outcomes: vec![None; count], missing: count, token };
        self.gathering.insert(number, gathering);
        for (place, command) in commands.into_iter().enumerate() {
            match command.kind.filter(knows_notices) {
                Some(command) => {
                    self.proposals.push(command, Asker::Peer { number, place }, now);
                }
                None => self.gather(number, place, Outcome::Refused(Code::NotSupported)),
            }
        }
    }

    /// The items that waited are through: what has come goes its way.
    pub(super) fn settle(&mut self) {
        if self.in_round && self.proposed.is_none() {
            self.in_round = false;
            let may = self.standing.me_leads && self.may_propose();
            let wish = self.proposals.wish(false).filter(|_| may);
            let takers = if self.standing.voters > 1 { Takers::Several } else { Takers::Alone };
            self.actions.push(Action::EndRound(takers, wish));
            if wish.is_some() {
                return;
            }
        }
        let lazily = std::mem::take(&mut self.lazy_due);
        if self.chores.retry_asked {
            return;
        }
        if self.standing.me_leads {
            if self.proposals.is_idle() {
                self.want_round(lazily);
            }
        } else if let Some(leader) = self.leader() {
            self.proposals.not_leading();
            self.forward_next(leader, lazily);
        }
    }

    fn may_propose(&self) -> bool {
        !self.chores.retry_asked && !self.chores.must_wait_for_tables()
    }

    fn want_round(&mut self, lazily: bool) {
        if !self.may_propose() {
            self.stuck_since.get_or_insert(self.ticks);
            return;
        }
        if self.is_ready() && self.chores.start_checkpoint_if_due() {
            self.proposals.push_spill();
        }
        if !self.in_round
            && let Some(wish) = self.proposals.wish(lazily)
        {
            self.actions.push(Action::WantRound(wish));
        }
    }

    /// It is this replica's turn.
    pub(super) fn round_begins(&mut self, around: &Surroundings) {
        self.in_round = true;
        let may = self.standing.me_leads && self.may_propose();
        if !may || !self.proposals.is_idle() {
            return;
        }
        match around.disk {
            Disk::HasSpace => {}
            Disk::GivesWay => {
                self.try_soon();
                return;
            }
            Disk::NearlyFull => self.proposals.refuse_storing(|append| self.machine.knows(append)),
        }
        // Only a leader that is followed may refuse by what it knows: another may know better.
        let knows = self.is_ready() && around.followed && self.is_unrivaled();
        let now = self.moment();
        let admission = Admission::new(&self.machine, around);
        let judge = |append: &stored::Append| {
            if knows { admission.judge(append) } else { Judgment::Unknown }
        };
        let Some(batch) = self.proposals.next_judged(true, now, judge) else { return };
        let number = batch.number;
        let mut head = stored::Batch {
            now_ms: now.ms,
            commands: std::mem::take(&mut batch.commands),
            proposer: self.node.0,
            number,
            limits: Some(MachineLimits::from(&around.settings).to_stored()),
            may_expire: around.may_expire,
        };
        let record = Bytes::from(head.encode_to_vec());
        let spills = ends_in_spill(&head);
        batch.commands = std::mem::take(&mut head.commands);
        self.proposed = Some(Proposed { record: record.clone(), head, spills });
        self.actions.push(Action::Log(number, record));
    }

    pub(super) fn not_proposed(&mut self, number: u64, failure: Failure) {
        let proposed = self.proposed.take_if(|proposed| proposed.head.number == number);
        if failure != Failure::Unknown && proposed.is_some_and(|proposed| proposed.spills) {
            self.chores.checkpoint_not_proposed();
        }
        self.proposals.failed(number, failure);
        self.try_soon();
    }

    /// Waits a moment before the next batch is proposed.
    fn try_soon(&mut self) {
        self.stuck_since.get_or_insert(self.ticks);
        if !std::mem::replace(&mut self.chores.retry_asked, true) {
            self.later(SOON, Item::RetryDue);
        }
    }

    /// The leader takes commands.
    pub(super) fn not_stuck(&mut self) {
        self.stuck_since = None;
    }

    // ---- To a leader elsewhere ---------------------------------------------------------------

    fn forward_next(&mut self, leader: NodeId, lazily: bool) {
        let now = self.moment();
        let Some(batch) = self.proposals.next_beside(lazily, now) else { return };
        let number = batch.number;
        let (shard, commands) = (u32::from(self.shard.0), std::mem::take(&mut batch.commands));
        let kind = request::Kind::Propose(cluster::Propose { shard, commands });
        let request = cluster::Request { kind: Some(kind) };
        let parcel = Bytes::from(request.encode_to_vec());
        if let Some(request::Kind::Propose(propose)) = request.kind {
            batch.commands = propose.commands;
        }
        self.actions.push(Action::Forward(leader, number, parcel));
    }

    pub(super) fn forwarded(&mut self, number: u64, outcomes: Result<Vec<Outcome>, NotForwarded>) {
        match outcomes {
            Ok(outcomes) => {
                if outcomes.contains(&Outcome::Elsewhere) {
                    self.try_soon();
                } else {
                    self.not_stuck();
                }
                self.proposals.answered(number, outcomes);
            }
            Err(why) => {
                let failure = match why {
                    NotForwarded::NotProposed => Failure::NotProposed,
                    NotForwarded::Unknown => Failure::Unknown,
                };
                self.proposals.failed(number, failure);
                self.try_soon();
            }
        }
    }
}
