//! The admin API over its socket, with a control that only remembers.

mod http;

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use membership::{ClusterError, Goal, Work};
use proto::stored::member::State;
use proto::{NodeId, ShardId};
use serde_json::json;
use supervision::{StopSource, TaskGroup};

use super::call::Call;
use super::control::{Control, MemberStatus, ReplicaStatus, SessionsStatus, Status};
use super::print::Printed;
use super::socket::{Socket, connect};
use super::{
    Drain, Failure, FailureCode, GroupStatus, Remove, Reply, Request, Set, Wait, server,
    socket_path,
};

#[derive(Debug, Default)]
struct Fake {
    states: Mutex<Vec<(NodeId, State)>>,
    set: Mutex<BTreeMap<String, String>>,
    left: Mutex<Vec<String>>,
    asked: Mutex<Vec<Goal>>,
    /// Names of those who are on their way out.
    gone: Mutex<Vec<String>>,
}

fn member(node: u64, name: &str, up: bool) -> MemberStatus {
    MemberStatus {
        node: NodeId(node),
        name: name.to_owned(),
        address: format!("10.0.0.{}:7403", node & 0xff),
        zone: String::new(),
        state: "active".to_owned(),
        up,
        incarnation: u64::from(up),
        client_address: format!("10.0.0.{}:7400", node & 0xff),
        version: "0.1.0".to_owned(),
        up_s: up.then_some(90_000),
        free_bytes: up.then_some(50 << 30),
        connections: up.then_some(19_000),
        clock_ms: up.then_some(-2_678_400_000),
    }
}

fn status(members: Vec<MemberStatus>) -> Status {
    let group = |group| ReplicaStatus {
        group: ShardId(group),
        status: GroupStatus {
            leader: (group != 7).then_some(NodeId(0xa1)),
            term: 3,
            voters: [NodeId(0xa1)].into(),
            learners: [NodeId(0xb2)].into(),
            applied: 9,
            ..GroupStatus::default()
        },
        digest: "00000000000000ff".to_owned(),
    };
    Status {
        cluster: "5".to_owned(),
        node: NodeId(0xa1),
        place: "member".to_owned(),
        members,
        groups: (0..=16).map(group).collect(),
        clock: "astray".to_owned(),
        sessions: SessionsStatus { rows: 2, digest: "0".repeat(16), online: 1 },
        settings: BTreeMap::from([("registration.pin_digits".into(), "8".into())]),
    }
}

impl Control for Fake {
    fn me(&self) -> NodeId {
        NodeId(0xa1)
    }

    fn members(&self) -> Vec<MemberStatus> {
        let high = 0xa1 << 56;
        let mut members = vec![
            member(0xa1, "ada", true),
            member(0xb2, "bob", false),
            member(high | 1, "cy", true),
            member(high | 2, "cy", true),
        ];
        let gone = self.gone.lock();
        for member in members.iter_mut().filter(|member| gone.contains(&member.name)) {
            member.state = "leaving".to_owned();
        }
        members
    }

    fn status(&self) -> Work<Status> {
        let status = status(self.members());
        Box::pin(async { status })
    }

    fn set_state(&self, node: NodeId, state: State) -> Work<Result<(), ClusterError>> {
        self.states.lock().push((node, state));
        Box::pin(async { Ok(()) })
    }

    fn set_setting(&self, key: String, value: String) -> Work<Result<(), ClusterError>> {
        let told = match key.as_str() {
            "none" => Err(ClusterError::Refused("none is no setting".to_owned())),
            "split" => Err(ClusterError::NoMajority),
            _ => Ok(()),
        };
        self.set.lock().insert(key, value);
        Box::pin(async { told })
    }

    fn settings(&self) -> BTreeMap<String, String> {
        self.set.lock().clone()
    }

    fn rebalance(&self) {}

    fn left(&self, goal: Goal) -> Vec<String> {
        self.asked.lock().push(goal);
        self.left.lock().clone()
    }

