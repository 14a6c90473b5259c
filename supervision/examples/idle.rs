//! Prints what one idle process costs in memory: `cargo run --profile dist -p supervision --example idle
//! -- 100000`. Linux only, for it reads `/proc`.

#![allow(clippy::print_stdout, reason = "printing is what this is for")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use supervision::{
    ChildSpec, Dynamic, Flow, Inbox, Intensity, Process, ProcessError, QueueLimits, Strategy,
    Supervisor,
};

static HANDLED: AtomicUsize = AtomicUsize::new(0);

struct Idle;

impl Process for Idle {
    type Item = [u64; 4];
    type Args = ();

    async fn start((): (), _inbox: Arc<Inbox<[u64; 4]>>) -> Result<Self, ProcessError> {
        Ok(Self)
    }

    fn handle(&mut self, _item: [u64; 4]) -> Result<Flow, ProcessError> {
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Ok(Flow::Continue)
    }
}

/// Resident memory of this process, in KiB.
fn resident_kib() -> Result<usize, ProcessError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse()?)
}

async fn handled(count: usize) {
    while HANDLED.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), ProcessError> {
    let count: usize = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let often = Intensity { restarts: 1, within: Duration::from_secs(1) };
    let handle = Dynamic::<Idle>::new("idle", often, |_, ()| {});
    let children = vec![ChildSpec::dynamic("idle", &handle)];
    let tree = Supervisor::start("root", Strategy::OneForOne, often, children).await?;
    let before = resident_kib()?;
    let limits = QueueLimits { high: 100, critical: 1_000 };
    let started = tokio::time::Instant::now();
    let inboxes: Vec<_> = (0..count as u64)
        .map(|id| {
            let inbox = Inbox::new("idle", id, limits);
            inbox.force([0; 4]);
            handle.start_child(id, (), Arc::clone(&inbox));
            inbox
        })
        .collect();
    handled(count).await;
    let elapsed = started.elapsed();
    let after = resident_kib()?;
    println!(
        "{count} idle processes: {} bytes each; started and served one item each in {elapsed:?}",
        (after - before) * 1024 / count
    );
    let started = tokio::time::Instant::now();
    for _ in 0..100 {
        for inbox in &inboxes {
            inbox.force([1; 4]);
        }
    }
    handled(count * 101).await;
    println!("100 more items each, round robin: {:?}", started.elapsed());
    let started = tokio::time::Instant::now();
    for index in 0..10_000_000 {
        inboxes[0].force([index; 4]);
    }
    handled(count * 101 + 10_000_000).await;
    println!("10 million items to one: {:?}", started.elapsed());
    let now = std::time::Instant::from(tokio::time::Instant::now());
    let started = tokio::time::Instant::now();
    let report = supervision::QueueMonitor::new().sample(now);
    println!("one sample of {} queues: {:?}", report.total.queues, started.elapsed());
    tree.stop().await;
    Ok(())
}
