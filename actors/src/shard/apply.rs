//! How a replica applies the entries that its group has committed, and what follows from them.

use super::command::{Command, Effect, UnknownCommand, is_known};
use super::core::{Action, Hint, Loaded, ReplicaCore, Token};
use super::machine::MachineLimits;
use super::reads::Overlay;
use bytes::Bytes;
use consensus::Committed;
use prost::Message;
use proto::stored;
use std::collections::VecDeque;

/// Our batch under way.
pub(super) struct Proposed {
    pub(super) record: Bytes,
    /// The batch without its commands.
    pub(super) head: stored::Batch,
    pub(super) spills: bool,
}

/// A batch that is committed. Without commands if it is ours: they are in the queue.
struct Committing {
    batch: stored::Batch,
    ours: bool,
    spills: bool,
}

impl ReplicaCore {
    pub(super) fn committed(&mut self, mut entries: VecDeque<Committed>, token: Token) {
        if self.rest.is_on() {
            self.actions.push(Action::Forget(token));
            return;
        }
        if !self.deferred.is_empty() {
            self.deferred.push_back((entries, token));
            return;
        }
        while let Some(entry) = entries.pop_front() {
            let batch = match entry.content.as_ref().map(|record| self.read(record, entry.id)) {
                Some(Err(why)) => {
                    self.actions.extend([Action::Forget(token), Action::Stop(why)]);
                    return;
                }
                Some(Ok(batch)) => Some(batch),
                None => None,
            };
            let spills = batch.as_ref().is_some_and(|batch| batch.spills);
            if spills && self.chores.is_writing() {
                entries.push_front(entry);
                self.deferred.push_back((entries, token));
                return;
            }
            self.chores.count_logged(entry.content.as_ref().map_or(1, Bytes::len));
            self.applied.id = Some(entry.id);
            if let Some(membership) = entry.membership {
                self.applied.membership = Some(membership);
                self.applied.membership_at = Some(entry.id);
            }
            if let Some(batch) = batch {
                self.apply_batch(batch);
            } else {
                self.lead_if_caught_up();
            }
        }
        self.actions.push(Action::Done(token));
        self.offer_notices();
    }

    /// Why it cannot be read, if not: the replica stops rather than hold another state than the others.
    fn read(&self, record: &Bytes, at: stored::LogId) -> Result<Committing, String> {
        if let Some(ours) = &self.proposed
            // The same memory: what was proposed here comes back as it was handed over.
            && ours.record.as_ptr() == record.as_ptr()
            && ours.record.len() == record.len()
            && self.proposals.is_under_way(ours.head.number)
        {
            return Ok(Committing { batch: ours.head.clone(), ours: true, spills: ours.spills });
        }
        let batch = stored::Batch::decode(record.clone()).map_err(|error| error.to_string())?;
        if !batch.commands.iter().all(is_known) {
            return Err(UnknownCommand { shard: self.shard, index: at.index }.to_string());
        }
        let spills = ends_in_spill(&batch);
        Ok(Committing { batch, ours: false, spills })
    }

    fn apply_batch(&mut self, committing: Committing) {
        let Committing { batch, ours, .. } = committing;
        let stored::Batch { now_ms, commands, number, limits, may_expire, .. } = batch;
        self.machine.set_may_expire(may_expire);
        self.machine.set_limits(MachineLimits::from_stored(limits.unwrap_or_default()));
        if ours {
            self.proposed = None;
            self.not_stuck();
            self.proposals.apply(number, |command| self.machine.apply(now_ms, command));
            self.tell_outcomes();
        } else {
            for command in commands.into_iter().filter_map(|command| command.kind) {
                self.machine.apply(now_ms, command);
            }
        }
        self.machine.note_clock(&mut self.applied);
        self.follow_effects();
        self.lead_if_caught_up();
    }

    /// Does what follows from the commands that were applied.
    pub(super) fn follow_effects(&mut self) {
        let leads = self.is_ready();
        let mut effects = self.machine.take_effects();
        // A checkpoint first: what it takes out of the tables is not to be read.
        effects.sort_by_key(|effect| !matches!(effect, Effect::Checkpoint(_)));
        for effect in effects {
            match effect {
                Effect::Checkpoint(spill) => self.begin_checkpoint(spill),
                Effect::Push { user, seq, envelope } if leads => {
                    self.hint(Hint::Push(user, seq, envelope));
                }
                Effect::ReadOrigins { user, first, up_to } if leads => {
                    self.read_origins(user, first, up_to);
                }
                Effect::AccountChanged { user, account } if leads => {
                    self.hint(Hint::AccountChanged(user, account));
                }
                Effect::WrongPins { in_hour } if leads => {
                    self.hint(Hint::WrongPins(in_hour));
                }
                Effect::PinsUsedUp if leads => self.hint(Hint::PinsUsedUp),
                Effect::Push { .. }
                | Effect::ReadOrigins { .. }
                | Effect::WrongPins { .. }
                | Effect::PinsUsedUp
                | Effect::AccountChanged { .. } => {}
            }
        }
    }

    pub(super) fn resume_deferred(&mut self) {
        while let Some((entries, token)) = self.deferred.pop_front() {
            let rest = std::mem::take(&mut self.deferred);
            self.committed(entries, token);
            let waits = !self.deferred.is_empty();
            self.deferred.extend(rest);
            if waits {
                break;
            }
        }
    }

    pub(super) fn reload(&mut self, token: Token) {
        self.rest.reload();
        self.actions.push(Action::Load(token));
    }

    pub(super) fn loaded(&mut self, loaded: Loaded, token: Token) {
        if !self.rest.loaded() {
            self.actions.push(Action::Forget(token));
            return;
        }
        self.machine = loaded.machine;
        self.applied = loaded.applied.unwrap_or_default();
        self.overlay = Overlay::default();
        self.chores.snapshot_taken();
        self.actions.push(Action::Done(token));
    }
}

pub(super) fn ends_in_spill(batch: &stored::Batch) -> bool {
    let last = batch.commands.last().and_then(|command| command.kind.as_ref());
    matches!(last, Some(Command::Spill(_)))
}