    fn join(&self, seed: String) -> Work<Result<String, Failure>> {
        Box::pin(async move { Ok(format!("restart to join {seed}")) })
    }
}

struct Running {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: StopSource,
    tasks: TaskGroup,
}

impl Running {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let (stop, stopping) = StopSource::new();
        let (fake, tasks) = (Arc::new(Fake::default()), TaskGroup::new());
        let socket = Socket::open(folder.path()).unwrap();
        let serve = server::serve(socket, fake.clone(), stopping);
        tasks.spawn("admin", async move { serve.await.unwrap() });
        Self { folder, fake, stop, tasks }
    }

    async fn begin(&self, request: Request) -> Call {
        Call::begin(self.folder.path(), &request).await.unwrap()
    }

    async fn ask(&self, request: Request) -> Reply {
        self.begin(request).await.next().await.unwrap()
    }

    async fn stop(self) {
        self.stop.fire();
        assert_eq!(self.tasks.finish(Duration::from_secs(5)).await, 0, "ends when told");
    }
}

fn drain(node: &str) -> Request {
    Request::Drain(Drain { node: node.to_owned(), undo: false, force: true, wait: false })
}

#[tokio::test]
async fn only_its_owner_may_open_the_socket_and_it_goes_with_the_node() {
    let running = Running::start();
    let path = socket_path(running.folder.path());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    running.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let left = std::os::unix::net::UnixListener::bind(socket_path(folder.path())).unwrap();
    drop(left);
    let running = Running::start_in(folder);
    let twice = Socket::open(running.folder.path()).unwrap_err();
    assert!(format!("{twice:#}").contains("another node"), "{twice:#}");
    assert!(matches!(running.ask(Request::Status).await, Reply::Done(_)), "it still answers");
}

#[tokio::test]
async fn a_data_directory_with_a_long_path_has_a_socket_too() {
    let folder = tempfile::Builder::new().prefix(&"long".repeat(40)).tempdir().unwrap();
    let running = Running::start_in(folder);
    assert!(matches!(running.ask(Request::Status).await, Reply::Done(_)));
}

#[tokio::test]
async fn a_status_has_the_keys_that_programs_read() {
    let running = Running::start();
    let Reply::Done(value) = running.ask(Request::Status).await else { panic!("no status") };
    let keys = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        keys(&value),
        set(&["clock", "cluster", "groups", "members", "node", "place", "sessions", "settings"])
    );
    assert_eq!(
        keys(&value["members"][0]),
        set(&[
            "address",
            "client_address",
            "clock_ms",
            "connections",
            "free_bytes",
            "incarnation",
            "name",
            "node",
            "state",
            "up",
            "up_s",
            "version",
            "zone"
        ])
    );
    assert_eq!(
        keys(&value["groups"][0]),
        set(&[
            "applied",
            "caught_up",
            "digest",
            "group",
            "last",
            "leader",
            "learners",
            "term",
            "voters"
        ])
    );
    assert_eq!(keys(&value["sessions"]), set(&["digest", "online", "rows"]));
    assert_eq!(value["members"][0]["node"], "00000000000000a1");
    assert_eq!(value["groups"][7]["leader"], serde_json::Value::Null);

    let printed = Printed { request: &Request::Status, json: false };
    let text = printed.text(&value);
    for part in [
        "cluster 5, 4 nodes",
        "ada",
        "NO LEADER for 7",
        "2, 1 online",
        "pin_digits = 8",
        "CLOCK IS WRONG",
        "-31 days",
        "25 h",
        "50 GiB",
        "19000",
        "10.0.0.161:7400",
        "* answers",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_status_fits_a_terminal_and_cannot_command_it() {
    let long = |mut member: MemberStatus| {
        member.name = "n\u{1b}[2J".repeat(20);
        member.address = "a".repeat(100) + ":7403";
        (member.client_address, member.zone) = (member.address.clone(), member.name.clone());
        (member.version, member.state) = ("1.2.3-rc.45+build".to_owned(), "draining".to_owned());
        member
    };
    let status = status(vec![long(member(u64::MAX, "", true)), long(member(1, "", false))]);
    let value = serde_json::to_value(status).unwrap();
    let text = Printed { request: &Request::Status, json: false }.text(&value);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.chars().all(|sign| sign == '\n' || !sign.is_control()), "{text:?}");
}

