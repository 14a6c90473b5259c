//! Questions to a shard: answered by its leader, once it is sure that it leads.

use super::actor::{PATIENCE_TICKS, Question, SOON, ShardActor};
use super::reads::Reader;
use super::{Answer, Query, ShardItem, translate};
use proto::Code;
use supervision::timer;

impl ShardActor {
    pub(super) fn question(&mut self, query: Query, since: u64) {
        if self.standing.me_leads {
            self.take_up((query, None));
        } else if let Some(leader) = self.leader() {
            self.forward_question(leader, query, since);
        } else {
            self.ask_again(query, since);
        }
    }

    pub(super) fn question_of_peer(&mut self, query: Query, elsewhere: Answer<()>) {
        if self.standing.me_leads {
            self.take_up((query, Some(elsewhere)));
        } else {
            elsewhere(());
        }
    }

    pub(super) fn ask_again(&self, query: Query, since: u64) {
        if self.ticks >= since + PATIENCE_TICKS {
            translate::refuse(query, Code::Unavailable);
        } else {
            timer::push_after(&self.inbox, SOON, ShardItem::AskAgain(query, since));
        }
    }

    /// Pages may be a little old: who reads one is told of what comes later. Everything else is
    /// answered only once this node has made sure that it still leads.
    pub(super) fn take_up(&mut self, question: Question) {
        let alone = self.standing.voters.len() <= 1;
        let old_will_do = alone || matches!(question.0, Query::Page { .. });
        if self.is_ready() && old_will_do {
            self.answer(question.0);
        } else {
            self.asked.push(question);
            self.confirm();
        }
    }

    pub(super) fn confirm(&mut self) {
        if self.confirming.is_some() || self.asked.is_empty() || !self.is_ready() {
            return;
        }
        self.confirming = Some(std::mem::take(&mut self.asked));
        let (group, inbox) = (self.group.clone(), self.inbox.clone());
        self.context.tasks.spawn("confirm", async move {
            let leads = group.confirm_leadership().await.is_ok();
            inbox.force(ShardItem::Confirmed(leads));
        });
    }

    pub(super) fn confirmed(&mut self, leads: bool) {
        for (query, elsewhere) in self.confirming.take().unwrap_or_default() {
            match elsewhere {
                _ if leads => self.answer(query),
                Some(elsewhere) => elsewhere(()),
                None => self.ask_again(query, self.ticks),
            }
        }
        self.confirm();
    }

    pub(super) fn answer(&self, query: Query) {
        let Self { machine, overlay, context, .. } = self;
        Reader { machine, overlay, storage: &context.storage }.answer(query);
    }
}
