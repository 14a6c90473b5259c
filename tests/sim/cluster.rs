//! A run of the whole: a seed from calm through faults back to calm, and what must hold then.

use crate::seeds::Story;
use crate::world::World;

/// After the faults everything must have arrived within this time, in ms.
const PATIENCE_MS: u64 = 90_000;

/// Runs a seed. What went wrong, if something did.
pub(crate) fn run(seed: u64, tracing: bool) -> Result<Story, String> {
    let mut world = World::of_seed(seed, tracing);
    world.register()?;
    world.begin();
    world.run(world.plan.rough_until)?;
    world.heal();
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
    /// What is not yet as it must be in the end.
    fn unfinished(&self) -> Vec<String> {
        let mut unfinished = self.judge.missing(!self.plan.small_mailboxes);
        if !unfinished.is_empty() {
            return unfinished;
        }
        for shard in self.stage.shards() {
            let seats = || self.nodes.iter().map(|node| &node.seats[&shard]);
            let places: Vec<_> =
                seats().map(|seat| (seat.applied.place, seat.machine.digest())).collect();
            if places.windows(2).any(|pair| pair[0] != pair[1]) {
                unfinished.push(format!("shard {shard}: replicas differ: {places:?}"));
            }
            for seat in seats() {
                let me = seat.me;
                for device in self.devices.iter().filter(|device| device.user.shard() == shard) {
                    let held = seat.machine.mailbox(device.user).map(|mailbox| mailbox.held());
                    if held.is_some_and(|h| (h.messages, h.bytes, h.notices) != (0, 0, 0)) {
                        unfinished.push(format!("node {me}: {} holds {held:?}", device.user.0));
                    }
                }
                for to in self.stage.shards() {
                    if seat.machine.streams().has_news(to, 0) {
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
