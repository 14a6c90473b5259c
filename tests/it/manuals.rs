//! Every command that a manual shows is run by a story, here or in `readme.rs`, or the list below says why none
//! runs it. A command that is new, changed or gone fails `every_command_of_a_manual_is_run_or_says_why_not`.

use crate::people::PROGRAM;
use crate::readme::commands;
use crate::terminals::{Desk, ROOT, register, text_of};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use tests::cluster::{Cluster, Options};
use tests::node::{PATIENCE, until};

const MANUALS: [&str; 4] =
    ["README.md", "CONTRIBUTING.md", "deploy/RUNBOOK.md", "clients/cli/CHAT.md"];

/// How the text of a command begins, in a block or between backticks.
const COMMANDS: [&str; 9] =
    ["natter ", "cargo ", "cd ", "export ", ".ci/", "curl ", "kill ", "df ", "ss "];

/// Stories, each with the commands that it runs.
const RUN: &[(&str, &[&str])] = &[
    (
        "a_newcomer_who_does_what_the_readme_says_chats_with_somebody",
        &[
            "natter serve",
            "natter chat --as ada --server 127.0.0.1:7400 --ca natter-data/tls/ca.pem",
            "natter chat ada --as bob --server 127.0.0.1:7400 --ca natter-data/tls/ca.pem",
        ],
    ),
    (
        "the_three_nodes_of_the_readme_are_a_cluster_and_one_of_them_may_be_killed",
        &[
            "natter serve --config deploy/cluster/node1.toml",
            "natter serve --config deploy/cluster/node2.toml",
            "natter serve --config deploy/cluster/node3.toml",
            "natter admin --data-dir node1 cluster status",
            "natter chat --as carol --server 127.0.0.1:7410,127.0.0.1:7420,127.0.0.1:7430 --ca node1/tls/ca.pem",
            "natter chat carol --as dave --server 127.0.0.1:7430,127.0.0.1:7420,127.0.0.1:7410 --ca node1/tls/ca.pem",
            "kill -9",
        ],
    ),
    ("a_third_person_joins_the_demo_of_the_readme", &["cargo run --release -- demo", "cargo demo"]),
    (
        "the_load_of_the_readme_is_put_on_a_node",
        &[
            "cargo load pairs 500 --rate max --seconds 10 --receipts --spawn",
            "cargo load pairs 500 --rate max --receipts --spawn",
        ],
    ),
    (
        "what_a_contributor_runs_of_the_program_works",
        &[
            "cargo run -p natter -- serve --data-dir /tmp/natter",
            "cargo run -p natter -- serve --print-config > deploy/node.toml",
        ],
    ),
    (
        "the_runbook_replaces_a_node_that_is_gone_and_takes_one_down_on_purpose",
        &[
            "natter admin --data-dir DATA cluster status",
            "natter admin --data-dir DATA cluster remove NAME",
            "natter admin --data-dir DATA cluster status --json | jq '[.groups[].voters | length] | min'",
            "natter admin --data-dir DATA cluster drain NAME",
            "natter admin --data-dir DATA cluster drain NAME --undo",
            "curl localhost:7402/readyz",
            "curl -s --unix-socket DATA/admin.sock http://natter/cluster",
            "curl -s --unix-socket DATA/admin.sock http://natter/cluster/rebalance -d '{\"wait\":true}'",
            "df -h DATA",
            "kill -HUP PID",
            "natter serve --config FILE --check",
            "natter admin settings set registration.pins_per_hour 50000",
            "ss -ltnp",
        ],
    ),
    (
        "the_commands_of_the_chats_manual_work",
        &[
            "natter chat --server chat.example.org:7400 --ca ca.pem",
            "natter chat",
            "natter chat bob",
            "natter chat bob --lines",
            "natter chat --link",
            "natter chat --as ada --link --server chat.example.org:7400 --ca ca.pem",
            "natter chat --as ALIAS --register-again",
        ],
    ),
];

