//! Several nodes of one cluster in one process: real doors, actors and links in memory, over groups
//! that agree at once.

use super::groups::{Failed, GroupError, Groups, Work};
use super::placement::groups as all_groups;
use super::*;
use bytes::Bytes;
use consensus::{Committed, GroupStatus, Handed};
use links::memory::Network;
use links::{PeerId, PeerInfo, Respond, Service};
use prost::Message as _;
use proto::cluster::{self, cast, request};
use proto::stored::member::State;
use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;
use supervision::{Intensity, ProcessError, Strategy, Supervisor};

/// The actor of `meta` on a node, and how many entries it has.
type Listener = (Arc<Inbox<MetaItem>>, Arc<Handed>, usize);

/// All groups of a cluster, agreed upon at once.
#[derive(Debug, Default)]
struct Raft {
    groups: BTreeMap<ShardId, GroupStatus>,
    /// Entries of `meta`.
    log: Vec<Bytes>,
    /// Who hears of them, and how many they have.
    listeners: BTreeMap<NodeId, Listener>,
    myself: Weak<Mutex<Raft>>,
    tables: BTreeMap<NodeId, (stored::Applied, stored::Meta)>,
}

impl Raft {
    fn spread(&mut self) {
        let meta = self.groups.get(&ShardId::META).cloned().unwrap_or_default();
        for (node, (inbox, handed, have)) in &mut self.listeners {
            let takes_part = meta.voters.contains(node) || meta.learners.contains(node);
            if !takes_part || handed.unfinished().task.is_some() || *have == self.log.len() {
                continue;
            }
            let new = self.log.iter().enumerate().skip(*have);
            let entries: Vec<_> = new.map(Self::entry).collect();
            *have += entries.len();
            let raft = self.myself.clone();
            let number = handed.apply(&entries, Box::new(move || Self::spread_more(&raft)));
            inbox.force(MetaItem::Apply(entries, number));
        }
    }

    fn spread_more(raft: &Weak<Mutex<Self>>) {
        if let Some(raft) = raft.upgrade() {
            raft.lock().spread();
        }
    }

    fn entry((index, content): (usize, &Bytes)) -> Committed {
        let id = stored::LogId { term: 1, node: 1, index: index as u64 };
        Committed { id, content: Some(content.clone()), membership: None }
    }
}

#[derive(Clone, Debug)]
struct FakeGroups {
    me: NodeId,
    founds: bool,
    raft: Arc<Mutex<Raft>>,
}

impl FakeGroups {
    fn change(
        &self,
        group: ShardId,
        change: impl FnOnce(&mut GroupStatus) + Send + 'static,
    ) -> Work<Result<(), GroupError>> {
        let (me, raft) = (self.me, self.raft.clone());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut raft = raft.lock();
            let status = raft.groups.get_mut(&group).unwrap();
            if status.leader != Some(me) {
                return Err(GroupError::NotLeader(status.leader));
            }
            change(status);
            if !status.leader.is_some_and(|leader| status.voters.contains(&leader)) {
                status.leader = status.voters.first().copied();
            }
            status.term += 1;
            raft.spread();
            Ok(())
        })
    }
}

impl Groups for FakeGroups {
    fn open_meta(
        &self,
        inbox: Arc<Inbox<MetaItem>>,
        handed: Arc<Handed>,
    ) -> Work<Result<(), ProcessError>> {
        let mut raft = self.raft.lock();
        if raft.listeners.get(&self.me).is_some_and(|(_, open, _)| Arc::ptr_eq(open, &handed)) {
            return Box::pin(async { Ok(()) });
        }
        let applied = raft.tables.get(&self.me).and_then(|(applied, _)| applied.id);
        let have = applied.map_or(0, |id| usize::try_from(id.index).unwrap() + 1);
        raft.listeners.insert(self.me, (inbox, handed, have));
        if self.founds {
            let me = Nodes::from([self.me]);
            let status = GroupStatus {
                leader: Some(self.me),
                quorum_seen: true,
                term: 1,
                voters: me.clone(),
                caught_up: me,
                ..GroupStatus::default()
            };
            raft.groups = all_groups().map(|group| (group, status.clone())).collect();
        }
        raft.spread();
        Box::pin(async { Ok(()) })
    }

    fn committed(&self, after: Option<u64>, up_to: u64) -> Option<Vec<Committed>> {
        let after = after.map_or(0, |index| usize::try_from(index).unwrap() + 1);
        let raft = self.raft.lock();
        let entries = raft.log.iter().enumerate().skip(after);
        Some(entries.map(Raft::entry).take_while(|entry| entry.id.index <= up_to).collect())
    }

    fn status(&self, group: ShardId) -> Option<GroupStatus> {
        let raft = self.raft.lock();
        let status = raft.groups.get(&group).cloned().unwrap_or_default();
        let me_leads = status.leader == Some(self.me);
        let holds = status.has_member(self.me);
        Some(if holds { GroupStatus { me_leads, ..status } } else { GroupStatus::default() })
    }

