//! One round of hurting a cluster under load: from healthy to healthy, judged. Run by the stories of
//! promises 7 and 8 and by `chaos`.

use crate::checker::Wrong;
use crate::cluster::Cluster;
use crate::faults::Fault;
use crate::pause::Pause;
use crate::workload::Workload;
use anyhow::{Context as _, Result, ensure};
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Longest wait for service, for the last message, and for one content. Generous: the machine may be
/// compiling.
const PATIENCE: Duration = Duration::from_mins(2);

/// Longest wait after a fault until everyone can write to everyone: a refusal holds later sends back for
/// ten seconds at most; the rest is for elections, on a machine that may be compiling.
const HEARD: Duration = Duration::from_mins(1);

/// Sends that must be accepted before and after a fault.
const SENDS: usize = 50;

/// How a round went.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Messages accepted in it.
    pub accepted: usize,
    /// From the fault to its end.
    pub lasted: Duration,
    /// From the end of the fault until people were served again.
    pub served: Duration,
    /// The same until nothing more was to come.
    pub settled: Duration,
    /// The same until every replica and every sessions table had one content.
    pub converged: Duration,
    /// How long people waited who were on nodes that were not touched.
    pub pause: Pause,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "for {:.1} s; then {SENDS} sends after {:.1} s, all settled after {:.1} s, one content \
             after {:.1} s; {} accepted; {}",
            self.lasted.as_secs_f64(),
            self.served.as_secs_f64(),
            self.settled.as_secs_f64(),
            self.converged.as_secs_f64(),
            self.accepted,
            self.pause,
        )
    }
}

/// Injects `fault` for as long as it `lasts`, heals it, and judges: nothing lost, doubled, disordered
/// or refused for good, and one content everywhere.
///
/// # Errors
/// Whatever is wrong, or is not right again in time.
pub async fn round(
    cluster: &mut Cluster,
    load: &mut Workload,
    fault: &Fault,
    lasts: Duration,
) -> Result<Round> {
    load.progress(SENDS, PATIENCE).await.context("before the fault")?;
    load.measure(&fault.touched(cluster.size()));
    let begun = Instant::now();
    fault.inject(cluster).await.context("inject")?;
    sleep(lasts).await; // how long it lasts is part of the fault
    fault.heal(cluster).await.context("heal")?;
    let healed = Instant::now();
    load.progress(SENDS, PATIENCE).await.context("after the fault")?;
    let (pause, served) = (load.measured(), healed.elapsed());
    load.everyone_is_heard(HEARD).await.context("refusals outlive their reason")?;
    let (accepted, wrong) = load.quiet(PATIENCE).await?;
    judge(accepted, &wrong)?;
    let settled = healed.elapsed();
    cluster.converge(PATIENCE).await.context("converge")?;
    let converged = healed.elapsed();
    load.go_home();
    load.go_on();
    Ok(Round { accepted, lasted: healed - begun, served, settled, converged, pause })
}

/// Fails if the judge found anything, with the first few.
///
/// # Errors
/// What is wrong.
pub fn judge(accepted: usize, wrong: &[Wrong]) -> Result<()> {
    let first: Vec<String> = wrong.iter().take(30).map(ToString::to_string).collect();
    ensure!(wrong.is_empty(), "of {accepted}, {} wrong:\n{}", wrong.len(), first.join("\n"));
    Ok(())
}
