//! What else happens in a shard: PINs, aliases, blocks, privacy, messages read. Nothing here changes
//! what must be delivered; all of it must be the same on every replica.

use crate::chance::Chance;
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
        let (user, by_device) = (self.devices[at].user, self.devices[at].id.0);
        let (shard, command) = match chance.below(7) {
            0 | 1 => self.registration(),
            2 => {
                let (other, blocked) = (chance.between(1_000, 1_003), chance.one_in(2));
                let set = stored::SetBlock { user: user.0, other, blocked, by_device };
                (user.shard(), Command::SetBlock(set))
            }
            3 => {
                let (other, contact) = (chance.between(1_000, 1_003), chance.one_in(2));
                let set = stored::SetContact { user: user.0, other, contact, by_device };
                (user.shard(), Command::SetContact(set))
            }
            4 => {
                let read_receipts = u32::from(chance.one_in(2)) + 1;
                let privacy = Some(stored::Privacy { last_seen: 2, online: 2, read_receipts });
                let set = stored::SetPrivacy { user: user.0, privacy, by_device };
                (user.shard(), Command::SetPrivacy(set))
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
        let digest = |chance: &mut Chance| vec![u8::try_from(chance.below(3)).unwrap()].into();
        let limits = stored::PinLimits {
            requests_per_hour: 4,
            attempts: 3,
            wrong_per_day: 5,
            wrong_per_hour: 20,
            sent_per_hour: 60,
        };
        let limits = Some(limits);
        let user = chance.between(2_000, 2_050);
        let to = stored::AliasOwner { user, claim: user };
        let key: bytes::Bytes = vec![9; 32].into();
        let command = match chance.below(4) {
            0 => Command::StartRegistration(Box::new(stored::StartRegistration {
                alias,
                short_digest: digest(chance),
                long_digest: digest(chance),
                ttl_s: 5,
                limits,
            })),
            1 => {
                let digest = digest(chance);
                Command::PinNotSent(stored::PinNotSent { alias, digest, limits })
            }
            2 => Command::ProvePin(Box::new(stored::ProvePin {
                alias,
                token: digest(chance),
                grant: Some(stored::PinGrant {
                    own: false,
                    digest: digest(chance),
                    expires_ms: u64::MAX / 2,
                    long: chance.one_in(2),
                }),
                digest: digest(chance),
                key,
                user_if_new: to.user,
                claim_if_new: to.claim,
                limits,
            })),
            _ => {
                let from = chance.between(2_000, 2_050);
                let from =
                    chance.one_in(2).then_some(stored::AliasOwner { user: from, claim: from });
                let (to, name) = (Some(to), String::new());
                Command::ClaimAlias(stored::ClaimAlias { alias, from, to, key, name }.into())
            }
        };
        (shard, command)
    }
}
