//! What a replica's core asks of its tables is done here, some time later.

use crate::seat::Seat;
use crate::stage::{Stage, by};
use crate::table::{Table, place_of};
use actors::shard::{Answered, Item, OriginsRead, PageRead, Token, origin_row};
use proto::stored;

impl Seat {
    pub(crate) fn read_page(&mut self, token: Token, read: PageRead, stage: &mut Stage) {
        let rows = self.table.first_messages((read.user, read.after, read.up_to), read.limits);
        self.reply(token, Some(Answered::Page(read.finish(rows))), stage);
    }

    pub(crate) fn read_origins(&mut self, read: OriginsRead, stage: &mut Stage) {
        let rows = self.table.messages(read.user, read.after, read.up_to);
        let rows = rows.map(|(seq, envelope)| origin_row(seq, envelope)).collect();
        let user = read.user;
        self.step(Item::OriginsRead(user, Some(read.finish(rows))), stage);
    }

    pub(crate) fn read_due(&mut self, now_ms: u64, stage: &mut Stage) {
        let due = self.table.due(now_ms).map(|(user, seq, envelope)| stored::Expired {
            user: user.0,
            origin: Some(origin_row(seq, envelope)),
        });
        let due = due.collect();
        self.step(Item::DueRead(due), stage);
    }

    pub(crate) fn write_checkpoint(
        &mut self,
        applied: Box<stored::Applied>,
        rows: Vec<storage::Row>,
        stage: &mut Stage,
    ) {
        // Tables that a snapshot has replaced meanwhile are not written over.
        if place_of(&applied).index > place_of(&self.table.applied).index {
            self.table.write((*applied).clone(), rows);
        }
        self.step(Item::CheckpointWritten(applied), stage);
    }

    pub(crate) fn take_snapshot(&mut self, table: &Table, stage: &mut Stage) {
        let place = place_of(&table.applied);
        // The group does one thing after the other.
        if place.index <= self.raft.committed || self.busy.is_some() {
            return;
        }
        stage.note(|| by(self.me, format_args!("shard {}: snapshot {place:?}", self.shard)));
        self.table = table.clone();
        self.raft.install(place);
        let token = self.token();
        self.busy = Some(token);
        self.step(Item::Reload(token), stage);
    }

    pub(crate) fn load(&mut self, token: Token, stage: &mut Stage) {
        let loaded = self.table.load(self.shard, self.limits);
        self.step(Item::Loaded(Box::new(loaded), token), stage);
        let digest = self.core.machine().digest();
        self.digests.push((place_of(self.core.applied()).index, digest));
    }
}