/// Commands that no story runs, with the reason.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "export PATH=\"$PWD/target/release:$PATH\"",
        "each story puts the folder of the program under test on the path instead",
    ),
    ("cargo test --workspace", "runs this test, and would begin anew"),
    ("cargo test -p tests --test it", "runs this test, and would begin anew"),
    ("cargo test -p tests --test tidy", "builds; CI runs it"),
    ("cargo test -p proto", "builds; CI runs it"),
    ("cargo lint", "builds; CI runs it"),
    (".ci/run", "is CI, which runs this test"),
    ("cargo dist", "builds for minutes"),
    ("cargo bench -p benches", "builds for minutes, and measures for more"),
    ("cargo install cargo-fuzz", "fetches a program from a registry"),
    (
        "cd tests && cargo +nightly fuzz run frames",
        "needs the nightly toolchain, and runs for ever",
    ),
];

/// The commands of a manual, in blocks and between backticks, without their remarks.
fn all_commands(text: &str) -> BTreeSet<String> {
    let fenced = text.split("```").step_by(2).collect::<Vec<_>>().concat();
    let blocks = fenced.lines().filter_map(|line| line.strip_prefix("    ").map(str::to_owned));
    // A command between backticks may go on in the next line.
    let running = fenced.lines().filter(|line| !line.starts_with("    ")).collect::<Vec<_>>();
    let running = running.join(" ").replace("  ", " ");
    let spans = running.split('`').skip(1).step_by(2).map(str::to_owned);
    let bare = |command: String| command.split(" # ").next().unwrap_or_default().trim().to_owned();
    // Names of a part of the program, not what somebody types.
    let spans = spans.filter(|span| !["natter serve", "natter admin"].contains(&span.as_str()));
    let is_command = |command: &String| COMMANDS.iter().any(|start| command.starts_with(*start));
    blocks.chain(spans).map(bare).filter(is_command).collect()
}

#[test]
fn every_command_of_a_manual_is_run_or_says_why_not() {
    let shown: BTreeSet<String> =
        MANUALS.into_iter().flat_map(|file| all_commands(&text_of(file))).collect();
    let run = RUN.iter().flat_map(|(_, commands)| commands.iter().copied());
    let known: BTreeSet<String> =
        run.chain(NOT_RUN.iter().map(|(command, _)| *command)).map(str::to_owned).collect();
    let new: Vec<_> = shown.difference(&known).collect();
    assert!(new.is_empty(), "run these in a story, or say why not: {new:#?}");
    let gone: Vec<_> = known.difference(&shown).collect();
    assert!(gone.is_empty(), "no manual shows these any longer: {gone:#?}");
    let stories = [include_str!("manuals.rs"), include_str!("readme.rs")].concat();
    for (story, _) in RUN {
        assert!(stories.contains(&format!("fn {story}(")), "there is no story {story}");
    }
    for (command, reason) in NOT_RUN {
        assert!(reason.len() > 10, "{command} needs a reason");
    }
}

/// The aliases of `.cargo/config.toml`.
fn alias(name: &str) -> Option<String> {
    let config = text_of(".cargo/config.toml");
    let line = config.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")))?;
    Some(line.trim_end_matches('"').to_owned())
}

/// What a cargo line that runs a program runs, once it is built.
fn built(line: &str) -> String {
    let words = line.strip_prefix("cargo ").unwrap();
    let (first, rest) = words.split_once(' ').unwrap_or((words, ""));
    let words = alias(first).map_or_else(|| words.to_owned(), |alias| format!("{alias} {rest}"));
    let words = words.replace(" --profile dist", " --release");
    let (how, what) = words.split_once("-- ").unwrap_or_else(|| panic!("{line} runs no program"));
    let how: Vec<_> = how.split_whitespace().filter(|word| *word != "--release").collect();
    let program = match how[..] {
        ["run"] => {
            assert!(text_of("Cargo.toml").contains("default-members = [\"natter\"]"));
            "natter"
        }
        ["run", "-p", "natter"] => "natter",
        ["run", "-p", "benches", "--bin", "natter-load"] => "natter-load",
        _ => panic!("{line}: what does it run?"),
    };
    format!("{program} {what}").trim_end().to_owned()
}

