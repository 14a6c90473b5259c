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

    /// Answered once this node has made sure that it still leads. Pages are answered at once if it
    /// was followed a moment ago ([`Group::is_followed`](crate::raft::Group::is_followed)): asking
    /// for each would cost a round, and a page that is too old after all does no harm. It is a
    /// beginning of the mailbox as it is now, for what was committed at a place stays there: so it has
    /// no hole, nothing in another order, and nothing that the reader did not ask for by `after`. What
    /// it lacks at its end stays in the mailbox, and the next leader tells all nodes to read again
    /// when it appears; from then on this node does not answer at once.
    pub(super) fn take_up(&mut self, question: Question) {
        let alone = self.standing.voters.len() <= 1;
        let page = matches!(question.0, Query::Page { .. });
        let newest = Some((self.standing.term, self.context.node));
        let unrivaled = self.hint <= newest;
        if self.is_ready() && (alone || (page && unrivaled && self.group.is_followed())) {
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
