//! Sessions of a user come and go: devices attach, are replaced, detach.

use super::actor::{Attaching, RETRY, Session, UserActor};
use super::window::Window;
use super::{Attach, Login, UserItem};
use crate::connection::{ConnectionId, Ending, Standing};
use crate::secrets::Ticket;
use crate::shard::{AccountView, Attached, Command, Outcome, Query, Shards};
use proto::wire::{self, ClientFrame, server_frame::Kind};
use proto::{Code, DeviceId, UserId, stored};
use std::sync::Arc;
use supervision::{Flow, Inbox, timer};
use tracing::{info, warn};

impl UserActor {
    pub(super) fn attach(&mut self, attach: Box<Attach>) {
        let (device, connection) = (attach.device, attach.connection.id());
        self.attaching.retain(|other| other.attach.connection.id() != connection);
        self.attaching.push(Attaching { attach, frames: Vec::new(), missed: false });
        ask_where(&self.context.shards, self.inbox.clone(), (self.user, device), connection);
    }

    /// A device that was set aside is back: the mailbox waits for it again, from its end on.
    fn readmit(&mut self, attaching: Attaching) {
        let (device, connection) = (attaching.attach.device, attaching.attach.connection.id());
        self.attaching.push(attaching);
        let (shards, inbox) = (self.context.shards.clone(), self.inbox.clone());
        let who = (self.user, device);
        let reply = Box::new(move |outcome| match outcome {
            Outcome::Done => ask_where(&shards, inbox, who, connection),
            Outcome::Refused(Code::Unlinked) => {
                inbox.force(UserItem::Attached(connection, Ok(None)));
            }
            Outcome::Refused(_)
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
        connection: ConnectionId,
        attached: Result<Option<Box<Attached>>, Code>,
    ) {
        let waiting = |other: &Attaching| other.attach.connection.id() == connection;
        let Some(place) = self.attaching.iter().position(waiting) else { return };
        let Attaching { attach, frames, missed } = self.attaching.remove(place);
        let attached = match attached {
            Ok(Some(attached)) if attached.set_aside && attach.login.is_none() => {
                // It is in the middle of a session: only a new login tells it what it lacks.
                attach.connection.end(Ending::Told(Code::SetAside));
                return;
            }
            Ok(Some(attached)) if attached.set_aside => {
                self.readmit(Attaching { attach, frames, missed });
                return;
            }
            Ok(Some(attached)) => attached,
            Ok(None) => {
                attach.connection.end(Ending::Told(Code::Unlinked));
                return;
            }
            Err(_) => {
                self.attach_failed(attach, frames);
                return;
            }
        };
        let welcome = attach
            .login
            .as_ref()
            .map(|login| (login.id, self.begin_session(&attach, login, &attached)));
        let Attached { account, acknowledged, last, .. } = *attached;
        self.account = Some(account);
        self.sessions.retain(|other| {
            let replaced = other.device == attach.device;
            if replaced && other.connection.id() != connection {
                other.connection.end(Ending::Told(Code::Replaced));
            }
            !replaced
        });
        let Attach { device, connection, login, acknowledged: claimed } = *attach;
        if login.is_some() {
            connection.begins_at(claimed.min(last).max(acknowledged));
        }
        let Standing { acknowledged: has, delivered, unanswered } = connection.standing();
        let mut window = Window::new(acknowledged, has, delivered, last);
        if missed {
            window.more_waits();
        }
        let id = connection.id();
        let away = self.is_away(device);
        self.sessions.push(Session {
            device,
            connection: connection.clone(),
            window,
            away,
            changed: true,
        });
        if let Some((id, answer)) = welcome {
            connection.answer(id, answer);
        }
        for frame in unanswered.into_iter().chain(frames) {
            self.frame(id, frame);
        }
    }

    /// Records the session; the answer to the login.
    fn begin_session(&self, attach: &Attach, login: &Login, attached: &Attached) -> Kind {
        let device = attach.device;
        self.claim_session(device, login.away);
        let ticket = Ticket { user: self.user, device, number: login.ticket };
        let ticket = self.context.secrets.seal_ticket(ticket, self.context.clock.now_ms());
        let (user, device, ticket) = (self.user.0, device.0, ticket.into());
        let acknowledged = attached.acknowledged.0;
        if login.registered {
            Kind::Registered(wire::Registered { user, device, ticket, acknowledged })
        } else {
            let resync = attach.acknowledged < attached.start;
            Kind::LoggedIn(wire::LoggedIn { ticket, acknowledged, user, device, resync })
        }
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
        let written = self.context.sessions.write(self.user, device, |row| {
            let (was_there, is_there) = (row.online && !row.away, online && !away);
            (row.online, row.away) = (online, away);
            if was_there && !is_there {
                row.last_seen_ms = now_ms;
            } else if is_there && !was_there {
                row.since_ms = now_ms;
            }
        });
        if let Err(error) = written {
            warn!(user = %self.user, %device, %error, "session not recorded");
        }
    }

    pub(super) fn detach(&mut self, connection: ConnectionId, device: DeviceId) -> Flow {
        self.attaching.retain(|other| other.attach.connection.id() != connection);
        if let Some(place) = self.sessions.iter().position(|s| s.connection.id() == connection) {
            self.sessions.remove(place);
        }
        let linked = self.account.as_ref().is_none_or(|a| a.devices.contains_key(&device));
        if linked && !self.sessions.iter().any(|session| session.device == device) {
            self.write_session(device, false, false);
        }
        if self.sessions.is_empty()
            && self.attaching.is_empty()
            && self.context.users.retire(self.user)
        {
            self.context.presence.forget_watcher(self.user);
            return Flow::Stop;
        }
        Flow::Continue
    }

    /// The shard was not reached. A login is refused, and can come again; a connection that was
    /// logged in already waits.
    fn attach_failed(&mut self, attach: Box<Attach>, frames: Vec<ClientFrame>) {
        if let Some(login) = &attach.login {
            let connection = &attach.connection;
            connection.refuse(login.id, Code::Unavailable);
            connection.end(Ending::Told(Code::Unavailable));
            self.entry.connections().retain(|known| known.id() != connection.id());
        } else {
            drop(frames); // Acknowledgements: the connection itself knows how far it is.
            timer::push_after(&self.inbox, RETRY, UserItem::Attach(attach));
        }
    }

    /// Another node has the newer session of this device: this one ends and writes nothing.
    pub(super) fn displaced(&mut self, device: DeviceId) {
        self.entry.set_here(device, false);
        for session in self.sessions.extract_if(.., |session| session.device == device) {
            session.connection.end(Ending::Told(Code::Replaced));
        }
    }

    /// Looks for what a leader that has gone may not have told.
    pub(super) fn read_again(&mut self) {
        for session in &mut self.sessions {
            session.window.more_waits();
            session.changed = true;
        }
        self.missed_while_attaching();
        self.read_account();
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
        let linked = |device| account.as_ref().is_some_and(|a| a.devices.contains_key(&device));
        for session in self.sessions.extract_if(.., |session| !linked(session.device)) {
            session.connection.end(Ending::Told(Code::Unlinked));
            if let Err(error) = self.context.sessions.remove(self.user, session.device) {
                warn!(user = %self.user, %error, "session row not removed");
            }
        }
        if let Some(before) = &self.account {
            say_what_changed(self.user, before, account.as_deref());
        }
        self.account = account;
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
    let answer = Box::new(move |attached: Result<Option<Attached>, Code>| {
        let attached = attached.map(|attached| attached.map(Box::new));
        inbox.force(UserItem::Attached(connection, attached));
    });
    shards.query(user.shard(), Query::Attach { user, device, answer });
}
