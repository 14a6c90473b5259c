//! Stories of presence: who is shown as there, to whom, on one node and in a cluster.

use crate::clusters::{cluster, three, turn};
use crate::people::{Person, ada_and_bob, node};
use proto::wire::{
    Audience, Block, DeleteAccount, Presence, Privacy, SetContact, SetPresence, SetPrivacy,
    Subscribe, client_frame::Kind as Ask, server_frame::Kind as Say,
};
use tests::cluster::{Cables, Cluster};
use tests::node::Node;
use tests::workload::link;

/// The next presence that `like` takes: states in between may be told or not.
async fn told(person: &mut Person, like: impl Fn(&Presence) -> bool) -> Presence {
    loop {
        match person.wire.next().await.unwrap().1 {
            Say::Presence(presence) if like(&presence) => return presence,
            _ => {}
        }
    }
}

async fn watch(watcher: &mut Person, user: u64) {
    watcher.done(Ask::Subscribe(Subscribe { user, unsubscribe: false })).await;
}

async fn away(person: &mut Person, away: bool) {
    person.done(Ask::SetPresence(SetPresence { away })).await;
}

/// Whether a fresh subscription shows the user as there.
async fn shows(watcher: &mut Person, user: u64) -> Presence {
    let id = watcher.fresh_id();
    let subscribe = Ask::Subscribe(Subscribe { user, unsubscribe: false });
    watcher.wire.send(id, subscribe).await.unwrap();
    while watcher.wire.next().await.unwrap().0 != id {}
    told(watcher, |_| true).await
}

/// Ada, who watches Bob and is his contact.
async fn ada_watches_bob(node: &Node) -> (Person, Person) {
    let (mut ada, mut bob) = ada_and_bob(node).await;
    bob.knows(&ada).await;
    watch(&mut ada, bob.user()).await;
    told(&mut ada, |presence| presence.online).await;
    (ada, bob)
}

#[tokio::test]
async fn who_deletes_the_account_is_gone_for_those_who_watch() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_watches_bob(&node).await;
    bob.done(Ask::DeleteAccount(DeleteAccount {})).await;
    let gone = told(&mut ada, |presence| presence.last_seen_ms == 0).await;
    assert!(!gone.online);
}

#[tokio::test]
async fn who_blocks_or_hides_is_gone_for_those_who_watch_and_back_afterwards() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_watches_bob(&node).await;
    let user = ada.user();
    let block = |unblock| Ask::Block(Block { user, unblock });
    let nobody = Audience::Nobody.into();
    let hide = Privacy { online: nobody, last_seen: nobody, ..Privacy::default() };
    let privacy = |privacy| Ask::SetPrivacy(SetPrivacy { privacy: Some(privacy) });
    let contact = |remove| Ask::SetContact(SetContact { user, remove });
    for (there, not_there) in [
        (block(true), block(false)),
        (privacy(Privacy::default()), privacy(hide)),
        (contact(false), contact(true)),
    ] {
        bob.done(not_there).await;
        let hidden = told(&mut ada, |presence| !presence.online).await;
        assert_eq!(hidden.last_seen_ms, 0);
        bob.done(there).await;
        told(&mut ada, |presence| presence.online).await;
    }
}

#[tokio::test]
async fn a_device_that_comes_to_fetch_shows_nobody_and_changes_no_last_seen() {
    let node = node("").await;
    let (mut ada, bob) = ada_watches_bob(&node).await;
    let mut phone = bob.hang_up();
    let left = told(&mut ada, |presence| !presence.online).await;
    assert!(left.last_seen_ms > 1_700_000_000_000, "{left:?}");
    phone.away = true;
    for by_ticket in [true, false] {
        ada.say(phone.user, "wake up").await;
        let wire = if by_ticket {
            let (wire, resumed) = phone.resume(&node.target()).await.unwrap();
            assert!(resumed);
            wire
        } else {
            phone.login(&node.target()).await.unwrap()
        };
        let mut bob = Person::new(phone, wire);
        assert_eq!(bob.drain().await.last().unwrap(), "wake up");
        bob.ack().await;
        assert_eq!(shows(&mut ada, bob.user()).await, left);
        phone = bob.hang_up();
        ada.still_served().await;
        assert_eq!(shows(&mut ada, phone.user).await, left);
    }
    phone.away = false;
    let wire = phone.login(&node.target()).await.unwrap();
    assert!(told(&mut ada, |_| true).await.online, "nothing was told in between");
    let mut bob = Person::new(phone, wire);
    away(&mut bob, true).await;
    told(&mut ada, |presence| !presence.online && presence.last_seen_ms > left.last_seen_ms).await;
}

#[tokio::test]
async fn who_leaves_one_of_two_devices_is_last_seen_when_the_other_is_left() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_watches_bob(&node).await;
    let mut tablet = link(&mut bob.wire, &bob.phone).await.unwrap();
    let wire = tablet.login(&node.target()).await.unwrap();
    let mut tablet = Person::new(tablet, wire);
    let before = shows(&mut ada, bob.user()).await;
    away(&mut tablet, true).await;
    assert_eq!(shows(&mut ada, bob.user()).await, before, "he is there on the phone");
    away(&mut bob, true).await;
    told(&mut ada, |presence| !presence.online && presence.last_seen_ms > before.last_seen_ms)
        .await;
}

async fn on(cluster: &Cluster, node: usize, alias: &str) -> Person {
    Person::join(&cluster.nodes()[node], alias).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_what_is_shown_is_the_same_wherever_the_devices_are() {
    let _turn = turn().await;
    let mut cluster = cluster(three(Cables::Loopback)).await;
    let mut phone = on(&cluster, 0, "bob").await;
    let mut ada = on(&cluster, 2, "ada").await;
    phone.knows(&ada).await;
    let user = phone.user();
    let mut tablet = link(&mut phone.wire, &phone.phone).await.unwrap();
    let wire = tablet.login(&cluster.target(1)).await.unwrap();
    let mut tablet = Person::new(tablet, wire);
    watch(&mut ada, user).await;
    told(&mut ada, |presence| presence.online).await;

    // Both away, in either order; one away while the other leaves.
    for first in [true, false] {
        let (one, other) =
            if first { (&mut phone, &mut tablet) } else { (&mut tablet, &mut phone) };
        away(one, true).await;
        away(other, true).await;
        told(&mut ada, |presence| !presence.online).await;
        away(one, false).await;
        told(&mut ada, |presence| presence.online).await;
        away(other, false).await;
    }
    away(&mut phone, true).await;
    let mut tablet = tablet.hang_up();
    told(&mut ada, |presence| !presence.online).await;
    let wire = tablet.login(&cluster.target(1)).await.unwrap();
    told(&mut ada, |presence| presence.online).await;
    let tablet = Person::new(tablet, wire);

    // The node with the only one who is there dies, and comes back without him.
    cluster.kill(1).unwrap();
    told(&mut ada, |presence| !presence.online).await;
    assert!(!shows(&mut ada, user).await.online);
    away(&mut phone, false).await;
    told(&mut ada, |presence| presence.online).await;
    cluster.restart(1).await.unwrap();
    phone.done(Ask::DeleteAccount(DeleteAccount {})).await;
    told(&mut ada, |presence| !presence.online && presence.last_seen_ms == 0).await;
    drop(tablet);
}
