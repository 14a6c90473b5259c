//! What is done to a cluster: each fault with how it is injected and healed, and plans of them by
//! seed.
//!
//! **Invariant:** a plan depends on its seed and on what the cluster can suffer, on nothing else.

use crate::cluster::Cluster;
use crate::relay::Rule;
use anyhow::Result;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(usize),
    /// SIGKILL of all at once.
    KillAll,
    /// SIGSTOP: connections stay open, nothing is answered.
    Freeze(usize),
    /// These and the others do not hear each other.
    Split(BTreeSet<usize>),
    /// Nothing that it says arrives at others.
    Mute(usize),
    /// It hears no other.
    Deaf(usize),
    /// Nothing arrives from the first at the second.
    OneWay(usize, usize),
    /// Its connections to others are closed, and new ones at once.
    Sever(usize),
    /// Everything between nodes comes later.
    Slow(Duration),
    /// So many bytes a second in each direction.
    Narrow(u32),
    /// So many of a thousand packets are lost.
    Loss(u32),
    /// Not a byte is free on its disk.
    FullDisk(usize),
    /// Its data directory is gone; it joins as a new node.
    Wipe(usize),
    /// Its wall clock jumps by so many ms.
    Clock(usize, i64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "node {node} is killed"),
            Self::KillAll => write!(f, "all nodes are killed at once"),
            Self::Freeze(node) => write!(f, "node {node} is stopped in mid-sentence"),
            Self::Split(nodes) => write!(f, "nodes {nodes:?} are cut off from the others"),
            Self::Mute(node) => write!(f, "nothing that node {node} says arrives"),
            Self::Deaf(node) => write!(f, "node {node} hears nobody"),
            Self::OneWay(from, to) => write!(f, "nothing arrives from node {from} at node {to}"),
            Self::Sever(node) => write!(f, "all connections of node {node} to others are closed"),
            Self::Slow(delay) => write!(f, "everything between nodes takes {delay:?} longer"),
            Self::Narrow(bytes) => write!(f, "between nodes {bytes} bytes pass in a second"),
            Self::Loss(loss) => write!(f, "{loss} of 1000 packets between nodes are lost"),
            Self::FullDisk(node) => write!(f, "the disk of node {node} is full"),
            Self::Wipe(node) => write!(f, "the data directory of node {node} is deleted"),
            Self::Clock(node, ms) => write!(f, "the clock of node {node} jumps by {ms} ms"),
        }
    }
}

impl Fault {
    /// The nodes whose own users may notice it. What slows all touches all, and so does the loss of
    /// two nodes: they may hold two of the three replicas of a shard.
    pub fn touched(&self, nodes: usize) -> BTreeSet<usize> {
        match self {
            Self::Kill(node)
            | Self::Freeze(node)
            | Self::Mute(node)
            | Self::Deaf(node)
            | Self::Sever(node)
            | Self::FullDisk(node)
            | Self::Wipe(node)
            | Self::Clock(node, _) => [*node].into(),
            Self::OneWay(from, to) => [*from, *to].into(),
            Self::Split(minority) if minority.len() == 1 => minority.clone(),
            Self::Split(_) | Self::KillAll | Self::Slow(_) | Self::Narrow(_) | Self::Loss(_) => {
                (0..nodes).collect()
            }
        }
    }

    /// The ordered pairs between which nothing arrives.
    fn blocked(&self, nodes: usize) -> BTreeSet<(usize, usize)> {
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from != to);
        match self {
            Self::Split(side) => {
                pairs.filter(|(from, to)| side.contains(from) != side.contains(to)).collect()
            }
            Self::Mute(node) => pairs.filter(|(from, _)| from == node).collect(),
            Self::Deaf(node) => pairs.filter(|(_, to)| to == node).collect(),
            Self::OneWay(from, to) => [(*from, *to)].into(),
            Self::Kill(_)
            | Self::KillAll
            | Self::Freeze(_)
            | Self::Sever(_)
            | Self::Slow(_)
            | Self::Narrow(_)
            | Self::Loss(_)
            | Self::FullDisk(_)
            | Self::Wipe(_)
            | Self::Clock(..) => BTreeSet::new(),
        }
    }

    /// Lets it happen.
    ///
    /// # Errors
    /// If the cluster cannot suffer it.
    pub async fn inject(&self, cluster: &mut Cluster) -> Result<()> {
        match self {
            Self::Kill(node) => cluster.kill(*node),
            Self::KillAll => (0..cluster.size()).try_for_each(|node| cluster.kill(node)),
            Self::Freeze(node) => cluster.freeze(*node),
            Self::Split(_) | Self::Mute(_) | Self::Deaf(_) | Self::OneWay(..) => {
                cluster.block(&self.blocked(cluster.size()))
            }
            Self::Sever(node) => cluster.sever(*node),
            Self::Slow(delay) => cluster.slow(Rule { delay: *delay, ..Rule::default() }),
            Self::Narrow(bytes) => {
                cluster.slow(Rule { bytes_per_second: *bytes, ..Rule::default() })
            }
            Self::Loss(loss) => cluster.lose(*loss),
            Self::FullDisk(node) => cluster.disk(*node)?.fill(),
            Self::Wipe(node) => cluster.wipe(*node).await,
            Self::Clock(node, ms) => cluster.set_clock(*node, *ms),
        }
    }

    /// Ends it. A node that did not live through it is started again.
    ///
    /// # Errors
    /// If a node does not start.
    pub async fn heal(&self, cluster: &mut Cluster) -> Result<()> {
        match self {
            Self::Freeze(node) => cluster.thaw(*node)?,
            Self::FullDisk(node) => cluster.disk(*node)?.free()?,
            Self::Clock(node, _) => cluster.set_clock(*node, 0)?,
            Self::Kill(_)
            | Self::KillAll
            | Self::Split(_)
            | Self::Mute(_)
            | Self::Deaf(_)
            | Self::OneWay(..)
            | Self::Sever(_)
            | Self::Slow(_)
            | Self::Narrow(_)
            | Self::Loss(_)
            | Self::Wipe(_) => cluster.heal()?,
        }
        cluster.restart_all().await
    }
}

