//! The screen's edge: keys and events in, drawings and requests out.

use crate::{
    input::Edit,
    model::{Act, Happening, Key, Model},
    view,
    work::{self, Chat},
};
use anyhow::Context;
use crossterm::{
    event::{
        DisableBracketedPaste, EnableBracketedPaste, Event as TermEvent, EventStream, KeyCode,
        KeyEvent, KeyEventKind, KeyModifiers,
    },
    execute,
};
use futures_util::{FutureExt, StreamExt};
use jiff::tz::TimeZone;
use natter_sdk::{Alias, Code, Event, Events, RequestError};
use ratatui::DefaultTerminal;
use std::time::Duration;
use tokio::{task::JoinSet, time::interval};

/// Events that are taken in before the history is flushed, once for all of them.
const BATCH: usize = 64;

/// Requests that may wait for the node; more are refused with a word.
const REQUESTS_MAX: usize = 64;

/// How often the screen is drawn when nothing happens: typing ends, a day changes.
const TICK: Duration = Duration::from_secs(1);

struct Screen {
    chat: Chat,
    model: Model,
    requests: JoinSet<Option<Happening>>,
    /// Looked for as soon as there is a connection.
    wanted: Option<Alias>,
    leaving: bool,
    /// What is removed from the disk at the end.
    removal: Option<Removal>,
    /// What stays to be said when the screen is gone.
    last_words: Option<String>,
}

/// What leaves the disk with the person.
#[derive(Clone, Copy, Debug)]
enum Removal {
    /// Who this device was.
    Identity,
    /// Everything: the account is deleted.
    Everything,
}

/// Shows the screen until the person leaves. The terminal is put back as it was, after a panic too.
pub(crate) async fn run(mut chat: Chat, events: Events, peer: Option<Alias>) -> anyhow::Result<()> {
    let identity = chat.client.identity();
    let mut model = Model::new(chat.alias.clone(), identity.user.0, identity.device.0);
    model.conversations = chat.load()?;
    model.names = chat.profile.names()?;
    let mut screen = Screen {
        chat,
        model,
        requests: JoinSet::new(),
        wanted: None,
        leaving: false,
        removal: None,
        last_words: None,
    };
    if let Some(peer) = peer {
        let acts = screen.model.go_to(peer);
        screen.act(acts).await?;
    }
    let terminal =
        ratatui::try_init().context("this terminal cannot show a screen: use --lines")?;
    // Pasted text comes in one piece. A terminal that does not know it ignores this.
    execute!(std::io::stdout(), EnableBracketedPaste)?;
    let result = screen.live(terminal, events).await;
    let plain_paste = execute!(std::io::stdout(), DisableBracketedPaste);
    ratatui::restore();
    screen.chat.client.close().await;
    match screen.removal {
        Some(Removal::Identity) => screen.chat.profile.forget_identity()?,
        Some(Removal::Everything) => screen.chat.profile.remove()?,
        None => {}
    }
    if let Some(words) = screen.last_words {
        crate::setup::tell(&format!("{words}\n"))?;
    }
    result.and(plain_paste.map_err(Into::into))
}

impl Screen {
    async fn live(
        &mut self,
        mut terminal: DefaultTerminal,
        mut events: Events,
    ) -> anyhow::Result<()> {
        let mut keys = EventStream::new();
        let mut tick = interval(TICK);
        let zone = TimeZone::system();
        let mut open = true;
        while !self.leaving {
            let now_ms = work::now_ms();
            let mut scrolled = self.model.scroll;
            terminal.draw(|frame| scrolled = view::draw(frame, &self.model, now_ms, &zone))?;
            self.model.scroll = scrolled;
            tokio::select! {
                key = keys.next() => match key {
                    Some(key) => self.terminal_event(&key?).await?,
                    None => self.leaving = true,
                },
                event = events.next(), if open => match event {
                    Some(event) => self.take_in(event, &mut events).await?,
                    None => open = false,
                },
                Some(result) = self.requests.join_next(), if !self.requests.is_empty() => {
                    if let Some(happening) = result? {
                        self.happened(happening).await?;
                    }
                }
                _ = tick.tick() => self.model.passed(work::now_ms()),
            }
        }
        Ok(())
    }

    async fn terminal_event(&mut self, event: &TermEvent) -> anyhow::Result<()> {
        match event {
            TermEvent::Key(key) if key.kind != KeyEventKind::Release => {
                if let Some(key) = meaning(*key) {
                    let acts = self.model.key(key, work::now_ms());
                    self.act(acts).await?;
                }
            }
            TermEvent::Paste(text) => {
                let acts = self.model.pasted(text, work::now_ms());
                self.act(acts).await?;
            }
            TermEvent::Key(_)
            | TermEvent::Resize(..)
            | TermEvent::FocusGained
            | TermEvent::FocusLost
            | TermEvent::Mouse(_) => {}
        }
        Ok(())
    }

