//! `cargo run -p tests --bin chaos -- --minutes N --seed S`: a cluster that is hurt again and again
//! under load, healed, and judged after each fault. It starts itself as the nodes.
//!
//! **Invariant:** a seed and the same options give the same faults in the same order, for the same
//! times. A failure prints the seed, keeps all logs, and ends with status 1.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is how it speaks")]

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use tests::cluster::{Cables, Cluster, Options};
use tests::disk::SmallDisk;
use tests::faults::{Can, Fault, Faults};
use tests::pause::Pause;
use tests::round::{Round, judge, round};
use tests::workload::{Plan, Workload};
use tokio::time::Instant;

/// Disks of nodes, if they are small: enough for the work, soon full.
const DISK_BYTES: u64 = 192 << 20;

/// People who stay away after their node was killed.
const ABSENT: usize = 2;

/// Settings of every node: space comes back soon, people may register freely.
const SETTINGS: &str = "[storage]\nsegment_bytes = \"1MiB\"\ncheckpoint_every = \"2s\"\n\
    free_bytes_min = \"16MiB\"\n\
    [registration]\nrequests_per_address_per_hour = 1000000\n\
    requests_per_alias_per_hour = 1000000\npins_per_hour = 1000000000\n";

/// Hurts a cluster under load and judges it.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// How long to go on.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Decides the faults.
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes, 3 to 5.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: u8,
    /// Each node in a network namespace of its own, instead of relays on loopback. Needs root.
    #[arg(long)]
    netns: bool,
    /// People.
    #[arg(long, default_value_t = 12)]
    users: usize,
    /// Milliseconds between the sends of one device.
    #[arg(long, default_value_t = 50)]
    pace_ms: u64,
    /// Longest time in seconds, after a fault has ended, until everyone is served again, and until all
    /// is settled and one content is everywhere.
    #[arg(long, default_value_t = 60)]
    healed_s: u64,
    /// After a node was killed, some of its people stay away for so many seconds at least, over several
    /// faults.
    #[arg(long, default_value_t = 120)]
    away_s: u64,
    /// Keep settings and logs of the nodes also if nothing is wrong.
    #[arg(long)]
    keep: bool,
    /// Only faults whose name or description holds one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let first = std::env::args().nth(1).unwrap_or_default();
    if ["serve", "admin"].contains(&first.as_str()) {
        return tests::under_test::run();
    }
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random::<u64>);
    println!("chaos: seed {seed}, {arguments:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done =
        runtime.context("no runtime").and_then(|runtime| runtime.block_on(run(&arguments, seed)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: FAILED with seed {seed} ({arguments:?}):\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, seed: u64) -> Result<()> {
    let program = std::env::current_exe()?;
    let probe = tempfile::tempdir()?;
    let small = SmallDisk::mount(&probe.path().join("disk"), 1 << 20);
    if let Err(error) = &small {
        println!("no full disks: {error:#}");
    }
    let nodes = usize::from(arguments.nodes);
    let options = Options {
        nodes,
        cables: if arguments.netns { Cables::Namespaces } else { Cables::Relays },
        settings: SETTINGS.to_owned(),
        disk: small.is_ok().then_some(DISK_BYTES),
    };
    let can =
        Can { nodes, relays: !arguments.netns, namespaces: arguments.netns, disks: small.is_ok() };
    drop(small);
    let begun = Instant::now();
    let mut cluster = Cluster::start(&program.to_string_lossy(), options).await?;
    println!("{nodes} nodes are one cluster after {:.1} s", begun.elapsed().as_secs_f64());
    let ran = tokio::select! {
        ran = hurt(arguments, &mut cluster, Faults::new(seed, can)) => ran,
        told = told_to_end() => told,
    };
    if ran.is_err() || arguments.keep {
        for dir in cluster.keep() {
            eprintln!("kept {}", dir.display());
        }
    }
    ran
}

/// Waits for SIGTERM or SIGINT, so that everything is cleaned up then, too.
async fn told_to_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => bail!("told to end by SIGTERM"),
        _ = interrupt.recv() => bail!("told to end by SIGINT"),
    }
}

async fn hurt(arguments: &Arguments, cluster: &mut Cluster, faults: Faults) -> Result<()> {
    let plan = Plan {
        seed: 1,
        users: arguments.users,
        tablets: arguments.users / 4,
        window: 16,
        sends: u64::MAX,
        drops_per_1000: 1,
    };
    let pace = Duration::from_millis(arguments.pace_ms);
    let mut load = Workload::across(cluster.nodes(), plan, pace).await?;
    let end = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    let wanted = |fault: &Fault| {
        let told = format!("{fault} {fault:?}");
        arguments.only.is_empty() || arguments.only.iter().any(|part| told.contains(part.as_str()))
    };
    let mut rounds: Vec<(Fault, Round)> = Vec::new();
    let mut away_since = None;
    for (fault, lasts) in faults.filter(|(fault, _)| wanted(fault)) {
        if Instant::now() > end {
            break;
        }
        if let (Fault::Kill(node), None) = (&fault, away_since) {
            let leaving = load.stay_away_after(*node, ABSENT);
            println!("{} {leaving} people of node {node} will stay away", time_of_day());
            away_since = (leaving > 0).then(Instant::now);
        }
        let judged = round(cluster, &mut load, &fault, lasts).await;
        let judged = judged.with_context(|| format!("fault {}: {fault}", rounds.len()))?;
        println!("{} {fault}: {judged}", time_of_day());
        ensure!(
            judged.converged <= Duration::from_secs(arguments.healed_s),
            "it took longer than {} s to heal",
            arguments.healed_s
        );
        rounds.push((fault, judged));
        let away = Duration::from_secs(arguments.away_s);
        if away_since.is_some_and(|since| since.elapsed() >= away) {
            println!("{} those who stayed away come back", time_of_day());
            load.come_back();
            away_since = None;
        }
    }
    load.come_back();
    let (accepted, wrong) = load.settle(Duration::from_secs(arguments.healed_s)).await?;
    judge(accepted, &wrong).context("at the end, when all are there")?;
    tell(&rounds);
    Ok(())
}

/// As the logs of the nodes have it, UTC.
fn time_of_day() -> String {
    let second = node::clock::system_ms() / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Prints what all rounds come to: for each kind of fault the median and the longest waits.
fn tell(rounds: &[(Fault, Round)]) {
    let mut kinds: BTreeMap<String, Vec<Pause>> = BTreeMap::new();
    for (fault, round) in rounds {
        let kind = format!("{fault:?}");
        let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_owned();
        kinds.entry(kind).or_default().push(round.pause);
    }
    for (kind, pauses) in kinds {
        let part = |of: fn(&Pause) -> Duration| {
            let mut all: Vec<f64> = pauses.iter().map(|pause| of(pause).as_secs_f64()).collect();
            all.sort_by(f64::total_cmp);
            format!("{:.2} / {:.2}", all[all.len() / 2], all[all.len() - 1])
        };
        println!(
            "{kind} x{}: median / longest wait in s: to the tick {}, to the screen {}, without a \
             connection {}",
            pauses.len(),
            part(|pause| pause.accepted),
            part(|pause| pause.delivered),
            part(|pause| pause.away),
        );
    }
    let accepted: usize = rounds.iter().map(|(_, round)| round.accepted).sum();
    println!("{} faults, {accepted} messages accepted, nothing wrong", rounds.len());
}
