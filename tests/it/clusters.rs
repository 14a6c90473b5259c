//! What the stories of clusters are told with: one cluster at a time, people spread over it.

use crate::people::{PROGRAM, settings};
use std::time::Duration;
use tests::cluster::{Cables, Cluster, Options};
use tests::workload::{Plan, Workload};
use tokio::sync::{Mutex, MutexGuard};

static ONE: Mutex<()> = Mutex::const_new(());

/// A cluster has the machine's attention for itself, as far as clusters go.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    ONE.lock().await
}

/// Three nodes.
pub(crate) fn three(cables: Cables) -> Options {
    let storage = "[storage]\nsegment_bytes = \"1MiB\"\ncheckpoint_every = \"1s\"\n\
        free_bytes_min = \"16MiB\"";
    Options { cables, settings: settings(storage), ..Options::of(3) }
}

pub(crate) async fn cluster(options: Options) -> Cluster {
    Cluster::start(PROGRAM, options).await.unwrap()
}

/// Ten people, two with a second device on another node, who do not take the whole machine.
pub(crate) async fn people(cluster: &Cluster, seed: u64) -> Workload {
    let plan = Plan { seed, users: 10, tablets: 2, window: 8, sends: u64::MAX, drops_per_1000: 1 };
    Workload::across(cluster.nodes(), plan, Duration::from_millis(100)).await.unwrap()
}
