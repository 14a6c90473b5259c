//! Questions to a shard: answered by its leader, once it is sure that it leads.

use super::actor::{PATIENCE_TICKS, SOON, ShardActor};
use super::reads::Reader;
use super::{Answer, Query, ShardItem, translate};
use proto::Code;
use supervision::timer;

/// A question that waits until this node knows that it leads.
pub(super) struct Question {
    query: Query,
    /// The tick in which it came.
    since: u64,
    /// Whom to tell if this node does not lead; `None`: it was asked here.
    elsewhere: Option<Answer<()>>,
}

impl ShardActor {
    /// Somebody here asks since this tick.
    pub(super) fn question(&mut self, query: Query, since: u64) {
        if self.has_lost_patience(since) {
            translate::refuse(query, Code::Unavailable);
        } else if self.standing.me_leads {
            self.take_up(Question { query, since, elsewhere: None });
        } else if let Some(leader) = self.leader() {
            self.forward_question(leader, query, since);
        } else {
            self.ask_again(query, since);
        }
    }

    pub(super) fn question_of_peer(&mut self, query: Query, elsewhere: Answer<()>) {
        if self.standing.me_leads {
            self.take_up(Question { query, since: self.ticks, elsewhere: Some(elsewhere) });
        } else {
            elsewhere(());
        }
    }

    fn has_lost_patience(&self, since: u64) -> bool {
        self.ticks >= since + PATIENCE_TICKS
    }

    fn ask_again(&self, query: Query, since: u64) {
        timer::push_after(&self.inbox, SOON, ShardItem::AskAgain(query, since));
    }

    /// Time has passed: what has waited for too long is refused, and all of it goes elsewhere if this
    /// node does not lead.
    pub(super) fn look_at_questions(&mut self) {
        for question in std::mem::take(&mut self.asked) {
            let Question { query, since, elsewhere } = question;
            match elsewhere {
                elsewhere if self.standing.me_leads && !self.has_lost_patience(since) => {
                    self.asked.push(Question { query, since, elsewhere });
                }
                Some(elsewhere) => elsewhere(()),
                None => self.question(query, since),
            }
        }
    }

    /// Answered once this node has made sure that it still leads. Pages are answered at once if it
    /// was followed a moment ago ([`Group::is_followed`](consensus::Group::is_followed)): asking
    /// for each would cost a round, and a page that is too old after all does no harm. It is a
    /// beginning of the mailbox as it is now, for what was committed at a place stays there: so it has
    /// no hole, nothing in another order, and nothing that the reader did not ask for by `after`. What
    /// it lacks at its end stays in the mailbox, and the next leader tells all nodes to read again
    /// when it appears; from then on this node does not answer at once.
    fn take_up(&mut self, question: Question) {
        let alone = self.standing.voters.len() <= 1;
        let page = matches!(question.query, Query::Page { .. });
        let newest = Some((self.standing.term, self.context.node));
        let unrivaled = self.hint <= newest;
        if self.is_ready() && (alone || (page && unrivaled && self.group.is_followed())) {
            self.answer(question.query);
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
        for question in self.confirming.take().unwrap_or_default() {
            let Question { query, since, elsewhere } = question;
            match elsewhere {
                _ if leads => self.answer(query),
                Some(elsewhere) => elsewhere(()),
                None => self.ask_again(query, since),
            }
        }
        self.confirm();
    }

    pub(super) fn answer(&self, query: Query) {
        let Self { machine, overlay, context, .. } = self;
        Reader { machine, overlay, storage: &context.storage }.answer(query);
    }
}
