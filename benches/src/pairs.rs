//! `pairs`: in each pair A writes to B; both acknowledge all they get.
//!
//! Pair `p` has slot `2p` for A and `2p + 1` for B. With a rate, message `k` of the run is due at
//! `k / rate` and belongs to pair `k % pairs`; latency counts from that moment, so that a server that
//! falls behind cannot hide it by slowing the sender (coordinated omission).

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::args::{PairsArgs, Rate};
use crate::clock::{Clock, MS_NS, SECOND_NS, seconds};
use crate::cold::{self, Cold};
use crate::entry::Person;
use crate::hot::{Frame, Marker, put_pong};
use crate::latency::Latency;
use crate::net::{At, Net, Next, Traffic};
use crate::order::{Cursor, Faults, Order};
use crate::process::{Spent, Usage, resident_kib};
use crate::sender::{Fate, Planned, Sender};
use crate::server::Server;
use crate::upset::Upsets;

/// How long duplicates are looked for after everything came.
const QUIET_NS: u64 = 300 * MS_NS;

/// Longest wait between two looks at the clock.
const LOOK: Duration = Duration::from_millis(50);

/// The servers whose CPU and memory are measured, and by which clock.
#[derive(Debug)]
pub(crate) struct Watched<'a, 's> {
    pub(crate) server: &'a mut Server<'s>,
    pub(crate) clock: Clock,
}

impl Watched<'_, '_> {
    fn usage(&self) -> Result<Usage> {
        Usage::now(&self.server.pids(), self.clock)
    }
}

/// Where the run is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Begin,
    WarmUp { until_ns: u64 },
    Measure { until_ns: u64 },
    Drain { until_ns: u64 },
    Quiet { until_ns: u64 },
}

/// Counts over all pairs and the whole run.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    sent: u64,
    accepted: u64,
    refused: u64,
    sent_again: u64,
    seen: u64,
    receipts: u64,
    faults: Faults,
}

/// One pair.
#[derive(Debug)]
struct Pair {
    sender: Sender,
    receipts: Cursor,
    receiver: u64,
    messages: Cursor,
    order: Order,
}

/// The run.
#[derive(Debug)]
pub(crate) struct Pairs<'a, 's> {
    plan: PairsArgs,
    patience_ns: u64,
    watched: Watched<'a, 's>,
    upsets: Option<Upsets>,
    all: Vec<Pair>,
    body: Vec<u8>,
    out: Vec<u8>,
    phase: Phase,
    begin_ns: u64,
    due: u64,
    pausing: Vec<usize>,
    totals: Totals,
    counted: u64,
    usage: Option<Usage>,
    spent: Option<Spent>,
    resident_kib: u64,
    latency: Latency,
    tick1: Latency,
    tick2: Latency,
}

impl<'a, 's> Pairs<'a, 's> {
    /// `people` are A and B of each pair in turn, logged in at the slots of their places.
    /// `patience_ns` is the longest wait, after the last send, for all ticks.
    pub(crate) fn new(
        plan: PairsArgs,
        (body, patience_ns): (usize, u64),
        people: &[Person],
        watched: Watched<'a, 's>,
    ) -> Result<Self> {
        let upset = plan.kills > 0 || plan.join;
        let upsets = upset.then(|| Upsets::new(plan.kills, plan.join)).transpose()?;
        let pair = |two: &[Person]| Pair {
            sender: Sender::new(plan.window, plan.receipts),
            receipts: Cursor::default(),
            receiver: two[1].user,
            messages: Cursor::default(),
            order: Order::default(),
        };
        Ok(Self {
            plan,
            patience_ns,
            watched,
            upsets,
            all: people.chunks_exact(2).map(pair).collect(),
            body: vec![b'.'; body],
            out: Vec::new(),
            phase: Phase::Begin,
            begin_ns: 0,
            due: 0,
            pausing: Vec::new(),
            totals: Totals::default(),
            counted: 0,
            usage: None,
            spent: None,
            resident_kib: 0,
            latency: Latency::new()?,
            tick1: Latency::new()?,
            tick2: Latency::new()?,
        })
    }

    fn measures(&self) -> bool {
        matches!(self.phase, Phase::Measure { .. })
    }

    /// When message `k` of the run is due; now, if there is no rate.
    fn due_ns(&self, k: u64, now_ns: u64) -> u64 {
        match self.plan.rate {
            Rate::Max => now_ns,
            Rate::PerSecond(rate) => self.begin_ns + (k as f64 / rate * 1e9) as u64,
        }
    }

