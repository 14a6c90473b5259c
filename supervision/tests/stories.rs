//! What supervision promises of processes, queues and trees, told as stories.

#![allow(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod cast;

use std::sync::Arc;
use std::time::Duration;

use cast::{LIMITS, Order, Player, Script, often, until};
use supervision::{ChildSpec, Full, Inbox, QueueLimits, Restart, Strategy, Supervisor};

fn player(name: &'static str, script: &Script) -> (ChildSpec, Arc<Inbox<Order>>) {
    let inbox = Inbox::new(name, 0, LIMITS);
    let spec = ChildSpec::process::<Player>(name, script.named(name), Arc::clone(&inbox));
    (spec, inbox)
}

/// Starts `a`, `b` and `c` under `strategy`.
async fn trio(strategy: Strategy, script: &Script) -> (Supervisor, [Arc<Inbox<Order>>; 3]) {
    let (a, inbox_a) = player("a", script);
    let (b, inbox_b) = player("b", script);
    let (c, inbox_c) = player("c", script);
    let tree = Supervisor::start("root", strategy, often(5), vec![a, b, c]).await.unwrap();
    assert_eq!(script.take(), ["start a", "start b", "start c"]);
    (tree, [inbox_a, inbox_b, inbox_c])
}

#[tokio::test]
async fn a_process_that_panics_is_restarted_alone() {
    let script = Script::default();
    let (tree, [_, b, _]) = trio(Strategy::OneForOne, &script).await;
    b.push(Order::Panic(7)).unwrap();
    script.has("start b").await;
    b.push(Order::Say(1)).unwrap();
    script.has("b says 1").await;
    assert_eq!(script.take(), ["start b", "b says 1"]);
    tree.stop().await;
}

#[tokio::test]
async fn rest_for_one_restarts_the_later_ones_in_order() {
    let script = Script::default();
    let (tree, [_, b, c]) = trio(Strategy::RestForOne, &script).await;
    b.push(Order::Fail(1)).unwrap();
    script.has("start c").await;
    assert_eq!(script.take(), ["stop c", "start b", "start c"]);
    c.push(Order::Say(2)).unwrap();
    script.has("c says 2").await;
    tree.stop().await;
}

#[tokio::test]
async fn one_for_all_restarts_everyone_in_order() {
    let script = Script::default();
    let (tree, [_, b, _]) = trio(Strategy::OneForAll, &script).await;
    b.push(Order::Panic(1)).unwrap();
    script.has("start c").await;
    assert_eq!(script.take(), ["stop c", "stop a", "start a", "start b", "start c"]);
    tree.stop().await;
}

#[tokio::test]
async fn an_orderly_stop_goes_in_reverse_after_the_queued_items() {
    let script = Script::default();
    let (tree, [a, _, c]) = trio(Strategy::OneForOne, &script).await;
    a.force_all([Order::Say(1), Order::Say(2)]);
    c.force_all((0..200).map(Order::Say));
    tree.stop().await;
    let said = script.take();
    let last = said.iter().position(|line| line == "c says 199").unwrap();
    let stops: Vec<_> = said.iter().filter(|line| line.starts_with("stop")).collect();
    assert_eq!(stops, ["stop c", "stop b", "stop a"]);
    assert!(last < said.iter().position(|line| line == "stop c").unwrap());
    assert!(said.contains(&"a says 2".to_owned()));
}

#[tokio::test]
async fn a_tree_gives_up_when_restarts_exceed_the_intensity() {
    let script = Script::default();
    let (a, _inbox_a) = player("a", &script);
    let (b, inbox_b) = player("b", &script);
    let mut tree =
        Supervisor::start("root", Strategy::OneForOne, often(2), vec![a, b]).await.unwrap();
    inbox_b.force_all((0..3).map(Order::Panic));
    let reason = tree.failed().await;
    assert!(reason.contains("root") && reason.contains("b failed"), "{reason}");
    let said = script.take();
    assert_eq!(said.last().unwrap(), "stop a", "{said:?}");
    assert_eq!(said.iter().filter(|line| line.starts_with("start b")).count(), 3);
    assert_eq!(tree.failed().await, reason);
}

#[tokio::test]
async fn a_supervisor_that_gives_up_is_restarted_by_its_own() {
    let script = Script::default();
    let (a, _inbox) = player("a", &script);
    let (b, inbox) = player("b", &script);
    let inner = ChildSpec::supervisor("inner", Strategy::OneForOne, often(0), vec![a, b]);
    let tree = Supervisor::start("root", Strategy::OneForOne, often(1), vec![inner]).await.unwrap();
    assert_eq!(tree.tree(), "root (one for one)\n    inner (one for one)\n        a\n        b\n");
    script.take();
    inbox.push(Order::Panic(3)).unwrap();
    script.has("start b").await;
    assert_eq!(script.take(), ["stop a", "start a", "start b"]);
    tree.stop().await;
    assert_eq!(script.take(), ["stop b", "stop a"]);
}

