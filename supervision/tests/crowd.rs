//! Many at once: no wake-up is lost under fire, and children by the ten thousand.

#![allow(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod cast;

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cast::{LIMITS, often, until};
use supervision::{
    ChildSpec, Dynamic, Flow, Full, Inbox, Process, ProcessError, QueueLimits, QueueMonitor,
    Strategy, Supervisor,
};

/// What the tallies of one test share.
#[derive(Default)]
struct Tally {
    starts: AtomicU64,
    seen: AtomicU64,
    panics: AtomicU64,
    /// Last item of each producer, to prove order.
    last: Mutex<Vec<u64>>,
    disorder: AtomicU64,
}

/// Counts items; panics at each whose number is a multiple of `panic_every`.
struct Counter(Arc<Tally>);

struct Item {
    producer: usize,
    number: u64,
    panics: bool,
}

impl Process for Counter {
    type Item = Item;
    type Args = Arc<Tally>;

    async fn start(tally: Arc<Tally>, _: Arc<Inbox<Item>>) -> Result<Self, ProcessError> {
        tally.starts.fetch_add(1, Relaxed);
        Ok(Self(tally))
    }

    fn handle(&mut self, item: Item) -> Result<Flow, ProcessError> {
        self.0.seen.fetch_add(1, Relaxed);
        {
            let mut last = self.0.last.lock();
            if last[item.producer] >= item.number {
                self.0.disorder.fetch_add(1, Relaxed);
            }
            last[item.producer] = item.number;
        }
        if item.panics {
            self.0.panics.fetch_add(1, Relaxed);
            // Quiet: a thousand backtraces would hide what matters.
            std::panic::resume_unwind(Box::new("as the story says"));
        }
        Ok(Flow::Continue)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_while_four_producers_push_and_the_process_panics() {
    const EACH: u64 = 100_000;
    let tally = Arc::new(Tally { last: Mutex::new(vec![0; 4]), ..Tally::default() });
    let inbox = Inbox::new("wakeups", 0, QueueLimits { high: 100, critical: 200 });
    let spec = ChildSpec::process::<Counter>("counter", Arc::clone(&tally), Arc::clone(&inbox));
    let tree =
        Supervisor::start("root", Strategy::OneForOne, often(u32::MAX), vec![spec]).await.unwrap();
    let producers: Vec<_> = (0..4)
        .map(|producer| {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                for number in 1..=EACH {
                    let panics = number % 97 == 0;
                    let mut item = Item { producer, number, panics };
                    while let Err(Full(back)) = inbox.push(item) {
                        item = back;
                        std::thread::yield_now();
                    }
                    if number % 1_000 == 0 {
                        // Let the queue run empty, so that each push must wake the process again.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            })
        })
        .collect();
    until(|| producers.iter().all(std::thread::JoinHandle::is_finished)).await;
    until(|| tally.seen.load(Relaxed) == 4 * EACH).await;
    let panics = tally.panics.load(Relaxed);
    assert_eq!(panics, 4 * (EACH / 97));
    until(|| tally.starts.load(Relaxed) == panics + 1).await;
    assert_eq!(tally.disorder.load(Relaxed), 0);
    assert!(inbox.is_empty());
    tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_children_are_restarted_and_lose_nothing() {
    const CHILDREN: u64 = 20_000;
    let handle = Dynamic::<Counter>::new("crowd", often(3), |_, _| {});
    let tally = Arc::new(Tally { last: Mutex::new(vec![0; 20_000]), ..Tally::default() });
    let start = |id| {
        let inbox = Inbox::new("crowd", id, LIMITS);
        handle.start_child(id, Arc::clone(&tally), Arc::clone(&inbox));
        inbox
    };
    // Half of them before their supervisor runs.
    let mut inboxes: Vec<_> = (0..CHILDREN / 2).map(start).collect();
    let children = vec![ChildSpec::dynamic("crowd", &handle)];
    let tree = Supervisor::start("root", Strategy::OneForOne, often(0), children).await.unwrap();
    inboxes.extend((CHILDREN / 2..CHILDREN).map(start));
    for (producer, inbox) in inboxes.iter().enumerate() {
        inbox.force_all((1..=3).map(|number| Item { producer, number, panics: number == 2 }));
    }
    until(|| tally.seen.load(Relaxed) == 3 * CHILDREN).await;
    assert_eq!(tally.starts.load(Relaxed), 2 * CHILDREN);
    assert_eq!(handle.restarts(), CHILDREN);
    assert_eq!(handle.count(), 20_000);
    assert_eq!(tally.disorder.load(Relaxed), 0);
    tree.stop().await;
}

#[tokio::test]
async fn a_child_that_fails_too_often_is_given_up_and_its_sibling_lives() {
    let given_up = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&given_up);
    let handle = Dynamic::<cast::Player>::new("pair", often(2), move |id, _| note.lock().push(id));
    let children = vec![ChildSpec::dynamic("pair", &handle)];
    let tree = Supervisor::start("root", Strategy::OneForOne, often(0), children).await.unwrap();
    let script = cast::Script::default();
    let [good, bad] = [1, 2].map(|id| Inbox::new("pair", id, LIMITS));
    handle.start_child(1, script.named("good"), Arc::clone(&good));
    handle.start_child(2, script.named("bad"), Arc::clone(&bad));
    bad.force_all((0..3).map(cast::Order::Fail));
    until(|| *given_up.lock() == [2]).await;
    until(|| handle.count() == 1).await;
    good.push(cast::Order::Say(1)).unwrap();
    script.has("good says 1").await;
    assert_eq!(handle.restarts(), 2);
    tree.stop().await;
}

#[tokio::test]
async fn a_child_that_ends_is_forgotten_and_its_id_can_start_again() {
    let handle = Dynamic::<cast::Player>::new("again", often(2), |_, _| {});
    let children = vec![ChildSpec::dynamic("again", &handle)];
    let tree = Supervisor::start("root", Strategy::OneForOne, often(0), children).await.unwrap();
    let script = cast::Script::default();
    let first = Inbox::new("again", 1, LIMITS);
    let second = Inbox::new("again", 1, LIMITS);
    second.push(cast::Order::Say(1)).unwrap();
    handle.start_child(1, script.named("first"), Arc::clone(&first));
    handle.start_child(1, script.named("second"), Arc::clone(&second));
    script.has("start first").await;
    first.push(cast::Order::End).unwrap();
    script.has("second says 1").await;
    assert_eq!(script.take(), ["start first", "first ends", "start second", "second says 1"]);
    second.push(cast::Order::End).unwrap();
    until(|| handle.count() == 0).await;
    tree.stop().await;
}

#[tokio::test]
async fn children_come_back_with_their_queues_when_a_sibling_takes_their_supervisor_down() {
    let handle = Dynamic::<cast::Player>::new("rest", often(2), |_, _| {});
    let script = cast::Script::default();
    let storage = Inbox::new("storage", 0, LIMITS);
    let first = ChildSpec::process::<cast::Player>(
        "storage",
        script.named("storage"),
        Arc::clone(&storage),
    );
    let children = vec![first, ChildSpec::dynamic("rest", &handle)];
    let tree = Supervisor::start("root", Strategy::RestForOne, often(1), children).await.unwrap();
    let user = Inbox::new("rest", 1, LIMITS);
    handle.start_child(1, script.named("user"), Arc::clone(&user));
    script.has("start user").await;
    script.take();
    storage.push(cast::Order::Panic(1)).unwrap();
    script.has("start user").await;
    assert_eq!(script.take(), ["stop user", "start storage", "start user"]);
    user.push(cast::Order::Say(1)).unwrap();
    script.has("user says 1").await;
    tree.stop().await;
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test that moves time itself")]
fn the_monitor_reports_lengths_totals_and_rates() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut monitor = QueueMonitor::new();
    let limits = QueueLimits { high: 10, critical: 30 };
    let inboxes: Vec<_> = (0..12).map(|id| Inbox::new("watched", id, limits)).collect();
    monitor.sample(at(0));
    for (length, inbox) in inboxes.iter().enumerate() {
        inbox.force_all(0..length * 3);
    }
    let report = monitor.sample(at(2));
    let watched = report.kinds["watched"];
    assert_eq!((watched.queues, watched.not_empty), (12, 11));
    assert_eq!((watched.len, watched.longest), (198, 33));
    assert_eq!((watched.high, watched.critical), (8, 2));
    assert_eq!(watched.counts.enqueued, 198);
    assert!((watched.enqueued_per_s.over_1_s - 99.0).abs() < 1e-9);
    let longest: Vec<_> =
        report.ten_longest.iter().filter(|long| long.kind == "watched").map(|q| q.len).collect();
    assert!(longest.is_sorted_by(|a, b| a >= b) && longest.first() == Some(&33), "{longest:?}");
    assert!(report.ten_longest.len() <= 10);

    drop(inboxes);
    let report = monitor.sample(at(102));
    let watched = report.kinds["watched"];
    assert_eq!((watched.queues, watched.len), (0, 0));
    assert_eq!((watched.counts.enqueued, watched.counts.dropped), (198, 198));
    assert!(watched.enqueued_per_s.over_10_s.abs() < 1e-9);
    assert!((watched.enqueued_per_s.over_100_s - 0.0).abs() < 1e-9);
}

#[tokio::test]
async fn the_monitor_counts_what_a_process_takes() {
    let script = cast::Script::default();
    let inbox = Inbox::new("taken", 9, LIMITS);
    let spec = ChildSpec::process::<cast::Player>("a", script.named("a"), Arc::clone(&inbox));
    let tree = Supervisor::start("root", Strategy::OneForOne, often(1), vec![spec]).await.unwrap();
    inbox.force_all((0..100).map(cast::Order::Say));
    until(|| inbox.is_empty()).await;
    let now = tokio::time::Instant::now().into_std();
    let taken = QueueMonitor::new().sample(now).kinds["taken"];
    assert_eq!((taken.queues, taken.len), (1, 0));
    assert_eq!((taken.counts.enqueued, taken.counts.dequeued), (100, 100));
    tree.stop().await;
}
