//! What timers and task groups promise.

mod cast;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use cast::{LIMITS, until};
use supervision::{Inbox, QueueLimits, TaskGroup, timer};

#[tokio::test(start_paused = true)]
async fn a_timer_delivers_once_and_a_cancelled_one_never() {
    let inbox = Inbox::new("timer", 1, LIMITS);
    timer::push_after(&inbox, Duration::from_secs(10), 1);
    timer::push_after(&inbox, Duration::from_secs(10), 2).cancel();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(inbox.is_empty());
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(inbox.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn beats_stop_at_capacity_and_keep_no_inbox_alive() {
    let inbox = Inbox::new("beats", 1, QueueLimits { high: 2, critical: 3 });
    timer::push_every(&inbox, Duration::from_secs(1), || ());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(inbox.len(), 2);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(inbox.len(), 3);
    let weak = Arc::downgrade(&inbox);
    drop(inbox);
    assert!(weak.upgrade().is_none());
}

#[tokio::test]
async fn a_group_counts_its_tasks_and_outlives_a_panic() {
    let group = TaskGroup::new();
    let ended = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let (stopping, ended) = (group.stopping(), Arc::clone(&ended));
        assert!(group.spawn("connection", async move {
            stopping.wait().await;
            ended.fetch_add(1, Relaxed);
        }));
    }
    assert!(group.spawn("panics", async { panic!("as the story says") }));
    until(|| group.count() == 10).await;
    assert_eq!(group.finish(Duration::from_secs(30)).await, 0);
    assert_eq!(ended.load(Relaxed), 10);
    assert!(!group.spawn("late", async {}));
}

#[tokio::test(start_paused = true)]
async fn a_group_aborts_those_who_do_not_stop_in_time() {
    let group = TaskGroup::new();
    group.spawn("deaf", std::future::pending());
    group.spawn("quick", async {});
    assert_eq!(group.finish(Duration::from_secs(5)).await, 1);
    assert_eq!(group.count(), 0);
}