#[tokio::test]
async fn a_tree_that_cannot_start_names_the_child_and_leaves_nothing_running() {
    let script = Script::default();
    let (a, _inbox_a) = player("a", &script);
    let (broken, _inbox_b) = player("broken", &script);
    let inner = ChildSpec::supervisor("inner", Strategy::OneForOne, often(1), vec![broken]);
    let start = Supervisor::start("root", Strategy::OneForOne, often(1), vec![a, inner]);
    let error = start.await.unwrap_err();
    assert_eq!(error.child, "root/inner/broken");
    assert_eq!(error.source.to_string(), "no stage");
    assert_eq!(script.take(), ["start a", "stop a"]);
}

#[tokio::test]
async fn the_queue_survives_and_only_the_item_in_hand_is_lost() {
    let script = Script::default();
    let (spec, inbox) = player("a", &script);
    inbox.force_all((0..5).map(Order::Say));
    inbox.force(Order::Panic(5));
    inbox.force_all((6..10).map(Order::Say));
    inbox.force(Order::Fail(10));
    inbox.force_all((11..200).map(Order::Say));
    let tree = Supervisor::start("root", Strategy::OneForOne, often(5), vec![spec]).await.unwrap();
    script.has("a says 199").await;
    let mut expected = vec!["start a".to_owned()];
    expected.extend((0..5).map(|n| format!("a says {n}")));
    expected.push("start a".to_owned());
    expected.extend((6..10).map(|n| format!("a says {n}")));
    expected.push("start a".to_owned());
    expected.extend((11..200).map(|n| format!("a says {n}")));
    assert_eq!(script.take(), expected);
    assert!(inbox.is_empty());
    tree.stop().await;
}

#[tokio::test]
async fn a_push_beyond_capacity_is_refused_with_the_item() {
    let inbox = Inbox::new("bounded", 1, QueueLimits { high: 2, critical: 3 });
    inbox.push(1).unwrap();
    assert!(!inbox.is_high());
    inbox.push(2).unwrap();
    assert!(inbox.is_high());
    inbox.push(3).unwrap();
    assert_eq!(inbox.push(4), Err(Full(4)));
    inbox.force(5);
    assert_eq!(inbox.len(), 4);
}

#[tokio::test]
async fn an_inbox_closes_only_when_nothing_waits() {
    let inbox = Inbox::new("closing", 1, LIMITS);
    inbox.push(1).unwrap();
    assert!(!inbox.close_if_empty());
    inbox.push(2).unwrap();
    let quiet = Inbox::new("closing", 2, LIMITS);
    assert!(quiet.close_if_empty());
    assert_eq!(quiet.push(1), Err(Full(1)));
    quiet.force(2);
    assert!(quiet.is_empty());
}

#[tokio::test]
async fn a_process_that_ends_normally_comes_back_only_if_permanent() {
    let script = Script::default();
    let (a, inbox_a) = player("a", &script);
    let (b, inbox_b) = player("b", &script);
    let children = vec![a, b.restart(Restart::Transient)];
    let tree = Supervisor::start("root", Strategy::OneForOne, often(5), children).await.unwrap();
    script.take();
    inbox_b.push(Order::End).unwrap();
    script.has("b ends").await;
    inbox_a.push(Order::End).unwrap();
    script.has("start a").await;
    assert_eq!(script.take(), ["b ends", "a ends", "start a"]);
    inbox_b.push(Order::Say(1)).unwrap();
    tree.stop().await;
    assert_eq!(script.take(), ["stop a"]);
    assert_eq!(inbox_b.len(), 1);
}

#[tokio::test]
async fn a_task_is_restarted_when_it_fails_and_hears_when_to_stop() {
    let script = Script::default();
    let mine = script.clone();
    let task = ChildSpec::task("listener", move |stopping| {
        let script = mine.clone();
        async move {
            match script.say("listen") {
                1 => Err("port taken".into()),
                2 => panic!("listener panics as the story says"),
                _ => {
                    stopping.wait().await;
                    script.say("closed");
                    Ok(())
                }
            }
        }
    });
    let tree = Supervisor::start("root", Strategy::OneForOne, often(5), vec![task]).await.unwrap();
    until(|| script.count() == 3).await;
    tree.stop().await;
    assert_eq!(script.take(), ["listen", "listen", "listen", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_will_not_stop_is_killed_after_its_time() {
    let task = ChildSpec::task("deaf", |_| std::future::pending());
    let task = task.shutdown(Duration::from_secs(2));
    let tree = Supervisor::start("root", Strategy::OneForOne, often(5), vec![task]).await.unwrap();
    let asked = tokio::time::Instant::now();
    tree.stop().await;
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(3), "{took:?}");
}
