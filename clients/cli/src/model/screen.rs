//! What keys do, and what the edge is asked to do.

use super::{Connection, LINK_WAIT_MS, Linking, Model, Question};
use crate::{
    command::{self, Command, HELP, Setting},
    input::Edit,
};
use natter_sdk::Alias;

/// Typing is told again after so long, in ms: half of what is believed.
const TYPING_AGAIN_MS: u64 = 3_000;

/// Lines that one page scrolls.
const PAGE: usize = 10;

/// A key, as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Edit(Edit),
    Enter,
    /// A further line of the same message.
    NewLine,
    Up,
    Down,
    PageUp,
    PageDown,
    NextConversation,
    PreviousConversation,
    Escape,
    Quit,
    /// Ctrl-D: quits if nothing is typed.
    EndOfInput,
}

/// Something the edge is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Send {
        to: u64,
        text: String,
    },
    Typing {
        to: u64,
        typing: bool,
    },
    MarkRead {
        from: u64,
        device: u32,
        send_ids: Vec<u64>,
    },
    Watch {
        user: u64,
        watch: bool,
    },
    Lookup {
        alias: Alias,
        open: bool,
    },
    SaveNames,
    Block {
        user: u64,
        block: bool,
    },
    ShowAccount,
    Link {
        key: Vec<u8>,
        name: String,
    },
    Unlink(u32),
    /// Unlinks this device and forgets who it was.
    LogOut,
    AddContact(u64),
    Privacy(Option<Setting>),
    ShowLock,
    /// Sets the registration lock, or removes it if `lock` is empty.
    SetLock {
        lock: String,
        current: String,
    },
    DeleteAccount,
    Quit,
}

impl Model {
    /// What `key`, pressed at `now_ms`, leads to.
    pub(crate) fn key(&mut self, key: Key, now_ms: u64) -> Vec<Act> {
        match key {
            Key::Edit(edit) => {
                self.input.edit(edit);
                self.typing(now_ms)
            }
            Key::NewLine => {
                self.input.edit(Edit::Insert('\n'));
                self.typing(now_ms)
            }
            Key::Enter if self.input.continue_line() => Vec::new(),
            Key::Enter => self.enter(now_ms),
            Key::Up if self.input.line_up() => Vec::new(),
            Key::Down if self.input.line_down() => Vec::new(),
            Key::Up => self.scrolled(1),
            Key::PageUp => self.scrolled(PAGE),
            Key::Down => {
                self.scroll = self.scroll.saturating_sub(1);
                Vec::new()
            }
            Key::PageDown => {
                self.scroll = self.scroll.saturating_sub(PAGE);
                Vec::new()
            }
            Key::NextConversation => self.turn(1),
            Key::PreviousConversation => self.turn(self.conversations.len().saturating_sub(1)),
            Key::Escape => {
                self.notice.clear();
                self.news.clear();
                self.question = None;
                self.scroll = 0;
                Vec::new()
            }
            Key::EndOfInput if !self.input.is_empty() => {
                self.input.edit(Edit::Delete);
                self.typing(now_ms)
            }
            Key::Quit | Key::EndOfInput => vec![Act::Quit],
        }
    }

    /// Takes in pasted text. Nothing is sent: the person looks at it first, and presses Enter.
    pub(crate) fn pasted(&mut self, text: &str, now_ms: u64) -> Vec<Act> {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let text = crate::body::printable(&text);
        let left = self.input.paste(text.trim_end_matches('\n'));
        if left > 0 {
            self.notice = vec![format!("the last {left} characters of the paste had no room")];
        }
        self.typing(now_ms)
    }

    fn scrolled(&mut self, lines: usize) -> Vec<Act> {
        // The view clamps it to what there is.
        self.scroll = self.scroll.saturating_add(lines);
        Vec::new()
    }

    fn turn(&mut self, steps: usize) -> Vec<Act> {
        let count = self.conversations.len();
        if count == 0 {
            return Vec::new();
        }
        let next = self.open.map_or(0, |open| (open + steps) % count);
        self.show(next)
    }

    /// Brings one conversation to the screen.
    pub(crate) fn show(&mut self, index: usize) -> Vec<Act> {
        let before = self.opened().map(|c| c.user);
        self.open = Some(index);
        self.scroll = 0;
        self.notice.clear();
        let now = self.opened().map(|c| c.user);
        let mut acts = Vec::new();
        if before != now {
            self.typing_told_ms = 0;
            acts.extend(before.map(|user| Act::Watch { user, watch: false }));
            acts.extend(now.map(|user| Act::Watch { user, watch: true }));
        }
        acts.extend(self.mark_read());
        acts
    }

    fn typing(&mut self, now_ms: u64) -> Vec<Act> {
        let Some(to) = self.opened().map(|c| c.user) else { return Vec::new() };
        let is_text = !self.input.text().starts_with('/') && self.question.is_none();
        let typing = !self.input.is_empty() && is_text;
        if typing && now_ms.saturating_sub(self.typing_told_ms) >= TYPING_AGAIN_MS {
            self.typing_told_ms = now_ms;
            return vec![Act::Typing { to, typing: true }];
        }
        if !typing && self.typing_told_ms != 0 {
            self.typing_told_ms = 0;
            return vec![Act::Typing { to, typing: false }];
        }
        Vec::new()
    }

