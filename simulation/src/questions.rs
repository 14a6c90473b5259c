//! Questions on their way to a leader, and how it answers: as `shard/actor.rs` and `shard/reads.rs`.

use crate::ask::{Answered, Ask, What};
use crate::seat::{PATIENCE_TICKS, Seat};
use crate::stage::{Message, NodeEvent, Stage, by};
use actors::shard::{Attached, Entry, Page, bytes_of};
use proto::{DeviceId, Seq, UserId};
use std::sync::Arc;

/// Wait before a question is put to a leader again, in ms.
const SOON_MS: u64 = 50;

/// How long a leader elsewhere may take, in ms.
const ASK_MS: u64 = 3_000;

impl Seat {
    pub(crate) fn question(&mut self, ask: Ask, stage: &mut Stage) {
        stage.note(|| {
            by(self.me, format_args!("asks {:?} for connection {}", ask.what, ask.connection))
        });
        if self.standing.me_leads {
            self.take_up(ask, stage);
        } else if let Some(leader) = self.leader() {
            let message = Message::Ask { shard: self.shard, ask };
            self.asking.insert(ask.number, ask);
            let linked = stage.send(self.me, leader, message);
            let late = if linked { ASK_MS } else { 0 };
            stage.local(self.me, late, NodeEvent::AskOver(self.shard, ask));
        } else {
            self.ask_again(ask, stage);
        }
    }

    /// A peer's question.
    pub(crate) fn question_of_peer(&mut self, ask: Ask, stage: &mut Stage) {
        if self.standing.me_leads {
            self.take_up(ask, stage);
        } else {
            self.tell(ask, None, stage);
        }
    }

    /// A leader elsewhere has answered, or has not.
    pub(crate) fn asked_elsewhere(
        &mut self,
        ask: Ask,
        answer: Option<Answered>,
        stage: &mut Stage,
    ) {
        stage.note(|| {
            by(self.me, format_args!("hears {answer:?} for connection {}", ask.connection))
        });
        if self.asking.remove(&ask.number).is_none() {
            return;
        }
        match answer {
            Some(answer) => stage.local(self.me, 0, NodeEvent::Answered(ask, Some(answer))),
            None => stage.local(self.me, SOON_MS, NodeEvent::AskAgain(self.shard, ask)),
        }
    }

    pub(crate) fn ask_again(&mut self, ask: Ask, stage: &mut Stage) {
        if self.ticks >= ask.since + PATIENCE_TICKS {
            stage.local(self.me, 0, NodeEvent::Answered(ask, None));
        } else {
            stage.local(self.me, SOON_MS, NodeEvent::AskAgain(self.shard, ask));
        }
    }

    fn take_up(&mut self, ask: Ask, stage: &mut Stage) {
        let unrivaled = self.hint <= Some((self.standing.term, self.me));
        let followed = unrivaled && self.raft.has_quorum(stage.now);
        if self.is_ready() && followed && matches!(ask.what, What::Page { .. }) {
            self.answer(ask, stage);
        } else {
            self.asked.push(ask);
            self.confirm(stage);
        }
    }

    pub(crate) fn confirm(&mut self, stage: &mut Stage) {
        if self.confirming.is_some() || self.asked.is_empty() || !self.is_ready() {
            return;
        }
        self.confirming = Some(std::mem::take(&mut self.asked));
        let late = stage.chance.between(1, 2 * stage.weather.delay_ms + 1);
        stage.local(self.me, late, NodeEvent::Confirmed(self.shard));
    }

    /// The group says whether this node leads for certain.
    pub(crate) fn confirmed(&mut self, leads: bool, stage: &mut Stage) {
        for ask in self.confirming.take().unwrap_or_default() {
            if leads {
                self.answer(ask, stage);
            } else {
                self.tell(ask, None, stage);
            }
        }
        self.confirm(stage);
    }

    pub(crate) fn pass_questions_on(&mut self, stage: &mut Stage) {
        for ask in std::mem::take(&mut self.asked) {
            if ask.node == self.me {
                self.question(ask, stage);
            } else {
                self.tell(ask, None, stage);
            }
        }
    }

    fn tell(&mut self, ask: Ask, answer: Option<Answered>, stage: &mut Stage) {
        if ask.node != self.me {
            let message = Message::Answer { shard: self.shard, ask, answer };
            stage.send(self.me, ask.node, message);
        } else if let Some(answer) = answer {
            stage.local(self.me, 0, NodeEvent::Answered(ask, Some(answer)));
        } else {
            self.ask_again(ask, stage);
        }
    }

    fn answer(&mut self, ask: Ask, stage: &mut Stage) {
        let answer = match ask.what {
            What::Attach(device) => Answered::Attached(self.attached(ask.user, device)),
            What::Page { after, limit, bytes_max } => self.page(ask.user, after, limit, bytes_max),
        };
        self.tell(ask, Some(answer), stage);
    }

    fn attached(&self, user: UserId, device: DeviceId) -> Option<Attached> {
        let (account, mailbox) = (self.machine.account(user)?, self.machine.mailbox(user)?);
        let (account, last) = (account.view(user), mailbox.last());
        account.devices.get(&device)?;
        let cursor = mailbox.cursors().get(device);
        let acknowledged = cursor.map_or(last, |cursor| cursor.acknowledged);
        let start = cursor.map_or(last, |cursor| cursor.start);
        Some(Attached { account, acknowledged, start, set_aside: cursor.is_none(), last })
    }

    /// Whether an entry has expired that may still be a row.
    pub(crate) fn is_expired(&self, user: UserId, seq: Seq) -> bool {
        self.machine.mailbox(user).is_some_and(|mailbox| mailbox.is_expired(seq))
            || self.gone.contains(&(user, seq))
    }

    fn page(&self, user: UserId, after: Seq, limit: usize, bytes_max: usize) -> Answered {
        let Some(mailbox) = self.machine.mailbox(user) else {
            let (entries, released) = (Vec::new(), Seq::default());
            return Answered::Page(Page {
                entries,
                up_to: after,
                last: after,
                released,
                failed: false,
            });
        };
        let last = mailbox.last();
        let overlay = self.overlay.get(&user).into_iter().flatten();
        let in_memory = overlay.chain(mailbox.tail_after(Seq(0)));
        let mut all: Vec<Entry> = in_memory.filter(|entry| entry.seq > after).cloned().collect();
        let table_to = all.first().map_or(last, |entry| Seq(entry.seq.0 - 1));
        let rows = self.table.messages(user, after, table_to);
        let rows = rows.map(|(seq, row)| Entry { seq, envelope: Arc::new(row.clone()) });
        all = rows.chain(all).filter(|entry| !self.is_expired(user, entry.seq)).collect();
        let mut bytes = 0;
        let fits = all.iter().take(limit).take_while(|entry| {
            let first = bytes == 0;
            bytes += bytes_of(&entry.envelope);
            first || bytes <= bytes_max
        });
        let count = fits.count();
        let whole = count == all.len() && count < limit;
        all.truncate(count);
        let up_to = if whole { last } else { all.last().map_or(last, |entry| entry.seq) };
        let released = mailbox.released();
        Answered::Page(Page { entries: all, up_to, last, released, failed: false })
    }
}
