//! Questions to a shard: answered by its leader, once it is sure that it leads.

use super::ask::{Answered, Ask, Asked};
use super::core::{Action, Item, PATIENCE_TICKS, ReplicaCore, Token};
use super::propose::SOON;
use super::reads::{PageOf, Reader};

/// Who put a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Someone on this node.
    Here,
    /// Another node.
    Peer,
}

/// A question that waits until this node knows that it leads.
#[derive(Debug)]
pub(super) struct Question {
    asked: Asked,
    by: By,
}

impl ReplicaCore {
    /// Somebody here asks.
    pub(super) fn ask(&mut self, ask: Ask, token: Token, followed: bool) {
        self.question(Asked { ask, token, since: self.ticks }, followed);
    }

    pub(super) fn ask_again(&mut self, asked: Asked) {
        self.question(asked, false);
    }

    fn question(&mut self, asked: Asked, followed: bool) {
        if self.has_lost_patience(asked.since) {
            self.actions.push(Action::ReplyNothing(asked.token));
        } else if self.standing.me_leads {
            self.take_up(Question { asked, by: By::Here }, followed);
        } else if let Some(leader) = self.leader() {
            self.actions.push(Action::AskLeader(leader, asked));
        } else {
            self.later(SOON, Item::AskAgain(asked));
        }
    }

    pub(super) fn ask_of_peer(&mut self, ask: Ask, token: Token, followed: bool) {
        if self.standing.me_leads {
            let asked = Asked { ask, token, since: self.ticks };
            self.take_up(Question { asked, by: By::Peer }, followed);
        } else {
            self.actions.push(Action::ReplyNothing(token));
        }
    }

    fn has_lost_patience(&self, since: u64) -> bool {
        self.ticks >= since + PATIENCE_TICKS
    }

    /// Time has passed: what has waited for too long is refused, and all of it goes elsewhere if this
    /// node does not lead.
    pub(super) fn look_at_questions(&mut self) {
        for question in std::mem::take(&mut self.asked) {
            let waits = self.standing.me_leads && !self.has_lost_patience(question.asked.since);
            if waits {
                self.asked.push(question);
                continue;
            }
            match question.by {
                By::Peer => self.actions.push(Action::ReplyNothing(question.asked.token)),
                By::Here => self.question(question.asked, false),
            }
        }
    }

    /// Nobody was heard to lead in a later term.
    pub(super) fn is_unrivaled(&self) -> bool {
        self.hint <= Some((self.standing.term, self.node))
    }

    /// Answered once this node has made sure that it still leads. Pages are answered at once if it
    /// was followed a moment ago ([`consensus::Group::is_followed`]): asking
    /// for each would cost a round, and a page that is too old after all does no harm. It is a
    /// beginning of the mailbox as it is now, for what was committed at a place stays there: so it has
    /// no hole, nothing in another order, and nothing that the reader did not ask for by `after`. What
    /// it lacks at its end stays in the mailbox, and the next leader tells all nodes to read again
    /// when it appears; from then on this node does not answer at once.
    fn take_up(&mut self, question: Question, followed: bool) {
        let alone = self.standing.voters <= 1;
        let page = question.asked.ask.is_page();
        if self.is_ready() && (alone || (page && self.is_unrivaled() && followed)) {
            self.reply(question.asked);
        } else {
            self.asked.push(question);
            self.confirm();
        }
    }

    pub(super) fn confirm(&mut self) {
        if self.confirming.is_none() && !self.asked.is_empty() && self.is_ready() {
            self.confirming = Some(std::mem::take(&mut self.asked));
            self.actions.push(Action::Confirm);
        }
    }

    pub(super) fn confirmed(&mut self, leads: bool) {
        for Question { asked, by } in self.confirming.take().unwrap_or_default() {
            if leads {
                self.reply(asked);
                continue;
            }
            match by {
                By::Peer => self.actions.push(Action::ReplyNothing(asked.token)),
                By::Here => self.later(SOON, Item::AskAgain(asked)),
            }
        }
        self.confirm();
    }

    fn reply(&mut self, Asked { ask, token, .. }: Asked) {
        let (machine, overlay) = (&self.machine, &self.overlay);
        let reader = Reader { machine, overlay, fault: self.fault };
        let answered = match ask {
            Ask::Account(user) => {
                Answered::Account(machine.account(user).map(|account| account.view(user)))
            }
            Ask::Owner(alias) => Answered::Owner(machine.owner(&alias)),
            Ask::Attach(user, device) => Answered::Attached(reader.attach(user, device)),
            Ask::Page { user, after, limit, bytes_max } => {
                match reader.page(user, after, (limit, bytes_max)) {
                    PageOf::Memory(page) => Answered::Page(page),
                    PageOf::Tables(read) => {
                        self.actions.push(Action::ReadPage(token, read));
                        return;
                    }
                }
            }
        };
        self.actions.push(Action::Reply(token, answered));
    }
}
