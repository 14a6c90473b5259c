//! The actor of a replica dies, and another goes on with the tables, the log and what it has left.

use crate::seat::{By, Seat};
use crate::stage::{Message, NodeEvent, Stage, by};
use crate::table::place_of;
use actors::shard::{Item, Outcome, ReplicaCore, Takers};
use proto::Code;

impl Seat {
    /// Its actor will die once it has carried out so many actions more.
    pub(crate) fn dies_after(&mut self, actions: u64) {
        self.dies_after = Some(actions);
    }

    /// True if the actor dies now, before its next action.
    pub(crate) fn dies(&mut self) -> bool {
        let left = self.dies_after.take();
        self.dies_after = left.and_then(|left| left.checked_sub(1));
        left == Some(0)
    }

    /// What comes of an action reaches only the actor that has carried it out.
    pub(crate) fn comes(&self, late: u64, what: NodeEvent, stage: &mut Stage) {
        let came = NodeEvent::Came(self.shard, self.actor, Box::new(what));
        stage.local(self.me, late, came);
    }

    /// The actor dies, and the next one starts.
    pub(crate) fn restart(&mut self, stage: &mut Stage) {
        let (me, shard) = (self.me, self.shard);
        stage.note(|| by(me, format_args!("shard {shard}: its replica dies and restarts")));
        self.actor += 1;
        let left = self.core.leave();
        let loaded = self.table.load(shard, self.limits);
        self.core =
            ReplicaCore::new(crate::seat::id(me), shard, loaded, 2_000).with_fault(self.fault);
        let known = self.core.inherit(left);
        for (_, reply) in self.replies.extract_if(.., |token, _| !known.contains(token)) {
            reply(Outcome::Refused(Code::Unavailable));
        }
        for (to, number) in std::mem::take(&mut self.peers).into_values() {
            stage.send(me, to, Message::Outcomes { shard, number, outcomes: Vec::new() });
        }
        for asked in std::mem::take(&mut self.questions).into_values() {
            match asked {
                By::Here(question) => stage.local(me, 0, NodeEvent::Answered(question, None)),
                By::Peer(to, number) => {
                    stage.send(me, to, Message::Answer { shard, number, answered: None });
                }
            }
        }
        self.forwarding.clear();
        self.asking.clear();
        let entries = self.raft.handed_after(place_of(&self.table.applied).index);
        self.step(Item::Committed(entries, self.busy.unwrap_or_default()), stage);
        self.stands(stage);
        let takers = Takers::Several;
        if stage.pace(me, |rounds, now| rounds.ended((shard, takers), None, now)) {
            stage.local(me, 0, NodeEvent::RoundBegins(shard));
        }
    }
}
