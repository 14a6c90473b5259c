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
    /// How many were sent before it.
    order: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Judge {
    devices: BTreeMap<u64, BTreeSet<u32>>,
    sent: BTreeMap<Name, Sent>,
    seen: BTreeMap<Who, BTreeMap<Name, u32>>,
    /// Where in its mailbox a device was shown a message.
    shown_at: BTreeMap<(Who, Name), u64>,
    acknowledged: BTreeMap<Who, u64>,
    given_up: BTreeSet<Name>,
    /// Devices that were unlinked. What they acknowledged they had.
    left: BTreeSet<Who>,
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

    /// A device is unlinked from now on: it need not see anything, and what becomes of its own sends
    /// that were not accepted is open.
    pub(crate) fn left(&mut self, who: Who) {
        self.devices.entry(who.user).or_default().remove(&who.device);
        self.left.insert(who);
    }

    pub(crate) fn sent(&mut self, name: Name, to: u64, expires: bool) {
        let order = self.sent.len();
        self.sent.insert(name, Sent { to, accepted: false, expires, order });
    }

    pub(crate) fn accepted(&mut self, name: Name) {
        match self.sent.get_mut(&name) {
            Some(sent) => sent.accepted = true,
            None => self.wrong.push(format!("accepted, never sent: {name}")),
        }
    }

    /// The sender was told that nothing was stored and does not try again.
    pub(crate) fn given_up(&mut self, name: Name) {
        self.given_up.insert(name);
    }

    /// A device keeps all up to `seq`. Told before the node hears it.
    pub(crate) fn acknowledged(&mut self, who: Who, seq: u64) {
        let known = self.acknowledged.entry(who).or_default();
        *known = seq.max(*known);
    }

    /// Whether a device has said that it keeps a message.
    fn has(&self, who: Who, name: Name) -> bool {
        let known = self.acknowledged.get(&who).copied().unwrap_or_default();
        self.shown_at.get(&(who, name)).is_some_and(|at| *at <= known)
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
                let name = Name { from, id: message.send_id };
                self.shown_at.insert((who, name), seq);
                self.message(who, name, who.user);
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
            Content::Receipt(_) | Content::ReadCopy(_) | Content::DeviceNotice(_) => {}
        }
    }

    fn message(&mut self, who: Who, name: Name, to: u64) {
        if self.sent.get(&name).is_none_or(|sent| sent.to != to) {
            self.wrong.push(format!("{who} sees what was not sent to it: {name}"));
        }
        if self.given_up.contains(&name) {
            self.wrong.push(format!("{who} sees what was refused: {name}"));
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
            let others = devices.into_iter().map(|device| Who { user: to, device });
            let others: Vec<Who> = others.filter(|who| *who != name.from).collect();
            for who in &others {
                if !self.has(*who, name) {
                    self.wrong.push(format!("two ticks before {who} has acknowledged it: {name}"));
                }
            }
            let mut gone = self.left.iter().filter(|who| who.user == to && **who != name.from);
            if others.is_empty() && !gone.any(|who| self.has(*who, name)) {
                self.wrong.push(format!("two ticks for what nobody has: {name}"));
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
        self.missing_of_first(usize::MAX, with_notices)
    }

    /// The same of the first `count` messages alone.
    pub(crate) fn missing_of_first(&self, count: usize, with_notices: bool) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, sent) in &self.sent {
            if sent.order >= count || self.given_up.contains(name) {
                continue;
            }
            if self.left.contains(&name.from) && !sent.accepted {
                continue;
            }
            if sent.accepted {
                self.missing_of(*name, sent, with_notices, &mut missing);
            } else {
                missing.push(format!("not accepted: {name}"));
            }
        }
        missing
    }

    fn missing_of(&self, name: Name, sent: &Sent, with_notices: bool, missing: &mut Vec<String>) {
        let own = Who { user: name.from.user, device: name.from.device };
        let with_notices = with_notices && !self.left.contains(&own);
        for device in self.devices.get(&own.user).into_iter().flatten() {
            let viewer = Who { user: own.user, device: *device };
            let told = self.ticks.contains_key(&(viewer, name));
            if with_notices && sent.to != own.user && !told {
                missing.push(format!("no two ticks at {viewer}: {name}"));
            }
            let copied = self.copies.get(&viewer).is_some_and(|c| c.get(&name) == Some(&1));
            if with_notices && viewer != own && sent.to != own.user && !copied {
                missing.push(format!("{viewer} has no copy, or two: {name}"));
            }
        }
        let expired = |kinds: &Vec<u32>| kinds.contains(&(ReceiptKind::Expired as u32));
        // Nobody is told of what ends in one's own mailbox, or if the notice was dropped.
        let untold = sent.expires && (sent.to == own.user || !with_notices);
        if untold || self.ticks.get(&(own, name)).is_some_and(expired) {
            return;
        }
        for device in self.devices.get(&sent.to).into_iter().flatten() {
            let who = Who { user: sent.to, device: *device };
            let seen = self.seen.get(&who).is_some_and(|seen| seen.contains_key(&name));
            if who != own && !seen {
                missing.push(format!("{who} has not seen {name}"));
            }
        }
    }

    /// Messages that were sent.
    pub(crate) fn sends(&self) -> usize {
        self.sent.len()
    }
}
