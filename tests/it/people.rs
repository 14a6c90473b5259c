//! What the stories are told with: a node, people on it, and what they say and hear.

use anyhow::{Result, ensure};
use proto::wire::{
    Accepted, Ack, Deliver, Message, Receipt, Send, client_frame::Kind as Ask, deliver::Content,
    receipt, send::To, server_frame::Kind as Say,
};
use proto::{Code, UserId};
use std::collections::BTreeMap;
use tests::checker::Wrong;
use tests::cluster::admin;
use tests::node::{Node, Target};
use tests::status::Status;
use tests::wire::{Phone, Wire};

/// The node with its test-only hook, see `src/main.rs` of this crate.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_natter-under-test");

/// Settings of every story: people may register as often as they like, from one address.
pub(crate) fn settings(more: &str) -> String {
    format!(
        "[registration]\nrequests_per_address_per_hour = 1000000\n\
         requests_per_alias_per_hour = 1000000\npins_per_hour = 1000000000\n{more}"
    )
}

/// A running node; `more` are further sections of its settings.
pub(crate) async fn node(more: &str) -> Node {
    Node::start(PROGRAM, &settings(more)).await.unwrap()
}

/// How many records a node alone has applied in the shard of a user.
pub(crate) async fn applied(node: &Node, user: u64) -> u64 {
    let target = node.target();
    let text = admin(PROGRAM.as_ref(), target.data_dir(), &["cluster", "status"]).await.unwrap();
    let status: Status = serde_json::from_str(&text).unwrap();
    status.group(UserId(user).shard()).unwrap().status.applied
}

/// A person with one device, logged in.
pub(crate) struct Person {
    pub(crate) phone: Phone,
    pub(crate) wire: Wire,
    next_id: u64,
}

impl Person {
    pub(crate) async fn join(node: &Node, alias: &str) -> Self {
        let (phone, wire) = Phone::register(node, alias).await.unwrap();
        Self { phone, wire, next_id: 1 }
    }

    pub(crate) fn new(phone: Phone, wire: Wire) -> Self {
        Self { phone, wire, next_id: 1 }
    }

    pub(crate) fn user(&self) -> u64 {
        self.phone.user
    }

    /// A send id that this device has not used.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Hangs up without a word; the phone stays.
    pub(crate) fn hang_up(self) -> Phone {
        self.phone
    }

    /// Connects again, by ticket if the node takes it.
    pub(crate) async fn again(&mut self, target: &Target) {
        (self.wire, _) = self.phone.resume(target).await.unwrap();
    }

    /// Sends and waits for one tick; the send id.
    pub(crate) async fn say(&mut self, to: u64, body: &str) -> u64 {
        let id = self.fresh_id();
        self.say_as(id, to, body).await.unwrap();
        id
    }

    /// Sends under `id` and waits for one tick.
    pub(crate) async fn say_as(&mut self, id: u64, to: u64, body: &str) -> Result<Accepted> {
        match self.wire.ask_as(id, message(to, body)).await? {
            Say::Accepted(accepted) => Ok(accepted),
            other => anyhow::bail!("not accepted: {other:?}"),
        }
    }

    /// The next entry of the mailbox that is new to this device, whatever it is.
    pub(crate) async fn entry(&mut self) -> Result<Deliver> {
        loop {
            let deliver = self.wire.expect(|frame| match &frame.kind {
                Some(Say::Deliver(deliver)) => Some(deliver.clone()),
                _ => None,
            });
            let deliver = deliver.await?;
            if deliver.seq <= self.phone.last {
                continue;
            }
            let before = deliver.after.unwrap_or(deliver.seq - 1);
            ensure!(before <= self.phone.last, "a hole before {deliver:?}");
            self.phone.last = deliver.seq;
            return Ok(deliver);
        }
    }

    /// The next message; receipts and copies before it are left out.
    pub(crate) async fn hear(&mut self) -> Message {
        loop {
            if let Some(Content::Message(message)) = self.entry().await.unwrap().content {
                return message;
            }
        }
    }

    /// The body of the next message.
    pub(crate) async fn hear_text(&mut self) -> String {
        String::from_utf8(self.hear().await.body.to_vec()).unwrap()
    }

    /// The next receipt; messages and copies before it are left out.
    pub(crate) async fn receipt(&mut self) -> Receipt {
        loop {
            if let Some(Content::Receipt(receipt)) = self.entry().await.unwrap().content {
                return receipt;
            }
        }
    }

    /// Waits for a receipt of `kind` about `id`.
    pub(crate) async fn told(&mut self, kind: receipt::Kind, id: u64) {
        loop {
            let receipt = self.receipt().await;
            if receipt.kind == i32::from(kind) && receipt.send_ids.contains(&id) {
                return;
            }
        }
    }

    /// Acknowledges everything heard so far.
    pub(crate) async fn ack(&mut self) {
        let seq = self.phone.last;
        self.wire.send(0, Ask::Ack(Ack { seq })).await.unwrap();
    }

    /// Waits until the mailbox is drained; what came before. Bodies of messages only.
    pub(crate) async fn drain(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.wire.next().await.unwrap().1 {
                Say::CaughtUp(_) => return heard,
                Say::Deliver(deliver) => {
                    self.phone.last = self.phone.last.max(deliver.seq);
                    if let Some(Content::Message(message)) = deliver.content {
                        heard.push(String::from_utf8(message.body.to_vec()).unwrap());
                    }
                }
                _ => {}
            }
        }
    }

    /// Makes `other` a contact.
    pub(crate) async fn knows(&mut self, other: &Self) {
        let user = other.user();
        self.done(Ask::SetContact(proto::wire::SetContact { user, remove: false })).await;
    }

    /// Asks and expects `Done`.
    pub(crate) async fn done(&mut self, kind: Ask) {
        let answer = self.wire.ask(kind).await.unwrap();
        assert!(matches!(answer, Say::Done(_)), "{answer:?}");
    }

    /// Asks something that needs a working session and its answer.
    pub(crate) async fn still_served(&mut self) {
        let answer = self.wire.ask(Ask::GetAccount(proto::wire::GetAccount {})).await.unwrap();
        assert!(matches!(answer, Say::Account(_)), "{answer:?}");
    }
}

/// A message to a user.
pub(crate) fn message(to: u64, body: &str) -> Ask {
    Ask::Send(Send { to: Some(To::User(to)), body: body.to_owned().into(), ..Send::default() })
}

/// A message to whoever has this alias.
pub(crate) fn message_by_alias(alias: &str, body: &str) -> Ask {
    let to = Some(To::Alias(alias.to_owned()));
    Ask::Send(Send { to, body: body.to_owned().into(), ..Send::default() })
}

/// Ada and Bob on `node`.
pub(crate) async fn ada_and_bob(node: &Node) -> (Person, Person) {
    (Person::join(node, "ada").await, Person::join(node, "bob").await)
}

/// The code of a refusal.
pub(crate) fn code(answer: &Say) -> Code {
    match answer {
        Say::Refused(refused) => Code::from_number(refused.code),
        other => panic!("not refused: {other:?}"),
    }
}

/// Fails, with counts and the first few, if the judge found anything.
pub(crate) fn nothing_wrong(accepted: usize, wrong: &[Wrong]) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for wrong in wrong {
        let text = wrong.to_string();
        *kinds.entry(text.split(':').next().unwrap().to_owned()).or_default() += 1;
    }
    let first: Vec<String> = wrong.iter().take(20).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "of {accepted} accepted: {kinds:#?}\n{}", first.join("\n"));
}