#[test]
fn the_cargo_lines_of_the_manuals_name_packages_and_tests_that_there_are() {
    let cargo = NOT_RUN.iter().filter_map(|(command, _)| command.strip_prefix("cargo "));
    for line in cargo {
        let words: Vec<_> = line.split_whitespace().collect();
        let known = ["test", "build", "bench", "install"].contains(&words[0]);
        assert!(known || alias(words[0]).is_some(), "{line}");
        for pair in words.windows(2) {
            match pair[0] {
                "-p" => {
                    assert!(Path::new(ROOT).join(pair[1]).join("Cargo.toml").exists(), "{line}");
                }
                "--test" => {
                    let name = format!("name = \"{}\"", pair[1]);
                    assert!(text_of("tests/Cargo.toml").contains(&name), "{line}");
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_person_joins_the_demo_of_the_readme() {
    let desk = Desk::new();
    assert_eq!(built("cargo demo"), built("cargo run --release -- demo"));
    let demo = desk.open(&built("cargo run --release -- demo"));
    let invited = || {
        let text = demo.text();
        let line = text.lines().find(|line| line.contains(" chat bob --as eve "));
        Ok(line
            .filter(|_| text.contains("Ctrl-C ends the demo"))
            .map(|line| line.trim().to_owned()))
    };
    let join = until("an invitation", PATIENCE * 3, invited).await.unwrap();
    let mut eve = desk.open(&join);
    eve.shows("PIN: ").await;
    let pin = || {
        let text = demo.text();
        let (_, rest) = text.split_once("PIN for eve: ").unzip();
        let pin: String = rest.unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
        Ok((pin.len() == 6).then_some(pin))
    };
    let pin = until("a PIN", PATIENCE, pin).await.unwrap();
    eve.types(&format!("{pin}\r"));
    eve.shows("connected").await;
    eve.types("good-day");
    // Bob may not be found yet; then what was typed stays, and Enter is pressed again.
    let answered = || {
        eve.types("\r");
        Ok(eve.text().contains("You said: good-day").then_some(()))
    };
    until("an answer", PATIENCE, answered).await.unwrap();
}

#[test]
fn the_load_of_the_readme_is_put_on_a_node() {
    let load = Path::new(PROGRAM).with_file_name("natter-load");
    if !load.exists() {
        return skip::skipped("natter-load is not built; cargo build -p benches builds it");
    }
    let desk = Desk::new();
    // It starts the `natter` beside itself, so both are copied.
    fs::create_dir(desk.path("built")).unwrap();
    for (from, name) in [(load.as_path(), "natter-load"), (Path::new(PROGRAM), "natter")] {
        let to = desk.path("built").join(name);
        fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).unwrap();
    }
    for line in [
        "cargo load pairs 500 --rate max --seconds 10 --receipts --spawn",
        "cargo load pairs 500 --rate max --receipts --spawn",
    ] {
        // The same with few people, and for a short time.
        let short = built(line).replace("pairs 500", "pairs 20").replace(" --seconds 10", "");
        let (done, said) = desk.run(&format!("built/{short} --seconds 1 --warm-up 0"));
        assert!(done, "{short}: {said}");
        let line = said.lines().next().unwrap();
        let figures: serde_json::Value = serde_json::from_str(line).expect(&said);
        assert!(figures["delivered"].as_f64() > Some(0.0), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_contributor_runs_of_the_program_works() {
    let desk = Desk::new();
    let serve = built("cargo run -p natter -- serve --data-dir /tmp/natter");
    let data = desk.path("of-a-contributor");
    let node = desk.open(&serve.replace("/tmp/natter", &data.to_string_lossy()));
    node.shows("node ready").await;
    assert!(data.join("addresses.json").exists());
    let print = built("cargo run -p natter -- serve --print-config > deploy/node.toml");
    let (done, said) = desk.run(&print);
    assert!(done && said.is_empty(), "{said}");
    assert_eq!(
        fs::read_to_string(desk.path("deploy/node.toml")).unwrap(),
        text_of("deploy/node.toml")
    );
}

/// Whether a program is on the path; what needs it is skipped aloud otherwise.
fn is_there(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let there = there.is_ok_and(|done| done.status.success());
    if !there {
        skip::skipped(format_args!("{program} is not installed"));
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbook_replaces_a_node_that_is_gone_and_takes_one_down_on_purpose() {
    let desk = Desk::new();
    let runbook = commands(&text_of("deploy/RUNBOOK.md"));
    let [status, remove, voters, drain, undo] = &runbook[..] else { panic!("{runbook:?}") };
    let mut cluster = Cluster::start(PROGRAM, Options::of(4)).await.unwrap();
    let data = cluster.target(0).data_dir().to_string_lossy().into_owned();
    let run =
        |command: &str, name: &str| desk.run(&command.replace("DATA", &data).replace("NAME", name));
    let shows = async |words: &str, is_shown: bool| {
        let look = || {
            let (done, said) = run(status, "");
            Ok((done && said.contains(words) == is_shown).then_some(()))
        };
        until(&format!("{words:?} in the status: {is_shown}"), PATIENCE, look).await.unwrap();
    };

    cluster.kill(3).unwrap();
    shows("NOT UP", true).await;
    let (done, said) = run(remove, "node-3");
    assert!(done, "{said}");
    if is_there("jq") {
        assert_eq!(run(voters, ""), (true, "3\n".to_owned()));
    }

    let (done, said) = run(drain, "node-1");
    assert!(done, "{said}");
    cluster.nodes()[1].signal(Signal::TERM).unwrap();
    cluster.kill(1).unwrap();
    cluster.restart(1).await.unwrap();
    shows("draining", true).await;
    let (done, said) = run(undo, "node-1");
    assert!(done, "{said}");
    shows("draining", false).await;

    // The first look, and what is done to a node that runs.
    let (node, http) = (&cluster.nodes()[0], cluster.target(0).addresses().unwrap().http);
    let file = node.dir().join("node.toml");
    let pid = node.pid().unwrap().to_string();
    for (program, command, words) in [
        ("curl", "curl localhost:7402/readyz".replace("localhost:7402", &http), "ready"),
        ("curl", "curl -s --unix-socket DATA/admin.sock http://natter/cluster".to_owned(), "members"),
        (
            "curl",
            "curl -s --unix-socket DATA/admin.sock http://natter/cluster/rebalance -d '{\"wait\":true}'"
                .to_owned(),
            "{\"done\":{\"waited\":true}}",
        ),
        ("df", "df -h DATA".to_owned(), "%"),
        (
            "natter",
            "natter admin settings set registration.pins_per_hour 50000"
                .replace("admin", "admin --data-dir DATA"),
            "is set for all nodes",
        ),
        ("ss", "ss -ltnp".to_owned(), &*http),
        ("kill", "kill -HUP PID".replace("PID", &pid), ""),
        (
            "natter",
            "natter serve --config FILE --check".replace("FILE", &file.to_string_lossy()),
            "the settings are good",
        ),
    ] {
        if program == "natter" || is_there(program) {
            let (done, said) = run(&command, "");
            assert!(done && said.contains(words), "{command}: {said}");
        }
    }
    let again = || Ok(node.errors().contains("settings read again").then_some(()));
    until("the settings to be read again", PATIENCE, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_chats_manual_work() {
    let desk = Desk::new();
    let node = desk.open("natter serve");
    node.shows("node ready").await;
    fs::copy(desk.path("natter-data/tls/ca.pem"), desk.path("ca.pem")).unwrap();
    let first = commands(&text_of("clients/cli/CHAT.md")).remove(0);
    let first = first.replace("chat.example.org:7400", "127.0.0.1:7400");
    for (name, home) in [("bob", " --home elsewhere"), ("ada", "")] {
        let mut chat = desk.open(&format!("{first}{home}"));
        chat.shows("Your name here").await;
        chat.types(&format!("{name}\r"));
        register(&mut chat, name, &[&node]).await;
        chat.types("/quit\r");
        chat.ends().await;
    }
    // Server, certificate and name are known from now on.
    let mut chat = desk.open("natter chat");
    chat.shows("connected").await;
    chat.types("/quit\r");
    chat.ends().await;
    let mut chat = desk.open("natter chat bob");
    chat.shows("connected").await;
    chat.types("on-the-screen\r/quit\r");
    chat.ends().await;
    let (done, said) = desk.run("echo in-a-line | natter chat bob --lines");
    assert!(done && said.contains("\u{2713} in-a-line"), "{said}");
    let (done, said) = desk.run("echo yes | natter chat ada --lines --home elsewhere");
    assert!(done && said.contains("\u{2713} yes"), "{said}");

    let link = commands(&text_of("clients/cli/CHAT.md")).remove(1);
    let link = link.replace("chat.example.org:7400", "127.0.0.1:7400");
    let link = desk.open(&format!("{link} --home a-new-phone"));
    link.shows("    /link ").await;
    let again = desk.open(&"natter chat --as ALIAS --register-again".replace("ALIAS", "ada"));
    again.shows("PIN: ").await;
}