    /// Appends to `out` what A of `pair` may send now.
    fn pump(&mut self, pair: usize, now_ns: u64, out: &mut Vec<u8>) {
        let (count, stream) = (self.all.len() as u64, pair as u32);
        let (begin_ns, rate) = (self.begin_ns, self.plan.rate);
        let sent_ns = |number: u64| match rate {
            Rate::Max => now_ns,
            Rate::PerSecond(rate) => {
                begin_ns + ((pair as u64 + number * count) as f64 / rate * 1e9) as u64
            }
        };
        let Pair { sender, receiver, .. } = &mut self.all[pair];
        let before = sender.next;
        sender.pump(now_ns, &mut self.body, out, |number| Planned {
            user: *receiver,
            marker: Marker { stream, number, sent_ns: sent_ns(number) },
        });
        self.totals.sent += sender.next - before;
        if sender.pauses(now_ns) {
            self.pausing.push(pair);
        }
    }

    /// The same, outside of a read.
    fn pump_alone(&mut self, pair: usize, net: &mut Net) -> Result<()> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        self.pump(pair, net.now_ns(), &mut out);
        if !out.is_empty() {
            net.send(2 * pair, &out)?;
        }
        self.out = out;
        Ok(())
    }

    fn message(&mut self, at: At, body: &[u8]) -> Result<()> {
        let pair = at.slot / 2;
        let marker = Marker::read(body).filter(|marker| marker.stream as usize == pair);
        let (Some(marker), true) = (marker, body.len() == self.body.len()) else {
            bail!("connection {} got a message that is not for it, or not whole", at.slot);
        };
        let order = &mut self.all[pair].order;
        let before = order.seen();
        self.totals.faults.count(order.see(marker.number));
        let fresh = order.seen() - before;
        self.totals.seen += fresh;
        if self.measures() {
            self.counted += fresh;
            let waited_ns = at.now_ns.saturating_sub(marker.sent_ns);
            self.latency.record(waited_ns);
            if let Some(upsets) = &mut self.upsets {
                upsets.delivered(waited_ns);
            }
        }
        Ok(())
    }

    fn rare(&mut self, at: At, content: &[u8]) -> Result<()> {
        let Cold::Refused(refusal) = cold::read(content)? else { return Ok(()) };
        let sender = &mut self.all[at.slot / 2].sender;
        match sender.refuse(&refusal, at.now_ns) {
            Fate::Again => self.totals.sent_again += 1,
            Fate::GivenUp => self.totals.refused += 1,
            Fate::Unknown => bail!("{refusal}"),
        }
        Ok(())
    }

    /// Ends a phase whose time has come; `false` when the run is over.
    fn turn(&mut self, now_ns: u64) -> Result<bool> {
        match self.phase {
            Phase::Begin => {
                self.begin_ns = now_ns;
                let owed = if self.plan.rate == Rate::Max { u64::MAX } else { 0 };
                self.all.iter_mut().for_each(|pair| pair.sender.owed = owed);
                if owed > 0 {
                    self.pausing = (0..self.all.len()).collect();
                }
                self.phase = Phase::WarmUp { until_ns: now_ns + self.plan.warm_up * SECOND_NS };
            }
            Phase::WarmUp { until_ns } if now_ns >= until_ns => {
                self.usage = Some(self.watched.usage()?);
                self.phase = Phase::Measure { until_ns: now_ns + self.plan.seconds * SECOND_NS };
            }
            Phase::Measure { until_ns } if now_ns >= until_ns => {
                let after = self.watched.usage()?;
                self.spent = self.usage.map(|before| before.until(after));
                self.resident_kib = resident_kib(&self.watched.server.pids())?;
                self.all.iter_mut().for_each(|pair| pair.sender.owed = 0);
                self.phase = Phase::Drain { until_ns: now_ns + self.patience_ns };
            }
            Phase::Drain { until_ns } if now_ns >= until_ns || self.all_came() => {
                self.phase = Phase::Quiet { until_ns: now_ns + QUIET_NS };
            }
            Phase::Quiet { until_ns } if now_ns >= until_ns => return Ok(false),
            Phase::WarmUp { .. }
            | Phase::Measure { .. }
            | Phase::Drain { .. }
            | Phase::Quiet { .. } => {}
        }
        Ok(true)
    }

    fn all_came(&self) -> bool {
        let Totals { sent, accepted, refused, seen, receipts, .. } = self.totals;
        accepted + refused == sent
            && seen >= accepted
            && (!self.plan.receipts || receipts >= accepted)
    }

    /// Sends what has become due, and what had to wait after a refusal.
    fn release(&mut self, net: &mut Net) -> Result<Duration> {
        let mut pausing = std::mem::take(&mut self.pausing);
        pausing.sort_unstable();
        pausing.dedup();
        for pair in pausing {
            self.pump_alone(pair, net)?;
        }
        let wait = if self.pausing.is_empty() { LOOK } else { Duration::from_millis(5) };
        let sends = matches!(self.phase, Phase::WarmUp { .. } | Phase::Measure { .. });
        if self.plan.rate == Rate::Max || !sends {
            return Ok(wait);
        }
        let now_ns = net.now_ns();
        while self.due_ns(self.due, now_ns) <= now_ns {
            let pair = (self.due % self.all.len() as u64) as usize;
            self.all[pair].sender.owed += 1;
            self.due += 1;
            self.pump_alone(pair, net)?;
        }
        let due_in_ns = self.due_ns(self.due, now_ns) - now_ns;
        Ok(wait.min(Duration::from_nanos(due_in_ns)))
    }

    /// What was accepted and never seen.
    fn lost(&self) -> u64 {
        let lost = |pair: &Pair| {
            let unseen = pair.order.unseen(pair.sender.next);
            unseen.filter(|number| pair.sender.was_accepted(*number)).count() as u64
        };
        self.all.iter().map(lost).sum()
    }

    /// How it went.
    pub(crate) fn result(&self) -> Result<Value> {
        let Some(spent) = self.spent else { bail!("the run ended before it was measured") };
        let totals = self.totals;
        let thousands = self.counted as f64 / 1000.0;
        let tick2 = |share| if self.plan.receipts { self.tick2.us(share) } else { None };
        let server_cpu_s = self.upsets.is_none().then_some(spent.server_cpu_s);
        let missing = if self.plan.receipts { totals.accepted - totals.receipts } else { 0 };
        Ok(json!({
            "pairs": self.all.len(),
            "rate": self.plan.rate.to_string(),
            "window": self.plan.window,
            "receipts": self.plan.receipts,
            "seconds": spent.seconds,
            "delivered": self.counted,
            "delivered_per_s": self.counted as f64 / spent.seconds,
            "lat_p50_us": self.latency.us(0.5),
            "lat_p99_us": self.latency.us(0.99),
            "lat_p999_us": self.latency.us(0.999),
            "tick1_p50_us": self.tick1.us(0.5),
            "tick1_p99_us": self.tick1.us(0.99),
            "tick2_p50_us": tick2(0.5),
            "tick2_p99_us": tick2(0.99),
            "lost": self.lost(),
            "doubled": totals.faults.doubled,
            "disordered": totals.faults.disordered,
            "seq_breaks": totals.faults.seq_breaks,
            "sent": totals.sent,
            "accepted": totals.accepted,
            "refused": totals.refused,
            "sent_again": totals.sent_again,
            "unanswered": totals.sent - totals.accepted - totals.refused,
            "receipts_missing": missing,
            "upsets": self.upsets.as_ref().map(Upsets::result),
            "server_cpu_s_per_1000": server_cpu_s.map(|cpu_s| cpu_s / thousands),
            "client_cpu_s_per_1000": spent.client_cpu_s / thousands,
            "server_rss_kib": self.resident_kib,
            "run_s": seconds(self.watched.clock.now_ns() - self.begin_ns),
        }))
    }
}