    fn has_left(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.change(group, move |status| {
            assert!(!status.voters.contains(&node) && !status.learners.contains(&node));
        })
    }

    fn forget(&self, _group: ShardId, may: Work<bool>) -> Work<Result<bool, GroupError>> {
        Box::pin(async move { Ok(may.await) })
    }

    fn add_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.change(group, move |status| {
            status.learners.insert(node);
            status.caught_up.insert(node);
        })
    }

    fn remove_learner(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.change(group, move |status| {
            status.learners.remove(&node);
        })
    }

    fn change_voters(&self, group: ShardId, voters: Nodes) -> Work<Result<(), GroupError>> {
        self.change(group, move |status| {
            status.learners.retain(|node| !voters.contains(node));
            status.voters = voters;
        })
    }

    fn yield_to(&self, group: ShardId, node: NodeId) -> Work<Result<(), GroupError>> {
        self.change(group, move |status| status.leader = Some(node))
    }

    fn propose(&self, content: Bytes, failed: Failed) {
        let mut raft = self.raft.lock();
        let leader = raft.groups.get(&ShardId::META).and_then(|status| status.leader);
        if leader != Some(self.me) {
            failed(GroupError::NotLeader(leader));
            return;
        }
        raft.log.push(content);
        raft.spread();
    }

    fn load(&self) -> Result<(stored::Applied, stored::Meta), ProcessError> {
        Ok(self.raft.lock().tables.get(&self.me).cloned().unwrap_or_default())
    }

    fn save(&self, applied: stored::Applied, meta: stored::Meta) -> Result<(), ProcessError> {
        self.raft.lock().tables.insert(self.me, (applied, meta));
        Ok(())
    }
}

struct ForCluster(Cluster);

impl Service for ForCluster {
    fn up(&self, peer: PeerInfo) {
        self.0.peer_up(&peer);
    }

    fn down(&self, _peer: PeerId) {}

    fn cast(&self, from: PeerId, parcel: Bytes) {
        match cluster::Cast::decode(parcel).unwrap().kind.unwrap() {
            cast::Kind::Standings(told) => self.0.standings(from, told),
            cast::Kind::NotMember(news) => self.0.not_member(from, news),
            other @ (cast::Kind::Sessions(_)
            | cast::Kind::Pushes(_)
            | cast::Kind::Signals(_)
            | cast::Kind::LinkRequested(_)
            | cast::Kind::Accounts(_)
            | cast::Kind::Leader(_)
            | cast::Kind::Account(_)) => panic!("{other:?}"),
        }
    }

    fn call(&self, from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        let kind: request::Kind = cluster::Request::decode(parcel).unwrap().kind.unwrap();
        let cluster = self.0.clone();
        self.0.0.tasks.spawn("call", async move {
            let kind = cluster.serve(from, kind).await;
            respond(cluster::Response { kind }.encode_to_vec().into());
        });
    }
}

struct Node {
    door: Cluster,
    _tree: Supervisor,
}

struct Story {
    network: Network,
    raft: Arc<Mutex<Raft>>,
    nodes: BTreeMap<u64, Node>,
}

impl Story {
    fn new() -> Self {
        let raft =
            |myself: &Weak<_>| Mutex::new(Raft { myself: myself.clone(), ..Raft::default() });
        Self { network: Network::new(7), raft: Arc::new_cyclic(raft), nodes: BTreeMap::new() }
    }

    /// Starts a node; the first founds the cluster.
    async fn start(&mut self, node: u64, incarnation: u64, address: &str) -> Cluster {
        let (peers, attach) = self.network.node(NodeId(node), incarnation);
        let founds = node == 1 && self.raft.lock().groups.is_empty();
        let groups = FakeGroups { me: NodeId(node), founds, raft: self.raft.clone() };
        let about = stored::Member {
            node,
            name: format!("node-{node}"),
            address: address.to_owned(),
            ..Default::default()
        };
        let door = Cluster::new(ClusterArgs {
            about,
            incarnation,
            own: ClusterSettings::default(),
            joins: node != 1,
            chance: 4711,
            peers,
            groups: Arc::new(groups),
        });
        attach.attach(Arc::new(ForCluster(door.clone())));
        let often = Intensity { restarts: 3, within: Duration::from_secs(10) };
        let children = door.children();
        let tree = Supervisor::start("cluster", Strategy::OneForOne, often, children).await;
        self.nodes.insert(node, Node { door: door.clone(), _tree: tree.unwrap() });
        door
    }

    async fn of_three() -> (Self, Vec<Cluster>) {
        let mut story = Self::new();
        let mut doors = Vec::new();
        for node in 1..=3 {
            doors.push(story.start(node, 1, &format!("10.0.0.{node}:7403")).await);
        }
        story.settles(&doors[0], 3).await;
        (story, doors)
    }

    async fn settles(&self, door: &Cluster, members: usize) {
        until(|| {
            door.meta().members.len() == members
                && door.left(Goal::Balanced).is_empty()
                && door.groups().len() == 17
        })
        .await;
    }

    fn status(&self, group: ShardId) -> GroupStatus {
        self.raft.lock().groups[&group].clone()
    }

