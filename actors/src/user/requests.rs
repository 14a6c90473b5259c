//! What a logged-in client asks for, other than sending.

use super::actor::{Attached, UserActor};
use super::login::refused;
use super::opening::{done, random_ticket};
use super::register::{LOCK_RULE, check_device, is_lock, lock_digest};
use super::{UserContext, UserItem};
use crate::connection::{Connection, ConnectionId, Ending, Refusal};
use crate::shard::{AccountView, Command, Outcome, Privacy, Query};
use proto::limits::{LOCK_BYTES_MAX, READ_IDS_MAX, SIGNAL_BYTES_MAX};
use proto::wire::{self, ClientFrame, client_frame::Kind as Ask, lookup::Who, server_frame::Kind};
use proto::{Alias, Code, DeviceId, UserId, stored};
use std::sync::Arc;

/// Why a field that must be there is refused.
const MISSING: &str = "it is missing";

impl UserActor {
    /// Does what a client asks.
    pub(super) fn request(&mut self, asker: ConnectionId, device: DeviceId, frame: ClientFrame) {
        let Some(connection) = self.connection(asker).cloned() else { return };
        let id = frame.id;
        let Some(ask) = frame.kind else {
            connection.refuse(id, Code::NotSupported);
            return;
        };
        let done = match ask {
            Ask::Signal(signal) => self.pass_signal(device, signal),
            Ask::MarkRead(read) => self.mark_read(&connection, device, id, read),
            Ask::Logout(_) => {
                self.log_out(&connection, device, id);
                Ok(())
            }
            Ask::LinkDevice(link) => self.link_device(&connection, device, id, link),
            Ask::UnlinkDevice(unlink) => {
                let (user, by_device) = (self.user.0, device.0);
                let remove = stored::RemoveDevice { user, by_device, device: unlink.device };
                self.propose_own(&connection, id, Command::RemoveDevice(remove));
                Ok(())
            }
            Ask::DeleteAccount(_) => {
                let delete = stored::DeleteAccount { user: self.user.0, by_device: device.0 };
                self.propose_own(&connection, id, Command::DeleteAccount(delete));
                Ok(())
            }
            Ask::Lookup(lookup) => self.look_up(&connection, id, lookup),
            Ask::Block(block) => {
                let (user, other, blocked) = (self.user.0, block.user, !block.unblock);
                let set = stored::SetBlock { user, other, blocked, by_device: device.0 };
                self.propose_own(&connection, id, Command::SetBlock(set));
                Ok(())
            }
            Ask::SetContact(set) => self.set_contact(&connection, device, id, set),
            Ask::SetPrivacy(set) => self.set_privacy(&connection, device, id, set),
            Ask::SetRegistrationLock(set) => {
                self.set_registration_lock(&connection, device, id, &set)
            }
            Ask::Subscribe(subscribe) => {
                self.subscribe(&connection, id, &subscribe);
                Ok(())
            }
            Ask::SetPresence(presence) => {
                self.set_away(asker, presence.away);
                connection.answer(id, Kind::Done(wire::Done {}));
                Ok(())
            }
            Ask::GetAccount(_) => self.show_account(&connection, id),
            // The core takes the first two.
            Ask::Send(_) | Ask::Ack(_) | Ask::Ping(_) | Ask::Pong(_) => Ok(()),
            Ask::Login(_)
            | Ask::Resume(_)
            | Ask::RegisterStart(_)
            | Ask::RegisterProve(_)
            | Ask::RequestLink(_) => Err(Code::AlreadyLoggedIn.into()),
        };
        if let Err(refusal) = done {
            connection.refuse(id, refusal);
        }
    }

    /// Proposes a change of this user's account and answers `Done` when it took effect.
    fn propose_own(&self, connection: &Arc<Connection>, id: u64, command: Command) {
        let connection = connection.clone();
        let reply = Box::new(move |outcome| match outcome {
            Outcome::Refused(_) | Outcome::Wait { .. } | Outcome::Elsewhere => {
                connection.refuse(id, refused(&outcome));
            }
            Outcome::Done
            | Outcome::Accepted { .. }
            | Outcome::Pin { .. }
            | Outcome::Proven { .. }
            | Outcome::NotTheirs
            | Outcome::Admitted(_) => connection.answer(id, Kind::Done(wire::Done {})),
        });
        self.context.shards.propose(self.user.shard(), command, reply);
    }

