//! What presence promises, told without tasks: the tables of three nodes, and a watcher on one of them.

use super::watched::{Seen, Subscriptions, shown};
use crate::shard::{AccountView, Audience, Privacy};
use links::PeerId;
use proptest::prelude::*;
use proto::limits::SUBSCRIPTIONS_MAX;
use proto::stored::{self, Session};
use proto::{DeviceId, NodeId, UserId, wire};
use sessions::cores::{Key, Table};
use sessions::memory::Memory;
use std::collections::BTreeSet;
use std::sync::Arc;

const ADA: UserId = UserId(1);
const BOB: UserId = UserId(2);
const HIDDEN: wire::Presence = wire::Presence { user: BOB.0, online: false, last_seen_ms: 0 };

/// Bob with two devices, who knows Ada.
fn bob() -> AccountView {
    let device = |id| (DeviceId(id), stored::Device::default());
    AccountView {
        user: BOB,
        aliases: Vec::new(),
        devices: Arc::new([device(1), device(2)].into_iter().collect()),
        blocked: BTreeSet::new(),
        contacts: Arc::new([ADA].into()),
        privacy: Privacy::default(),
        unlinked: Vec::new(),
        has_lock: false,
    }
}

fn seen(online: bool, last_seen_ms: u64) -> Seen {
    Seen { online, last_seen_ms }
}

fn told(online: bool, last_seen_ms: u64) -> wire::Presence {
    wire::Presence { user: BOB.0, online, last_seen_ms }
}

#[test]
fn what_is_hidden_is_not_told_by_the_moment_either() {
    let mut bob = bob();
    let look = |bob: &AccountView, seen| shown(BOB, Some(bob), ADA, seen);
    assert_eq!(look(&bob, seen(true, 5)), told(true, 5));
    bob.privacy.last_seen = Audience::Nobody;
    assert_eq!(look(&bob, seen(true, 5)), told(true, 0));
    bob.privacy.online = Audience::Nobody;
    assert_eq!([seen(true, 5), seen(false, 9)].map(|seen| look(&bob, seen)), [HIDDEN; 2]);
    bob.privacy.last_seen = Audience::Contacts;
    // That he comes changes nothing; that he leaves is what she may see.
    assert_eq!([seen(false, 5), seen(true, 5)].map(|seen| look(&bob, seen)), [told(false, 5); 2]);
    bob.blocked.insert(ADA);
    assert_eq!(look(&bob, seen(true, 5)), HIDDEN);
    assert_eq!(shown(BOB, None, ADA, seen(true, 5)), HIDDEN, "deleted");
}

#[test]
fn somebody_is_there_if_any_device_is_and_a_device_that_fetches_is_not_somebody() {
    let row = |online, away, last_seen_ms, since_ms| Session {
        online,
        away,
        last_seen_ms,
        since_ms,
        ..Session::default()
    };
    let phone = row(true, false, 3, 7);
    let fetching = row(true, true, 4, 2);
    let gone = row(false, false, 6, 1);
    assert_eq!(Seen::of([]), seen(false, 0));
    assert_eq!(Seen::of([fetching, gone]), seen(false, 6));
    assert_eq!(Seen::of([phone, fetching]), seen(true, 4), "not when the phone came");
    let broken_off = row(false, false, 3, 7);
    assert_eq!(Seen::of([broken_off, fetching]), seen(false, 7), "at least when it came");
    let left_earlier = row(false, false, 3, 8);
    assert_eq!(Seen::of([phone, left_earlier]), seen(true, 3), "while the phone is there");
    assert_eq!(Seen::of([Session { gone: true, ..phone }]), seen(false, 0), "unlinked");
}

#[test]
fn a_watcher_who_leaves_leaves_nothing_behind() {
    let mut subscriptions = Subscriptions::default();
    let eve = UserId(3);
    assert!(
        subscriptions.add(ADA, BOB) && subscriptions.add(ADA, eve) && subscriptions.add(eve, BOB)
    );
    assert_eq!(subscriptions.forget(ADA), [BOB, eve].into());
    assert!(subscriptions.is_watched(BOB) && !subscriptions.is_watched(eve));
    subscriptions.remove(eve, BOB);
    assert!(!subscriptions.is_watched(BOB) && !subscriptions.watches(eve, BOB));
}

#[test]
fn nobody_watches_more_than_allowed() {
    let mut subscriptions = Subscriptions::default();
    let many = SUBSCRIPTIONS_MAX as u64;
    assert!((10..10 + many).all(|user| subscriptions.add(ADA, UserId(user))));
    assert!(!subscriptions.add(ADA, UserId(9)));
    assert!(subscriptions.add(ADA, UserId(10)), "a second time is no news");
}

#[test]
fn a_watcher_is_told_once_and_again_if_it_was_lost() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.add(ADA, BOB);
    assert_eq!(subscriptions.news(BOB, seen(true, 0)), [], "it is not known what she may see");
    subscriptions.account_read(BOB, Some(&bob()));
    assert_eq!(subscriptions.news(BOB, seen(true, 0)), [(ADA, told(true, 0))]);
    assert_eq!(subscriptions.news(BOB, seen(true, 0)), []);
    subscriptions.lost(ADA, BOB);
    assert_eq!(subscriptions.news(BOB, seen(true, 0)), [(ADA, told(true, 0))]);
    subscriptions.account_read(BOB, None);
    assert_eq!(subscriptions.news(BOB, seen(true, 0)), [(ADA, HIDDEN)]);
}