#[tokio::test]
async fn who_drains_one_too_many_is_refused_unless_he_insists() {
    let running = Running::start();
    let drain = |node: &str, force| {
        let (node, undo, wait) = (node.to_owned(), false, false);
        Request::Drain(Drain { node, undo, force, wait })
    };
    *running.fake.gone.lock() = vec!["bob".to_owned(), "cy".to_owned()];
    let Reply::Failed(failure) = running.ask(drain("ada", false)).await else { panic!("drained") };
    assert_eq!(failure.code, FailureCode::Refused);
    for part in ["bob is not up", "cy is leaving", "0 of 4", "--force", "--undo"] {
        assert!(failure.text.contains(part), "{}", failure.text);
    }
    assert!(matches!(running.ask(drain("ada", true)).await, Reply::Done(_)));
}

#[test]
fn what_was_only_begun_is_not_said_to_be_done() {
    let drain =
        Request::Drain(Drain { node: "ada".into(), undo: false, force: false, wait: false });
    for (request, done) in [
        (Request::Leave(Wait { wait: false }), "ada has left the cluster; stop it for good"),
        (drain, "ada leads nothing"),
        (Request::Rebalance(Wait { wait: false }), "everything is where it should be"),
        (
            Request::Remove(Remove { node: "ada".into(), wait: false }),
            "ada is no member any longer",
        ),
    ] {
        let printed = Printed { request: &request, json: false };
        let text = |waited: bool| printed.text(&json!({ "name": "ada", "waited": waited }));
        assert!(text(true).trim_start().starts_with(done), "{}", text(true));
        assert!(text(false).starts_with("begun; "), "{}", text(false));
    }
    // Nothing is waited for there.
    let undo = Request::Drain(Drain { node: "ada".into(), undo: true, force: false, wait: true });
    let printed = Printed { request: &undo, json: false };
    assert!(printed.text(&json!({ "name": "ada", "waited": false })).contains("may lead again"));
}

#[tokio::test]
async fn a_node_is_meant_by_name_or_by_the_beginning_of_its_id() {
    let running = Running::start();
    for (text, node) in
        [("ada", 0xa1), ("00000000000000B2", 0xb2), ("00000000000000b", 0xb2), ("bob", 0xb2)]
    {
        let Reply::Done(done) = running.ask(drain(text)).await else { panic!("{text}") };
        assert_eq!(done["node"], NodeId(node).to_string());
    }
    for (text, why) in [("eve", "no member"), ("", "no member"), ("cy", "any of"), ("a1", "any of")]
    {
        let Reply::Failed(failure) = running.ask(drain(text)).await else { panic!("{text}") };
        assert_eq!(failure.code, FailureCode::UnknownNode);
        assert!(failure.text.contains(why), "{}", failure.text);
    }
}

#[tokio::test]
async fn a_node_that_is_up_leaves_and_one_that_is_not_is_lost() {
    let running = Running::start();
    for (node, wait) in [("ada", false), ("bob", false)] {
        let asked = Request::Remove(Remove { node: node.to_owned(), wait });
        assert!(matches!(running.ask(asked).await, Reply::Done(_)));
    }
    running.ask(Request::Leave(Wait { wait: false })).await;
    let undo = Drain { node: "ada".into(), undo: true, force: false, wait: true };
    running.ask(Request::Drain(undo)).await;
    let states = running.fake.states.lock().clone();
    let expected = [
        (0xa1, State::Leaving),
        (0xb2, State::Lost),
        (0xa1, State::Leaving),
        (0xa1, State::Active),
    ];
    assert_eq!(states, expected.map(|(node, state)| (NodeId(node), state)));
}

