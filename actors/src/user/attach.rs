//! Sessions of a user come and go: devices attach, are replaced, detach.

use super::actor::{Attaching, RETRY, Session, UserActor};
use super::window::Window;
use super::{Attach, Login, UserItem};
use crate::connection::{ConnectionId, Ending, Standing};
use crate::context::Ticket;
use crate::shard::{AccountView, Attached, Command, Outcome, Query, Shards};
use proto::wire::{self, ClientFrame, server_frame::Kind};
use proto::{Code, DeviceId, UserId, stored};
use std::sync::Arc;
use supervision::{Flow, Inbox, timer};
use tracing::warn;

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
            | Outcome::Proven(_)
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
        let welcome = match &attach.login {
            None => None,
            Some(login) => match self.open_session(&attach, login, &attached) {
                Some(answer) => Some((login.id, answer)),
                None => return,
            },
        };
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
        self.sessions.push(Session {
            device,
            connection: connection.clone(),
            window,
            away: false,
            changed: true,
        });
        self.announce_presence();
        // After the announcement: who hears of the login and then subscribes sees one state.
        if let Some((id, answer)) = welcome {
            connection.answer(id, answer);
        }
        for frame in unanswered.into_iter().chain(frames) {
            self.frame(id, frame);
        }
    }

    /// Records the session with a new ticket; the answer to the login, or `None` if its ticket is
    /// void and that was said.
    fn open_session(&self, attach: &Attach, login: &Login, attached: &Attached) -> Option<Kind> {
        let before = self.context.sessions.get(self.user, attach.device);
        let before = before.ok().flatten().unwrap_or_default();
        if login.ticket.is_some_and(|number| number != before.ticket) {
            attach.connection.refuse(login.id, Code::BadTicket);
            attach.connection.end(Ending::Told(Code::BadTicket));
            self.entry.connections().retain(|known| known.id() != attach.connection.id());
            return None;
        }
        let number = self.random_ticket();
        self.claim_session(attach.device, number);
        let ticket = Ticket { user: self.user, device: attach.device, number };
        let ticket = self.context.secrets.seal_ticket(ticket, self.context.clock.now_ms());
        let (user, device, ticket) = (self.user.0, attach.device.0, ticket.into());
        let acknowledged = attached.acknowledged.0;
        Some(if login.registered {
            Kind::Registered(wire::Registered { user, device, ticket, acknowledged })
        } else {
            let resync = attach.acknowledged < attached.start;
            Kind::LoggedIn(wire::LoggedIn { ticket, acknowledged, user, device, resync })
        })
    }

    /// Makes the session of a device this node's.
    fn claim_session(&self, device: DeviceId, ticket: u64) {
        self.entry.set_here(device, true);
        let now_ms = self.context.clock.now_ms();
        let claimed = self.context.sessions.claim(self.user, device, |row| {
            (row.online, row.away, row.last_seen_ms) = (true, false, now_ms);
            (row.ticket, row.gone) = (ticket, false);
        });
        if let Err(error) = claimed {
            warn!(user = %self.user, %device, %error, "session not recorded");
        }
    }

    /// Writes this node's row of the sessions table.
    pub(super) fn write_session(
        &self,
        device: DeviceId,
        online: bool,
        away: bool,
        ticket: Option<u64>,
    ) {
        if !online {
            self.entry.set_here(device, false);
        }
        let now_ms = self.context.clock.now_ms();
        let written = self.context.sessions.write(self.user, device, |row| {
            (row.online, row.away, row.last_seen_ms) = (online, away, now_ms);
            row.ticket = ticket.unwrap_or(row.ticket);
        });
        if let Err(error) = written {
            warn!(user = %self.user, %device, %error, "session not recorded");
        }
    }

    /// A number that nobody guesses and that no crash brings back.
    pub(super) fn random_ticket(&self) -> u64 {
        let mut bytes = [0; 8];
        self.context.secrets.fill(&mut bytes);
        u64::from_le_bytes(bytes).max(1)
    }

    pub(super) fn detach(&mut self, connection: ConnectionId, device: DeviceId) -> Flow {
        self.attaching.retain(|other| other.attach.connection.id() != connection);
        if let Some(place) = self.sessions.iter().position(|s| s.connection.id() == connection) {
            self.sessions.remove(place);
        }
        let linked = self.account.as_ref().is_none_or(|a| a.devices.contains_key(&device));
        if linked && !self.sessions.iter().any(|session| session.device == device) {
            self.write_session(device, false, false, None);
            self.announce_presence();
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
        self.account = account;
    }

    /// Tells whoever watches this user whether anyone is there.
    pub(super) fn announce_presence(&self) {
        let Some(account) = &self.account else { return };
        let (context, now_ms) = (&self.context, self.context.clock.now_ms());
        let here = self.sessions.iter().any(|session| !session.away);
        let online = here || context.delivery().is_elsewhere(self.user);
        context.presence.changed(account, online, now_ms);
        context.delivery().presence(self.user, online, now_ms);
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
