//! Who is connected to this node: from a user's id to their actor's message queue.

use super::actor::{UserActor, UserArgs};
use super::{Attach, QUEUE, UserContext, UserItem};
use crate::connection::{Connection, ConnectionId, Ending};
use crate::presence::Watchers;
use crate::shard::AccountView;
use parking_lot::{Mutex, MutexGuard, RwLock};
use proto::wire::ClientFrame;
use proto::{Code, DeviceId, Seq, ShardId, UserId, stored, wire};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use supervision::{Dynamic, Inbox, Intensity};

/// Supervisors that share the users of a node, so that none has too many to look after.
pub(super) const PARTITIONS: usize = 16;

/// Locks that share the directory.
const LOCKS: usize = 64;

/// Clients of a node that goes away which come back to others in a second. A tenth of the logins that two
/// cores manage, so that those who are there notice nothing.
const RETURNS_PER_S: u64 = 500;

/// Longest time until the last of them is back, in ms: people wait for messages meanwhile.
const RETURN_MS_MAX: u64 = 60_000;

/// Crashes of one user's actor after which it is given up and its connections are closed.
const INTENSITY: Intensity = Intensity { restarts: 20, within: Duration::from_secs(10) };

/// The door to the users connected here. Cheap to clone.
#[derive(Clone)]
pub struct Users {
    table: Arc<[Part]>,
    partitions: Arc<[Dynamic<UserActor>]>,
}

/// The users that share a lock.
type Part = RwLock<HashMap<UserId, Arc<Entry>>>;

/// What outlives a user's actor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) inbox: Arc<Inbox<UserItem>>,
    pub(super) connections: Mutex<Vec<Arc<Connection>>>,
    /// Devices whose session is here.
    devices: Mutex<Vec<DeviceId>>,
    /// A push was dropped: read the mailbox.
    pub(super) missed: AtomicBool,
    /// Whether an actor was started before: the next one must ask the connections to attach again.
    pub(super) started: AtomicBool,
    /// The frame that is being handled; 0 if none. What a crash leaves here caused it.
    pub(super) in_hand: AtomicU64,
    /// How often the handling of a frame ended in a crash.
    pub(super) poison: Mutex<BTreeMap<u64, u8>>,
}

impl Entry {
    fn new(user: UserId) -> Arc<Self> {
        Arc::new(Self {
            inbox: Inbox::new("user", user.0, QUEUE),
            connections: Mutex::default(),
            devices: Mutex::default(),
            missed: AtomicBool::new(false),
            started: AtomicBool::new(false),
            in_hand: AtomicU64::new(0),
            poison: Mutex::default(),
        })
    }

    /// Notes whether the session of a device is here.
    pub(super) fn set_here(&self, device: DeviceId, here: bool) {
        let mut devices = self.devices.lock();
        devices.retain(|known| *known != device);
        if here {
            devices.push(device);
        }
    }

    pub(super) fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock()
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("count", &self.count()).finish()
    }
}

impl Default for Users {
    fn default() -> Self {
        let table = (0..LOCKS).map(|_| RwLock::default()).collect();
        let give_up = |_: u64, args: UserArgs| args.give_up();
        let partition = |_| Dynamic::new("user", INTENSITY, give_up);
        Self { table, partitions: (0..PARTITIONS).map(partition).collect() }
    }
}

impl Users {
    /// The supervisors of all user actors, for the supervision tree.
    pub fn partitions(&self) -> &[Dynamic<UserActor>] {
        &self.partitions
    }

    /// How many users are connected here.
    pub fn count(&self) -> usize {
        self.table.iter().map(|part| part.read().len()).sum()
    }

    /// Attaches a connection to the user's actor, which is started if there is none.
    pub fn attach(&self, context: &Arc<UserContext>, user: UserId, attach: Attach) {
        let mut table = self.part(user).write();
        let mut fresh = false;
        let entry = table.entry(user).or_insert_with(|| {
            fresh = true;
            Entry::new(user)
        });
        let mut connections = entry.connections();
        if !connections.iter().any(|known| known.id() == attach.connection.id()) {
            connections.push(attach.connection.clone());
        }
        drop(connections);
        entry.inbox.force(UserItem::Attach(Box::new(attach)));
        if fresh {
            let args = UserArgs { user, context: context.clone(), entry: entry.clone() };
            let partition = share(user, PARTITIONS);
            self.partitions[partition].start_child(user.0, args, entry.inbox.clone());
        }
    }

    /// Hands a client's frame to the user's actor. False if that actor has more to do than is good:
    /// read no more for a moment.
    pub fn frame(&self, user: UserId, connection: ConnectionId, frame: ClientFrame) -> bool {
        self.get(user).is_none_or(|entry| {
            entry.inbox.force(UserItem::Frame(connection, Box::new(frame)));
            !entry.inbox.is_high()
        })
    }

    /// Whether a user is connected here.
    pub fn is_here(&self, user: UserId) -> bool {
        self.get(user).is_some()
    }

    /// Whether the session of this device is here.
    pub fn has_session(&self, user: UserId, device: DeviceId) -> bool {
        self.get(user).is_some_and(|entry| entry.devices.lock().contains(&device))
    }

