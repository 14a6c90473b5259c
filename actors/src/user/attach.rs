//! Sessions of a user come and go: what the actor does for its core when devices attach and detach.

use super::actor::{Attached, RETRY, UserActor};
use super::items::Item;
use super::{Attach, UserItem};
use crate::connection::{ConnectionId, Ending};
use crate::secrets::Ticket;
use crate::shard::{self, AccountView, Command, Outcome, Query, Shards};
use crate::unanswered::Standing;
use proto::wire::{self, server_frame::Kind};
use proto::{Code, DeviceId, Seq, UserId, stored};
use std::sync::Arc;
use supervision::{Flow, Inbox, timer};
use tracing::{info, warn};

impl UserActor {
    pub(super) fn attach(&mut self, attach: Attach) {
        let Attach { device, connection, acknowledged: claimed, login } = attach;
        let id = connection.id();
        self.connections.retain(|other| other.connection.id() != id);
        self.connections.reserve_exact(1); // Most users have one device; `push` makes room for four.
        self.connections.push(Attached { connection, login, claimed, device, away: false });
        self.step(Item::Attach { connection: id, device });
    }

    pub(super) fn ask_where(&self, connection: ConnectionId, device: DeviceId) {
        ask_where(&self.context.shards, self.inbox.clone(), (self.user, device), connection);
    }

    pub(super) fn readmit(&self, connection: ConnectionId, device: DeviceId) {
        let (shards, inbox) = (self.context.shards.clone(), self.inbox.clone());
        let who = (self.user, device);
        let reply = Box::new(move |outcome| match outcome {
            Outcome::Done => ask_where(&shards, inbox, who, connection),
            Outcome::Refused(Code::Unlinked) => {
                inbox.force(UserItem::Attached(connection, Ok(None)));
            }
            Outcome::Refused(_)
            | Outcome::Wait { .. }
            | Outcome::Elsewhere
            | Outcome::Accepted { .. }
            | Outcome::Pin { .. }
            | Outcome::Proven { .. }
            | Outcome::NotTheirs
            | Outcome::Admitted(_) => {
                inbox.force(UserItem::Attached(connection, Err(Code::Unavailable)));
            }
        });
        let readmit = stored::Readmit { user: self.user.0, device: device.0 };
        self.context.shards.propose(self.user.shard(), Command::Readmit(readmit), reply);
    }

    pub(super) fn attached(
        &mut self,
        id: ConnectionId,
        attached: Result<Option<Box<shard::Attached>>, Code>,
    ) {
        let of = |other: &Attached| other.connection.id() == id;
        let Some(place) = self.connections.iter().position(of) else { return };
        let Attached { connection, login, claimed, device, .. } = &self.connections[place];
        let standing = if login.is_some() {
            Standing::Login(*claimed)
        } else {
            let (standing, away) = (connection.standing(), self.is_away(*device));
            self.connections[place].away = away;
            standing
        };
        self.step(Item::Attached(id, attached, standing));
    }

    /// Records the session that a login begins, and answers the login.
    pub(super) fn begin_session(
        &mut self,
        id: ConnectionId,
        acknowledged: Seq,
        from: Seq,
        resync: bool,
    ) {
        let of = |other: &Attached| other.connection.id() == id;
        let Some(place) = self.connections.iter().position(of) else { return };
        let Attached { connection, login, device, away, .. } = &mut self.connections[place];
        let Some(login) = login.take() else { return };
        *away = login.away;
        let (connection, device) = (connection.clone(), *device);
        self.claim_session(device, login.away);
        connection.begins_at(from);
        let ticket = Ticket { user: self.user, device, number: login.ticket };
        let ticket = self.context.secrets.seal_ticket(ticket, self.context.clock.now_ms());
        let (user, device, ticket) = (self.user.0, device.0, ticket.into());
        let acknowledged = acknowledged.0;
        let answer = if login.registered {
            Kind::Registered(wire::Registered { user, device, ticket, acknowledged })
        } else {
            Kind::LoggedIn(wire::LoggedIn { ticket, acknowledged, user, device, resync })
        };
        connection.answer(login.id, answer);
    }

    /// Makes the session of a device this node's.
    fn claim_session(&self, device: DeviceId, away: bool) {
        self.entry.set_here(device, true);
        let now_ms = self.context.clock.now_ms();
        let claimed = self.context.sessions.claim(self.user, device, |row| {
            (row.online, row.away, row.gone) = (true, away, false);
            if !away {
                row.since_ms = now_ms;
            }
        });
        if let Err(error) = claimed {
            warn!(user = %self.user, %device, %error, "session not recorded");
        }
    }

