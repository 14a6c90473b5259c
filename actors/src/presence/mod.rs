//! Presence: who watches whom, and who is told when someone comes or goes.
//!
//! # Invariants
//! 1. Nothing here is stored or waited for; presence may be dropped.
//! 2. What a user hides, and whom they block, is not told.

mod watchers;

use crate::connection::Connection;
use crate::context::Context;
use crate::shard::{AccountView, Query};
use proto::wire::{self, server_frame::Kind};
use proto::{Code, UserId};
use std::sync::Arc;
use supervision::{Flow, Inbox, Process, ProcessError, QueueLimits};
use watchers::Watchers;

/// Beyond `critical` changes are dropped.
const QUEUE: QueueLimits = QueueLimits { high: 10_000, critical: 50_000 };

/// What the presence actor's message queue holds.
#[derive(Debug)]
pub enum PresenceItem {
    /// A user asks to be told about another.
    Subscribe {
        /// Who asks.
        watcher: UserId,
        /// About whom.
        account: Arc<AccountView>,
        /// Where the answer goes.
        connection: Arc<Connection>,
        /// The request.
        id: u64,
    },
    /// A user does not want to be told any longer.
    Unsubscribe(UserId, UserId),
    /// A user has no connection here any longer.
    WatcherGone(UserId),
    /// Another node tells that someone came or went there.
    ChangedElsewhere {
        /// Who.
        user: UserId,
        /// Whether they are there.
        online: bool,
        /// Unix time in ms.
        at_ms: u64,
    },
    /// Someone came or went.
    Changed {
        /// Who.
        account: Arc<AccountView>,
        /// Whether they are there.
        online: bool,
        /// Unix time in ms.
        at_ms: u64,
    },
}

/// The door to presence. Cheap to clone.
#[derive(Clone)]
pub struct Presence {
    inbox: Arc<Inbox<PresenceItem>>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("waiting", &self.inbox.len()).finish()
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self { inbox: Inbox::new("presence", 0, QUEUE) }
    }
}

impl Presence {
    /// The message queue, for the child spec.
    pub fn inbox(&self) -> &Arc<Inbox<PresenceItem>> {
        &self.inbox
    }

    /// Subscribes `watcher` to a user, answers, and tells how things stand.
    pub fn subscribe(
        &self,
        watcher: UserId,
        account: Arc<AccountView>,
        connection: Arc<Connection>,
        id: u64,
    ) {
        self.inbox.force(PresenceItem::Subscribe { watcher, account, connection, id });
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, watcher: UserId, user: UserId) {
        self.inbox.force(PresenceItem::Unsubscribe(watcher, user));
    }

    /// Ends all subscriptions of a user who has gone.
    pub fn forget_watcher(&self, watcher: UserId) {
        self.inbox.force(PresenceItem::WatcherGone(watcher));
    }

    /// Another node tells that someone came or went there. Dropped when too much is waiting.
    pub fn changed_elsewhere(&self, user: UserId, online: bool, at_ms: u64) {
        drop(self.inbox.push(PresenceItem::ChangedElsewhere { user, online, at_ms }));
    }

    /// Someone came or went. Dropped when too much is waiting.
    pub fn changed(&self, account: &Arc<AccountView>, online: bool, at_ms: u64) {
        let account = account.clone();
        drop(self.inbox.push(PresenceItem::Changed { account, online, at_ms }));
    }
}

/// The presence process.
#[derive(Debug)]
pub struct PresenceActor {
    context: Arc<Context>,
    watchers: Watchers,
}

impl Process for PresenceActor {
    type Item = PresenceItem;
    type Args = Arc<Context>;

    async fn start(
        context: Arc<Context>,
        _inbox: Arc<Inbox<PresenceItem>>,
    ) -> Result<Self, ProcessError> {
        Ok(Self { context, watchers: Watchers::default() })
    }

