//! The node process of these tests: links and nothing else, told what to do on its standard input.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use links::{
    CallError, Config, Identity, Lane, Me, Opened, PeerId, PeerInfo, Peers, Port, Respond, Service,
};
use proto::NodeId;
use supervision::{StopSource, TaskGroup};
use tokio::time::Instant;

use crate::harness::VARIABLE;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

/// Says all it hears; answers a call with its own parcel, unless that is empty.
#[derive(Default)]
struct Says {
    casts: AtomicU64,
}

impl Service for Says {
    fn up(&self, peer: PeerInfo) {
        println!("up {} {}", peer.id.node, peer.id.incarnation);
    }
    fn down(&self, peer: PeerId) {
        println!("down {} {}", peer.node, peer.incarnation);
    }
    fn cast(&self, _from: PeerId, _parcel: Bytes) {
        self.casts.fetch_add(1, Ordering::Relaxed);
    }
    fn call(&self, _from: PeerId, parcel: Bytes, _left: Duration, respond: Respond) {
        if parcel.is_empty() {
            println!("asked in vain");
        } else {
            respond(parcel);
        }
    }
}

/// What the commands work on.
struct Desk {
    peers: Peers,
    port: Port,
    says: Arc<Says>,
    tasks: TaskGroup,
}

/// Runs a node if the variable is set, and ends the process with it.
pub(crate) fn run_if_asked() {
    if let Ok(start) = std::env::var(VARIABLE) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(run(&start));
    }
}

async fn run(start: &str) {
    let levels: Targets = "ractor=warn,ractor_cluster=error,links=debug".parse().unwrap();
    registry().with(levels).with(fmt::layer().with_ansi(false)).init();
    let mut words = start.split('|');
    let number: u8 = words.next().unwrap().parse().unwrap();
    let incarnation = words.next().unwrap().parse().unwrap();
    let identity = Identity::new(&[number; 32], words.next().unwrap()).unwrap();
    let seeds = words.next().unwrap().split(',').filter(|seed| !seed.is_empty());
    let config = Config {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        seeds: seeds.map(str::to_owned).collect(),
        ..Config::default()
    };
    let me = Me { incarnation, name: format!("node-{number}"), ..Me::default() };
    let Opened { peers, port, runner } = links::open(config, identity, me).unwrap();
    println!("listening {} {}", peers.me().node, port.address());
    let says = Arc::new(Says::default());
    let tasks = TaskGroup::new();
    let (commands, mut told) = tokio::sync::mpsc::channel::<String>(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            commands.blocking_send(line).unwrap();
        }
    });
    let desk = Arc::new(Desk { peers, port, says: Arc::clone(&says), tasks });
    let mut ends = false;
    while !ends {
        let (source, stopping) = StopSource::new();
        let obey = async {
            ends = obey(&mut told, &desk).await;
            source.fire();
        };
        let service = Arc::clone(&says) as Arc<dyn Service>;
        let (ran, ()) = tokio::join!(runner.run(service, stopping), obey);
        ran.unwrap();
    }
}

/// Obeys until the run is over; whether all is.
async fn obey(told: &mut tokio::sync::mpsc::Receiver<String>, desk: &Arc<Desk>) -> bool {
    while let Some(command) = told.recv().await {
        if command == "rerun" {
            return false;
        }
        let desk = Arc::clone(desk);
        desk.clone().tasks.spawn("command", async move { desk.obey(&command).await });
    }
    true
}

fn lane(word: &str) -> Lane {
    match word {
        "urgent" => Lane::Urgent,
        "normal" => Lane::Normal,
        _ => Lane::Bulk,
    }
}

fn parcel(size: u64) -> Bytes {
    Bytes::from(vec![7; usize::try_from(size).unwrap()])
}

impl Desk {
    async fn obey(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let node = || NodeId(u64::from_str_radix(words[1], 16).unwrap());
        let number = |place: usize| words[place].parse::<u64>().unwrap();
        match words[0] {
            "call" => {
                let within = Duration::from_millis(number(4));
                let asked = self.peers.call(node(), lane(words[2]), parcel(number(3)), within);
                match asked.await {
                    Ok(answer) => println!("= answer {}", answer.len()),
                    Err(error) => println!("= error {error:?}"),
                }
            }
            "cast" => {
                let bytes = parcel(number(3));
                let send = || self.peers.cast(node(), Lane::Normal, bytes.clone());
                let accepted = (0..number(2)).filter(|_| send()).count();
                println!("= accepted {accepted}");
            }
            "casts" => println!("= casts {}", self.says.casts.load(Ordering::Relaxed)),
            "flood" => self.flood(node(), (number(2), number(3)), number(4)).await,
            "bulk" => self.bulk(node(), number(2)).await,
            "up" => println!("= {}", self.peers.up().len()),
            "learn" => self.peers.learn(vec![(node(), words[2].to_owned())]),
            "seed" => self.port.add_seed(words[1].to_owned()),
            other => panic!("no command {other}"),
        }
    }

    async fn flood(&self, node: NodeId, (per_second, size): (u64, u64), seconds: u64) {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while Instant::now() < end {
            ticks.tick().await;
            for _ in 0..per_second / 100 {
                self.peers.cast(node, Lane::Normal, parcel(size));
            }
        }
        println!("flood over");
    }

    async fn bulk(&self, node: NodeId, megabytes: u64) {
        let begun = Instant::now();
        for _ in 0..megabytes * 4 {
            let minute = Duration::from_mins(1);
            let answer = self.peers.call(node, Lane::Bulk, parcel(256 << 10), minute).await;
            assert!(matches!(answer, Ok(_) | Err(CallError::Full)), "{answer:?}");
        }
        println!("bulk over after {:?}", begun.elapsed());
    }
}
