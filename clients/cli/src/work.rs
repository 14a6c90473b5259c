//! Between the model and the client: events become happenings, acts become requests.

use crate::{
    body,
    command::Setting,
    history::{History, Record},
    home::Profile,
    model::{Act, Conversation, Happening, Line, Side, Tick},
};
use jiff::{Timestamp, tz::TimeZone};
use natter_sdk::{
    Account, Alias, Audience, Client, Code, DeviceId, DeviceNoticeKind, Event, ReceiptKind,
    RequestError, SIGNAL_STOPPED, SIGNAL_TYPING, SendError, SendId, UserId, explain,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Everything the two kinds of screen share.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) client: Client,
    pub(crate) alias: Alias,
    pub(crate) profile: Profile,
    pub(crate) history: History,
    /// Recipients of this device's messages that wait for their first tick, by send id.
    pub(crate) waiting: BTreeMap<u64, u64>,
    /// Those who were written to and have been made contacts since the start.
    pub(crate) contacts: BTreeSet<u64>,
}

/// Unix time in ms, for the screen and for messages that no node has seen yet.
#[allow(clippy::disallowed_methods, reason = "the edge: a person's own clock")]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Chat {
    pub(crate) fn device(&self) -> u32 {
        self.client.identity().device.0
    }

    /// The conversations on disk.
    pub(crate) fn load(&mut self) -> anyhow::Result<Vec<Conversation>> {
        let mut conversations = self.history.load()?;
        for conversation in &mut conversations {
            for line in &mut conversation.lines {
                if let Side::Mine { device, send_id, tick: Tick::Waiting } = line.side
                    && device == self.device()
                {
                    self.waiting.insert(send_id, conversation.user);
                }
            }
        }
        Ok(conversations)
    }

    /// Queues a message; what happened is to be kept and shown.
    pub(crate) fn send(&mut self, to: u64, text: String) -> Result<Happening, SendError> {
        let handle = self.client.send(UserId(to), body::encode(&self.alias, &text))?;
        let send_id = handle.id().0;
        self.waiting.insert(send_id, to);
        Ok(Happening::Sent { to, device: self.device(), send_id, at_ms: now_ms(), text })
    }

    /// Keeps what happened, if it belongs into the history.
    pub(crate) fn keep(&mut self, happening: &Happening) -> anyhow::Result<()> {
        let Some((user, record)) = self.record(happening) else { return Ok(()) };
        self.history.append(user, &record)
    }

    fn record(&self, happening: &Happening) -> Option<(u64, Record)> {
        match happening {
            Happening::Message { from, device, send_id, at_ms, body } => {
                let side = Side::Theirs { device: *device, send_id: *send_id, read: false };
                Some((*from, Record::Line(Line { at_ms: *at_ms, text: body.text.clone(), side })))
            }
            Happening::Sent { to, device, send_id, at_ms, text } => {
                let here = *device == self.device();
                let tick = if here { Tick::Waiting } else { Tick::Accepted };
                let side = Side::Mine { device: *device, send_id: *send_id, tick };
                Some((*to, Record::Line(Line { at_ms: *at_ms, text: text.clone(), side })))
            }
            Happening::Ticked { to, device, send_ids, tick } => {
                let (device, send_ids, tick) = (*device, send_ids.clone(), tick.clone());
                Some((*to, Record::Ticked { device, send_ids, tick }))
            }
            Happening::ReadElsewhere { from, device, send_ids } => Some((
                *from,
                Record::Read { device: *device, send_ids: send_ids.clone(), read: true },
            )),
            Happening::NotMarked { from, device, send_ids } => Some((
                *from,
                Record::Read { device: *device, send_ids: send_ids.clone(), read: false },
            )),
            Happening::Connected
            | Happening::Disconnected(_)
            | Happening::Ended { .. }
            | Happening::Typing { .. }
            | Happening::Presence { .. }
            | Happening::Found { .. }
            | Happening::LinkRequested { .. }
            | Happening::News(_)
            | Happening::Notice(_) => None,
        }
    }

    /// What an event of the client means here.
    pub(crate) fn happening(&mut self, event: &Event) -> Option<Happening> {
        let ids = |ids: &[SendId]| ids.iter().map(|id| id.0).collect::<Vec<u64>>();
        match event {
            Event::Connected => Some(Happening::Connected),
            Event::Disconnected { reason } => Some(Happening::Disconnected(reason.to_string())),
            Event::Ended { code } => Some(Happening::Ended {
                short: explain(*code).to_owned(),
                advice: advice_at_the_end(*code, &self.alias),
            }),
            Event::Message(message) => Some(Happening::Message {
                from: message.from.0,
                device: message.from_device.0,
                send_id: message.send_id.0,
                at_ms: message.at_ms,
                body: body::decode(&message.body),
            }),
            Event::SentCopy(copy) => Some(Happening::Sent {
                to: copy.to.0,
                device: copy.from_device.0,
                send_id: copy.send_id.0,
                at_ms: copy.at_ms,
                text: body::decode(&copy.body).text,
            }),
            Event::Receipt(receipt) => Some(Happening::Ticked {
                to: receipt.to.0,
                device: receipt.device.0,
                send_ids: ids(&receipt.send_ids),
                tick: tick_of(receipt.kind)?,
            }),
            Event::ReadCopy(copy) => Some(Happening::ReadElsewhere {
                from: copy.from.0,
                device: copy.from_device.0,
                send_ids: ids(&copy.send_ids),
            }),
            Event::Signal(signal) => {
                let typing = signal.kind == SIGNAL_TYPING;
                (typing || signal.kind == SIGNAL_STOPPED)
                    .then_some(Happening::Typing { from: signal.from.0, typing })
            }
            Event::Presence(presence) => Some(Happening::Presence {
                user: presence.user.0,
                online: presence.online,
                last_seen_ms: presence.last_seen_ms,
            }),
            Event::Answered { send_id, result } => {
                let tick = match result {
                    Ok(_) => Tick::Accepted,
                    Err(SendError::Ended(_) | SendError::Closed) => return None,
                    Err(error) => Tick::Failed(send_error_in_words(error)),
                };
                let to = self.waiting.remove(&send_id.0)?;
                Some(Happening::Ticked {
                    to,
                    device: self.device(),
                    send_ids: vec![send_id.0],
                    tick,
                })
            }
            Event::DeviceNotice(notice) => Some(Happening::News(device_notice(notice))),
            Event::HistoryMissing => Some(Happening::News(HISTORY_MISSING.to_owned())),
            Event::LinkRequested(asked) => Some(Happening::LinkRequested {
                key: asked.key.to_vec(),
                name: body::printable(&asked.name),
            }),
            Event::CaughtUp | Event::Unsupported(_) => None,
        }
    }
}

