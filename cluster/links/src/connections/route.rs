//! The sending side of one link, shared by all who cast and call: what waits, who waits for answers.
//!
//! Whoever has something to send rings the bell of the connection's writer, which takes packets as
//! fast as it can write them: what was offered meanwhile travels together. No timer is started for
//! any of it.
//!
//! # Invariants
//! 1. Packets leave in the order of their numbers: one writer takes them.
//! 2. A closed route sends nothing, and no call waits on it.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::cluster::{Hello, Packet};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::counters::{Counters, add};
use crate::door::{Answered, CallError, Lane};
use crate::lanes::outbox::Outbox;
use crate::lanes::parcel::{Kind, Parcel};
use crate::limits::{CALLS_KEPT, CALLS_MAX};

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

/// Milliseconds since the links of this process began; never goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Takes an encoded hello to the peer's actor.
pub(crate) type Greeter = Box<dyn Fn(Vec<u8>) + Send>;

/// What every packet of a link says.
pub(crate) struct Stamp {
    pub(crate) incarnation: u64,
    pub(crate) link: u64,
}

/// Why there is no way to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    Closed,
    Full,
}

struct Sending {
    outbox: Outbox,
    greeter: Greeter,
    /// The peer has our hello, and so takes what we send.
    heard: bool,
    stamp: Stamp,
    acknowledged: u64,
    /// A packet is due even if there is nothing to put into it.
    owing: bool,
    last_sent_ms: u64,
    closed: bool,
}

type Waiting = oneshot::Sender<Result<Bytes, CallError>>;

#[derive(Default)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    closed: bool,
}

/// The sending side of one link.
pub(crate) struct Route {
    sending: Mutex<Sending>,
    bell: Arc<Notify>,
    calls: Mutex<Calls>,
    clock: Clock,
    counters: Arc<Counters>,
}

