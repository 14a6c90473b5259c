//! ◇ Which nodes are there, and which of their incarnations are certainly dead.
//!
//! Two things are kept apart. A *dead* incarnation has ended for certain: a later one was seen, or
//! the node was taken out of the cluster. Its rows are rewritten. A node that is merely *lost*, out
//! of reach for longer than the grace, may be well and serve others: its rows only read as offline
//! here, and as before once it is back.
//!
//! # Invariant
//! Floors only rise, and travel with every digest: all nodes come to the same ones.

use super::row;
use links::PeerId;
use proto::NodeId;
use proto::stored::Session;
use std::collections::BTreeMap;

/// What this node knows of all nodes.
#[derive(Debug)]
pub struct Standing {
    me: PeerId,
    nodes: BTreeMap<NodeId, Node>,
    /// The grace after the start is over: who has not come by then is lost.
    settled: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// The lowest incarnation that may be alive.
    floor: u64,
    removed: bool,
    /// The incarnation that there is a link to.
    up: Option<u64>,
    lost: bool,
    /// Number of its absences so far.
    absences: u64,
}

impl Standing {
    /// Nothing is known but this node.
    pub fn new(me: PeerId) -> Self {
        Self { me, nodes: BTreeMap::new(), settled: false }
    }

    fn node(&mut self, node: NodeId) -> &mut Node {
        let lost = self.settled;
        self.nodes.entry(node).or_insert_with(|| Node { lost, ..Node::default() })
    }

    /// Whether the incarnation that wrote a row has ended for certain.
    pub fn is_dead(&self, row: &Session) -> bool {
        if row.node == self.me.node.0 {
            return row.incarnation < self.me.incarnation;
        }
        let node = self.nodes.get(&NodeId(row.node));
        node.is_some_and(|node| node.removed || row.incarnation < node.floor)
    }

    /// Whether a row is one of this incarnation of this node.
    pub fn is_ours(&self, row: &Session) -> bool {
        row.node == self.me.node.0 && row.incarnation == self.me.incarnation
    }

    /// The row as it is stored: nobody is there whose node has died, and who is not there is not
    /// away either.
    pub fn normal(&self, row: Session) -> Session {
        let is_there = row.online && !row.gone && !self.is_dead(&row);
        if is_there { row } else { row::put_offline(row) }
    }

    /// The row as it reads: nor is anybody there whose node is lost.
    pub fn view(&self, row: Session) -> Session {
        let lost = || {
            let node = self.nodes.get(&NodeId(row.node));
            row.node != self.me.node.0 && node.map_or(self.settled, |node| node.lost)
        };
        if row.online && (self.is_dead(&row) || lost()) { row::put_offline(row) } else { row }
    }

    /// Whether the session of a row can be reached now.
    pub fn is_live(&self, row: &Session) -> bool {
        let up = || self.nodes.get(&NodeId(row.node)).and_then(|node| node.up);
        let is_there = row.online && !row.gone && !self.is_dead(row);
        is_there && (self.is_ours(row) || up() == Some(row.incarnation))
    }

    /// Whether [`Standing::learn`] would raise a floor.
    pub fn is_news(&self, id: PeerId) -> bool {
        id.node != self.me.node
            && self.nodes.get(&id.node).is_none_or(|node| id.incarnation > node.floor)
    }

    /// An incarnation was heard of: all before it are dead. Whether that is news.
    pub fn learn(&mut self, id: PeerId) -> bool {
        let news = self.is_news(id);
        if news {
            self.node(id.node).floor = id.incarnation;
        }
        news
    }

    /// A peer is there. Whether it was lost until now; `None`: an incarnation that is dead by now.
    pub fn came(&mut self, id: PeerId) -> Option<bool> {
        self.learn(id);
        let node = self.node(id.node);
        if id.incarnation < node.floor {
            return None;
        }
        node.up = Some(id.incarnation);
        Some(std::mem::take(&mut node.lost))
    }

    /// A peer has gone. The number of this absence, or `None` if there was no link to it.
    pub fn went(&mut self, id: PeerId) -> Option<u64> {
        let node = self.node(id.node);
        if node.up != Some(id.incarnation) {
            return None;
        }
        node.up = None;
        node.absences += 1;
        Some(node.absences)
    }

