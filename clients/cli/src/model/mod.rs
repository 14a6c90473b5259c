//! Everything on the screen as data, and how it changes. Pure: what happened comes in, what is to
//! be done goes out.
//!
//! # Invariants
//! 1. A message is in one conversation once, however often it is reported.
//! 2. Ticks only rise.

mod conversation;
mod screen;

pub(crate) use crate::tick::Tick;
pub(crate) use conversation::{Conversation, LINES_MAX, Line, Side};
pub(crate) use screen::{Act, Key};

use crate::{body::Body, command::Command, input::Input};
use natter_sdk::{Alias, LinkCode};
use std::collections::BTreeMap;

/// How long a typing signal is believed, in ms.
const TYPING_MS: u64 = 6_000;

/// How the client stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Connecting,
    Online,
    Offline(String),
    /// The session ended for good; in short.
    Ended(String),
}

/// Something that happened outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Connected,
    Disconnected(String),
    /// The session ended for good: in short, and what to do.
    Ended {
        short: String,
        advice: String,
    },
    /// A message came.
    Message {
        from: u64,
        device: u32,
        send_id: u64,
        at_ms: u64,
        body: Body,
    },
    /// This device, or another one of this user, sent a message.
    Sent {
        to: u64,
        device: u32,
        send_id: u64,
        at_ms: u64,
        text: String,
    },
    /// A tick for messages that a device of this user sent to `to`.
    Ticked {
        to: u64,
        device: u32,
        send_ids: Vec<u64>,
        tick: Tick,
    },
    /// Another device of this user has read these.
    ReadElsewhere {
        from: u64,
        device: u32,
        send_ids: Vec<u64>,
    },
    /// The sender could not be told that these were read.
    NotMarked {
        from: u64,
        device: u32,
        send_ids: Vec<u64>,
    },
    Typing {
        from: u64,
        typing: bool,
    },
    Presence {
        user: u64,
        online: bool,
        last_seen_ms: u64,
    },
    /// A lookup's result.
    Found {
        alias: Alias,
        user: u64,
        open: bool,
    },
    /// A device asks to be linked.
    LinkRequested {
        key: Vec<u8>,
        name: String,
    },
    /// Words for the person, who asked for them.
    Notice(Vec<String>),
    /// Words for the person about something that happened by itself.
    News(String),
}

/// News that are shown at once; older ones go.
const NEWS_MAX: usize = 3;

/// How long a device is waited for whose code was typed, in ms. It asks every three seconds.
const LINK_WAIT_MS: u64 = 60_000;

/// A device that the person wants to link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linking {
    pub(crate) code: LinkCode,
    pub(crate) name: Option<String>,
    pub(crate) until_ms: u64,
}

/// The whole state.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) me: Alias,
    pub(crate) user: u64,
    pub(crate) device: u32,
    pub(crate) conversations: Vec<Conversation>,
    /// Index of the conversation on the screen.
    pub(crate) open: Option<usize>,
    pub(crate) input: Input,
    pub(crate) connection: Connection,
    /// Lines that are scrolled up from the newest.
    pub(crate) scroll: usize,
    pub(crate) notice: Vec<String>,
    /// What happened by itself; stands above the notice until the person has typed something.
    pub(crate) news: Vec<String>,
    /// The device that is to be linked as soon as it asks.
    pub(crate) linking: Option<Linking>,
    /// Aliases that were looked up, by user.
    pub(crate) names: BTreeMap<u64, Alias>,
    /// When typing was last told, in ms; 0: not typing.
    typing_told_ms: u64,
    /// A question to the person: the next line is the answer.
    pub(crate) question: Option<Question>,
}

/// A question to the person: whether to end the chat on this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    command: Command,
    pub(crate) words: Vec<String>,
}

impl Model {
    pub(crate) fn new(me: Alias, user: u64, device: u32) -> Self {
        Self {
            me,
            user,
            device,
            conversations: Vec::new(),
            open: None,
            input: Input::default(),
            connection: Connection::Connecting,
            scroll: 0,
            notice: vec!["/to ALIAS opens a conversation, /help shows the rest".into()],
            news: Vec::new(),
            linking: None,
            names: BTreeMap::new(),
            typing_told_ms: 0,
            question: None,
        }
    }

    /// The name of a user: a looked-up alias, or the number.
    pub(crate) fn name(&self, user: u64) -> String {
        if user == self.user {
            return self.me.to_string();
        }
        self.names.get(&user).map_or_else(|| format!("user {user}"), ToString::to_string)
    }

    pub(crate) fn is_online(&self) -> bool {
        self.connection == Connection::Online
    }

    pub(crate) fn opened(&self) -> Option<&Conversation> {
        self.open.and_then(|index| self.conversations.get(index))
    }

