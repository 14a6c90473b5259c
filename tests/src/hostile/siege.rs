//! One node under attack, with honest people on it who write to each other all the while.
//!
//! **Invariant:** an attack has not ended before honest people got on beside it.

use crate::hostile::budget::{Bounds, Meter, Taken};
use crate::node::{Node, PATIENCE};
use crate::round::judge;
use crate::workload::{Plan, Workload};
use anyhow::{Context as _, Result, ensure};
use std::future::Future;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Sends of honest people that must be accepted during each attack.
const SENDS: usize = 60;

/// How often the node is measured.
const LOOK: Duration = Duration::from_millis(50);

/// Honest people: a few, who also lose their connection now and then, and so log in during the attack.
const PEOPLE: Plan =
    Plan { seed: 66, users: 6, tablets: 1, window: 8, sends: u64::MAX, drops_per_1000: 20 };

/// Time between two sends of an honest device.
const PACE: Duration = Duration::from_millis(60);

/// A node, honest people on it, and what is measured.
#[derive(Debug)]
pub struct Siege {
    /// The node.
    pub node: Node,
    honest: Workload,
    meter: Meter,
}

impl Siege {
    /// Lets honest people begin on `node`.
    ///
    /// # Errors
    /// If they cannot register or get on before any attack.
    pub async fn lay(node: Node) -> Result<Self> {
        let honest = Workload::across(std::slice::from_ref(&node), PEOPLE, PACE).await?;
        honest.progress(SENDS, PATIENCE).await.context("before the attack")?;
        let meter = Meter::begin(&node)?;
        Ok(Self { node, honest, meter })
    }

    /// Runs `attack` to its end; honest people must get on beside it.
    ///
    /// # Errors
    /// The attack's own, or if honest people are not served.
    pub async fn under<T>(&mut self, attack: impl Future<Output = Result<T>>) -> Result<T> {
        let Self { honest, meter, .. } = self;
        let served = async {
            let served = honest.progress(SENDS, PATIENCE).await;
            served.context("honest people are not served during the attack")
        };
        let watched = async {
            let mut clock = interval(LOOK);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                clock.tick().await;
                if let Err(error) = meter.look() {
                    return error;
                }
            }
        };
        tokio::select! {
            both = async { tokio::join!(attack, served) } => {
                both.1?;
                both.0
            }
            error = watched => Err(error.context("the node is gone")),
        }
    }

    /// Ends it: every send of honest people was accepted, seen once, in order, and ticked, and the
    /// attack took no more than `bounds`.
    ///
    /// # Errors
    /// Whatever is wrong.
    pub async fn lift(mut self, bounds: Bounds) -> Result<Taken> {
        let taken = self.meter.look()?;
        let refused = self.honest.refused();
        let (accepted, wrong) = self.honest.settle(PATIENCE).await?;
        judge(accepted, &wrong)?;
        ensure!(refused == 0, "{refused} sends of honest people were refused");
        ensure!(self.node.runs(), "the node has ended");
        bounds.hold(&taken)?;
        Ok(taken)
    }
}
