//! The demo's people: a device each, on the SDK, telling what they see.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, bail};
use natter_cli::{Tick, body};
use natter_sdk::{
    Alias, Client, ClientOptions, Event, Events, FileStore, Identity, Message, ReceiptKind,
    SendHandle, UserId, explain,
};
use tokio::time::{Instant, timeout};

use super::PATIENCE;
use super::painter::Guests;
use super::screen::Screen;

/// A message on its way.
#[derive(Debug)]
pub(super) struct Sent {
    id: u64,
    text: String,
    at: Instant,
}

impl Sent {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// How long ago it was written.
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// A message that came.
#[derive(Debug)]
pub(super) struct Seen {
    message: Message,
    text: String,
}

impl Seen {
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// What it takes to log in.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) name: &'static str,
    pub(super) options: ClientOptions,
    pub(super) identity: Identity,
    pub(super) dir: std::path::PathBuf,
    pub(super) screen: Screen,
    pub(super) guests: Guests,
}

/// What a person notices.
#[derive(Debug)]
pub(super) enum Notice {
    /// A message.
    Message(Message),
    /// The connection is gone.
    Lost,
    /// There is a connection again.
    Found,
}

/// Someone with their phone on.
#[derive(Debug)]
pub(super) struct Person {
    device: Device,
    client: Client,
    events: Events,
    handles: Vec<(u64, SendHandle)>,
    ticks: BTreeSet<(u64, Tick)>,
    /// Messages that came while something else was waited for.
    unread: VecDeque<Message>,
}

/// Someone with their phone off.
#[derive(Debug)]
pub(super) struct Away(Device);

impl Away {
    pub(super) fn user(&self) -> UserId {
        self.0.identity.user
    }

    pub(super) async fn come_back(self) -> anyhow::Result<Person> {
        Person::log_in(self.0).await
    }
}

impl Person {
    pub(super) async fn log_in(device: Device) -> anyhow::Result<Self> {
        let store = FileStore::open(&device.dir)?;
        let (client, events) =
            Client::login(device.options.clone(), device.identity.clone(), store)?;
        let ready = timeout(PATIENCE, client.ready()).await.context("no login in time")?;
        ready.map_err(|code| anyhow::anyhow!("login refused: {}", explain(code)))?;
        device.guests.add(device.name, client.clone());
        let (handles, ticks, unread) = (Vec::new(), BTreeSet::new(), VecDeque::new());
        Ok(Self { device, client, events, handles, ticks, unread })
    }

    pub(super) fn name(&self) -> &'static str {
        self.device.name
    }

    pub(super) fn user(&self) -> UserId {
        self.device.identity.user
    }

    /// The address of the node they are connected to.
    pub(super) fn node(&self) -> Option<String> {
        self.client.node()
    }

    pub(super) async fn leave(self) -> Away {
        self.client.close().await;
        self.device.guests.remove(self.device.name);
        Away(self.device)
    }

    pub(super) fn send(&mut self, to: UserId, text: &str) -> anyhow::Result<Sent> {
        let handle = self.client.send(to, text.to_owned())?;
        let id = handle.id().0;
        self.handles.push((id, handle));
        Ok(Sent { id, text: text.to_owned(), at: Instant::now() })
    }

    /// Waits for a tick of a message and tells of it.
    pub(super) async fn wait(&mut self, sent: &Sent, tick: Tick) -> anyhow::Result<()> {
        let came = timeout(PATIENCE, self.until(sent.id, &tick)).await;
        came.with_context(|| format!("{tick:?} of {:?} did not come", sent.text))??;
        let (name, sign) = (self.name(), tick.plain());
        let after = span(sent.at.elapsed());
        self.tell(&format!("   {name:<5} > {sign:<7} {:?}  after {after}", sent.text));
        Ok(())
    }

