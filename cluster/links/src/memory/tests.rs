//! Tests of the network in memory.

use parking_lot::Mutex;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Up(PeerId),
    Down(PeerId),
    Cast(PeerId, Bytes),
}

/// Keeps what it sees; answers a call with its own parcel, unless that is empty.
#[derive(Default)]
struct Witness(Mutex<Vec<Seen>>);

impl Witness {
    fn note(&self, seen: Seen) {
        self.0.lock().push(seen);
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().clone()
    }
}

impl Service for Witness {
    fn up(&self, peer: PeerInfo) {
        self.note(Seen::Up(peer.id));
    }
    fn down(&self, peer: PeerId) {
        self.note(Seen::Down(peer));
    }
    fn cast(&self, from: PeerId, parcel: Bytes) {
        self.note(Seen::Cast(from, parcel));
    }
    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        if !parcel.is_empty() {
            respond(parcel);
        }
    }
}

const ADA: NodeId = NodeId(1);
const BOB: NodeId = NodeId(2);
const SECOND: Duration = Duration::from_secs(1);

fn id(node: NodeId, incarnation: u64) -> PeerId {
    PeerId { node, incarnation }
}

fn join(network: &Network, node: NodeId, incarnation: u64) -> (Peers, Arc<Witness>) {
    let (peers, attach) = network.node(node, incarnation);
    let witness = Arc::new(Witness::default());
    attach.attach(witness.clone());
    (peers, witness)
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("did not come true in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn casts_arrive_in_order_after_up_and_calls_are_answered() {
    let network = Network::new(1);
    let (ada, _) = join(&network, ADA, 1);
    assert!(!ada.cast(BOB, Lane::Normal, Bytes::from_static(b"nobody")));
    let (_bob, saw) = join(&network, BOB, 1);
    until(|| ada.is_up(BOB)).await;
    for number in 0..100_u8 {
        assert!(ada.cast(BOB, Lane::Normal, Bytes::copy_from_slice(&[number])));
    }
    let answer = ada.call(BOB, Lane::Urgent, Bytes::from_static(b"hm"), SECOND).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"hm")));
    let mut expected = vec![Seen::Up(id(ADA, 1))];
    expected.extend((0..100_u8).map(|n| Seen::Cast(id(ADA, 1), Bytes::copy_from_slice(&[n]))));
    assert_eq!(saw.seen(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_noticed_after_the_silence_and_ends_calls() {
    let network = Network::new(1);
    let ((ada, saw), (bob, _)) = (join(&network, ADA, 1), join(&network, BOB, 1));
    until(|| ada.is_up(BOB) && bob.is_up(ADA)).await;
    network.cut_one_way(ADA, BOB);
    assert!(ada.cast(BOB, Lane::Normal, Bytes::new()), "nobody knows yet");
    let call = ada.call(BOB, Lane::Normal, Bytes::from_static(b"?"), 10 * SECOND);
    assert_eq!(call.await, Err(CallError::Broken));
    until(|| !bob.is_up(ADA)).await;
    let call = ada.call(BOB, Lane::Normal, Bytes::from_static(b"?"), SECOND);
    assert_eq!(call.await, Err(CallError::NotUp));
    network.heal(ADA, BOB);
    until(|| ada.is_up(BOB) && bob.is_up(ADA)).await;
    let bob = id(BOB, 1);
    assert_eq!(saw.seen(), [Seen::Up(bob), Seen::Down(bob), Seen::Up(bob)]);
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_is_loss_and_nothing_else() {
    let network = Network::new(1);
    let ((ada, _), (_bob, saw)) = (join(&network, ADA, 1), join(&network, BOB, 1));
    until(|| ada.is_up(BOB)).await;
    network.cut(ADA, BOB);
    assert!(ada.cast(BOB, Lane::Normal, Bytes::from_static(b"lost")));
    network.heal(ADA, BOB);
    tokio::time::sleep(10 * SECOND).await;
    assert!(ada.cast(BOB, Lane::Normal, Bytes::from_static(b"kept")));
    until(|| saw.seen().len() == 2).await;
    assert_eq!(saw.seen()[1], Seen::Cast(id(ADA, 1), Bytes::from_static(b"kept")));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_is_another_peer() {
    let network = Network::new(1);
    let ((ada, saw), (old, _)) = (join(&network, ADA, 1), join(&network, BOB, 1));
    until(|| ada.is_up(BOB)).await;
    let (_new, _) = join(&network, BOB, 2);
    until(|| saw.seen().len() == 3).await;
    assert_eq!(saw.seen(), [Seen::Up(id(BOB, 1)), Seen::Down(id(BOB, 1)), Seen::Up(id(BOB, 2))]);
    assert!(!old.cast(ADA, Lane::Normal, Bytes::new()), "the earlier start is dead");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_times_out() {
    let network = Network::new(1);
    let ((ada, _), _bob) = (join(&network, ADA, 1), join(&network, BOB, 1));
    until(|| ada.is_up(BOB)).await;
    let call = ada.call(BOB, Lane::Normal, Bytes::new(), SECOND);
    assert_eq!(call.await, Err(CallError::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn chance_is_the_seeds() {
    let mut runs = Vec::new();
    for seed in [3, 3, 4] {
        let network = Network::new(seed);
        let ((ada, _), (_bob, saw)) = (join(&network, ADA, 1), join(&network, BOB, 1));
        until(|| ada.is_up(BOB)).await;
        network.set_loss(0.3);
        network.set_delay(Duration::from_millis(1)..=Duration::from_millis(9));
        for number in 0..200_u8 {
            ada.cast(BOB, Lane::Normal, Bytes::copy_from_slice(&[number]));
        }
        tokio::time::sleep(SECOND).await;
        runs.push(saw.seen());
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert!((100..190).contains(&runs[0].len()), "{}", runs[0].len());
}
