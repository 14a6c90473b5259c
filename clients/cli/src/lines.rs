//! Plain lines instead of a screen, for scripts: `CHAT.md` lists them.

use crate::{
    model::{Happening, Tick},
    work::{Chat, advice_at_the_end, nobody_is},
};
use anyhow::{Context, bail};
use natter_sdk::{Alias, Code, Event, Events, RequestError, UserId};
use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

/// Texts of one's own whose later ticks are still shown.
const TEXTS_MAX: usize = 10_000;

/// Lines that are read before they are sent.
const LINES_AHEAD: usize = 64;

/// Longest wait for whose a remembered alias is now.
const ASK_AGAIN: Duration = Duration::from_secs(5);

struct Plain {
    chat: Chat,
    peer: Alias,
    to: u64,
    names: BTreeMap<u64, Alias>,
    /// What was sent, by send id, for its ticks.
    texts: BTreeMap<u64, String>,
}

/// Sends each line of the input to `peer` and prints what happens.
pub(crate) async fn run(
    mut chat: Chat,
    events: Events,
    peer: Alias,
    stay: bool,
) -> anyhow::Result<()> {
    let texts = unsent(&mut chat)?;
    let mut names = chat.profile.names()?;
    let known = names.iter().find(|(_, alias)| **alias == peer).map(|(user, _)| *user);
    let to = match known {
        // The alias may belong to somebody else by now. Without a connection, what is known holds.
        Some(user) => match timeout(ASK_AGAIN, find(&chat, &peer)).await {
            Ok(found) => found?,
            Err(_) => user,
        },
        None => find(&chat, &peer).await?,
    };
    names.retain(|_, alias| *alias != peer);
    names.insert(to, peer.clone());
    chat.profile.save_names(&names)?;
    let mut plain = Plain { chat, peer, to, names, texts };
    let result = plain.live(input(), events, stay).await;
    plain.chat.client.close().await;
    result
}

/// What an earlier run left unsent.
fn unsent(chat: &mut Chat) -> anyhow::Result<BTreeMap<u64, String>> {
    use crate::model::Side;
    let mut texts = BTreeMap::new();
    for line in chat.load()?.into_iter().flat_map(|conversation| conversation.lines) {
        if let Side::Mine { send_id, tick: Tick::Waiting, device } = line.side
            && device == chat.device()
        {
            texts.insert(send_id, line.text);
        }
    }
    Ok(texts)
}

/// Waits for a connection as long as it takes: a script may start before its node.
async fn find(chat: &Chat, peer: &Alias) -> anyhow::Result<u64> {
    loop {
        match chat.client.lookup(peer.clone()).await {
            Ok(found) => return Ok(found.user.0),
            Err(RequestError::TimedOut(_) | RequestError::Disconnected) => {}
            Err(error) if error.code() == Some(Code::UnknownUser) => bail!(nobody_is(peer)),
            Err(RequestError::Ended(code)) => bail!(advice_at_the_end(code, &chat.alias)),
            Err(error) => return Err(error).with_context(|| format!("looking for {peer}")),
        }
    }
}

/// The lines of the input, read by a thread of its own: a read that never returns must not keep the
/// process from ending.
fn input() -> mpsc::Receiver<io::Result<String>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut read = io::stdin().lock().lines();
        while read.next().is_some_and(|line| sender.blocking_send(line).is_ok()) {}
    });
    lines
}