    /// Waits for a tick of a message that was sent before, without telling.
    pub(super) async fn until(&mut self, id: u64, tick: &Tick) -> anyhow::Result<()> {
        if *tick == Tick::Accepted {
            let place = self.handles.iter().position(|(known, _)| *known == id);
            if let Some(place) = place {
                self.handles.swap_remove(place).1.await?;
            }
            return Ok(());
        }
        while !self.ticks.contains(&(id, tick.clone())) {
            if let Some(Notice::Message(message)) = self.next().await? {
                self.unread.push_back(message);
            }
        }
        Ok(())
    }

    /// Whether nothing came that nobody has read.
    pub(super) fn has_read_all(&self) -> bool {
        self.unread.is_empty()
    }

    fn tell(&self, line: &str) {
        self.device.screen.tell(line);
    }

    /// Waits for a message and keeps it.
    pub(super) async fn receive(&mut self) -> anyhow::Result<Seen> {
        let waiting = async {
            loop {
                if let Some(message) = self.unread.pop_front() {
                    return anyhow::Ok(message);
                }
                if let Some(Notice::Message(message)) = self.next().await? {
                    return anyhow::Ok(message);
                }
            }
        };
        let message = timeout(PATIENCE, waiting).await.context("no message came")??;
        let text = String::from_utf8_lossy(&message.body).into_owned();
        self.tell(&format!("   {:<5} < {text:?}", self.name()));
        Ok(Seen { message, text })
    }

    /// Tells the sender that the message was read.
    pub(super) async fn read(&self, seen: &Seen) -> anyhow::Result<()> {
        let Message { from, from_device, send_id, .. } = seen.message;
        Ok(self.client.mark_read(from, from_device, &[send_id]).await?)
    }

    /// Answers whoever writes, for ever.
    pub(super) async fn answer_everyone(mut self) -> anyhow::Result<()> {
        let me = Alias::parse(self.name())?;
        loop {
            let Some(Notice::Message(message)) = self.next().await? else { continue };
            // Who writes is known from now on, and so sees whether they are there.
            self.client.add_contact(message.from).await.ok();
            self.client.typing(message.from, true);
            let said = body::decode(&message.body).text;
            // The one who asks may be gone by the time they could be told.
            self.client.mark_read(message.from, message.from_device, &[message.send_id]).await.ok();
            let answer = body::encode(&me, &format!("You said: {said}"));
            drop(self.client.send(message.from, answer)?);
        }
    }

    /// The next thing that happens to them; `None` if it is nothing a person notices at once. May
    /// be dropped and called again.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Notice>> {
        let Some(event) = self.events.next().await else { bail!("{} has no session", self.name()) };
        event.ack();
        match event {
            Event::Message(message) => return Ok(Some(Notice::Message(message))),
            Event::Disconnected { .. } => return Ok(Some(Notice::Lost)),
            Event::Connected => return Ok(Some(Notice::Found)),
            Event::Receipt(receipt) => {
                let tick = match receipt.kind {
                    ReceiptKind::Delivered => Tick::Delivered,
                    ReceiptKind::Read => Tick::Read,
                    ReceiptKind::Expired | ReceiptKind::Undeliverable | ReceiptKind::Unknown => {
                        bail!("a message did not arrive: {:?}", receipt.kind)
                    }
                };
                self.ticks.extend(receipt.send_ids.iter().map(|id| (id.0, tick.clone())));
            }
            Event::Ended { code } => bail!("{}'s session ended: {}", self.name(), explain(code)),
            Event::CaughtUp
            | Event::SentCopy(_)
            | Event::ReadCopy(_)
            | Event::DeviceNotice(_)
            | Event::HistoryMissing
            | Event::Unsupported(_)
            | Event::Signal(_)
            | Event::Presence(_)
            | Event::LinkRequested(_)
            | Event::Answered { .. } => {}
        }
        Ok(None)
    }
}

/// A span of time as a person says it.
pub(super) fn span(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 0.1 => format!("{:.1} ms", seconds * 1000.0),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds => format!("{seconds:.2} s"),
    }
}