    fn pass_signal(&self, device: DeviceId, signal: wire::Signal) -> Result<(), Refusal> {
        if signal.body.len() > SIGNAL_BYTES_MAX {
            return Err(Code::BodyTooLarge.into());
        }
        let to = UserId(signal.to);
        if self.core.account().is_none_or(|account| account.blocked.contains(&to)) {
            return Ok(()); // Whom one blocks is shown nothing.
        }
        let (from, from_device) = (self.user.0, device.0);
        let wire::Signal { kind, body, .. } = signal;
        let signaled = wire::Signaled { from, from_device, kind, body };
        if !self.context.signals.signal(to, &signaled) {
            self.context.metrics.hints_dropped.increment(1);
        }
        Ok(())
    }

    fn mark_read(
        &self,
        connection: &Arc<Connection>,
        device: DeviceId,
        id: u64,
        read: wire::MarkRead,
    ) -> Result<(), Refusal> {
        if read.send_ids.is_empty() || read.send_ids.len() > READ_IDS_MAX {
            return Err(Refusal::field("send_ids", format!("1 to {READ_IDS_MAX} of them")));
        }
        if read.from == 0 {
            return Err(Refusal::field("from", "no user is 0"));
        }
        let read = stored::MarkRead {
            user: self.user.0,
            device: device.0,
            from: read.from,
            from_device: read.from_device,
            send_ids: read.send_ids,
        };
        self.propose_own(connection, id, Command::MarkRead(read));
        Ok(())
    }

    fn log_out(&self, connection: &Arc<Connection>, device: DeviceId, id: u64) {
        let next = random_ticket(&self.context);
        let close = stored::CloseSession { user: self.user.0, device: device.0, next };
        let connection = connection.clone();
        let reply = Box::new(move |outcome| match done(&outcome) {
            Ok(()) => {
                connection.answer(id, Kind::Done(wire::Done {}));
                connection.end(Ending::Quiet);
            }
            Err(code) => connection.refuse(id, code),
        });
        self.context.shards.propose(self.user.shard(), Command::CloseSession(close), reply);
    }

    fn set_registration_lock(
        &self,
        connection: &Arc<Connection>,
        device: DeviceId,
        id: u64,
        set: &wire::SetRegistrationLock,
    ) -> Result<(), Refusal> {
        if !(set.lock.is_empty() || is_lock(&set.lock)) {
            return Err(Refusal::field("lock", LOCK_RULE));
        }
        if set.current.len() > LOCK_BYTES_MAX {
            return Err(Refusal::field("current", LOCK_RULE));
        }
        let digest = |lock| lock_digest(&self.context, self.user, lock);
        let set = stored::SetRegistrationLock {
            user: self.user.0,
            by_device: device.0,
            lock: digest(&set.lock),
            current: digest(&set.current),
        };
        self.propose_own(connection, id, Command::SetRegistrationLock(set));
        Ok(())
    }

    fn link_device(
        &self,
        connection: &Arc<Connection>,
        device: DeviceId,
        id: u64,
        link: wire::LinkDevice,
    ) -> Result<(), Refusal> {
        check_device(&link.device_key, &link.device_name)?;
        let (connection, user, inbox) = (connection.clone(), self.user.0, self.inbox.clone());
        let admit = stored::AdmitDevice {
            user,
            by_device: device.0,
            key: link.device_key,
            name: link.device_name,
        };
        let reply = Box::new(move |outcome| match outcome {
            Outcome::Admitted(device) => {
                inbox.force(UserItem::DeviceLinked);
                let linked = wire::Linked { user, device: device.0 };
                connection.answer(id, Kind::Linked(linked));
            }
            Outcome::Refused(_)
            | Outcome::Wait { .. }
            | Outcome::Elsewhere
            | Outcome::Done
            | Outcome::Accepted { .. }
            | Outcome::Pin { .. }
            | Outcome::Proven { .. }
            | Outcome::NotTheirs => connection.refuse(id, refused(&outcome)),
        });
        self.context.shards.propose(self.user.shard(), Command::AdmitDevice(admit), reply);
        Ok(())
    }