impl fmt::Debug for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Route").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Route {
    /// `bell` is rung when [`Route::next`] has something.
    pub(crate) fn new(
        (greeter, bell): (Greeter, Arc<Notify>),
        stamp: Stamp,
        clock: Clock,
        counters: Arc<Counters>,
    ) -> Self {
        let sending = Sending {
            outbox: Outbox::default(),
            greeter,
            heard: false,
            stamp,
            acknowledged: 0,
            owing: false,
            last_sent_ms: clock.now_ms(),
            closed: false,
        };
        Self { sending: Mutex::new(sending), bell, calls: Mutex::default(), clock, counters }
    }

    /// Sends a parcel, or lets it wait.
    pub(crate) fn offer(&self, lane: Lane, kind: Kind, bytes: Bytes) -> Result<(), NotSent> {
        let mut sending = lock(&self.sending);
        if sending.closed {
            return Err(NotSent::Closed);
        }
        sending.outbox.push(lane, Parcel { kind, bytes }).map_err(|_refused| {
            add(self.counters.refused(lane), 1);
            NotSent::Full
        })?;
        drop(sending);
        self.bell.notify_one();
        Ok(())
    }

    /// Asks the peer. The future ends with the answer, the link, or the time.
    pub(crate) fn call(self: &Arc<Self>, lane: Lane, bytes: Bytes, within: Duration) -> Answered {
        let kept = if lane == Lane::Urgent { 0 } else { CALLS_KEPT };
        self.call_within((lane, CALLS_MAX - kept), bytes, within)
    }

    /// The same, with a place that is kept for such calls.
    pub(crate) fn call_vital(
        self: &Arc<Self>,
        lane: Lane,
        bytes: Bytes,
        within: Duration,
    ) -> Answered {
        self.call_within((lane, CALLS_MAX), bytes, within)
    }

    /// `most` calls may be open, with this one.
    fn call_within(
        self: &Arc<Self>,
        (lane, most): (Lane, usize),
        bytes: Bytes,
        within: Duration,
    ) -> Answered {
        let deadline = Instant::now() + within;
        let asked = self.ask((lane, most), bytes, within);
        Box::pin(async move {
            let (_open, answer) = asked?;
            match timeout_at(deadline, answer).await {
                Ok(Ok(answered)) => answered,
                Ok(Err(_dropped)) => Err(CallError::Broken),
                Err(_elapsed) => Err(CallError::TimedOut),
            }
        })
    }

    fn ask(
        self: &Arc<Self>,
        (lane, most): (Lane, usize),
        bytes: Bytes,
        within: Duration,
    ) -> Result<(Open, oneshot::Receiver<Result<Bytes, CallError>>), CallError> {
        let (waiting, answer) = oneshot::channel();
        let call = {
            let mut calls = lock(&self.calls);
            if calls.closed {
                return Err(CallError::NotUp);
            }
            if calls.waiting.len() >= most {
                add(&self.counters.refused_calls, 1);
                return Err(CallError::Full);
            }
            calls.next += 1;
            let call = calls.next;
            calls.waiting.insert(call, waiting);
            call
        };
        let open = Open { route: Arc::clone(self), call };
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1);
        let deadline_ms = self.clock.now_ms().saturating_add(within_ms);
        match self.offer(lane, Kind::Request { call, deadline_ms }, bytes) {
            Ok(()) => Ok((open, answer)),
            Err(NotSent::Full) => Err(CallError::Full),
            Err(NotSent::Closed) => Err(CallError::NotUp),
        }
    }

    /// The answer to a call came.
    pub(crate) fn answered(&self, call: u64, answer: Bytes) {
        let waiting = lock(&self.calls).waiting.remove(&call);
        if let Some(waiting) = waiting {
            drop(waiting.send(Ok(answer))); // The caller may have given up.
        }
    }

    /// The next packet, encoded; `None`: nothing may be sent now.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut sending = lock(&self.sending);
        if sending.closed || !sending.heard {
            return None;
        }
        let owing = std::mem::take(&mut sending.owing);
        let packet = sending.outbox.next_packet(self.clock.now_ms());
        let packet = packet.or_else(|| owing.then(|| sending.outbox.empty_packet()))?;
        Some(self.stamped(&mut sending, packet))
    }

    /// A packet came: `theirs` is what the peer acknowledges, `mine` what we acknowledge from now
    /// on, at once if `owing`.
    pub(crate) fn received(&self, theirs: u64, mine: u64, owing: bool) {
        let mut sending = lock(&self.sending);
        sending.outbox.acknowledge(theirs);
        sending.acknowledged = mine;
        sending.owing |= owing;
        // What has waited for credit may have it now.
        if sending.owing || sending.outbox.has_some() {
            drop(sending);
            self.bell.notify_one();
        }
    }

    /// Says who we are.
    pub(crate) fn greet(&self, hello: Hello) {
        let mut sending = lock(&self.sending);
        if !sending.closed {
            let packet = Packet { hello: Some(hello), ..sending.outbox.empty_packet() };
            let packet = self.stamped(&mut sending, packet);
            (sending.greeter)(packet);
        }
    }

    /// The peer has our hello: what waits may go.
    pub(crate) fn heard(&self) {
        lock(&self.sending).heard = true;
        self.bell.notify_one();
    }

    /// Whether the peer has our hello.
    pub(crate) fn is_heard(&self) -> bool {
        lock(&self.sending).heard
    }

    /// Sends a heartbeat if nothing was sent for `heartbeat`.
    pub(crate) fn beat(&self, heartbeat: Duration) {
        let mut sending = lock(&self.sending);
        let silent_ms = self.clock.now_ms().saturating_sub(sending.last_sent_ms);
        if u128::from(silent_ms) >= heartbeat.as_millis() {
            sending.owing = true;
            drop(sending);
            self.bell.notify_one();
        }
    }

    /// Ends it: nothing is sent any longer, what waits is forgotten, all calls are broken.
    pub(crate) fn close(&self) {
        {
            let mut sending = lock(&self.sending);
            sending.closed = true;
            sending.outbox = Outbox::default();
        }
        let waiting = {
            let mut calls = lock(&self.calls);
            calls.closed = true;
            std::mem::take(&mut calls.waiting)
        };
        for waiting in waiting.into_values() {
            drop(waiting.send(Err(CallError::Broken))); // The caller may have given up.
        }
    }

    fn stamped(&self, sending: &mut Sending, mut packet: Packet) -> Vec<u8> {
        packet.incarnation = sending.stamp.incarnation;
        packet.link = sending.stamp.link;
        packet.acknowledged = sending.acknowledged;
        let encoded = packet.encode_to_vec();
        add(&self.counters.packets_sent, 1);
        add(&self.counters.bytes_sent, encoded.len() as u64);
        sending.last_sent_ms = self.clock.now_ms();
        encoded
    }
}

/// A call that is open; forgotten when it ends or nobody waits any longer.
struct Open {
    route: Arc<Route>,
    call: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.route.calls).waiting.remove(&self.call);
    }
}
