//! The judge: is told what devices sent, were answered and saw, and finds what is wrong. It knows
//! nothing of the cores.

use proto::stored::{Envelope, envelope::Content};
use proto::wire::receipt::Kind as ReceiptKind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A device of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) user: u64,
    pub(crate) device: u32,
}

/// A message: its sender and the sender's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) from: Who,
    pub(crate) id: u64,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user % 1000, self.device)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of {}", self.id, self.from)
    }
}

#[derive(Debug)]
struct Sent {
    to: u64,
    accepted: bool,
    expires: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Judge {
    devices: BTreeMap<u64, BTreeSet<u32>>,
    sent: BTreeMap<Name, Sent>,
    seen: BTreeMap<Who, BTreeMap<Name, u32>>,
    newest: BTreeMap<(Who, Who, u64), u64>,
    places: BTreeMap<(u64, u64), Arc<Envelope>>,
    ticks: BTreeMap<(Who, Name), Vec<u32>>,
    copies: BTreeMap<Who, BTreeMap<Name, u32>>,
    wrong: Vec<String>,
}

impl Judge {
    pub(crate) fn device(&mut self, who: Who) {
        self.devices.entry(who.user).or_default().insert(who.device);
    }

    pub(crate) fn sent(&mut self, name: Name, to: u64, expires: bool) {
        self.sent.insert(name, Sent { to, accepted: false, expires });
    }

    pub(crate) fn accepted(&mut self, name: Name) {
        match self.sent.get_mut(&name) {
            Some(sent) => sent.accepted = true,
            None => self.wrong.push(format!("accepted, never sent: {name}")),
        }
    }

    pub(crate) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// A device shows an entry.
    pub(crate) fn shown(&mut self, who: Who, seq: u64, envelope: &Arc<Envelope>) {
        let Some(content) = &envelope.content else { return };
        if self.places.entry((who.user, seq)).or_insert_with(|| envelope.clone()) != envelope {
            self.wrong.push(format!("place {seq} of {who} has changed its content"));
        }
        match content {
            Content::Message(message) => {
                let from = Who { user: message.from, device: message.from_device };
                self.message(who, Name { from, id: message.send_id }, who.user);
            }
            Content::SentCopy(copy) => {
                let from = Who { user: who.user, device: copy.from_device };
                let name = Name { from, id: copy.send_id };
                *self.copies.entry(who).or_default().entry(name).or_default() += 1;
                self.in_order(who, name, copy.to);
            }
            Content::Receipt(receipt) if receipt.kind != ReceiptKind::Read as u32 => {
                let from = Who { user: who.user, device: receipt.device };
                for id in &receipt.send_ids {
                    self.tick(who, Name { from, id: *id }, receipt.kind);
                }
            }
            Content::Receipt(_) | Content::ReadCopy(_) => {}
        }
    }

    fn message(&mut self, who: Who, name: Name, to: u64) {
        if self.sent.get(&name).is_none_or(|sent| sent.to != to) {
            self.wrong.push(format!("{who} sees what was not sent to it: {name}"));
        }
        let times = self.seen.entry(who).or_default().entry(name).or_default();
        *times += 1;
        if *times > 1 {
            self.wrong.push(format!("seen twice by {who}: {name}"));
            return;
        }
        self.in_order(who, name, to);
    }

    fn in_order(&mut self, who: Who, name: Name, to: u64) {
        let newest = self.newest.entry((who, name.from, to)).or_default();
        if *newest > name.id {
            let newest = *newest;
            self.wrong.push(format!("{who} sees {name} after {newest}"));
        }
        *newest = (*newest).max(name.id);
    }

    fn tick(&mut self, viewer: Who, name: Name, kind: u32) {
        let Some(sent) = self.sent.get(&name) else {
            self.wrong.push(format!("two ticks for what was not sent: {name}"));
            return;
        };
        let ticks = self.ticks.entry((viewer, name)).or_default();
        ticks.push(kind);
        if ticks.len() > 1 {
            self.wrong.push(format!("two ticks twice at {viewer}: {name}"));
        }
        if kind == ReceiptKind::Delivered as u32 {
            let to = sent.to;
            let devices = self.devices.get(&to).cloned().unwrap_or_default();
            for device in devices {
                let who = Who { user: to, device };
                if who != name.from && !self.seen.get(&who).is_some_and(|s| s.contains_key(&name)) {
                    self.wrong.push(format!("two ticks before {who} has it: {name}"));
                }
            }
        } else if !sent.expires {
            self.wrong.push(format!("told as not delivered: {name}"));
        }
    }

    /// What is wrong already.
    pub(crate) fn faults(&self) -> &[String] {
        &self.wrong
    }

    /// What is still missing; empty: all that was sent has arrived and was told. `with_notices`:
    /// mailboxes are so large that no receipt and no copy may be dropped.
    pub(crate) fn missing(&self, with_notices: bool) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, sent) in &self.sent {
            if !sent.accepted {
                missing.push(format!("not accepted: {name}"));
                continue;
            }
            let own = Who { user: name.from.user, device: name.from.device };
            let viewers = self.devices.get(&own.user).into_iter().flatten();
            let viewers: Vec<Who> =
                viewers.map(|device| Who { user: own.user, device: *device }).collect();
            for viewer in &viewers {
                let told = self.ticks.contains_key(&(*viewer, *name));
                if with_notices && sent.to != own.user && !told {
                    missing.push(format!("no two ticks at {viewer}: {name}"));
                }
                let copied = self.copies.get(viewer).is_some_and(|c| c.get(name) == Some(&1));
                if with_notices && *viewer != own && sent.to != own.user && !copied {
                    missing.push(format!("{viewer} has no copy, or two: {name}"));
                }
            }
            let expired = |kinds: &Vec<u32>| kinds.contains(&(ReceiptKind::Expired as u32));
            // Nobody is told of what ends in one's own mailbox, or if the notice was dropped.
            let untold = sent.expires && (sent.to == own.user || !with_notices);
            if untold || self.ticks.get(&(own, *name)).is_some_and(expired) {
                continue;
            }
            for device in self.devices.get(&sent.to).into_iter().flatten() {
                let who = Who { user: sent.to, device: *device };
                let seen = self.seen.get(&who).is_some_and(|seen| seen.contains_key(name));
                if who != own && !seen {
                    missing.push(format!("{who} has not seen {name}"));
                }
            }
        }
        missing
    }

    /// Messages that were sent.
    pub(crate) fn sends(&self) -> usize {
        self.sent.len()
    }
}
