//! `offline`: messages are stored for people who are away, then fetched.
//!
//! Slots 0 to USERS - 1 are the recipients, the ones above them the senders. Recipient `r` belongs to
//! sender `r % senders`; a sender writes to its recipients in turn, EACH times around.

use std::time::Duration;

use anyhow::{Result, bail};
use proto::wire::client_frame::Kind;
use serde_json::{Value, json};

use crate::clock::seconds;
use crate::cold::{self, Cold};
use crate::entry::{Person, resume};
use crate::hot::{Frame, Marker, put_pong};
use crate::net::{At, Net, Next, Traffic};
use crate::order::{Cursor, Faults, Order};
use crate::sender::{Fate, Planned, Sender};

/// Connections that store.
pub(crate) const SENDERS: usize = 64;

/// Recipients that are connected at once while they fetch.
const GROUP: usize = 1_000;

/// Recipients of a group that fetch at once.
const FETCHING: usize = 64;

/// Handshakes under way at once.
const CONNECTING: usize = 64;

/// Longest wait between two looks at the clock.
const LOOK: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Messages for each recipient.
    pub(crate) each: u64,
    /// Sending connections.
    pub(crate) senders: usize,
    /// Sends of each that may wait for their answer.
    pub(crate) window: usize,
    /// Bytes of a body.
    pub(crate) body: usize,
    /// Longest wait for the last receipts.
    pub(crate) patience_ns: u64,
}

/// A sending connection.
#[derive(Debug)]
struct Source {
    sender: Sender,
    receipts: Cursor,
    /// Users it writes to, with their places among the recipients.
    targets: Vec<(u64, u32)>,
}

/// How far a recipient is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Away,
    Connects,
    Welcomed,
    Fetches,
    Done,
}

/// A recipient.
#[derive(Debug)]
struct Sink {
    order: Order,
    cursor: Cursor,
    stage: Stage,
}

/// Where the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Store,
    Connect,
    Fetch,
    Receipts { until_ns: u64 },
}

/// The run.
#[derive(Debug)]
pub(crate) struct Offline<'a> {
    recipients: &'a [Person],
    plan: Plan,
    body: Vec<u8>,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    phase: Phase,
    group: usize,
    opened: usize,
    fetching: usize,
    begin_ns: u64,
    store_ns: u64,
    connect_ns: u64,
    fetch_ns: u64,
    pausing: Vec<usize>,
    accepted: u64,
    refused: u64,
    receipts: u64,
    faults: Faults,
}

impl<'a> Offline<'a> {
    pub(crate) fn new(recipients: &'a [Person], plan: Plan) -> Self {
        let source = |first: usize| {
            let places = (first..recipients.len()).step_by(plan.senders);
            let targets: Vec<_> = places.map(|r| (recipients[r].user, r as u32)).collect();
            let mut sender = Sender::new(plan.window, true);
            sender.owed = targets.len() as u64 * plan.each;
            Source { sender, receipts: Cursor::default(), targets }
        };
        let sink = |_: &Person| Sink {
            order: Order::default(),
            cursor: Cursor::default(),
            stage: Stage::Away,
        };
        Self {
            recipients,
            plan,
            body: vec![b'.'; plan.body],
            sources: (0..plan.senders).map(source).collect(),
            sinks: recipients.iter().map(sink).collect(),
            phase: Phase::Store,
            group: 0,
            opened: 0,
            fetching: 0,
            begin_ns: 0,
            store_ns: 0,
            connect_ns: 0,
            fetch_ns: 0,
            pausing: (0..plan.senders).collect(),
            accepted: 0,
            refused: 0,
            receipts: 0,
            faults: Faults::default(),
        }
    }

    fn total(&self) -> u64 {
        self.sinks.len() as u64 * self.plan.each
    }

    /// The places of the recipients in the group whose turn it is.
    fn group_places(&self) -> std::ops::Range<usize> {
        let begin = (self.group * GROUP).min(self.sinks.len());
        begin..(begin + GROUP).min(self.sinks.len())
    }

    /// Goes on to the next group; `false` if there is none. A group stays connected while the next
    /// one fetches, so that its last acknowledgements have time to arrive.
    fn next_group(&mut self, net: &mut Net) -> bool {
        if let Some(before) = self.group.checked_sub(1) {
            (before * GROUP..self.group_places().start).for_each(|place| net.close(place));
        }
        self.group += 1;
        self.group * GROUP < self.sinks.len()
    }

