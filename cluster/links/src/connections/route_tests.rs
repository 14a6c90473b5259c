//! Tests of the sending side: what travels together, what is acknowledged, how calls end.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::cluster::{Hello, Packet};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A route, and what it sends.
fn route() -> (Arc<Route>, impl Fn() -> Vec<Packet>) {
    let greeted = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&greeted);
    let greet: Greeter = Box::new(move |hello| sink.lock().push(hello));
    let stamp = Stamp { incarnation: 3, link: 9 };
    let ways = (greet, Arc::default());
    let route = Arc::new(Route::new(ways, stamp, Clock::start(), Arc::default()));
    let writer = Arc::clone(&route);
    let sent = move || {
        let mut sent = std::mem::take(&mut *greeted.lock());
        sent.extend(std::iter::from_fn(|| writer.next()));
        sent.iter().map(|bytes| Packet::decode(bytes.as_slice()).unwrap()).collect()
    };
    (route, sent)
}

/// The same, when its peer has heard of it.
fn heard() -> (Arc<Route>, impl Fn() -> Vec<Packet>) {
    let (route, shipped) = route();
    route.heard();
    (route, shipped)
}

fn cast(route: &Route) {
    route.offer(Lane::Normal, Kind::Cast, Bytes::from_static(b"hello")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_offered_before_the_writer_comes_travels_together() {
    let (route, shipped) = heard();
    route.bell.notified().await; // For having been heard.
    for _ in 0..100 {
        cast(&route);
    }
    timeout_at(Instant::now() + SECOND, route.bell.notified()).await.expect("the bell was rung");
    let together = shipped();
    assert_eq!((together.len(), together[0].pieces.len()), (1, 100));
    assert_eq!((together[0].incarnation, together[0].link), (3, 9));
}

#[tokio::test(start_paused = true)]
async fn nothing_but_greetings_goes_out_before_the_peer_has_heard_of_us() {
    let (route, shipped) = route();
    cast(&route);
    route.beat(Duration::ZERO);
    route.received(0, 1, true);
    assert!(shipped().is_empty(), "it would not know what to do with it");
    route.greet(Hello::default());
    assert!(shipped()[0].hello.is_some());
    route.heard();
    assert_eq!(shipped()[0].pieces.len(), 1, "what waited goes now");
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_ride_along_or_go_alone_when_owed() {
    let (route, shipped) = heard();
    route.received(0, 5, false);
    assert!(shipped().is_empty());
    cast(&route);
    assert_eq!(shipped()[0].acknowledged, 5);
    route.received(1, 6, true);
    let alone = shipped();
    assert_eq!((alone.len(), alone[0].acknowledged, alone[0].pieces.len()), (1, 6, 0));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_goes_out_only_when_nothing_else_did() {
    let (route, shipped) = heard();
    let heartbeat = Duration::from_millis(200);
    tokio::time::advance(heartbeat).await;
    route.beat(heartbeat);
    assert_eq!(shipped().len(), 1);
    tokio::time::advance(heartbeat / 2).await;
    cast(&route);
    tokio::time::advance(heartbeat / 2).await;
    route.beat(heartbeat);
    assert_eq!(shipped().len(), 1, "the cast");
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_with_its_answer_its_time_or_its_link() {
    let (route, shipped) = heard();
    let asked = route.call(Lane::Normal, Bytes::from_static(b"?"), SECOND);
    let request = shipped().remove(0).pieces.remove(0);
    assert_eq!((request.kind(), request.deadline_ms), (proto::cluster::piece::Kind::Request, 1000));
    route.answered(request.call, Bytes::from_static(b"!"));
    assert_eq!(asked.await, Ok(Bytes::from_static(b"!")));

    let late = route.call(Lane::Normal, Bytes::new(), SECOND);
    assert_eq!(late.await, Err(CallError::TimedOut));

    drop(route.call(Lane::Normal, Bytes::new(), SECOND));
    assert!(lock(&route.calls).waiting.is_empty(), "nobody waits any longer");

    let open = route.call(Lane::Normal, Bytes::new(), SECOND);
    route.close();
    assert_eq!(open.await, Err(CallError::Broken));
    let after = route.call(Lane::Normal, Bytes::new(), SECOND);
    assert_eq!(after.await, Err(CallError::NotUp));
    assert_eq!(route.offer(Lane::Urgent, Kind::Cast, Bytes::new()), Err(NotSent::Closed));
    shipped();
    route.greet(Hello::default());
    assert!(shipped().is_empty(), "closed");
}

#[tokio::test(start_paused = true)]
async fn open_calls_are_bounded() {
    let (route, _) = heard();
    let open: Vec<_> =
        (0..CALLS_MAX).map(|_| route.call_vital(Lane::Normal, Bytes::new(), SECOND)).collect();
    let over = route.call(Lane::Normal, Bytes::new(), SECOND);
    assert_eq!(over.await, Err(CallError::Full));
    assert_eq!(route.counters.counts().refused_calls, 1);
    drop(open);
    let again = route.call(Lane::Normal, Bytes::new(), SECOND);
    assert_eq!(again.await, Err(CallError::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn questions_by_the_thousand_leave_room_for_what_is_urgent_or_vital() {
    let (route, _) = heard();
    let ask = |lane| route.call(lane, Bytes::new(), SECOND);
    let refused = || route.counters.counts().refused_calls;
    let mut open: Vec<_> = (CALLS_KEPT..CALLS_MAX).map(|_| ask(Lane::Normal)).collect();
    assert_eq!(refused(), 0);
    drop((ask(Lane::Normal), ask(Lane::Bulk)));
    assert_eq!(refused(), 2);
    open.push(ask(Lane::Urgent));
    open.push(route.call_vital(Lane::Normal, Bytes::new(), SECOND));
    assert_eq!(refused(), 2, "there is room for these");
}
