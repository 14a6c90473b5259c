//! Whom to dial when: seeds and learned addresses, who was met where, and back-off.
//!
//! Pure: time and chance are handed in. Driven by `dialer.rs`.
//!
//! # Invariants
//! 1. An address is tried for ever, more rarely the longer it fails, never by two at a time.
//! 2. A node that is up is not dialed, nor are we ourselves.
//! 3. Of two nodes that know each other the one with the lower id dials; the other one only after it
//!    has waited in vain. A seed is dialed by everyone who has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proto::NodeId;

/// First wait after a try.
const BACKOFF_MIN_MS: u64 = 100;

/// Longest wait between tries. Also how often a seed's name is looked up when all is well.
const BACKOFF_MAX_MS: u64 = 2_500;

/// How long the higher of two ids waits for the lower one to dial after their link went down.
const YIELD_MS: u64 = 2_000;

/// The same for an address that was just learned: we may have just started, and be the only one of
/// the two who knows.
const YIELD_FRESH_MS: u64 = 300;

/// Socket addresses whose node is remembered.
const RESIDENTS_MAX: usize = 4_096;

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// Everyone there is up, or is us.
    NobodyNew,
    /// Someone was met, or nobody could be reached.
    Again,
}

#[derive(Debug, Default)]
struct Entry {
    is_seed: bool,
    /// Learned: who is there.
    node: Option<NodeId>,
    /// Who was met there.
    met: BTreeSet<NodeId>,
    next_ms: u64,
    backoff_ms: u64,
    busy: bool,
}

/// All addresses.
#[derive(Debug)]
pub(crate) struct Addresses {
    me: NodeId,
    entries: BTreeMap<String, Entry>,
    residents: BTreeMap<SocketAddr, NodeId>,
    up: BTreeSet<NodeId>,
}

impl Addresses {
    pub(crate) fn new(me: NodeId) -> Self {
        let (entries, residents, up) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { me, entries, residents, up }
    }

    /// Replaces seeds and learned addresses.
    pub(crate) fn know(&mut self, seeds: &[String], learned: &[(NodeId, String)], now_ms: u64) {
        let mut known = std::mem::take(&mut self.entries);
        for seed in seeds {
            let mut entry = known.remove(seed).unwrap_or_default();
            (entry.is_seed, entry.node) = (true, None);
            self.entries.insert(seed.clone(), entry);
        }
        for (node, address) in learned.iter().filter(|(node, _)| *node != self.me) {
            let waits = if self.me > *node { YIELD_FRESH_MS } else { 0 };
            let fresh = || Entry { next_ms: now_ms + waits, ..Entry::default() };
            let old = known.remove(address).filter(|old| !old.is_seed);
            let entry =
                self.entries.entry(address.clone()).or_insert_with(|| old.unwrap_or_else(fresh));
            entry.node = Some(*node);
        }
    }

    /// Tells who is up now. Whoever went down is dialed soon, with `chance` (0 to 1) against all
    /// doing so at once.
    pub(crate) fn see(&mut self, up: BTreeSet<NodeId>, now_ms: u64, chance: f64) {
        let lost: Vec<NodeId> = self.up.difference(&up).copied().collect();
        self.up = up;
        for entry in self.entries.values_mut() {
            let is_there = |node: &NodeId| entry.node == Some(*node) || entry.met.contains(node);
            let soon = now_ms + part(BACKOFF_MIN_MS, chance);
            if lost.iter().any(is_there) {
                let waits = !entry.is_seed && entry.node.is_some_and(|node| self.me > node);
                entry.backoff_ms = 0;
                entry.next_ms = if waits { now_ms + YIELD_MS } else { soon };
            }
        }
    }

    /// The addresses to try now. Each is busy until [`Addresses::tried`].
    pub(crate) fn due(&mut self, now_ms: u64) -> Vec<String> {
        let mut due = Vec::new();
        for (address, entry) in &mut self.entries {
            if !entry.busy && entry.next_ms <= now_ms && entry.is_wanted(&self.up) {
                entry.busy = true;
                due.push(address.clone());
            }
        }
        due
    }

    /// When something is due next.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        let waits = |entry: &&Entry| !entry.busy && entry.is_wanted(&self.up);
        self.entries.values().filter(waits).map(|entry| entry.next_ms).min()
    }

    /// Of the socket addresses of a name those behind which someone may be who is not up.
    pub(crate) fn strangers(&self, found: &[SocketAddr]) -> Vec<SocketAddr> {
        let known = |node: &NodeId| *node == self.me || self.up.contains(node);
        let is_new = |at: &&SocketAddr| !self.residents.get(at).is_some_and(known);
        found.iter().filter(is_new).copied().collect()
    }

    /// A node was met at a socket address of a name.
    pub(crate) fn met(&mut self, address: &str, at: SocketAddr, node: NodeId) {
        if self.residents.len() >= RESIDENTS_MAX {
            self.residents.clear();
        }
        self.residents.insert(at, node);
        if let Some(entry) = self.entries.get_mut(address) {
            entry.met.insert(node);
        }
    }

    /// Nobody of ours was met at a socket address.
    pub(crate) fn missed(&mut self, at: SocketAddr) {
        self.residents.remove(&at);
    }

    /// An address was tried.
    pub(crate) fn tried(&mut self, address: &str, tried: Tried, now_ms: u64, chance: f64) {
        let Some(entry) = self.entries.get_mut(address) else { return };
        entry.busy = false;
        entry.backoff_ms = match tried {
            Tried::NobodyNew => BACKOFF_MAX_MS,
            Tried::Again => (entry.backoff_ms * 2).clamp(BACKOFF_MIN_MS, BACKOFF_MAX_MS),
        };
        entry.next_ms = now_ms + part(entry.backoff_ms, chance);
        if tried == Tried::NobodyNew {
            entry.backoff_ms = 0;
        }
    }
}