    /// Whether the person of a device is away, by its row: an actor that crashed does not know.
    fn is_away(&self, device: DeviceId) -> bool {
        let row = self.context.sessions.get(self.user, device);
        row.ok().flatten().is_some_and(|row| row.away)
    }

    /// Writes this node's row of the sessions table.
    pub(super) fn write_session(&self, device: DeviceId, online: bool, away: bool) {
        if !online {
            self.entry.set_here(device, false);
        }
        let now_ms = self.context.clock.now_ms();
        let is_there = online && !away;
        let still_there = !is_there && self.is_there_on_another(device);
        let written = self.context.sessions.write(self.user, device, |row| {
            let was_there = row.online && !row.away;
            (row.online, row.away) = (online, away);
            if was_there && !is_there && !still_there {
                row.last_seen_ms = now_ms;
            } else if is_there && !was_there {
                row.since_ms = now_ms;
            }
        });
        if let Err(error) = written {
            warn!(user = %self.user, %device, %error, "session not recorded");
        }
    }

    /// Whether the person is there on another device, on any node, as far as is known here.
    fn is_there_on_another(&self, device: DeviceId) -> bool {
        if self.core.account().is_some_and(|account| account.devices.len() < 2) {
            return false;
        }
        let Ok(rows) = self.context.rows.of(self.user) else { return false };
        let others = rows.iter().filter(|(other, _)| *other != device);
        let mut others = others.map(|(_, row)| self.context.sessions.view(*row));
        others.any(|row| row.online && !row.away && !row.gone)
    }

    pub(super) fn remove_session(&self, device: DeviceId) {
        if let Err(error) = self.context.sessions.remove(self.user, device) {
            warn!(user = %self.user, %error, "session row not removed");
        }
    }

    pub(super) fn detach(&mut self, connection: ConnectionId, device: DeviceId) -> Flow {
        self.step(Item::Detach(connection, device));
        self.connections.retain(|other| other.connection.id() != connection);
        if self.core.is_empty() && self.context.users.retire(self.user) {
            self.context.presence.forget_watcher(self.user);
            return Flow::Stop;
        }
        Flow::Continue
    }

    /// The shard was not reached. A login is refused, and can come again; a connection that was
    /// logged in already waits.
    pub(super) fn attach_failed(&mut self, id: ConnectionId) {
        for failed in self.connections.extract_if(.., |other| other.connection.id() == id) {
            let Attached { connection, login, claimed: acknowledged, device, .. } = failed;
            if let Some(login) = login {
                connection.refuse(login.id, Code::Unavailable);
                connection.end(Ending::Told(Code::Unavailable));
                self.entry.connections().retain(|known| known.id() != id);
            } else {
                let attach = Box::new(Attach { device, connection, acknowledged, login: None });
                timer::push_after(&self.inbox, RETRY, UserItem::Attach(attach));
            }
        }
    }

    pub(super) fn read_account(&self) {
        let (user, inbox) = (self.user, self.inbox.clone());
        let answer =
            Box::new(move |account: Result<Option<Arc<AccountView>>, Code>| match account {
                Ok(account) => inbox.force(UserItem::AccountRead(account)),
                Err(_) => {
                    timer::push_after(&inbox, RETRY, UserItem::AccountNotRead);
                }
            });
        self.context.shards.query(user.shard(), Query::Account { user, answer });
    }

    pub(super) fn account_changed(&mut self, account: Option<Arc<AccountView>>) {
        if let Some(before) = self.core.account() {
            say_what_changed(self.user, before, account.as_deref());
        }
        self.step(Item::Account(account));
    }
}

/// Says which devices came and went, or that the account is gone: each node does that has its user.
fn say_what_changed(user: UserId, before: &AccountView, after: Option<&AccountView>) {
    let Some(after) = after else {
        info!(%user, "account deleted");
        return;
    };
    for device in after.devices.keys().filter(|device| !before.devices.contains_key(device)) {
        info!(%user, %device, "device linked");
    }
    for device in before.devices.keys().filter(|device| !after.devices.contains_key(device)) {
        info!(%user, %device, "device unlinked");
    }
}

/// Asks the shard where a device stands.
fn ask_where(
    shards: &Shards,
    inbox: Arc<Inbox<UserItem>>,
    (user, device): (UserId, DeviceId),
    connection: ConnectionId,
) {
    let answer = Box::new(move |attached: Result<Option<shard::Attached>, Code>| {
        let attached = attached.map(|attached| attached.map(Box::new));
        inbox.force(UserItem::Attached(connection, attached));
    });
    shards.query(user.shard(), Query::Attach { user, device, answer });
}
