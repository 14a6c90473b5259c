//! How fast one user may ask, over all connections: rates live in the node.

use crate::people::{Person, message, node};
use proto::Code;
use proto::wire::{
    Lookup, Refused, client_frame::Kind as Ask, lookup::Who, server_frame::Kind as Say,
};
use tests::node::Node;
use tests::wire::Wire;

fn look_up(number: u64) -> Ask {
    let alias = format!("+4915{:09}", 100_000_000 + number);
    Ask::Lookup(Lookup { who: Some(Who::Alias(alias)) })
}

/// Asks until it is too fast; how often it was not, and the refusal.
async fn until_too_fast(wire: &mut Wire, make: impl Fn(u64) -> Ask) -> (u64, Refused) {
    for number in 0..1_000 {
        if let Say::Refused(refused) = wire.ask(make(number)).await.unwrap()
            && refused.code == Code::TooFast.number()
        {
            return (number, refused);
        }
    }
    panic!("a thousand requests and none was too fast");
}

async fn too_fast_still(node: &Node, person: &mut Person, ask: Ask) {
    person.wire = person.phone.login(&node.target()).await.unwrap();
    match person.wire.ask(ask).await.unwrap() {
        Say::Refused(refused) => assert_eq!(refused.code, Code::TooFast.number()),
        other => panic!("reconnecting helps: {other:?}"),
    }
}

#[tokio::test]
async fn who_looks_numbers_up_one_after_the_other_is_slowed_down_and_nobody_else() {
    let node = node("[rates]\nlookups = \"120/1h\"\n").await;
    let mut eve = Person::join(&node, "eve").await;
    let (granted, refused) = until_too_fast(&mut eve.wire, look_up).await;
    assert_eq!(granted, 120);
    assert!((1..=30_000).contains(&refused.retry_after_ms), "one more each 30 s: {refused:?}");
    too_fast_still(&node, &mut eve, look_up(500)).await;
    let by_alias = Ask::Send(proto::wire::Send {
        to: Some(proto::wire::send::To::Alias("+4915100000500".into())),
        ..Default::default()
    });
    too_fast_still(&node, &mut eve, by_alias).await;
    let mut ada = Person::join(&node, "ada").await;
    let answer = ada.wire.ask(look_up(1)).await.unwrap();
    assert!(
        matches!(&answer, Say::Refused(refused) if refused.code == Code::UnknownUser.number()),
        "another user is served: {answer:?}"
    );
}

#[tokio::test]
async fn a_day_has_a_budget_of_lookups() {
    let node = node("[rates]\nlookups_daily = \"10/1day\"\n").await;
    let mut eve = Person::join(&node, "eve").await;
    let (granted, refused) = until_too_fast(&mut eve.wire, look_up).await;
    assert_eq!(granted, 10);
    assert!(refused.retry_after_ms > 3_600_000, "one more each 2.4 hours: {refused:?}");
}

#[tokio::test]
async fn sends_beyond_the_rate_are_refused_on_a_new_connection_too() {
    let node = node("[rates]\nsends = \"20/1h\"\n").await;
    let bob = Person::join(&node, "bob").await;
    let mut eve = Person::join(&node, "eve").await;
    let (granted, refused) = until_too_fast(&mut eve.wire, |_| message(bob.user(), "hello")).await;
    assert_eq!(granted, 20);
    assert!(refused.retry_after_ms > 1_000, "until it would pass: {refused:?}");
    too_fast_still(&node, &mut eve, message(bob.user(), "hello")).await;
}

#[tokio::test]
async fn who_connects_again_and_again_is_slowed_down_and_who_names_another_user_harms_only_itself()
{
    let node = node("[rates]\nlogins = \"5/1h\"\n").await;
    let mut ada = Person::join(&node, "ada").await;
    for _ in 0..20 {
        let mut wire = Wire::connect(&node.target()).await.unwrap();
        let login = ada.phone.login_frame(b"another nonce").unwrap();
        let answer = wire.ask(login).await.unwrap();
        let bad = Code::BadCredentials.number();
        assert!(matches!(answer, Say::Refused(refused) if refused.code == bad));
    }
    for _ in 0..5 {
        ada.wire = ada.phone.login(&node.target()).await.unwrap();
    }
    assert!(ada.phone.login(&node.target()).await.is_err(), "the sixth in a moment");
}