    fn enter(&mut self, now_ms: u64) -> Vec<Act> {
        let line = self.input.take();
        if line.trim().is_empty() {
            return Vec::new();
        }
        self.notice.clear();
        self.news.clear();
        match (self.question.take(), command::parse(&line)) {
            (Some(_), Ok(Command::Say(answer))) => self.answered(&answer, &line),
            (Some(Question { command, .. }), Ok(again)) if command == again => vec![Act::LogOut],
            (_, parsed) => self.obey_line(parsed, &line, now_ms),
        }
    }

    /// The person has answered. What is neither yes nor no was meant for somebody else, and must not get lost.
    fn answered(&mut self, answer: &str, line: &str) -> Vec<Act> {
        let answer = answer.trim().to_lowercase();
        if ["yes", "y"].contains(&answer.as_str()) {
            return vec![Act::LogOut];
        }
        if ["no", "n"].contains(&answer.as_str()) {
            return self.note("Nothing was done.".into());
        }
        self.input.put(line);
        self.note("That is not yes, so nothing was done. Enter sends what you typed.".into())
    }

    fn obey_line(&mut self, parsed: Result<Command, String>, line: &str, now_ms: u64) -> Vec<Act> {
        match parsed {
            Ok(Command::Say(_)) if self.open.is_none() => {
                self.input.put(line);
                self.note("no conversation is open: /to ALIAS".into())
            }
            Ok(Command::Link { code, name }) => {
                let until_ms = now_ms + LINK_WAIT_MS;
                self.linking = Some(Linking { code, name, until_ms });
                self.note(format!("waiting for the device that shows {code} …"))
            }
            Ok(command) => self.obey(command),
            Err(words) => {
                // What was typed may be long, and only its beginning wrong.
                self.input.put(line);
                self.note(words)
            }
        }
    }

    /// Says what follows, and asks.
    fn ask_to_log_out(&mut self, command: Command) -> Vec<Act> {
        let words = vec![
            format!("This is device {}, the one that you use now.", self.device),
            "Without it this chat ends. If it is your only device, you need a new PIN to come back, \
             and you may miss messages that wait for you."
                .to_owned(),
            "To do it, type yes.".to_owned(),
        ];
        self.question = Some(Question { command, words });
        Vec::new()
    }

    fn obey(&mut self, command: Command) -> Vec<Act> {
        let open = self.opened().map(|c| c.user);
        match (command, open) {
            (Command::Say(text), Some(to)) => {
                self.scroll = 0;
                self.typing_told_ms = 0;
                vec![Act::Send { to, text }]
            }
            (Command::Block, Some(user)) => vec![Act::Block { user, block: true }],
            (Command::Unblock, Some(user)) => vec![Act::Block { user, block: false }],
            (Command::Say(_) | Command::Block | Command::Unblock, None) => {
                self.note("no conversation is open: /to ALIAS".into())
            }
            (Command::To(alias), _) => self.go_to(alias),
            (Command::Who, open) => {
                let mut words = vec![format!(
                    "you are {}, user {}, device {}",
                    self.me, self.user, self.device
                )];
                words.extend(open.map(|user| format!("this is {}, user {user}", self.name(user))));
                self.notice = words;
                Vec::new()
            }
            (Command::Devices, _) => vec![Act::ShowAccount],
            (Command::Link { .. }, _) => Vec::new(),
            (Command::Unlink(device), _) if device != self.device => vec![Act::Unlink(device)],
            (command @ (Command::Unlink(_) | Command::LogOut), _) => self.ask_to_log_out(command),
            (Command::Privacy(setting), _) => vec![Act::Privacy(setting)],
            (Command::ShowLock, _) => vec![Act::ShowLock],
            (Command::SetLock { lock, current }, _) => vec![Act::SetLock { lock, current }],
            (Command::DeleteAccount(alias), _) if alias == self.me => vec![Act::DeleteAccount],
            (Command::DeleteAccount(_), _) => {
                self.note(format!("to delete your account for good: /delete-account {}", self.me))
            }
            (Command::Help, _) => {
                self.notice = HELP.iter().map(|line| (*line).to_owned()).collect();
                Vec::new()
            }
            (Command::Quit, _) => vec![Act::Quit],
        }
    }

    /// Opens the conversation with `alias`, which may have to be looked for.
    pub(crate) fn go_to(&mut self, alias: Alias) -> Vec<Act> {
        let known = self.names.iter().find(|(_, name)| **name == alias).map(|(user, _)| *user);
        if let Some(user) = known {
            let index = self.conversation(user);
            let mut acts = self.show(index);
            if self.is_online() {
                // The alias may belong to somebody else by now.
                acts.push(Act::Lookup { alias, open: true });
            }
            return acts;
        }
        self.notice = match self.connection {
            Connection::Online => vec![format!("looking for {alias} …")],
            Connection::Connecting | Connection::Offline(_) | Connection::Ended(_) => {
                vec![format!("{alias} is looked for as soon as there is a connection")]
            }
        };
        vec![Act::Lookup { alias, open: true }]
    }

    fn note(&mut self, words: String) -> Vec<Act> {
        self.notice = vec![words];
        Vec::new()
    }
}
