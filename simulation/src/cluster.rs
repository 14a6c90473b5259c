//! A run of the whole: a seed from calm through faults back to calm, and what must hold then.

use crate::seeds::Story;
use crate::stage::{DeviceEvent, Event, NODES, NodeEvent};
use crate::table::place_of;
use crate::world::World;
use actors::shard::{Command, Fault, Outcome, Usage};
use bytes::Bytes;
use proto::stored;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// After the faults everything must have arrived within this time, in ms.
const PATIENCE_MS: u64 = 90_000;

/// A refusal holds later sends back for so long at most, in ms: ten seconds, and the way there.
const HOLD_MS: u64 = 10_500;

/// Runs a seed. What went wrong, if something did.
pub(crate) fn run(seed: u64, tracing: bool) -> Result<Story, String> {
    run_with(seed, tracing, None)
}

/// Runs a seed with a fault in the cores.
pub(crate) fn run_with(seed: u64, tracing: bool, fault: Option<Fault>) -> Result<Story, String> {
    let mut world = World::of_seed(seed, tracing, fault);
    world.register()?;
    world.begin();
    world.run(world.plan.rough_until)?;
    world.heal();
    match seed % 16 {
        5 => world.refusals_end()?,
        13 => world.unlink_one()?,
        _ => {}
    }
    let end = world.stage.now + PATIENCE_MS;
    loop {
        world.run(world.stage.now + 1_000)?;
        let unfinished = world.unfinished();
        if unfinished.is_empty() {
            return Ok(Story { messages: world.judge.sends(), events: world.stage.order });
        }
        if world.stage.now >= end {
            return Err(format!("not finished: {}", unfinished.join("; ")));
        }
    }
}

impl World {
    /// A second device is unlinked while much is still under way to it: nobody waits for it any longer,
    /// and nothing is said to have reached it.
    fn unlink_one(&mut self) -> Result<(), String> {
        let Some(at) = self.devices.iter().position(|device| device.id.0 == 2) else {
            return Ok(());
        };
        let (user, device) = (self.devices[at].user, self.devices[at].id);
        self.judge.left(self.devices[at].who());
        let done = Arc::new(AtomicBool::new(false));
        for turn in 0.. {
            let remove = stored::RemoveDevice { user: user.0, by_device: 1, device: device.0 };
            let heard = Arc::clone(&done);
            let reply = Box::new(move |outcome: Outcome| {
                heard.fetch_or(outcome == Outcome::Done, Ordering::Relaxed);
            });
            let command = Command::RemoveDevice(remove);
            self.stage.local(turn % NODES, 0, NodeEvent::Propose(user.shard(), command, reply));
            self.run(self.stage.now + 1_000)?;
            if done.load(Ordering::Relaxed) {
                break;
            }
            if turn > 60 {
                return Err(format!("{user} cannot unlink a device"));
            }
        }
        self.devices[at].retired = true;
        self.stage.after(0, Event::Device { device: at, what: DeviceEvent::Lose });
        Ok(())
    }

    /// One person goes on writing and never repeats what is refused. Once everything else has arrived
    /// there is no reason left, and what was refused earlier holds later sends back for ten seconds
    /// at most.
    fn refusals_end(&mut self) -> Result<(), String> {
        self.devices[0].impatient = true;
        let others = self.judge.sends();
        let end = self.stage.now + PATIENCE_MS;
        let mut calm_since = None;
        while self.stage.now < end {
            // One at a time: a backlog would fill a small mailbox again, rightly refused.
            if self.devices[0].waiting() == 0 {
                let (body, stage) = (Bytes::from_static(b"anyone?"), &mut self.stage);
                self.devices[0].write(3_600 * 24, body, &mut self.judge, stage);
            }
            self.run(self.stage.now + 1_000)?;
            let calm = self.judge.missing_of_first(others, false).is_empty();
            calm_since = if calm { calm_since.or(Some(self.stage.now)) } else { None };
            let Some(since) = calm_since else { continue };
            let device = &self.devices[0];
            if device.refused_at > since + HOLD_MS {
                return Err(format!("{} is still refused", device.who()));
            }
            if self.stage.now > since + HOLD_MS + 2_000 {
                return Ok(());
            }
        }
        Ok(()) // Not calm: said by whoever waits for the rest.
    }

    /// What is not yet as it must be in the end.
    fn unfinished(&self) -> Vec<String> {
        let mut unfinished = self.judge.missing(!self.plan.small_mailboxes);
        if !unfinished.is_empty() {
            return unfinished;
        }
        for shard in self.stage.shards() {
            let seats = || self.nodes.iter().map(|node| &node.seats[&shard]);
            let places: Vec<_> = seats()
                .map(|seat| (place_of(seat.core.applied()), seat.core.machine().digest()))
                .collect();
            if places.windows(2).any(|pair| pair[0] != pair[1]) {
                unfinished.push(format!("shard {shard}: replicas differ: {places:?}"));
            }
            for seat in seats() {
                let me = seat.me;
                for device in self.devices.iter().filter(|device| device.user.shard() == shard) {
                    let held =
                        seat.core.machine().mailbox(device.user).map(|mailbox| mailbox.usage());
                    if held.is_some_and(|held| *held != Usage::default()) {
                        unfinished.push(format!("node {me}: {} holds {held:?}", device.user.0));
                    }
                }
                for to in self.stage.shards() {
                    if seat.core.machine().streams().has_news(to, 0) {
                        unfinished.push(format!("node {me}: {shard} owes something to {to}"));
                    }
                }
                if seat.table.bodies() > 0 {
                    unfinished
                        .push(format!("node {me}: {shard} keeps bodies of delivered messages"));
                }
            }
        }
        unfinished
    }
}