/// What happens on two nodes where Bob is, and on the way to the third, where Ada is.
#[derive(Clone, Debug)]
enum Event {
    /// A device logs in on a node, by that node's clock.
    Come { node: usize, device: u32, away: bool, now_ms: u64 },
    /// A person goes or comes back, while the device stays.
    Away { node: usize, device: u32, away: bool, now_ms: u64 },
    /// A session ends.
    Leave { node: usize, device: u32, now_ms: u64 },
    /// A row that some node had at some time reaches the third, perhaps once more and late.
    Arrive(usize),
    /// The two nodes compare their tables.
    Compare,
    /// Bob knows her or not, blocks her or not.
    Account { knows: bool, blocks: bool },
    /// The presence actor gets round to what was touched.
    Look { lost: bool },
}

fn event() -> impl Strategy<Value = Event> {
    let place = || (0..2_usize, 1..3_u32, 1..1_000_u64);
    prop_oneof![
        (place(), any::<bool>()).prop_map(|((node, device, now_ms), away)| Event::Come {
            node,
            device,
            away,
            now_ms
        }),
        (place(), any::<bool>()).prop_map(|((node, device, now_ms), away)| Event::Away {
            node,
            device,
            away,
            now_ms
        }),
        place().prop_map(|(node, device, now_ms)| Event::Leave { node, device, now_ms }),
        any::<usize>().prop_map(Event::Arrive),
        any::<usize>().prop_map(Event::Arrive),
        Just(Event::Compare),
        any::<(bool, bool)>().prop_map(|(knows, blocks)| Event::Account { knows, blocks }),
        any::<bool>().prop_map(|lost| Event::Look { lost }),
    ]
}

struct World {
    tables: Vec<Table>,
    disks: Vec<Memory>,
    /// All rows that there ever were.
    wire: Vec<(Key, Session)>,
    account: AccountView,
    subscriptions: Subscriptions,
    /// What Ada's devices have heard last.
    heard: Option<wire::Presence>,
}

impl World {
    fn new() -> Self {
        let disks: Vec<_> = (0..3).map(|_| Memory::default()).collect();
        let open = |(n, disk): (usize, &Memory)| {
            let me = PeerId { node: NodeId(n as u64 + 1), incarnation: 1 };
            Table::open(Box::new(disk.clone()), me).unwrap()
        };
        let tables = disks.iter().enumerate().map(open).collect();
        let mut subscriptions = Subscriptions::default();
        subscriptions.add(ADA, BOB);
        let account = bob();
        subscriptions.account_read(BOB, Some(&account));
        Self { tables, disks, wire: Vec::new(), account, subscriptions, heard: None }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Come { node, device, away, now_ms } => {
                let come = |row: &mut Session| {
                    (row.online, row.away) = (true, away);
                    row.since_ms = if away { row.since_ms } else { now_ms };
                };
                self.tables[node].claim((BOB, DeviceId(device)), come).unwrap();
            }
            Event::Away { node, device, away, now_ms } => {
                let turn = |row: &mut Session| {
                    row.away = away;
                    *(if away { &mut row.last_seen_ms } else { &mut row.since_ms }) = now_ms;
                };
                self.tables[node].write((BOB, DeviceId(device)), turn).unwrap();
            }
            Event::Leave { node, device, now_ms } => {
                let leave = |row: &mut Session| {
                    (row.online, row.away, row.last_seen_ms) = (false, false, now_ms);
                };
                self.tables[node].write((BOB, DeviceId(device)), leave).unwrap();
            }
            Event::Arrive(which) if !self.wire.is_empty() => {
                let row = self.wire[which % self.wire.len()];
                self.tables[2].merge(vec![row]).unwrap();
            }
            Event::Arrive(_) => {}
            Event::Compare => self.compare(0, 1),
            Event::Account { knows, blocks } => {
                self.account.contacts = Arc::new(knows.then_some(ADA).into_iter().collect());
                self.account.blocked = blocks.then_some(ADA).into_iter().collect();
                self.subscriptions.account_read(BOB, Some(&self.account));
            }
            Event::Look { lost } => self.look(lost),
        }
        for disk in &self.disks {
            self.wire.extend(disk.rows());
        }
    }

    fn compare(&self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.tables[to].merge(self.disks[from].rows().into_iter().collect()).unwrap();
        }
    }

    fn seen(&self, node: usize) -> Seen {
        Seen::of(self.disks[node].rows().into_values())
    }

    fn look(&mut self, lost: bool) {
        let news = self.subscriptions.news(BOB, self.seen(2));
        if lost && !news.is_empty() {
            self.subscriptions.lost(ADA, BOB);
        } else if let Some((_, presence)) = news.last() {
            self.heard = Some(*presence);
        }
    }
}

proptest! {
    /// Rows come late, twice, in any order or never; clocks differ; what is told is lost: in the end
    /// Ada has been told the function of the final rows and the final account.
    #[test]
    fn whatever_the_order_watchers_are_told_the_same_in_the_end(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
        }
        for (one, other) in [(0, 1), (1, 2), (0, 2), (0, 1)] {
            world.compare(one, other);
        }
        world.look(false);
        prop_assert_eq!(world.disks[0].rows(), world.disks[2].rows());
        let expected = shown(BOB, Some(&world.account), ADA, world.seen(0));
        prop_assert_eq!(world.heard, Some(expected));
    }
}