impl Traffic for Pairs<'_, '_> {
    fn frame(&mut self, at: At, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        let measures = self.measures();
        let pair = &mut self.all[at.slot / 2];
        let cursor =
            if at.slot.is_multiple_of(2) { &mut pair.receipts } else { &mut pair.messages };
        match *frame {
            Frame::Accepted { id } => {
                let Some(tick) = pair.sender.accepted(id, at.now_ns) else {
                    bail!("an Accepted for send {id}, which does not wait for one");
                };
                self.totals.accepted += 1;
                if measures {
                    self.tick1.record(tick.after_ns);
                    if let Some(upsets) = &mut self.upsets {
                        upsets.accepted(tick.after_ns);
                    }
                }
            }
            Frame::Message { place, body } => {
                self.totals.faults.seq_breaks += u64::from(!cursor.see(place));
                self.message(at, body)?;
            }
            Frame::Receipt { place, receipt } => {
                self.totals.faults.seq_breaks += u64::from(!cursor.see(place));
                if self.plan.receipts {
                    receipt.each_delivered(|id| {
                        let Some(tick) = pair.sender.received(id, at.now_ns) else { return };
                        self.totals.receipts += 1;
                        if measures {
                            self.tick2.record(tick.after_ns);
                        }
                    })?;
                }
            }
            Frame::Entry { place } => {
                self.totals.faults.seq_breaks += u64::from(!cursor.see(place));
            }
            Frame::CaughtUp => {}
            Frame::Ping => put_pong(out),
            Frame::Other(content) => self.rare(at, content)?,
        }
        Ok(())
    }

    fn batch(&mut self, at: At, out: &mut Vec<u8>) -> Result<()> {
        let pair = &mut self.all[at.slot / 2];
        if at.slot.is_multiple_of(2) {
            pair.receipts.acknowledge(out);
            self.pump(at.slot / 2, at.now_ns, out);
        } else {
            pair.messages.acknowledge(out);
        }
        Ok(())
    }

    fn round(&mut self, net: &mut Net) -> Result<Next> {
        let now_ns = net.now_ns();
        if !self.turn(now_ns)? {
            return Ok(Next::Finished);
        }
        if let (Some(upsets), Phase::Measure { until_ns }) = (&mut self.upsets, self.phase) {
            let begin_ns = until_ns - self.plan.seconds * SECOND_NS;
            upsets.advance(now_ns - begin_ns, self.watched.server)?;
        }
        Ok(Next::Within(self.release(net)?))
    }
}
