//! A batch as a reader sees it, and the outcomes of another node's batch as they come.

use actors::shard::{Command, Outcome};
use proto::stored;
use std::sync::{Arc, Mutex};

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

/// Whom to tell.
pub(crate) type Answer = Box<dyn FnOnce(Vec<Outcome>) + Send>;

/// Gathers the outcomes of a batch and tells them together.
#[derive(Clone)]
pub(crate) struct Collect(Arc<Mutex<Gathered>>);

type Gathered = (Vec<Option<Outcome>>, Option<Answer>);

impl Collect {
    pub(crate) fn new(count: usize, answer: Answer) -> Self {
        Self(Arc::new(Mutex::new((vec![None; count], Some(answer)))))
    }

    pub(crate) fn put(&self, place: usize, outcome: Outcome) {
        let mut gathered = self.0.lock().unwrap();
        assert!(gathered.0[place].is_none(), "a command is answered once");
        gathered.0[place] = Some(outcome);
        if gathered.0.iter().all(Option::is_some)
            && let Some(answer) = gathered.1.take()
        {
            answer(std::mem::take(&mut gathered.0).into_iter().flatten().collect());
        }
    }
}