    /// A connection is gone.
    pub fn detach(&self, user: UserId, device: DeviceId, connection: ConnectionId) {
        if let Some(entry) = self.get(user) {
            entry.connections().retain(|known| known.id() != connection);
            entry.inbox.force(UserItem::Detach(connection, device));
        }
    }

    /// Tells the user's actor of a new entry. With a long queue only that there is more.
    pub fn push(&self, user: UserId, seq: Seq, envelope: Arc<stored::Envelope>) {
        let Some(entry) = self.get(user) else { return };
        if entry.inbox.is_high() {
            entry.missed.store(true, Ordering::Release);
        } else {
            entry.inbox.force(UserItem::Push(seq, envelope));
        }
    }

    /// Tells all users of a shard that pushes may have been lost.
    pub fn read_again(&self, shard: ShardId) {
        for part in self.table.iter() {
            let part = part.read();
            for (_, entry) in part.iter().filter(|(user, _)| user.shard() == shard) {
                entry.inbox.force(UserItem::ReadAgain);
            }
        }
    }

    /// Tells the user's actor that the mailbox has grown, without saying by what.
    pub fn grown_to(&self, user: UserId, seq: Seq) {
        if let Some(entry) = self.get(user) {
            entry.inbox.force(UserItem::GrownTo(seq));
        }
    }

    /// Another node has taken over this device's session.
    pub fn displaced(&self, user: UserId, device: DeviceId) {
        if let Some(entry) = self.get(user) {
            entry.inbox.force(UserItem::Displaced(device));
        }
    }

    /// Tells the user's actor what became of the account.
    pub fn account_changed(&self, user: UserId, account: Option<Arc<AccountView>>) {
        if let Some(entry) = self.get(user) {
            entry.inbox.force(UserItem::Account(account));
        }
    }

    /// Passes a signal on, unless the user is not here or busy. False if it was dropped.
    pub fn signal(&self, user: UserId, signal: wire::Signaled) -> bool {
        self.hint(user, UserItem::Signal(signal))
    }

    /// Tells of a device that asks to be linked, unless the user is not here or busy.
    pub fn link_requested(&self, user: UserId, asked: wire::LinkRequested) -> bool {
        self.hint(user, UserItem::LinkRequested(asked))
    }

    /// Ends all connections, for the node goes away. Their clients come back one after the other.
    pub fn send_away(&self) {
        let mut connections = Vec::new();
        for part in self.table.iter() {
            for entry in part.read().values() {
                connections.extend(entry.connections().iter().cloned());
            }
        }
        let number = connections.len();
        for (place, connection) in connections.into_iter().enumerate() {
            let after_ms = share_of_return(place, number);
            connection.end(Ending::ComeBack { code: Code::GoingAway, after_ms });
        }
    }

    /// Takes the user out if no connection is left; then the actor may stop.
    pub(super) fn retire(&self, user: UserId) -> bool {
        let mut table = self.part(user).write();
        let idle = table.get(&user).is_none_or(|entry| entry.connections().is_empty());
        if idle {
            table.remove(&user);
        }
        idle
    }

    /// Takes the user out whatever is left.
    pub(super) fn forget(&self, user: UserId) {
        self.part(user).write().remove(&user);
    }

    fn hint(&self, user: UserId, item: UserItem) -> bool {
        self.get(user).is_some_and(|entry| !entry.inbox.is_high() && entry.inbox.push(item).is_ok())
    }

    fn get(&self, user: UserId) -> Option<Arc<Entry>> {
        self.part(user).read().get(&user).cloned()
    }

    fn part(&self, user: UserId) -> &Part {
        &self.table[share(user, LOCKS)]
    }
}

impl Watchers for Users {
    fn is_here(&self, watcher: UserId) -> bool {
        self.is_here(watcher)
    }

    fn tell(&self, watcher: UserId, presence: wire::Presence) -> bool {
        self.hint(watcher, UserItem::Presence(presence))
    }
}

/// When the client at this place of so many comes back, in ms.
fn share_of_return(place: usize, number: usize) -> u32 {
    let all_ms = (number as u64 * 1_000 / RETURNS_PER_S).min(RETURN_MS_MAX);
    u32::try_from(all_ms * place as u64 / (number as u64).max(1)).unwrap_or(u32::MAX)
}

/// Which of `parts` a user falls to.
fn share(user: UserId, parts: usize) -> usize {
    usize::try_from(user.0).unwrap_or(usize::MAX) % parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_node_that_goes_away_come_back_spread_over_a_time_that_fits_their_number() {
        let shares = |number| (0..number).map(|n| share_of_return(n, number)).collect::<Vec<_>>();
        assert_eq!(shares(1), [0]);
        for number in [400, 20_000, 1_000_000] {
            let shares = shares(number);
            let mut seconds = BTreeMap::<u32, u64>::new();
            for ms in &shares {
                *seconds.entry(ms / 1_000).or_default() += 1;
            }
            let busiest = *seconds.values().max().unwrap();
            let last = u64::from(*shares.last().unwrap());
            assert!(
                busiest <= RETURNS_PER_S.max(number as u64 * 1_001 / RETURN_MS_MAX),
                "{busiest}"
            );
            assert!(
                last <= RETURN_MS_MAX && last + 10 >= (number as u64 * 2).min(RETURN_MS_MAX) - 1
            );
        }
    }
}
