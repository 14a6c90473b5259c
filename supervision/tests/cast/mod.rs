//! The cast of the stories: a player that does as ordered, and a script that notes what happened.

#![allow(dead_code, reason = "each story file uses a part of the cast")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "used by tests only")]

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use supervision::{Flow, Inbox, Intensity, Process, ProcessError, QueueLimits};

pub(crate) const LIMITS: QueueLimits = QueueLimits { high: 1_000, critical: 10_000 };

pub(crate) fn often(restarts: u32) -> Intensity {
    Intensity { restarts, within: Duration::from_hours(1) }
}

/// Waits until `condition` holds; fails after 60 s.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("what was waited for did not happen within a minute");
}

/// What happened, in order. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    name: &'static str,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub(crate) fn named(&self, name: &'static str) -> Self {
        Self { name, lines: Arc::clone(&self.lines) }
    }

    /// Notes `line`; returns how many lines there are.
    pub(crate) fn say(&self, line: impl Into<String>) -> usize {
        let mut lines = self.lines.lock();
        lines.push(line.into());
        lines.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.lines.lock().len()
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock())
    }

    /// Waits for a line that begins with `start`.
    pub(crate) async fn has(&self, start: &str) {
        until(|| self.lines.lock().iter().any(|line| line.starts_with(start))).await;
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Say(u64),
    Panic(u64),
    Fail(u64),
    End,
}

pub(crate) struct Player(Script);

impl Process for Player {
    type Item = Order;
    type Args = Script;

    async fn start(script: Script, _inbox: Arc<Inbox<Order>>) -> Result<Self, ProcessError> {
        let name = script.name;
        if name == "broken" {
            return Err("no stage".into());
        }
        script.say(format!("start {name}"));
        Ok(Self(script))
    }

    fn handle(&mut self, order: Order) -> Result<Flow, ProcessError> {
        let name = self.0.name;
        match order {
            Order::Say(n) => {
                self.0.say(format!("{name} says {n}"));
                Ok(Flow::Continue)
            }
            Order::Panic(n) => panic!("{name} panics at {n} as the story says"),
            Order::Fail(n) => Err(format!("{name} fails at {n}").into()),
            Order::End => {
                self.0.say(format!("{name} ends"));
                Ok(Flow::Stop)
            }
        }
    }

    fn stop(&mut self) {
        self.0.say(format!("stop {}", self.0.name));
    }
}
