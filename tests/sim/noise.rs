//! What else happens in a shard: PINs, aliases, blocks, privacy, messages read. Nothing here changes
//! what must be delivered; all of it must be the same on every replica.

use crate::stage::{Event, NODES, NodeEvent};
use crate::world::World;
use actors::shard::Command;
use proto::{Alias, stored};

impl World {
    /// Someone does something, now and then.
    pub(crate) fn noise(&mut self) {
        if self.stage.now >= self.plan.rough_until {
            return;
        }
        let late = self.stage.chance.between(50, 900);
        self.stage.after(late, Event::Noise);
        let chance = &mut self.stage.chance;
        let (node, at) = (chance.index(NODES), chance.index(self.devices.len()));
        let user = self.devices[at].user;
        let (shard, command) = match chance.below(7) {
            0 | 1 => self.registration(),
            2 => {
                let (other, blocked) = (chance.between(1_000, 1_003), chance.one_in(2));
                let set = stored::SetBlock { user: user.0, other, blocked };
                (user.shard(), Command::SetBlock(set))
            }
            3 => {
                let (other, contact) = (chance.between(1_000, 1_003), chance.one_in(2));
                let set = stored::SetContact { user: user.0, other, contact };
                (user.shard(), Command::SetContact(set))
            }
            4 => {
                let read_receipts = u32::from(chance.one_in(2)) + 1;
                let privacy = Some(stored::Privacy { last_seen: 2, online: 2, read_receipts });
                (user.shard(), Command::SetPrivacy(stored::SetPrivacy { user: user.0, privacy }))
            }
            _ => {
                let peer = chance.index(self.devices.len());
                let (reader, sender) = (&self.devices[at], &self.devices[peer]);
                let read = stored::MarkRead {
                    user: user.0,
                    device: reader.id.0,
                    from: sender.user.0,
                    from_device: sender.id.0,
                    send_ids: vec![1],
                };
                (user.shard(), Command::MarkRead(read))
            }
        };
        if self.stage.shards().contains(&shard) {
            let propose = NodeEvent::Propose(shard, command, Box::new(|_| ()));
            self.stage.local(node, 0, propose);
        }
    }

    fn registration(&mut self) -> (proto::ShardId, Command) {
        let chance = &mut self.stage.chance;
        let alias = format!("person-{}", chance.below(40));
        let shard = Alias::parse(&alias).unwrap().shard();
        let digest = vec![u8::try_from(chance.below(3)).unwrap()].into();
        let command = if chance.one_in(2) {
            let start = stored::StartRegistration { alias, digest, ttl_s: 5, requests_max: 4 };
            Command::StartRegistration(start)
        } else {
            let user_if_new = chance.between(2_000, 3_000);
            Command::ProvePin(stored::ProvePin { alias, digest, user_if_new, attempts_max: 3 })
        };
        (shard, command)
    }
}
