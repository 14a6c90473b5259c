//! Batches: commands that arrive while one batch is being flushed form the next. A pure core.
//!
//! # Invariants
//! 1. At most one batch is under way.
//! 2. A `Spill` is the last command of its batch, so that a checkpoint holds whole records.

use super::command::{Command, to_stored};
use super::{Outcome, Reply};
use prost::Message;
use proto::{Code, stored};
use std::collections::VecDeque;

/// Commands in one batch. Bounds how long applying one keeps others waiting.
const BATCH_COMMANDS: usize = 1_024;

/// Bytes of one batch, or one command if that is longer.
const BATCH_BYTES: usize = 512 * 1024;

/// What waits and what is under way.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: VecDeque<(Command, Reply)>,
    /// Commands that nobody waits for: they travel with others, or on the next tick.
    lazy: Vec<Command>,
    spill: bool,
    under_way: Option<Batch>,
}

/// One batch under way.
pub(super) struct Batch {
    pub(super) index: u64,
    pub(super) content: stored::Batch,
    replies: Vec<Reply>,
}

impl Batch {
    /// The commands with what to do with their outcomes.
    pub(super) fn into_commands(self) -> impl Iterator<Item = (Command, Option<Reply>)> {
        let replies = self.replies.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let commands = self.content.commands.into_iter().filter_map(|command| command.kind);
        commands.zip(replies)
    }

    fn refuse(self, code: Code) {
        for reply in self.replies {
            reply(Outcome::Refused(code));
        }
    }
}

impl Proposals {
    pub(super) fn push(&mut self, command: Command, reply: Reply) {
        self.waiting.push_back((command, reply));
    }

    pub(super) fn push_lazy(&mut self, command: Command) {
        self.lazy.push(command);
    }

    pub(super) fn push_spill(&mut self) {
        self.spill = true;
    }

    pub(super) fn has_lazy(&self) -> bool {
        !self.lazy.is_empty()
    }

    /// Makes the next batch and returns its record for the log, if there is something to propose
    /// and nothing under way. `lazily`: lazy commands are reason enough.
    pub(super) fn next(&mut self, index: u64, now_ms: u64, lazily: bool) -> Option<Vec<u8>> {
        let reason = !self.waiting.is_empty() || self.spill || (lazily && self.has_lazy());
        if self.under_way.is_some() || !reason {
            return None;
        }
        let mut commands =
            Vec::with_capacity(self.waiting.len().min(BATCH_COMMANDS) + self.lazy.len() + 1);
        let mut replies = Vec::with_capacity(self.waiting.len().min(BATCH_COMMANDS));
        let mut bytes = 0;
        while bytes < BATCH_BYTES && replies.len() < BATCH_COMMANDS {
            let Some((command, reply)) = self.waiting.pop_front() else { break };
            bytes += command.encoded_len();
            commands.push(to_stored(command));
            replies.push(reply);
        }
        commands.extend(self.lazy.drain(..).map(to_stored));
        if std::mem::take(&mut self.spill) {
            commands.push(to_stored(Command::Spill(stored::Spill {})));
        }
        let content = stored::Batch { now_ms, commands, ..Default::default() };
        let record = content.encode_to_vec();
        self.under_way = Some(Batch { index, content, replies });
        Some(record)
    }

    /// The batch under way was flushed.
    pub(super) fn flushed(&mut self) -> Option<Batch> {
        self.under_way.take()
    }

    /// The batch under way was not flushed. It and everything behind it is refused, so that nothing
    /// sent later overtakes it.
    pub(super) fn refuse_all(&mut self, code: Code) {
        if let Some(mut batch) = self.under_way.take() {
            let lazy = batch.content.commands.split_off(batch.replies.len());
            self.lazy.extend(lazy.into_iter().filter_map(|command| match command.kind {
                Some(Command::Spill(_)) | None => None,
                Some(kind) => Some(kind),
            }));
            batch.refuse(code);
        }
        for (_, reply) in std::mem::take(&mut self.waiting) {
            reply(Outcome::Refused(code));
        }
    }
}
