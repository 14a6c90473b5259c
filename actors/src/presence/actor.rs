//! The presence process: reads accounts and rows of those who are watched, and tells their watchers.

use super::watched::{Seen, Subscriptions};
use super::{Presence, PresenceContext, PresenceItem};
use crate::connection::Connection;
use crate::shard::{AccountView, Query};
use proto::wire::{self, server_frame::Kind};
use proto::{Code, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use supervision::{Flow, Inbox, Process, ProcessError, timer};
use tracing::warn;

/// Accounts that are asked for at once: a new leader must not be asked for all of its shard's in one
/// moment.
const READS_MAX: usize = 64;

/// Wait before what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The presence process.
#[derive(Debug)]
pub struct PresenceActor {
    context: Arc<PresenceContext>,
    subscriptions: Subscriptions,
    /// Subscriptions that wait for the account.
    asked: BTreeMap<UserId, Vec<Asked>>,
    /// Accounts that are being read; true: it has changed since it was asked for.
    reading: BTreeMap<UserId, bool>,
    /// Accounts to read after those.
    unread: BTreeSet<UserId>,
    /// Accounts that could not be read.
    failed: BTreeSet<UserId>,
    /// Users about whom somebody was not told, or whose rows were not read.
    untold: BTreeSet<UserId>,
    retrying: bool,
}

/// A subscription that is not answered yet.
#[derive(Debug)]
struct Asked {
    watcher: UserId,
    /// Whether it is no repetition.
    fresh: bool,
    connection: Arc<Connection>,
    id: u64,
}

impl Process for PresenceActor {
    type Item = PresenceItem;
    type Args = Arc<PresenceContext>;

    async fn start(
        context: Arc<PresenceContext>,
        _inbox: Arc<Inbox<PresenceItem>>,
    ) -> Result<Self, ProcessError> {
        // Of an actor that crashed: its subscriptions are gone with it.
        context.presence.watched().clear();
        Ok(Self {
            context,
            subscriptions: Subscriptions::default(),
            asked: BTreeMap::new(),
            reading: BTreeMap::new(),
            unread: BTreeSet::new(),
            failed: BTreeSet::new(),
            untold: BTreeSet::new(),
            retrying: false,
        })
    }

    fn handle(&mut self, item: PresenceItem) -> Result<Flow, ProcessError> {
        match item {
            PresenceItem::Subscribe { watcher, user, connection, id } => {
                let fresh = !self.subscriptions.watches(watcher, user);
                self.subscribe(user, Asked { watcher, fresh, connection, id });
            }
            PresenceItem::Unsubscribe(watcher, user) => {
                self.subscriptions.remove(watcher, user);
                self.forget_if_unwatched(user);
            }
            PresenceItem::WatcherGone(watcher) => {
                for user in self.subscriptions.forget(watcher) {
                    self.forget_if_unwatched(user);
                }
            }
            PresenceItem::Touched(user) => self.look_at(user),
            PresenceItem::AccountTouched(user) => self.read(user),
            PresenceItem::ShardTouched(shard) => {
                let users: Vec<_> = self.subscriptions.users().collect();
                for user in users.into_iter().filter(|user| user.shard() == shard) {
                    self.read(user);
                }
            }
            PresenceItem::AccountRead(user, account) => self.account_read(user, account),
            PresenceItem::Lost(watcher, user) => {
                self.subscriptions.lost(watcher, user);
                self.try_again(user);
            }
            PresenceItem::RetryDue => {
                self.retrying = false;
                for user in std::mem::take(&mut self.untold) {
                    self.look_at(user);
                }
                self.unread.append(&mut self.failed);
                self.read_more();
            }
        }
        Ok(Flow::Continue)
    }
}

impl PresenceActor {
    fn presence(&self) -> &Presence {
        &self.context.presence
    }

    fn subscribe(&mut self, user: UserId, asked: Asked) {
        if !self.context.watchers.is_here(asked.watcher) {
            return;
        }
        if !self.subscriptions.add(asked.watcher, user) {
            asked.connection.refuse(asked.id, Code::TooMany);
            return;
        }
        // Before account and rows are read: what changes after that is heard of.
        self.presence().watched().entry(user).or_insert(false);
        self.asked.entry(user).or_default().push(asked);
        self.read(user);
    }

    fn forget_if_unwatched(&mut self, user: UserId) {
        if !self.subscriptions.is_watched(user) {
            self.presence().watched().remove(&user);
            self.unread.remove(&user);
            self.failed.remove(&user);
            self.untold.remove(&user);
        }
    }

    /// Reads an account, or reads it once more if that is under way.
    fn read(&mut self, user: UserId) {
        if let Some(again) = self.reading.get_mut(&user) {
            *again = true;
        } else {
            self.unread.insert(user);
            self.read_more();
        }
    }

    fn read_more(&mut self) {
        while self.reading.len() < READS_MAX {
            let Some(user) = self.unread.pop_first() else { return };
            self.reading.insert(user, false);
            let inbox = self.presence().inbox().clone();
            let answer = Box::new(move |account: Result<Option<Arc<AccountView>>, Code>| {
                inbox.force(PresenceItem::AccountRead(user, account));
            });
            self.context.shards.query(user.shard(), Query::Account { user, answer });
        }
    }

    fn account_read(&mut self, user: UserId, account: Result<Option<Arc<AccountView>>, Code>) {
        let again = self.reading.remove(&user).unwrap_or_default();
        let asked = self.asked.remove(&user).unwrap_or_default();
        match account {
            Ok(account) => {
                self.subscriptions.account_read(user, account.as_deref());
                let seen = self.seen(user);
                for asked in asked {
                    match &account {
                        Some(_) => self.answer(user, &asked, seen),
                        None => self.refuse(user, &asked, Code::UnknownUser),
                    }
                }
                self.tell(user, seen);
                if again && self.subscriptions.is_watched(user) {
                    self.unread.insert(user);
                }
            }
            Err(code) => {
                for asked in asked {
                    self.refuse(user, &asked, code);
                }
                if self.subscriptions.is_watched(user) {
                    self.failed.insert(user);
                    self.try_again(user);
                }
            }
        }
        self.read_more();
    }

    fn answer(&mut self, user: UserId, asked: &Asked, seen: Option<Seen>) {
        asked.connection.answer(asked.id, Kind::Done(wire::Done {}));
        if !self.subscriptions.watches(asked.watcher, user) {
            return; // It was ended meanwhile.
        }
        let standing = seen.and_then(|seen| self.subscriptions.standing(asked.watcher, user, seen));
        // By way of the watcher's actor, as all that follows: it must not be overtaken.
        let told = |presence| self.context.watchers.tell(asked.watcher, presence);
        if !standing.is_some_and(told) {
            self.subscriptions.lost(asked.watcher, user);
            self.try_again(user);
        }
    }

    fn refuse(&mut self, user: UserId, asked: &Asked, code: Code) {
        asked.connection.refuse(asked.id, code);
        if asked.fresh {
            self.subscriptions.remove(asked.watcher, user);
            self.forget_if_unwatched(user);
        }
    }

    /// How a user stands by the rows of their devices; `None` if those cannot be read now.
    fn seen(&self, user: UserId) -> Option<Seen> {
        let rows = match self.context.rows.of(user) {
            Ok(rows) => rows,
            Err(error) => {
                warn!(%user, %error, "sessions not read");
                return None;
            }
        };
        let devices = self.subscriptions.devices(user);
        let linked = rows.iter().filter(|(device, _)| devices.contains(device));
        Some(Seen::of(linked.map(|(_, row)| self.context.sessions.view(*row))))
    }

    fn look_at(&mut self, user: UserId) {
        if let Some(waits) = self.presence().watched().get_mut(&user) {
            *waits = false;
        }
        if self.subscriptions.is_watched(user) {
            let seen = self.seen(user);
            self.tell(user, seen);
        }
    }

    fn tell(&mut self, user: UserId, seen: Option<Seen>) {
        let Some(seen) = seen else {
            self.try_again(user);
            return;
        };
        for (watcher, presence) in self.subscriptions.news(user, seen) {
            if !self.context.watchers.tell(watcher, presence) {
                self.subscriptions.lost(watcher, user);
                self.try_again(user);
            }
        }
    }

    fn try_again(&mut self, user: UserId) {
        self.untold.insert(user);
        if !std::mem::replace(&mut self.retrying, true) {
            timer::push_after(self.presence().inbox(), RETRY, PresenceItem::RetryDue);
        }
    }
}