    fn leads(&self, node: u64) -> usize {
        let raft = self.raft.lock();
        raft.groups.values().filter(|status| status.leader == Some(NodeId(node))).count()
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(5), waits).await.expect("it never holds");
}

#[tokio::test(start_paused = true)]
async fn a_first_node_founds_and_others_join_and_get_their_share() {
    let (mut story, doors) = Story::of_three().await;
    assert_eq!(doors[0].meta().cluster, 4711);
    for group in all_groups() {
        assert_eq!(story.status(group).voters.len(), 3, "{group}");
    }
    for node in 1..=3 {
        assert!((5..=6).contains(&story.leads(node)), "leaders are spread");
        let door = &story.nodes[&node].door;
        until(|| door.place() == Place::Member).await;
        for group in all_groups() {
            let leader = story.status(group).leader;
            until(|| door.leader_of(group) == leader).await;
        }
    }
    let fourth = story.start(4, 1, "10.0.0.4:7403").await;
    story.settles(&doors[0], 4).await;
    until(|| fourth.meta().members.len() == 4).await;
    let reports = fourth.groups();
    let held = reports.keys().filter(|group| fourth.holds(**group)).count();
    assert!((12..=14).contains(&held), "its share and meta: {held}");
    assert!(reports.values().all(|report| report.leader.is_some()), "it knows who leads the rest");
}

#[tokio::test(start_paused = true)]
async fn a_setting_made_on_any_node_holds_on_all() {
    let (_story, doors) = Story::of_three().await;
    doors[2].set_setting("registration.pin_digits", "8").await.unwrap();
    for door in &doors {
        until(|| door.settings().pin_digits == 8).await;
    }
    let refused = doors[1].set_setting("registration.pin_digits", "99").await;
    let Err(ClusterError::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("5 to 8"), "{why}");
    doors[1].set_setting("registration.pin_digits", "").await.unwrap();
    for door in &doors {
        until(|| door.settings().pin_digits == 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_drains_and_leads_again() {
    let (story, doors) = Story::of_three().await;
    doors[1].set_state(NodeId(1), State::Draining).await.unwrap();
    until(|| story.leads(1) == 0).await;
    until(|| doors[1].left(Goal::Drained(NodeId(1))).is_empty()).await;
    assert_eq!(story.status(ShardId(0)).voters.len(), 3, "it keeps its replicas");
    doors[1].set_state(NodeId(1), State::Active).await.unwrap();
    until(|| story.leads(1) >= 5).await;
    let unknown = doors[1].set_state(NodeId(9), State::Draining).await;
    assert!(matches!(unknown, Err(ClusterError::Refused(why)) if why.contains("0009")));
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_removed_and_told_so_when_it_returns() {
    let (mut story, doors) = Story::of_three().await;
    story.start(4, 1, "10.0.0.4:7403").await;
    story.settles(&doors[0], 4).await;
    until(|| story.nodes[&4].door.place() == Place::Member).await;
    story.network.remove(NodeId(4));
    story.nodes.remove(&4);
    for status in story.raft.lock().groups.values_mut() {
        if status.leader == Some(NodeId(4)) {
            status.leader = status.voters.first().copied();
            status.term += 1;
        }
    }
    doors[1].set_state(NodeId(4), State::Lost).await.unwrap();
    until(|| doors[0].left(Goal::Gone(NodeId(4))).is_empty()).await;
    story.settles(&doors[0], 3).await;
    for group in all_groups() {
        assert_eq!(story.status(group).voters.len(), 3, "rebuilt elsewhere: {group}");
    }
    let back = story.start(4, 2, "10.0.0.4:7403").await;
    until(|| back.place() == Place::Removed).await;
    assert_eq!(doors[0].meta().members.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_told_when_it_is_gone() {
    let (mut story, doors) = Story::of_three().await;
    let fourth = story.start(4, 1, "10.0.0.4:7403").await;
    story.settles(&doors[0], 4).await;
    until(|| fourth.place() == Place::Member).await;
    fourth.set_state(NodeId(4), State::Leaving).await.unwrap();
    until(|| fourth.left(Goal::Gone(NodeId(4))).is_empty()).await;
    assert_eq!((fourth.place(), doors[0].meta().members.len()), (Place::Removed, 3));
    assert_eq!(story.leads(4), 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_told_at_the_next_start() {
    let (mut story, doors) = Story::of_three().await;
    doors[0].set_state(NodeId(2), State::Draining).await.unwrap();
    story.nodes.remove(&2);
    story.start(2, 2, "elsewhere:7403").await;
    until(|| {
        let meta = doors[0].meta();
        let member = meta::member(&meta, NodeId(2)).unwrap();
        member.address == "elsewhere:7403" && member.state() == State::Draining
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_a_change_is_refused_with_retry() {
    let (story, doors) = Story::of_three().await;
    for status in story.raft.lock().groups.values_mut() {
        status.leader = None;
    }
    let refused = doors[0].set_setting("limits.contact_share", "5").await;
    assert_eq!(refused, Err(ClusterError::NoMajority));
}