impl Plain {
    async fn live(
        &mut self,
        mut input: mpsc::Receiver<io::Result<String>>,
        mut events: Events,
        stay: bool,
    ) -> anyhow::Result<()> {
        let mut reading = true;
        while reading || stay || !self.chat.waiting.is_empty() {
            tokio::select! {
                line = input.recv(), if reading => match line.transpose()? {
                    Some(line) if line.is_empty() => {}
                    Some(line) => self.say(line)?,
                    None => reading = false,
                },
                event = events.next() => match event {
                    Some(Event::Ended { code }) => bail!(advice_at_the_end(code, &self.chat.alias)),
                    Some(event) => self.take_in(&event).await?,
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }

    fn say(&mut self, text: String) -> anyhow::Result<()> {
        let sent = match self.chat.send(self.to, text.clone()) {
            Ok(sent) => sent,
            Err(error) => {
                return print(&format!("{} {text} ({error})", Tick::Failed(String::new()).sign()));
            }
        };
        if let Happening::Sent { send_id, .. } = &sent {
            self.texts.insert(*send_id, text);
            if self.texts.len() > TEXTS_MAX {
                self.texts.pop_first();
            }
        }
        self.chat.keep(&sent)
    }

    async fn take_in(&mut self, event: &Event) -> anyhow::Result<()> {
        if let Some(happening) = self.chat.happening(event) {
            self.chat.keep(&happening)?;
            self.show(happening).await?;
        }
        self.chat.history.sync()?;
        event.ack();
        if let Event::Answered { result: Ok(_), .. } = event
            && self.chat.contacts.insert(self.to)
        {
            let adding = self.chat.client.add_contact(UserId(self.to));
            timeout(Duration::from_secs(2), adding).await.ok();
        }
        if let Event::Message(message) = event {
            // Printed is read. If it cannot be told now it is not told: scripts do not wait for it.
            let client = self.chat.client.clone();
            let (from, device, id) = (message.from, message.from_device, message.send_id);
            let telling = async move { client.mark_read(from, device, &[id]).await };
            timeout(Duration::from_secs(2), telling).await.ok();
        }
        Ok(())
    }

    async fn show(&mut self, happening: Happening) -> anyhow::Result<()> {
        match happening {
            Happening::Message { from, body, .. } => {
                let name = self.name(from, body.claims).await;
                print(&format!("< {name}: {}", body.text.replace('\n', " ⏎ ")))
            }
            Happening::Ticked { device, send_ids, tick, .. } if device == self.chat.device() => {
                send_ids.iter().try_for_each(|id| self.tick(*id, &tick))
            }
            Happening::Connected => print("* connected"),
            Happening::Disconnected(reason) => print(&format!("* disconnected: {reason}")),
            Happening::Typing { from, typing: true } if from == self.to => {
                print(&format!("* {} is typing", self.peer))
            }
            Happening::Notice(words) => {
                words.iter().try_for_each(|line| print(&format!("* {line}")))
            }
            Happening::News(words) => print(&format!("* {words}")),
            Happening::Ticked { .. }
            | Happening::Typing { .. }
            | Happening::Sent { .. }
            | Happening::ReadElsewhere { .. }
            | Happening::NotMarked { .. }
            | Happening::Presence { .. }
            | Happening::Found { .. }
            | Happening::LinkRequested { .. }
            | Happening::Ended { .. } => Ok(()),
        }
    }

    fn tick(&mut self, send_id: u64, tick: &Tick) -> anyhow::Result<()> {
        let Some(text) = self.texts.get(&send_id).cloned() else { return Ok(()) };
        let sign = tick.plain();
        match tick {
            Tick::Waiting => Ok(()),
            Tick::Accepted | Tick::Delivered => print(&format!("{sign} {text}")),
            Tick::Read => {
                self.texts.remove(&send_id);
                print(&format!("{sign}: {text}"))
            }
            Tick::Failed(why) => {
                self.texts.remove(&send_id);
                print(&format!("{sign} {text} ({why})"))
            }
        }
    }

    /// The sender's name: the alias they claim if it is theirs, otherwise their number.
    async fn name(&mut self, from: u64, claims: Option<Alias>) -> String {
        if let Some(known) = self.names.get(&from) {
            return known.to_string();
        }
        if let Some(alias) = claims {
            let found = self.chat.client.lookup(alias.clone()).await;
            if found.is_ok_and(|found| found.user == UserId(from)) {
                self.names.insert(from, alias.clone());
                self.chat.profile.save_names(&self.names).ok();
                return alias.to_string();
            }
        }
        format!("user {from}")
    }
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