/// What a cluster can suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Can {
    /// How many nodes there are.
    pub nodes: usize,
    /// There are relays between them.
    pub relays: bool,
    /// There are namespaces, so packets can be lost.
    pub namespaces: bool,
    /// Disks are small.
    pub disks: bool,
}

/// Faults without end, each with how long it lasts.
#[derive(Clone, Debug)]
pub struct Faults {
    rng: StdRng,
    can: Can,
    bag: Vec<u32>,
}

impl Faults {
    /// The plan of a seed.
    pub fn new(seed: u64, can: Can) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), can, bag: Vec::new() }
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..self.can.nodes)
    }

    /// A minority of at least one.
    fn minority(&mut self) -> BTreeSet<usize> {
        let mut nodes: Vec<usize> = (0..self.can.nodes).collect();
        nodes.shuffle(&mut self.rng);
        let most = (self.can.nodes - 1) / 2;
        nodes.truncate(self.rng.random_range(1..=most.max(1)));
        nodes.into_iter().collect()
    }

    fn fault(&mut self, kind: u32) -> Option<Fault> {
        let Can { relays, namespaces, disks, nodes } = self.can;
        let parted = relays || namespaces;
        let node = self.node();
        match kind {
            0 => Some(Fault::Kill(node)),
            1 => Some(Fault::KillAll),
            2 => Some(Fault::Freeze(node)),
            3 if parted => Some(Fault::Split(self.minority())),
            4 if parted => Some(Fault::Mute(node)),
            5 if parted => Some(Fault::Deaf(node)),
            6 if parted => {
                let other = (node + self.rng.random_range(1..nodes)) % nodes;
                Some(Fault::OneWay(node, other))
            }
            7 if relays => Some(Fault::Sever(node)),
            8 if relays => Some(Fault::Slow(Duration::from_millis(self.rng.random_range(5..150)))),
            9 if relays => Some(Fault::Narrow(self.rng.random_range(64..1024) * 1024)),
            10 if namespaces => Some(Fault::Loss(self.rng.random_range(5..150))),
            11 if disks => Some(Fault::FullDisk(node)),
            12 => Some(Fault::Wipe(node)),
            13 => {
                // A month is longer than anything waits: none of it may end by one clock.
                let hours = [-744, -48, -1, 1, 48, 744][self.rng.random_range(0..6)];
                Some(Fault::Clock(node, hours * 3_600_000 + self.rng.random_range(0..60_000)))
            }
            _ => None,
        }
    }
}

impl Iterator for Faults {
    type Item = (Fault, Duration);

    /// Kinds come shuffled, each once before any comes again.
    fn next(&mut self) -> Option<(Fault, Duration)> {
        loop {
            if self.bag.is_empty() {
                self.bag = (0..14).collect();
                self.bag.shuffle(&mut self.rng);
            }
            let kind = self.bag.pop()?;
            let lasts = Duration::from_millis(self.rng.random_range(500..12_000));
            if let Some(fault) = self.fault(kind) {
                return Some((fault, lasts));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Can = Can { nodes: 5, relays: true, namespaces: true, disks: true };

    #[test]
    fn a_seed_gives_the_same_plan_again_and_another_seed_another() {
        let plan = |seed| Faults::new(seed, ALL).take(50).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn a_plan_holds_only_what_the_cluster_can_suffer() {
        let can = Can { nodes: 3, relays: false, namespaces: false, disks: false };
        for (fault, _) in Faults::new(1, can).take(100) {
            let fits = matches!(
                fault,
                Fault::Kill(_)
                    | Fault::KillAll
                    | Fault::Freeze(_)
                    | Fault::Wipe(_)
                    | Fault::Clock(..)
            );
            assert!(fits, "{fault}");
        }
    }

    #[test]
    fn a_split_blocks_both_ways_and_leaves_a_majority() {
        for (fault, _) in Faults::new(3, ALL).take(200) {
            if let Fault::Split(side) = &fault {
                assert!(!side.is_empty() && side.len() <= 2, "{fault}");
            }
        }
        let split = Fault::Split([1].into());
        assert_eq!(split.blocked(3), [(0, 1), (1, 0), (1, 2), (2, 1)].into());
        assert_eq!(Fault::Mute(1).blocked(3), [(1, 0), (1, 2)].into());
        assert_eq!(Fault::Deaf(1).blocked(3), [(0, 1), (2, 1)].into());
    }
}