    /// The grace of an absence is over. Whether the node is lost by that.
    pub fn grace_over(&mut self, node: NodeId, absence: u64) -> bool {
        let node = self.node(node);
        let lost = node.up.is_none() && !node.lost && node.absences == absence;
        node.lost |= lost;
        lost
    }

    /// The grace after the start is over. Who is lost by that.
    pub fn settle(&mut self) -> Vec<NodeId> {
        if std::mem::replace(&mut self.settled, true) {
            return Vec::new();
        }
        let missing = |(_, node): &(&NodeId, &mut Node)| node.up.is_none() && node.absences == 0;
        let missing = self.nodes.iter_mut().filter(missing);
        let lose = |(id, node): (&NodeId, &mut Node)| {
            node.lost = true;
            *id
        };
        missing.map(lose).collect()
    }

    /// A node was taken out of the cluster, or in again. Whether that is news.
    pub fn set_removed(&mut self, node: NodeId, removed: bool) -> bool {
        node != self.me.node && std::mem::replace(&mut self.node(node).removed, removed) != removed
    }

    /// Whether rows of this incarnation count as being there.
    pub(super) fn shows(&self, id: PeerId) -> bool {
        let PeerId { node, incarnation } = id;
        let row = Session { node: node.0, incarnation, online: true, ..Session::default() };
        self.view(row).online
    }

    /// The peers that are up.
    pub fn up(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.up.is_some()).map(|(id, _)| *id).collect()
    }

    /// Whether a peer is up.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.up.is_some())
    }

    /// Whether any peer is up.
    pub(super) fn any_up(&self) -> bool {
        self.nodes.values().any(|node| node.up.is_some())
    }

    /// All floors, this node's own among them.
    pub(super) fn floors(&self) -> impl Iterator<Item = PeerId> {
        let known = self.nodes.iter().filter(|(_, node)| node.floor > 0);
        let known = known.map(|(id, node)| PeerId { node: *id, incarnation: node.floor });
        known.chain([self.me])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: NodeId = NodeId(1);

    fn ada(incarnation: u64) -> PeerId {
        PeerId { node: ADA, incarnation }
    }

    fn row(incarnation: u64) -> Session {
        Session { node: ADA.0, incarnation, online: true, ..Session::default() }
    }

    fn bob() -> Standing {
        Standing::new(PeerId { node: NodeId(2), incarnation: 1 })
    }

    #[test]
    fn a_link_reaches_only_the_incarnation_at_its_other_end() {
        let mut standing = bob();
        assert_eq!(standing.came(ada(1)), Some(false));
        assert!(standing.is_live(&row(1)));
        assert!(standing.learn(ada(2)), "heard of by way of others");
        assert!(!standing.is_live(&row(1)) && !standing.is_live(&row(2)));
        assert_eq!(standing.went(ada(1)), Some(1));
        assert!(!standing.is_up(ADA));
        assert_eq!(standing.came(ada(1)), None, "it has ended");
        assert_eq!(standing.came(ada(2)), Some(false));
        assert!(standing.is_live(&row(2)));
        assert_eq!(standing.went(ada(1)), None, "that was another link");
    }

    #[test]
    fn only_the_grace_of_the_present_absence_counts() {
        let mut standing = bob();
        standing.came(ada(1));
        let first = standing.went(ada(1)).unwrap();
        standing.came(ada(1));
        let second = standing.went(ada(1)).unwrap();
        assert!(!standing.grace_over(ADA, first));
        assert!(standing.view(row(1)).online);
        assert!(standing.grace_over(ADA, second));
        assert!(!standing.view(row(1)).online);
        assert_eq!(standing.came(ada(1)), Some(true));
        assert!(standing.view(row(1)).online);
    }

    #[test]
    fn who_has_not_come_when_the_grace_after_the_start_is_over_is_lost() {
        let mut standing = bob();
        standing.learn(ada(3));
        assert!(standing.view(row(3)).online);
        assert_eq!(standing.settle(), [ADA]);
        assert!(!standing.view(row(3)).online);
        let stranger = Session { node: 9, ..row(3) };
        assert!(!standing.view(stranger).online, "nor one that is not known at all");
    }
}