    /// Appends what source `index` may send now.
    fn pump(&mut self, index: usize, now_ns: u64, out: &mut Vec<u8>) {
        let Source { sender, targets, .. } = &mut self.sources[index];
        let count = targets.len() as u64;
        sender.pump(now_ns, &mut self.body, out, |number| {
            let (user, stream) = targets[(number % count) as usize];
            Planned { user, marker: Marker { stream, number: number / count, sent_ns: now_ns } }
        });
        if sender.pauses(now_ns) {
            self.pausing.push(index);
        }
    }

    /// A frame for a sender.
    fn source_frame(&mut self, index: usize, at: At, frame: &Frame<'_>) -> Result<()> {
        let source = &mut self.sources[index];
        match *frame {
            Frame::Accepted { id } => {
                if source.sender.accepted(id, at.now_ns).is_none() {
                    bail!("an Accepted for send {id}, which does not wait for one");
                }
                self.accepted += 1;
            }
            Frame::Receipt { place, receipt } => {
                self.faults.seq_breaks += u64::from(!source.receipts.see(place));
                let (sender, count) = (&mut source.sender, &mut self.receipts);
                receipt.each_delivered(|id| {
                    *count += u64::from(sender.received(id, at.now_ns).is_some());
                })?;
            }
            Frame::Other(content) => {
                let Cold::Refused(refusal) = cold::read(content)? else { return Ok(()) };
                match source.sender.refuse(&refusal, at.now_ns) {
                    Fate::Again => {}
                    Fate::GivenUp => self.refused += 1,
                    Fate::Unknown => bail!("{refusal}"),
                }
            }
            Frame::Message { place, .. } | Frame::Entry { place } => {
                self.faults.seq_breaks += u64::from(!source.receipts.see(place));
            }
            Frame::CaughtUp | Frame::Ping => {}
        }
        Ok(())
    }

    /// A frame for a recipient.
    fn sink_frame(&mut self, at: At, frame: &Frame<'_>) -> Result<()> {
        let sink = &mut self.sinks[at.slot];
        match *frame {
            Frame::Message { place, body } => {
                let marker = Marker::read(body).filter(|m| m.stream as usize == at.slot);
                let (Some(marker), true) = (marker, body.len() == self.body.len()) else {
                    bail!("recipient {} got a message that is not for it, or not whole", at.slot);
                };
                self.faults.seq_breaks += u64::from(!sink.cursor.see(place));
                self.faults.count(sink.order.see(marker.number));
            }
            Frame::Receipt { place, .. } | Frame::Entry { place } => {
                self.faults.seq_breaks += u64::from(!sink.cursor.see(place));
            }
            Frame::CaughtUp if sink.stage == Stage::Fetches => {
                sink.stage = Stage::Done;
                self.fetching -= 1;
            }
            Frame::Other(content) => match cold::read(content)? {
                Cold::Welcome { .. } if sink.stage == Stage::Connects => {
                    sink.stage = Stage::Welcomed;
                }
                Cold::Refused(refusal) => bail!("{refusal}"),
                Cold::Welcome { .. } | Cold::PinSent { .. } | Cold::In { .. } | Cold::Ignored => {}
            },
            Frame::Accepted { .. } | Frame::CaughtUp | Frame::Ping => {}
        }
        Ok(())
    }

    /// Sends what senders had to wait for; true when everything is stored.
    fn store(&mut self, net: &mut Net) -> Result<bool> {
        let mut pausing = std::mem::take(&mut self.pausing);
        pausing.sort_unstable();
        pausing.dedup();
        for index in pausing {
            let mut out = Vec::new();
            self.pump(index, net.now_ns(), &mut out);
            if !out.is_empty() {
                net.send(self.sinks.len() + index, &out)?;
            }
        }
        Ok(self.accepted + self.refused == self.total())
    }

    /// Connects the group, without logging in; true when all were welcomed.
    fn connect(&mut self, net: &mut Net) -> Result<bool> {
        let places = self.group_places();
        let connects = |sink: &&Sink| sink.stage == Stage::Connects;
        let mut under_way = self.sinks[places.clone()].iter().filter(connects).count();
        while self.opened < places.end && under_way < CONNECTING {
            net.open(self.opened)?;
            self.sinks[self.opened].stage = Stage::Connects;
            self.opened += 1;
            under_way += 1;
        }
        Ok(self.opened == places.end && under_way == 0)
    }