    /// Takes in what happened at `now_ms`, and says what is to be done about it.
    pub(crate) fn happened(&mut self, happening: Happening, now_ms: u64) -> Vec<Act> {
        match happening {
            Happening::Connected => {
                self.connection = Connection::Online;
                return self.mark_read();
            }
            Happening::Disconnected(reason) => {
                self.connection = Connection::Offline(reason);
                for conversation in &mut self.conversations {
                    conversation.presence = None;
                    conversation.typing_until_ms = 0;
                }
            }
            Happening::Ended { short, advice } => {
                self.connection = Connection::Ended(short);
                self.notice = vec![advice];
            }
            Happening::Message { from, device, send_id, at_ms, body } => {
                let side = Side::Theirs { device, send_id, read: false };
                return self.received(from, Line { at_ms, text: body.text, side }, body.claims);
            }
            Happening::Sent { to, device, send_id, at_ms, text } => {
                let tick = if device == self.device { Tick::Waiting } else { Tick::Accepted };
                let line = Line { at_ms, text, side: Side::Mine { device, send_id, tick } };
                let index = self.conversation(to);
                self.conversations[index].add(line);
                self.bring_forward(index);
            }
            Happening::Ticked { to, device, send_ids, tick } => {
                if let Some(known) = self.conversations.iter_mut().find(|c| c.user == to) {
                    known.ticked(device, &send_ids, &tick);
                }
            }
            Happening::ReadElsewhere { from, device, send_ids } => {
                self.set_read(from, device, &send_ids, true);
            }
            Happening::NotMarked { from, device, send_ids } => {
                self.set_read(from, device, &send_ids, false);
            }
            Happening::Typing { from, typing } => {
                if let Some(known) = self.conversations.iter_mut().find(|c| c.user == from) {
                    known.typing_until_ms = if typing { now_ms + TYPING_MS } else { 0 };
                }
            }
            Happening::Presence { user, online, last_seen_ms } => {
                if let Some(known) = self.conversations.iter_mut().find(|c| c.user == user) {
                    known.presence = Some((online, last_seen_ms));
                }
            }
            Happening::Found { alias, user, open } => return self.found(alias, user, open),
            Happening::LinkRequested { key, name } => return self.link_requested(key, name),
            Happening::Notice(lines) => self.notice = lines,
            Happening::News(words) => {
                self.news.retain(|known| *known != words);
                self.news.push(words);
                let old = self.news.len().saturating_sub(NEWS_MAX);
                self.news.drain(..old);
            }
        }
        Vec::new()
    }

    /// Links the device if the person has typed its code. Whoever else asks is nobody's concern.
    fn link_requested(&mut self, key: Vec<u8>, name: String) -> Vec<Act> {
        let wanted = self.linking.take_if(|linking| linking.code == LinkCode::of(&self.me, &key));
        let link = |linking: Linking| Act::Link { key, name: linking.name.unwrap_or(name) };
        wanted.map(link).into_iter().collect()
    }

    /// Time passes: whoever waits in vain is told.
    pub(crate) fn passed(&mut self, now_ms: u64) {
        if let Some(linking) = self.linking.take_if(|linking| linking.until_ms <= now_ms) {
            self.notice = vec![format!(
                "No device with the code {} has asked. Compare the code, and see whether natter chat \
                 --link still waits there.",
                linking.code
            )];
        }
    }

    fn received(&mut self, from: u64, line: Line, claims: Option<Alias>) -> Vec<Act> {
        let index = self.conversation(from);
        self.conversations[index].typing_until_ms = 0;
        if !self.conversations[index].add(line) {
            return Vec::new();
        }
        self.bring_forward(index);
        if self.open.is_none() {
            self.notice = vec!["A message came: Tab opens it.".to_owned()];
        }
        let mut acts = self.mark_read();
        let known = self.names.contains_key(&from);
        if let Some(alias) = claims.filter(|_| !known && from != self.user) {
            acts.push(Act::Lookup { alias, open: false });
        }
        acts
    }

    fn found(&mut self, alias: Alias, user: u64, open: bool) -> Vec<Act> {
        if !open && !self.conversations.iter().any(|c| c.user == user) {
            // Somebody claimed an alias that is not theirs.
            return Vec::new();
        }
        // The alias may have had another owner, who is that no longer.
        self.names.retain(|known, name| *known == user || *name != alias);
        self.names.insert(user, alias);
        let mut acts = vec![Act::SaveNames];
        if open {
            let index = self.conversation(user);
            acts.extend(self.show(index));
        }
        acts
    }

    /// The place of the conversation with `user`, which exists afterwards.
    pub(crate) fn conversation(&mut self, user: u64) -> usize {
        if let Some(index) = self.conversations.iter().position(|c| c.user == user) {
            return index;
        }
        self.conversations.push(Conversation::new(user));
        self.conversations.len() - 1
    }

    /// The newest conversation stands first.
    fn bring_forward(&mut self, index: usize) {
        let open = self.opened().map(|c| c.user);
        let conversation = self.conversations.remove(index);
        self.conversations.insert(0, conversation);
        self.open = open.and_then(|user| self.conversations.iter().position(|c| c.user == user));
    }

    fn set_read(&mut self, from: u64, device: u32, send_ids: &[u64], read: bool) {
        if let Some(known) = self.conversations.iter_mut().find(|c| c.user == from) {
            known.set_read(device, send_ids, read);
        }
    }

    /// What is on the screen is read, if the sender can be told.
    pub(crate) fn mark_read(&mut self) -> Vec<Act> {
        if !self.is_online() {
            return Vec::new();
        }
        let Some(open) = self.open.and_then(|index| self.conversations.get_mut(index)) else {
            return Vec::new();
        };
        let from = open.user;
        let unread = open.take_unread().into_iter();
        unread.map(|(device, send_ids)| Act::MarkRead { from, device, send_ids }).collect()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
