//! Attacks on registration: aliases that are locked for their owners, PINs that are voided or
//! guessed, tables that are filled.

use super::{BOUNDS, siege};
use crate::people::Person;
use anyhow::{Result, ensure};
use proto::Code;
use proto::wire::{RegisterStart, client_frame::Kind as Ask, server_frame::Kind as Say};
use tests::hostile::sockets::{plain, source};
use tests::node::{Node, PATIENCE, eventually};
use tests::wire::{Phone, Wire};

/// Defaults of registration, as a node has them that is used by the public.
async fn public_node() -> Node {
    Node::start(crate::people::PROGRAM, "").await.unwrap()
}

async fn start(wire: &mut Wire, alias: &str) -> Result<Say> {
    wire.ask(Ask::RegisterStart(RegisterStart { alias: alias.into() })).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_registrations_is_refused_and_newcomers_get_in() {
    let mut siege = siege("").await;
    // From here on the limits of a public node hold.
    let node = public_node().await;
    let attack = async {
        let (mut sent, mut refused) = (0, 0);
        for number in 0..60 {
            let mut eve = plain(&node.target(), source(number % 6)).await?;
            for alias in 0..12 {
                match start(&mut eve, &format!("squat-{number}-{alias}")).await? {
                    Say::PinSent(_) => sent += 1,
                    Say::Refused(refusal) => {
                        let code = Code::from_number(refusal.code);
                        ensure!(code == Code::TooFast, "{code:?}");
                        refused += 1;
                    }
                    other => anyhow::bail!("{other:?}"),
                }
            }
        }
        ensure!(refused > sent, "{sent} PINs were sent, {refused} requests refused");
        eventually(PATIENCE, async || Phone::register(&node, "newcomer").await.map(drop)).await
    };
    siege.under(attack).await.unwrap();
    siege.lift(BOUNDS).await.unwrap();
    let mut ada = Person::join(&node, "ada").await;
    ada.still_served().await;
}