    fn look_up(
        &self,
        connection: &Arc<Connection>,
        id: u64,
        lookup: wire::Lookup,
    ) -> Result<(), Refusal> {
        let (connection, context) = (connection.clone(), self.context.clone());
        match lookup.who.ok_or_else(|| Refusal::field("who", MISSING))? {
            Who::User(user) => show_user(&context, connection, id, UserId(user)),
            Who::Alias(alias) => {
                let alias = Alias::parse(&alias).map_err(|why| Refusal::field("alias", why))?;
                let shard = alias.shard();
                let shards = context.shards.clone();
                let answer = Box::new(move |owner| match owner {
                    Ok(Some(user)) => show_user(&context, connection, id, user),
                    Ok(None) => connection.refuse(id, Code::UnknownUser),
                    Err(code) => connection.refuse(id, code),
                });
                shards.query(shard, Query::Owner { alias, answer });
            }
        }
        Ok(())
    }

    fn set_contact(
        &self,
        connection: &Arc<Connection>,
        device: DeviceId,
        id: u64,
        set: wire::SetContact,
    ) -> Result<(), Refusal> {
        if set.user == 0 || set.user == self.user.0 {
            return Err(Refusal::field("user", "it is 0 or oneself"));
        }
        let (user, other, contact) = (self.user.0, set.user, !set.remove);
        let set = stored::SetContact { user, other, contact, by_device: device.0 };
        self.propose_own(connection, id, Command::SetContact(set));
        Ok(())
    }

    fn set_privacy(
        &self,
        connection: &Arc<Connection>,
        device: DeviceId,
        id: u64,
        set: wire::SetPrivacy,
    ) -> Result<(), Refusal> {
        let privacy = set.privacy.ok_or_else(|| Refusal::field("privacy", MISSING))?;
        let unknown = |_| Refusal::field("privacy", "an audience that is not known");
        let privacy = Privacy::from_wire(privacy).map_err(unknown)?;
        let (user, by_device) = (self.user.0, device.0);
        let set = stored::SetPrivacy { user, privacy: Some(privacy.to_stored()), by_device };
        self.propose_own(connection, id, Command::SetPrivacy(set));
        Ok(())
    }

    fn subscribe(&self, connection: &Arc<Connection>, id: u64, subscribe: &wire::Subscribe) {
        let (watcher, user) = (self.user, UserId(subscribe.user));
        if subscribe.unsubscribe {
            self.context.presence.unsubscribe(watcher, user);
            connection.answer(id, Kind::Done(wire::Done {}));
            return;
        }
        self.context.presence.subscribe(watcher, user, connection.clone(), id);
    }

    fn set_away(&mut self, asker: ConnectionId, away: bool) {
        let of = |other: &&mut Attached| other.connection.id() == asker;
        let Some(attached) = self.connections.iter_mut().find(of) else { return };
        if std::mem::replace(&mut attached.away, away) != away {
            let device = attached.device;
            self.write_session(device, true, away);
        }
    }

    fn show_account(&self, connection: &Arc<Connection>, id: u64) -> Result<(), Refusal> {
        let account = self.core.account().ok_or(Code::Unavailable)?;
        connection.answer(id, Kind::Account(account.to_wire()));
        Ok(())
    }
}

fn show_user(context: &Arc<UserContext>, connection: Arc<Connection>, id: u64, user: UserId) {
    let answer = Box::new(move |account: Result<Option<Arc<AccountView>>, Code>| match account {
        Ok(Some(account)) => connection.answer(id, Kind::Found(account.to_found())),
        Ok(None) => connection.refuse(id, Code::UnknownUser),
        Err(code) => connection.refuse(id, code),
    });
    context.shards.query(user.shard(), Query::Account { user, answer });
}
