//! The rounds of a node's shards, by its clock: who may propose now, and who is told later.

use super::rounds::{Rounds, Takers, Turn, Wish};
use super::{ShardItem, Shards};
use proto::ShardId;
use tokio::time::Instant;

/// The rounds in which the shards of this node propose.
#[derive(Default)]
pub(super) struct Pacing {
    rounds: Rounds,
    /// Somebody looks then whether the next round is due.
    watched: Option<Instant>,
}

impl Shards {
    /// Whether this shard may propose now; otherwise [`ShardItem::RoundBegins`] says when.
    pub(super) fn wants_round(&self, shard: ShardId, wish: Wish) -> bool {
        self.pace(|pacing, now| pacing.rounds.wants(shard, wish, now))
    }

    /// This shard's batch is no longer under way; it may want the next round, and gets it now or hears
    /// of it later.
    pub(super) fn round_ended(&self, batch: (ShardId, Takers), wish: Option<Wish>) -> bool {
        self.pace(|pacing, now| pacing.rounds.ended(batch, wish, now))
    }

    fn pace(&self, step: impl FnOnce(&mut Pacing, Instant) -> Turn) -> bool {
        let mut pacing = self.rounds.lock();
        let turn = step(&mut pacing, Instant::now());
        if let Some(due) = pacing.rounds.due()
            && pacing.watched.is_none_or(|watched| due < watched)
        {
            pacing.watched = Some(due);
            self.look_again(due);
        }
        drop(pacing);
        for shard in turn.others {
            self.inbox(shard).force(ShardItem::RoundBegins);
        }
        turn.mine
    }

    #[allow(clippy::disallowed_methods, reason = "the task does nothing that can fail")]
    fn look_again(&self, due: Instant) {
        let shards = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            shards.pace(|pacing, now| {
                pacing.watched.take_if(|watched| *watched <= due);
                pacing.rounds.looked_at(now)
            });
        });
    }
}
