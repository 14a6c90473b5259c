//! All connections of the run, on one thread and one epoll: no task, no queue and no hop between a
//! frame and what answers it. What the frames mean is decided by a [`Traffic`].
//!
//! **Invariant:** one read and at most one write for each connection that has something to say; all
//! frames of one read share one time stamp.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::clock::{Clock, SECOND_NS, seconds};
use crate::hot::{self, Frame};
use crate::link::{Link, Scratch, Standing, Target};

/// Events taken from the kernel at once.
const EVENTS: usize = 512;

/// Token of the timer; slots stay below it.
const TIMER: u64 = u64::MAX;

/// Waits shorter than this use the timer, which is finer than a millisecond.
const FINE: Duration = Duration::from_millis(20);

/// Longest time in which nothing at all comes from the node before a run is given up.
const SILENCE_NS: u64 = 60 * SECOND_NS;

/// What a run does with its connections.
pub(crate) trait Traffic {
    /// A frame came. What goes into `out` is sent after the last frame of this read.
    fn frame(&mut self, at: At, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<()>;

    /// All frames of one read were handed over.
    fn batch(&mut self, at: At, out: &mut Vec<u8>) -> Result<()>;

    /// Called before each wait: opens, closes, sends by time, and says how long to wait.
    fn round(&mut self, net: &mut Net) -> Result<Next>;

    /// The node closed a connection.
    fn closed(&mut self, slot: usize) -> Result<()> {
        bail!("the node closed connection {slot}")
    }
}

/// Where and when a frame came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) slot: usize,
    pub(crate) now_ns: u64,
}

/// What a [`Traffic`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Frames, but no longer than this.
    Within(Duration),
    Finished,
}

/// A link and what epoll was last told about it.
struct Entry {
    link: Link,
    generation: u32,
    watches_write: bool,
}

/// The connections, each in a numbered slot.
pub(crate) struct Net {
    epoll: OwnedFd,
    timer: OwnedFd,
    targets: Vec<Target>,
    clock: Clock,
    slots: Vec<Option<Entry>>,
    scratch: Scratch,
    out: Vec<u8>,
    opened: u64,
    heard_ns: u64,
}

impl Net {
    pub(crate) fn new(targets: Vec<Target>, clock: Clock) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            timer,
            targets,
            clock,
            slots: Vec::new(),
            scratch: Scratch::new(),
            out: Vec::with_capacity(16 * 1024),
            opened: 0,
            heard_ns: clock.now_ns(),
        })
    }

    /// Points to servers that were started again; all connections must be closed.
    pub(crate) fn retarget(&mut self, targets: Vec<Target>) {
        self.targets = targets;
    }

    /// Now, by the clock of the run.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Begins to connect `slot`, to the servers in turn.
    pub(crate) fn open(&mut self, slot: usize) -> Result<()> {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let link = Link::begin(&self.targets[slot % self.targets.len()], self.opened)?;
        let generation = self.opened as u32;
        self.opened += 1;
        let data = token(slot, generation);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&self.epoll, link.socket(), data, flags)?;
        self.slots[slot] = Some(Entry { link, generation, watches_write: true });
        Ok(())
    }

    /// Closes `slot`, if it is open.
    pub(crate) fn close(&mut self, slot: usize) {
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = None;
        }
    }

    /// Closes all.
    pub(crate) fn close_all(&mut self) {
        self.slots.clear();
    }

    /// Sends `frames` on `slot`.
    pub(crate) fn send(&mut self, slot: usize, frames: &[u8]) -> Result<()> {
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            bail!("connection {slot} is not open");
        };
        entry.link.send(frames, &mut self.scratch)?;
        watch(&self.epoll, slot, entry)
    }

    /// Runs `traffic` to its end.
    pub(crate) fn run(&mut self, traffic: &mut impl Traffic) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        self.heard_ns = self.now_ns();
        while let Next::Within(wait) = traffic.round(self)? {
            events.clear();
            let timeout = self.arm(wait)?;
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for sockets"),
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == TIMER {
                    self.disarm()?;
                } else {
                    self.ready(token, flags, traffic)?;
                }
            }
            if events.is_empty() {
                let silent_ns = self.now_ns().saturating_sub(self.heard_ns);
                if silent_ns > SILENCE_NS {
                    bail!("nothing came from the node for {:.0} s", seconds(silent_ns));
                }
            }
        }
        Ok(())
    }

    /// The timeout for epoll; a short one is left to the timer.
    fn arm(&mut self, wait: Duration) -> Result<Timespec> {
        if wait.is_zero() || wait >= FINE {
            return Ok(timespec(wait));
        }
        let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(wait) };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(timespec(FINE))
    }

    fn disarm(&mut self) -> Result<()> {
        let mut ticks = [0; 8];
        match rustix::io::read(&self.timer, &mut ticks) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A socket is ready: reads once, hands the frames over, writes once.
    fn ready(
        &mut self,
        token: u64,
        flags: epoll::EventFlags,
        traffic: &mut impl Traffic,
    ) -> Result<()> {
        let slot = (token & u64::from(u32::MAX)) as usize;
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return Ok(());
        };
        if u64::from(entry.generation) != token >> 32 {
            return Ok(());
        }
        if entry.watches_write {
            if flags.contains(epoll::EventFlags::OUT) || !entry.link.connected {
                entry.link.writable(&mut self.scratch)?;
            }
            watch(&self.epoll, slot, entry)?;
        }
        if flags == epoll::EventFlags::OUT {
            return Ok(());
        }
        let standing = entry.link.receive(&mut self.scratch)?;
        let at = At { slot, now_ns: self.clock.now_ns() };
        self.heard_ns = at.now_ns;
        let mut used = 0;
        self.out.clear();
        while let Some((frame, length)) = hot::take(&self.scratch.plain[used..])? {
            traffic.frame(at, &frame, &mut self.out)?;
            used += length;
        }
        entry.link.keep(&self.scratch.plain[used..]);
        if standing == Standing::Closed {
            self.slots[slot] = None;
            return traffic.closed(slot);
        }
        if used > 0 {
            traffic.batch(at, &mut self.out)?;
        }
        if !self.out.is_empty() {
            entry.link.send(&self.out, &mut self.scratch)?;
        }
        watch(&self.epoll, slot, entry)
    }
}

/// Tells epoll whether to wait for room to write.
fn watch(epoll: &OwnedFd, slot: usize, entry: &mut Entry) -> Result<()> {
    let wants_write = entry.link.wants_write();
    if wants_write != entry.watches_write {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, wants_write);
        epoll::modify(epoll, entry.link.socket(), token(slot, entry.generation), flags)?;
        entry.watches_write = wants_write;
    }
    Ok(())
}

fn token(slot: usize, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64(slot as u64 | u64::from(generation) << 32)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