    /// Logs members of the group in, some at once; true when all have everything.
    fn fetch(&mut self, net: &mut Net) -> Result<bool> {
        let places = self.group_places();
        let mut waiting = places.clone().filter(|r| self.sinks[*r].stage == Stage::Welcomed);
        let room = FETCHING - self.fetching;
        let starting: Vec<usize> = waiting.by_ref().take(room).collect();
        for place in starting {
            let mut out = Vec::new();
            cold::put(&mut out, 1, Kind::Resume(resume(&self.recipients[place])));
            net.send(place, &out)?;
            self.sinks[place].stage = Stage::Fetches;
            self.fetching += 1;
        }
        Ok(self.sinks[places].iter().all(|sink| sink.stage == Stage::Done))
    }

    /// Messages that were accepted and never seen.
    fn lost(&self) -> u64 {
        let lost = |(place, sink): (usize, &Sink)| {
            let source = &self.sources[place % self.sources.len()];
            let turn = (place / self.sources.len()) as u64;
            let count = source.targets.len() as u64;
            let accepted = |number: &u64| source.sender.was_accepted(number * count + turn);
            sink.order.unseen(self.plan.each).filter(accepted).count() as u64
        };
        self.sinks.iter().enumerate().map(lost).sum()
    }

    /// How it went.
    pub(crate) fn result(&self) -> Value {
        let seen: u64 = self.sinks.iter().map(|sink| sink.order.seen()).sum();
        let fetch_and_connect_ns = self.fetch_ns + self.connect_ns;
        json!({
            "users": self.sinks.len(),
            "each": self.plan.each,
            "senders": self.sources.len(),
            "stored": self.accepted,
            "refused": self.refused,
            "store_per_s": self.accepted as f64 / seconds(self.store_ns),
            "delivered": seen,
            "drain_per_s": seen as f64 / seconds(self.fetch_ns),
            "drain_with_connect_per_s": seen as f64 / seconds(fetch_and_connect_ns),
            "lost": self.lost(),
            "doubled": self.faults.doubled,
            "disordered": self.faults.disordered,
            "seq_breaks": self.faults.seq_breaks,
            "receipts_missing": self.accepted - self.receipts,
        })
    }
}

impl Traffic for Offline<'_> {
    fn frame(&mut self, at: At, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        if *frame == Frame::Ping {
            put_pong(out);
        }
        match at.slot.checked_sub(self.sinks.len()) {
            Some(index) => self.source_frame(index, at, frame),
            None => self.sink_frame(at, frame),
        }
    }

    fn batch(&mut self, at: At, out: &mut Vec<u8>) -> Result<()> {
        match at.slot.checked_sub(self.sinks.len()) {
            Some(index) => {
                self.sources[index].receipts.acknowledge(out);
                self.pump(index, at.now_ns, out);
            }
            None => self.sinks[at.slot].cursor.acknowledge(out),
        }
        Ok(())
    }

    fn round(&mut self, net: &mut Net) -> Result<Next> {
        let now_ns = net.now_ns();
        if self.begin_ns == 0 {
            self.begin_ns = now_ns;
        }
        let spent_ns = now_ns - self.begin_ns;
        let over = match self.phase {
            Phase::Store => self.store(net)?,
            Phase::Connect => self.connect(net)?,
            Phase::Fetch => self.fetch(net)?,
            Phase::Receipts { until_ns } => self.receipts >= self.accepted || now_ns >= until_ns,
        };
        if !over {
            let pauses = if self.pausing.is_empty() { LOOK } else { Duration::from_millis(5) };
            return Ok(Next::Within(pauses));
        }
        self.begin_ns = now_ns;
        self.phase = match self.phase {
            Phase::Store => {
                self.store_ns = spent_ns;
                Phase::Connect
            }
            Phase::Connect => {
                self.connect_ns += spent_ns;
                Phase::Fetch
            }
            Phase::Fetch => {
                self.fetch_ns += spent_ns;
                let until_ns = now_ns + self.plan.patience_ns;
                if self.next_group(net) { Phase::Connect } else { Phase::Receipts { until_ns } }
            }
            Phase::Receipts { .. } => return Ok(Next::Finished),
        };
        Ok(Next::Within(Duration::ZERO))
    }
}
