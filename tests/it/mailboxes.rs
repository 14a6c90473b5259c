//! Stories of mailboxes: where they stand, who may fill them, what receipts say.

use crate::people::{Person, ada_and_bob, message_by_alias, node};
use proto::wire::{DeleteAccount, client_frame::Kind as Ask, server_frame::Kind as Say};

#[tokio::test]
async fn a_send_by_alias_reaches_the_new_owner_and_is_not_refused_because_of_the_old_one() {
    let node = node("").await;
    let mut ada = Person::join(&node, "ada").await;
    let mut cyx = Person::join(&node, "cyx").await;
    let said = ada.wire.ask(message_by_alias("cyx", "to the first")).await.unwrap();
    assert!(matches!(said, Say::Accepted(_)), "{said:?}");
    cyx.done(Ask::DeleteAccount(DeleteAccount {})).await;
    let mut cyx = Person::join(&node, "cyx").await;
    let said = ada.wire.ask(message_by_alias("cyx", "to the second")).await.unwrap();
    assert!(matches!(said, Say::Accepted(accepted) if accepted.user == cyx.user()));
    assert_eq!(cyx.hear_text().await, "to the second");
}

#[tokio::test]
async fn who_registers_an_alias_again_is_told_where_the_mailbox_stands() {
    let node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    for _ in 0..3 {
        ada.say(bob.user(), "read").await;
        bob.hear().await;
    }
    bob.ack().await;
    bob.still_served().await;
    let mut bob = Person::join(&node, "bob").await;
    ada.say(bob.user(), "next").await;
    // `Person::entry` fails on a hole.
    assert_eq!(bob.hear_text().await, "next");
}