    fn handle(&mut self, item: PresenceItem) -> Result<Flow, ProcessError> {
        match item {
            PresenceItem::Subscribe { watcher, account, connection, id } => {
                if !self.context.users.is_here(watcher) {
                    return Ok(Flow::Continue);
                }
                if self.watchers.add(watcher, account.user) {
                    connection.answer(id, Kind::Done(wire::Done {}));
                    connection.hint(Kind::Presence(self.standing(watcher, &account)));
                } else {
                    connection.refuse(id, Code::TooMany);
                }
            }
            PresenceItem::Unsubscribe(watcher, user) => self.watchers.remove(watcher, user),
            PresenceItem::WatcherGone(watcher) => self.watchers.forget(watcher),
            PresenceItem::ChangedElsewhere { user, online, at_ms } => {
                if self.watchers.of(user).next().is_some() {
                    self.ask_whom_to_tell(user, online, at_ms);
                }
            }
            PresenceItem::Changed { account, online, at_ms } => {
                for watcher in self.watchers.of(account.user) {
                    if let Some(presence) = shown(&account, watcher, online, at_ms) {
                        self.context.users.presence(watcher, presence);
                    }
                }
            }
        }
        Ok(Flow::Continue)
    }
}

impl PresenceActor {
    /// What a user hides is known to their shard.
    fn ask_whom_to_tell(&self, user: UserId, online: bool, at_ms: u64) {
        let presence = self.context.presence.clone();
        let answer = Box::new(move |account: Result<Option<Arc<AccountView>>, Code>| {
            if let Ok(Some(account)) = account {
                presence.changed(&account, online, at_ms);
            }
        });
        self.context.shards.query(user.shard(), Query::Account { user, answer });
    }

    fn standing(&self, watcher: UserId, account: &AccountView) -> wire::Presence {
        let table = &self.context.sessions;
        let rows = account.devices.keys();
        let rows = rows.filter_map(|device| table.get(account.user, *device).ok()?);
        let here = |row: &proto::stored::Session| !row.away && table.is_live(row);
        let (online, seen_ms) = rows.fold((false, 0), |(online, seen_ms), row| {
            (online || here(&row), row.last_seen_ms.max(seen_ms))
        });
        let hidden = wire::Presence { user: account.user.0, online: false, last_seen_ms: 0 };
        shown(account, watcher, online, seen_ms).unwrap_or(hidden)
    }
}

/// What `watcher` may know; `None`: nothing, not even that something happened.
fn shown(
    account: &AccountView,
    watcher: UserId,
    online: bool,
    at_ms: u64,
) -> Option<wire::Presence> {
    let hide_online = !account.privacy.online.admits(watcher, &account.contacts);
    let hide_last_seen = !account.privacy.last_seen.admits(watcher, &account.contacts);
    let hidden = hide_online && (hide_last_seen || online);
    if hidden || account.blocked.contains(&watcher) {
        return None;
    }
    let last_seen_ms = if hide_last_seen { 0 } else { at_ms };
    Some(wire::Presence { user: account.user.0, online, last_seen_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Audience, Privacy};

    #[test]
    fn what_is_hidden_is_not_told_by_the_moment_either() {
        let (ada, eve) = (UserId(1), UserId(2));
        let mut account = AccountView {
            user: ada,
            aliases: Vec::new(),
            devices: std::collections::BTreeMap::new(),
            blocked: std::collections::BTreeSet::new(),
            contacts: Arc::new([eve].into()),
            privacy: Privacy::default(),
        };
        let told = |online, last_seen_ms| Some(wire::Presence { user: 1, online, last_seen_ms });
        assert_eq!(shown(&account, eve, true, 5), told(true, 5));
        account.privacy.last_seen = Audience::Nobody;
        assert_eq!(shown(&account, eve, false, 5), told(false, 0));
        account.privacy.online = Audience::Nobody;
        assert_eq!(shown(&account, eve, false, 5), None);
        account.privacy.last_seen = Audience::Contacts;
        assert_eq!(shown(&account, eve, true, 5), None);
        assert_eq!(shown(&account, eve, false, 5), told(false, 5));
        account.blocked.insert(eve);
        assert_eq!(shown(&account, eve, false, 5), None);
    }
}