/// What [`Event::HistoryMissing`] means to a person.
const HISTORY_MISSING: &str = "messages from before this device was linked, or while it was away for \
     long, are not shown here: your other devices have them";

fn device_notice(notice: &natter_sdk::DeviceNotice) -> String {
    let device = notice.device;
    let by = notice.by_device.filter(|by| *by != device);
    let by = by.map_or_else(String::new, |by| format!(" by your device {by}"));
    match notice.kind {
        DeviceNoticeKind::SetAside => {
            format!("your device {device} was away for too long; messages no longer wait for it")
        }
        DeviceNoticeKind::Back => {
            format!("your device {device} is back; it lacks what came while it was away")
        }
        DeviceNoticeKind::Linked => {
            format!(
                "device {device} was linked to your account{by}; if that was not you: /unlink {device}"
            )
        }
        DeviceNoticeKind::Unlinked => format!("your device {device} was unlinked{by}"),
        DeviceNoticeKind::RegistrationLock => {
            format!("your device {device} changed the registration lock")
        }
    }
}

/// Does an act that waits for the node; the result is to be shown.
pub(crate) async fn request(client: Client, act: Act) -> Option<Happening> {
    let note = |words: String| Some(Happening::Notice(vec![words]));
    let done = |result: Result<(), RequestError>, words: &str| match result {
        Ok(()) => note(words.to_owned()),
        Err(error) => note(error.to_string()),
    };
    match act {
        Act::MarkRead { from, device, send_ids } => {
            let ids: Vec<SendId> = send_ids.iter().map(|id| SendId(*id)).collect();
            match client.mark_read(UserId(from), DeviceId(device), &ids).await {
                Ok(()) => Some(Happening::ReadElsewhere { from, device, send_ids }),
                Err(_) => Some(Happening::NotMarked { from, device, send_ids }),
            }
        }
        Act::Watch { user, watch } => {
            let asked = if watch {
                client.subscribe(UserId(user)).await
            } else {
                client.unsubscribe(UserId(user)).await
            };
            asked.err().and_then(|error| note(format!("no presence: {error}")))
        }
        Act::Lookup { alias, open } => match client.lookup(alias.clone()).await {
            Ok(found) => Some(Happening::Found { alias, user: found.user.0, open }),
            Err(_) if !open => None,
            Err(error) if error.code() == Some(Code::UnknownUser) => note(nobody_is(&alias)),
            Err(error) => note(format!("{alias} was not found: {error}")),
        },
        Act::Block { user, block: true } => done(client.block(UserId(user)).await, "blocked"),
        Act::Block { user, block: false } => done(client.unblock(UserId(user)).await, "unblocked"),
        Act::ShowAccount => match client.account().await {
            Ok(account) => Some(Happening::Notice(devices(&account, client.identity().device))),
            Err(error) => note(error.to_string()),
        },
        Act::Link { key, name } => match client.link_device(&key, &name).await {
            Ok((_, device)) => note(format!("{name} is linked now, as your device {device}")),
            Err(error) => note(error.to_string()),
        },
        Act::Unlink(device) => done(client.unlink_device(DeviceId(device)).await, "unlinked"),
        Act::AddContact(user) => {
            let added = client.add_contact(UserId(user)).await;
            added.err().and_then(|error| note(format!("not added to your contacts: {error}")))
        }
        Act::Privacy(setting) => privacy(&client, setting).await,
        Act::ShowLock => match client.account().await {
            Ok(account) => note(lock_in_words(account.registration_lock).to_owned()),
            Err(error) => note(error.to_string()),
        },
        Act::SetLock { lock, current } => set_lock(&client, &lock, &current).await,
        Act::Send { .. }
        | Act::Typing { .. }
        | Act::SaveNames
        | Act::DeleteAccount
        | Act::LogOut
        | Act::Quit => None,
    }
}

