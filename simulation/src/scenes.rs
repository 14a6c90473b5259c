//! Stories that no seed tells by chance: each is arranged, and said what comes of it.

use crate::seat::Seat;
use crate::stage::{DeviceEvent, Event};
use crate::world::World;
use bytes::Bytes;

/// Two people and one shard, led by node 2, in calm weather.
fn two_people() -> World {
    let mut world = World::of_two();
    world.register().unwrap();
    while !world.seat_of(2).core.is_ready() {
        world.elect_node(2);
        let soon = world.stage.now + 1_000;
        world.run(soon).unwrap();
    }
    world.connect(0, 0);
    world.connect(1, 1);
    let soon = world.stage.now + 500;
    world.run(soon).unwrap();
    world
}

impl World {
    fn seat_of(&self, node: usize) -> &Seat {
        self.nodes[node].seats.values().next().unwrap()
    }

    fn writes(&mut self, device: usize, count: usize) {
        for _ in 0..count {
            let body = Bytes::from_static(b"hello");
            self.devices[device].write(86_400, body, &mut self.judge, &mut self.stage);
        }
    }
}

/// What one node still wants to propose may be old: the device has long gone on elsewhere. A run of
/// ids is remembered as a whole, however long it has become meanwhile.
#[test]
fn a_send_that_waited_while_its_device_sent_200_others_elsewhere_is_stored_once() {
    let mut world = two_people();
    world.stage.set_cut(0, 2, true);
    world.stage.set_cut(2, 0, true);
    world.devices[0].set_window(64);
    world.writes(0, 64);
    world.run(world.stage.now + 20).unwrap();
    world.stage.after(0, Event::Device { device: 0, what: DeviceEvent::Lose });
    world.run(world.stage.now).unwrap();
    world.connect(0, 1);
    world.devices[0].set_window(64);
    world.writes(0, 200);
    world.run(world.stage.now + 600).unwrap();
    assert!(world.devices[0].waiting() == 0, "all was accepted elsewhere");
    world.stage.set_cut(0, 2, false);
    world.stage.set_cut(2, 0, false);
    world.run(world.stage.now + 8_000).unwrap();
    assert!(world.judge.missing(true).is_empty(), "{:?}", world.judge.missing(true));
}