impl Entry {
    fn is_wanted(&self, up: &BTreeSet<NodeId>) -> bool {
        self.is_seed || self.node.is_some_and(|node| !up.contains(&node))
    }
}

/// Half of `ms` to all of it.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few seconds at most"
)]
fn part(ms: u64, chance: f64) -> u64 {
    (ms as f64 * (0.5 + chance.clamp(0.0, 1.0) / 2.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(5);
    const LOWER: NodeId = NodeId(1);
    const HIGHER: NodeId = NodeId(9);

    fn known(seeds: &[&str], learned: &[(NodeId, &str)]) -> Addresses {
        let mut addresses = Addresses::new(ME);
        tell(&mut addresses, seeds, learned);
        addresses
    }

    fn tell(addresses: &mut Addresses, seeds: &[&str], learned: &[(NodeId, &str)]) {
        let seeds: Vec<String> = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let learned: Vec<_> = learned.iter().map(|(n, at)| (*n, (*at).to_owned())).collect();
        addresses.know(&seeds, &learned, 0);
    }

    fn socket(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_seed_is_tried_for_ever_and_more_rarely() {
        let mut addresses = known(&["s:1"], &[]);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..9 {
            assert_eq!(addresses.due(now), ["s:1"]);
            assert!(addresses.due(now).is_empty(), "it is busy");
            addresses.tried("s:1", Tried::Again, now, 1.0);
            let next = addresses.next_ms().unwrap();
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2500, 2500, 2500, 2500]);
    }

    #[test]
    fn the_lower_id_dials_and_the_higher_one_only_if_that_fails() {
        let mut addresses = known(&[], &[(LOWER, "l:1"), (HIGHER, "h:1"), (ME, "me:1")]);
        assert_eq!(addresses.due(0), ["h:1"]);
        assert_eq!(addresses.due(299), Vec::<String>::new());
        addresses.see(BTreeSet::from([LOWER]), 300, 1.0);
        addresses.see(BTreeSet::new(), 300, 1.0);
        assert_eq!(addresses.due(2_299), Vec::<String>::new());
        assert_eq!(addresses.due(2_300), ["l:1"]);
    }

    #[test]
    fn whoever_is_up_is_not_dialed_and_soon_when_down() {
        let mut addresses = known(&[], &[(HIGHER, "h:1")]);
        addresses.see(BTreeSet::from([HIGHER]), 0, 1.0);
        assert_eq!((addresses.due(9_000), addresses.next_ms()), (vec![], None));
        addresses.see(BTreeSet::new(), 10_000, 1.0);
        assert_eq!(addresses.next_ms(), Some(10_100));
    }

    #[test]
    fn we_ourselves_and_known_nodes_are_left_out_of_a_seed() {
        let mut addresses = known(&["s:1"], &[]);
        addresses.met("s:1", socket(1), ME);
        addresses.met("s:1", socket(2), HIGHER);
        let all = [socket(1), socket(2), socket(3)];
        assert_eq!(addresses.strangers(&all), all[1..]);
        addresses.see(BTreeSet::from([HIGHER]), 0, 0.0);
        assert_eq!(addresses.strangers(&all), all[2..]);
        addresses.missed(socket(1));
        assert_eq!(addresses.strangers(&all), [socket(1), socket(3)]);
        assert_eq!(addresses.due(0), ["s:1"]);
        addresses.tried("s:1", Tried::NobodyNew, 0, 1.0);
        assert_eq!(addresses.next_ms(), Some(2_500), "its name is looked up again");
        addresses.see(BTreeSet::new(), 1_000, 0.0);
        assert_eq!(addresses.next_ms(), Some(1_050), "whoever was met there went down");
    }

    #[test]
    fn what_was_learned_before_is_replaced() {
        let mut addresses = known(&["s:1"], &[(HIGHER, "h:1")]);
        assert_eq!(addresses.due(0), ["h:1", "s:1"]);
        addresses.tried("h:1", Tried::Again, 0, 1.0);
        tell(&mut addresses, &["s:1"], &[(HIGHER, "h:2")]);
        assert_eq!(addresses.due(10_000), ["h:2"], "h:1 is forgotten, s:1 busy");
        addresses.tried("h:1", Tried::Again, 0, 1.0);
    }
}