#[tokio::test]
async fn who_removes_a_node_is_warned_when_few_are_left() {
    let running = Running::start();
    let remove = |node: &str| Request::Remove(Remove { node: node.to_owned(), wait: false });
    let Reply::Done(done) = running.ask(remove("ada")).await else { panic!("not removed") };
    assert_eq!(done.get("warning"), None, "three are left");
    *running.fake.gone.lock() = vec!["ada".to_owned()];
    for wait in [false, true] {
        let request = Request::Remove(Remove { node: "bob".to_owned(), wait });
        let Reply::Done(done) = running.ask(request.clone()).await else { panic!("not removed") };
        assert_eq!(done["warning"], "now only 2 nodes: each shard has one voter");
        let text = Printed { request: &request, json: false }.text(&done);
        assert!(
            text.ends_with("\nwarning: now only 2 nodes: each shard has one voter\n"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn progress_is_told_until_nothing_is_left() {
    let running = Running::start();
    *running.fake.left.lock() = vec!["leads 3 groups".to_owned()];
    let drain = Drain { node: "ada".into(), undo: false, force: true, wait: true };
    let mut call = running.begin(Request::Drain(drain)).await;
    let told = call.next().await.unwrap();
    assert_eq!(told, Reply::Progress(vec!["leads 3 groups".to_owned()]));
    *running.fake.left.lock() = vec!["leads 1 group".to_owned()];
    let told = call.next().await.unwrap();
    assert_eq!(told, Reply::Progress(vec!["leads 1 group".to_owned()]));
    running.fake.left.lock().clear();
    let done = json!({ "node": NodeId(0xa1), "name": "ada", "waited": true });
    assert_eq!(call.next().await.unwrap(), Reply::Done(done));
    assert_eq!(running.fake.asked.lock()[0], Goal::Drained(NodeId(0xa1)));
}

#[tokio::test]
async fn who_leaves_is_waited_for_no_longer() {
    let running = Running::start();
    *running.fake.left.lock() = vec!["to be moved: 3 groups".to_owned()];
    let mut call = running.begin(Request::Rebalance(Wait { wait: true })).await;
    assert!(matches!(call.next().await.unwrap(), Reply::Progress(_)));
    drop(call);
    let looks = || running.fake.asked.lock().len();
    let (mut before, mut now) = (0, looks());
    while before < now {
        tokio::time::sleep(Duration::from_secs(1)).await;
        (before, now) = (now, looks());
    }
    running.stop().await;
}

#[tokio::test]
async fn settings_are_set_shown_and_refused_with_a_reason() {
    let running = Running::start();
    let set = |key: &str| Request::Set { key: key.to_owned(), set: Set { value: "7".to_owned() } };
    assert_eq!(running.ask(set("one")).await, Reply::Done(json!({ "set": "one" })));
    for (key, kind) in [("none", FailureCode::Refused), ("split", FailureCode::NoMajority)] {
        let Reply::Failed(failure) = running.ask(set(key)).await else { panic!("{key}") };
        assert_eq!(failure.code, kind);
    }
    let get = |key: &str| Request::Get { key: Some(key.to_owned()) };
    assert_eq!(running.ask(get("one")).await, Reply::Done(json!({ "one": "7" })));
    assert!(matches!(running.ask(get("two")).await, Reply::Failed(_)));
}

#[tokio::test]
async fn only_so_many_may_ask_at_once() {
    let running = Running::start();
    *running.fake.left.lock() = vec!["to be moved: 3 groups".to_owned()];
    let mut asking = Vec::new();
    for _ in 0..8 {
        let mut call = running.begin(Request::Rebalance(Wait { wait: true })).await;
        assert!(matches!(call.next().await.unwrap(), Reply::Progress(_)));
        asking.push(call);
    }
    let Reply::Failed(failure) = running.ask(Request::Status).await else { panic!("no answer") };
    assert_eq!(failure.code, FailureCode::Busy);
}

#[tokio::test]
async fn without_a_node_nobody_answers() {
    let folder = tempfile::tempdir().unwrap();
    let error = connect(folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(socket_path(Path::new("data")), Path::new("data/admin.sock"));
}
