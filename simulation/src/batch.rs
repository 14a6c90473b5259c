//! A batch as a reader of a story sees it.

use actors::shard::Command;
use proto::stored;

/// What a batch holds, for a reader.
pub(crate) fn list(batch: &stored::Batch) -> String {
    let one = |command: &stored::Command| match &command.kind {
        Some(Command::Append(a)) => {
            format!("send {} {}/{}->{}", a.send_id, a.from % 1000, a.from_device, a.to % 1000)
        }
        Some(Command::Ack(ack)) => format!("ack {}/{} {}", ack.user % 1000, ack.device, ack.seq),
        Some(Command::Spill(_)) => "checkpoint".to_owned(),
        Some(Command::TakeNotices(t)) => {
            format!("take {} from {}", t.notices.len(), t.from_shard)
        }
        Some(Command::SettleNotices(s)) => format!("settle {} to {}", s.number, s.to_shard),
        Some(Command::Release(r)) => format!("release {} of {}", r.up_to, r.user % 1000),
        Some(other) => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
        None => "nothing".to_owned(),
    };
    let all: Vec<String> = batch.commands.iter().map(one).collect();
    format!("batch {}: {}", batch.number, all.join(", "))
}
