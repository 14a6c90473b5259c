//! OTP on ractor: processes with counted message queues, supervised, restarted, stopped in order.
//!
//! A process is synchronous code over its own state; its [`Inbox`] lives outside of it and survives
//! its crashes. Supervisors start children in order, restart them by [`Strategy`] and [`Restart`],
//! give up by [`Intensity`], and stop them in reverse order. Nothing here knows of chat, and nobody
//! else names ractor.
//!
//! A supervisor in twenty lines:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use supervision::*;
//!
//! struct Greeter;
//!
//! impl Process for Greeter {
//!     type Item = tokio::sync::oneshot::Sender<String>;
//!     type Args = ();
//!     async fn start(_: (), _: Arc<Inbox<Self::Item>>) -> Result<Self, ProcessError> {
//!         Ok(Self)
//!     }
//!     fn handle(&mut self, reply: Self::Item) -> Result<Flow, ProcessError> {
//!         reply.send("hello".to_owned()).map_err(|_| "nobody waits")?; // An Err restarts us.
//!         Ok(Flow::Continue)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let inbox = Inbox::new("greeter", 0, QueueLimits { high: 100, critical: 1_000 });
//! let children = vec![ChildSpec::process::<Greeter>("greeter", (), inbox.clone())];
//! let often = Intensity { restarts: 5, within: Duration::from_secs(10) };
//! let tree = Supervisor::start("root", Strategy::OneForOne, often, children).await?;
//!
//! let (reply, answer) = tokio::sync::oneshot::channel();
//! inbox.push(reply)?;
//! assert_eq!(answer.await?, "hello");
//! assert_eq!(tree.tree(), "root (one for one)\n    greeter\n");
//! tree.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//! 1. A failure costs the item in hand; items that wait reach the successor, in order.
//! 2. Nothing runs unsupervised: processes and tasks are children, connections are in a
//!    [`TaskGroup`], timers hold their inbox weakly.
//! 3. Nothing here is visible to other nodes: no message of this crate can be serialized.

mod child_spec;
mod clock;
mod control;
mod dynamic;
mod monitor;
mod outline;
mod paced;
mod process;
mod queue;
mod stopping;
mod strategy;
mod supervisor;
mod task;
mod tasks;
pub mod timer;

pub use child_spec::ChildSpec;
pub use clock::Clock;
pub use dynamic::Dynamic;
pub use monitor::{Counts, LongQueue, QueueMonitor, QueueReport, QueueSummary, Rates, kill};
pub use outline::{Outline, Role};
pub use paced::Paced;
pub use process::{Flow, Process, ProcessError};
pub use queue::{BATCH_ITEMS_MAX, Full, Inbox, QueueLimits};
pub use stopping::{StopSource, Stopping};
pub use strategy::{Intensity, Restart, Strategy};
pub use supervisor::{StartError, Supervisor};
pub use tasks::TaskGroup;