    /// Takes in one event and those that are ready behind it; acknowledges them when they are on
    /// disk.
    async fn take_in(&mut self, first: Event, events: &mut Events) -> anyhow::Result<()> {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Some(Some(event)) = events.next().now_or_never() else { break };
            batch.push(event);
        }
        for event in &batch {
            if let Some(happening) = self.chat.happening(event) {
                self.happened(happening).await?;
            }
        }
        self.chat.history.sync()?;
        batch.iter().for_each(Event::ack);
        Ok(())
    }

    async fn happened(&mut self, happening: Happening) -> anyhow::Result<()> {
        self.chat.keep(&happening)?;
        let connected = happening == Happening::Connected;
        if let Happening::Ended { advice, .. } = &happening {
            self.last_words.get_or_insert_with(|| advice.clone());
        }
        let mut acts = self.model.happened(happening, work::now_ms());
        if connected {
            let again = self.wanted.take().map(|alias| Act::Lookup { alias, open: true });
            acts.extend(again);
        }
        self.act(acts).await
    }

    async fn act(&mut self, acts: Vec<Act>) -> anyhow::Result<()> {
        for act in acts {
            match act {
                Act::Send { to, text } => match self.chat.send(to, text.clone()) {
                    Ok(sent) => {
                        self.chat.keep(&sent)?;
                        self.model.happened(sent, work::now_ms());
                        if self.chat.contacts.insert(to) {
                            self.request(Act::AddContact(to));
                        }
                    }
                    Err(error) => {
                        self.model.input.put(&text);
                        self.model.notice = vec![work::send_error_in_words(&error)];
                    }
                },
                Act::Typing { to, typing } => {
                    self.chat.client.typing(natter_sdk::UserId(to), typing);
                }
                Act::SaveNames => self.chat.profile.save_names(&self.model.names)?,
                Act::Quit => self.leaving = true,
                Act::DeleteAccount => self.delete_account().await,
                Act::LogOut => self.log_out().await,
                Act::Lookup { alias, open: true } if !self.model.is_online() => {
                    self.wanted = Some(alias);
                }
                Act::MarkRead { .. }
                | Act::Watch { .. }
                | Act::Lookup { .. }
                | Act::Block { .. }
                | Act::ShowAccount
                | Act::Link { .. }
                | Act::Unlink(_)
                | Act::AddContact(_)
                | Act::Privacy(_)
                | Act::ShowLock
                | Act::SetLock { .. } => self.request(act),
            }
        }
        Ok(())
    }

    fn request(&mut self, act: Act) {
        if self.requests.len() >= REQUESTS_MAX {
            self.model.notice = vec!["too many requests wait for the node".into()];
            return;
        }
        self.requests.spawn(work::request(self.chat.client.clone(), act));
    }

    async fn delete_account(&mut self) {
        match self.chat.client.delete_account().await {
            Ok(()) => self.leave(
                "Your account and everything of it on this device are deleted.",
                Removal::Everything,
            ),
            Err(error) => self.model.notice = vec![format!("not deleted: {error}")],
        }
    }

    async fn log_out(&mut self) {
        let this = self.chat.client.identity().device;
        match self.chat.client.unlink_device(this).await {
            // The node may throw the device out before it answers it.
            Ok(()) | Err(RequestError::Ended(Code::Unlinked)) => {
                let alias = &self.chat.alias;
                let words = format!(
                    "This device is unlinked. Its history stays. To come back: natter chat --as {alias}"
                );
                self.leave(&words, Removal::Identity);
            }
            Err(error) => self.model.notice = vec![format!("not unlinked: {error}")],
        }
    }

    fn leave(&mut self, words: &str, removal: Removal) {
        self.leaving = true;
        self.removal = Some(removal);
        self.last_words = Some(words.to_owned());
    }
}

/// What a key means here; `None`: nothing.
#[allow(clippy::wildcard_enum_match_arm, reason = "most keys of the terminal mean nothing here")]
fn meaning(key: KeyEvent) -> Option<Key> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('d') if control => Some(Key::EndOfInput),
        KeyCode::Char('j') if control => Some(Key::NewLine),
        KeyCode::Char('c' | 'q') if control => Some(Key::Quit),
        KeyCode::Char('a') if control => Some(Key::Edit(Edit::Home)),
        KeyCode::Char('e') if control => Some(Key::Edit(Edit::End)),
        KeyCode::Char('u') if control => Some(Key::Edit(Edit::DeleteLine)),
        KeyCode::Char('w') if control => Some(Key::Edit(Edit::DeleteWord)),
        KeyCode::Char('n') if control => Some(Key::NextConversation),
        KeyCode::Char('p') if control => Some(Key::PreviousConversation),
        KeyCode::Char(c) if !control => Some(Key::Edit(Edit::Insert(c))),
        KeyCode::Backspace => Some(Key::Edit(Edit::Backspace)),
        KeyCode::Delete => Some(Key::Edit(Edit::Delete)),
        KeyCode::Left => Some(Key::Edit(Edit::Left)),
        KeyCode::Right => Some(Key::Edit(Edit::Right)),
        KeyCode::Home => Some(Key::Edit(Edit::Home)),
        KeyCode::End => Some(Key::Edit(Edit::End)),
        KeyCode::Enter if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SHIFT) => {
            Some(Key::NewLine)
        }
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Tab => Some(Key::NextConversation),
        KeyCode::BackTab => Some(Key::PreviousConversation),
        KeyCode::Esc => Some(Key::Escape),
        _ => None,
    }
}