fn lock_in_words(is_set: bool) -> &'static str {
    if is_set {
        "You have a registration lock: without it nobody registers as you elsewhere while your devices \
         come. /lock NEW OLD changes it, /unlock OLD takes it away."
    } else {
        "You have no registration lock: whoever gets a PIN of yours takes your name over. /lock NEW sets \
         one."
    }
}

async fn set_lock(client: &Client, lock: &str, current: &str) -> Option<Happening> {
    let words = match client.set_registration_lock(lock, current).await {
        Ok(()) if lock.is_empty() => "The registration lock is gone.".to_owned(),
        Ok(()) => "The registration lock is set. Keep it: nobody can tell it to you.".to_owned(),
        Err(error) if error.code() == Some(Code::WrongLock) && current.is_empty() => {
            "There is a registration lock already: /lock NEW OLD.".to_owned()
        }
        Err(error) if error.code() == Some(Code::WrongLock) => {
            "That is not the registration lock there is.".to_owned()
        }
        Err(error) => error.to_string(),
    };
    Some(Happening::Notice(vec![words]))
}

async fn privacy(client: &Client, setting: Option<Setting>) -> Option<Happening> {
    let change = async {
        let mut privacy = client.account().await?.privacy;
        match setting {
            Some(Setting::LastSeen(shown)) => privacy.last_seen = shown,
            Some(Setting::Online(shown)) => privacy.online = shown,
            Some(Setting::ReadReceipts(shown)) => privacy.read_receipts = shown,
            None => return Ok(privacy),
        }
        client.set_privacy(privacy).await?;
        Ok::<_, RequestError>(privacy)
    };
    let shown = |audience| match audience {
        Audience::Everybody => "everybody",
        Audience::Contacts => "contacts",
        Audience::Nobody => "nobody",
    };
    let words = match change.await {
        Ok(privacy) => format!(
            "shown to: last-seen {}, online {}, read-receipts {}",
            shown(privacy.last_seen),
            shown(privacy.online),
            shown(privacy.read_receipts)
        ),
        Err(error) => error.to_string(),
    };
    Some(Happening::Notice(vec![words]))
}

fn devices(account: &Account, here: DeviceId) -> Vec<String> {
    let mut lines = vec![format!("{} has these devices:", account.aliases.join(", "))];
    lines.extend(account.devices.iter().map(|device| {
        let here = if device.id == here { " (this one)" } else { "" };
        let name = body::printable(&device.name);
        format!("{}  {name}{}{here}", device.id, since(device.linked_at_ms))
    }));
    lines
}

/// When a device was linked, for a person who has several of one name.
fn since(linked_at_ms: u64) -> String {
    let at = i64::try_from(linked_at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| {
        format!(", since {}", at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M"))
    })
}

fn tick_of(kind: ReceiptKind) -> Option<Tick> {
    match kind {
        ReceiptKind::Delivered => Some(Tick::Delivered),
        ReceiptKind::Read => Some(Tick::Read),
        ReceiptKind::Expired => Some(Tick::Failed("not collected in time".into())),
        ReceiptKind::Undeliverable => Some(Tick::Failed("the account is gone".into())),
        ReceiptKind::Unknown => None,
    }
}

/// That nobody has this alias, and what to do.
pub(crate) fn nobody_is(alias: &Alias) -> String {
    format!(
        "Nobody here is {alias}. Whoever wants to be {alias} registers first: natter chat --as {alias} \
         with the same --server and --ca."
    )
}

/// What a person can do after the session has ended for good.
pub(crate) fn advice_at_the_end(code: Code, alias: &Alias) -> String {
    let why = explain(code);
    if code == Code::Replaced {
        return format!("The chat has ended: {why}. Close that one, then start natter chat again.");
    }
    if matches!(code, Code::Unlinked | Code::BadCredentials) {
        return format!(
            "The chat has ended: {why}. To come back with a new PIN: \
             natter chat --as {alias} --register-again. To join the devices that {alias} has: add --link."
        );
    }
    format!("The chat has ended: {why}. Start natter chat again.")
}

pub(crate) fn send_error_in_words(error: &SendError) -> String {
    error.to_string()
}
