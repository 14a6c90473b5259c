//! Promise 2: what was accepted is kept until every device has it. Killed under load, again and
//! again, with a judge who knows nothing of the server.

use crate::people::{node, nothing_wrong};
use std::time::Duration;
use tests::workload::{Plan, Workload};

const PATIENCE: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_2_twenty_kills_under_load_lose_double_and_disorder_nothing() {
    let mut node =
        node("[storage]\nsegment_bytes = \"256KiB\"\ncheckpoint_every = \"300ms\"").await;
    let plan =
        Plan { seed: 2, users: 8, tablets: 2, window: 16, sends: 1 << 32, drops_per_1000: 2 };
    let load = Workload::start(&node, plan).await.unwrap();
    for _ in 0..20 {
        load.progress(200, PATIENCE).await.unwrap();
        node.kill().unwrap();
        node.restart().await.unwrap();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    assert!(accepted >= 4000, "only {accepted} were accepted");
    nothing_wrong(accepted, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_2_graceful_restarts_under_load_lose_nothing() {
    let mut node = node("").await;
    let plan =
        Plan { seed: 3, users: 6, tablets: 1, window: 16, sends: 1 << 32, drops_per_1000: 0 };
    let load = Workload::start(&node, plan).await.unwrap();
    for _ in 0..3 {
        load.progress(200, PATIENCE).await.unwrap();
        assert!(node.stop().await.unwrap().success(), "exit 0 on SIGTERM");
        node.restart().await.unwrap();
    }
    let (accepted, wrong) = load.settle(PATIENCE).await.unwrap();
    nothing_wrong(accepted, &wrong);
}
