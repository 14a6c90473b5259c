//! What README.md says is run: its commands are read out of it and done, word for word but for the port
//! numbers, on terminals as a newcomer has them. Commands of other manuals are at least understood.

use crate::people::PROGRAM;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tests::node::{PATIENCE, until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The ports that README.md and `deploy/cluster` name, and what stands for them here.
const PORTS: std::ops::Range<u16> = 7400..7434;

fn text_of(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

/// The commands in the code blocks of a text, each as it is written.
fn commands(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let bare = lines.map(|line| line.split(" # ").next().unwrap().trim());
    bare.filter(|line| line.starts_with("natter ")).map(str::to_owned).collect()
}

/// The commands of README.md, section "Try it".
fn tried() -> Vec<String> {
    let readme = text_of("README.md");
    let (_, section) = readme.split_once("\n## Try it\n").unwrap();
    commands(section.split("\n## ").next().unwrap())
}

/// A newcomer's machine: a folder, a home, and `natter` on the path.
struct Desk {
    folder: TempDir,
    ports: BTreeMap<u16, u16>,
}

/// A terminal with a command in it; the command is gone when this is dropped.
struct Terminal {
    command: String,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("natter-readme-").tempdir().unwrap();
        // All are held until all are found, so that no two are the same.
        let free: Vec<_> = PORTS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = PORTS.zip(free.iter().map(|held| held.local_addr().unwrap().port())).collect();
        let desk = Self { folder, ports };
        fs::create_dir_all(desk.path("bin")).unwrap();
        symlink(PROGRAM, desk.path("bin/natter")).unwrap();
        fs::create_dir_all(desk.path("deploy/cluster")).unwrap();
        for number in 1..=3 {
            let file = format!("deploy/cluster/node{number}.toml");
            fs::write(desk.path(&file), desk.with_free_ports(&text_of(&file))).unwrap();
        }
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn with_free_ports(&self, text: &str) -> String {
        let replace = |text: String, (named, free): (&u16, &u16)| {
            text.replace(&format!("127.0.0.1:{named}"), &format!("127.0.0.1:{free}"))
        };
        self.ports.iter().fold(text.to_owned(), replace)
    }

    /// A shell in the folder, with `natter` on its path, that does this.
    fn shell(&self, command: &str) -> String {
        let (bin, folder) = (self.path("bin"), self.folder.path());
        format!("cd '{}'; export PATH='{}':\"$PATH\"; {command}", folder.display(), bin.display())
    }

    /// Types `command` into a new terminal of 80 columns.
    fn open(&self, command: &str) -> Terminal {
        let mut line = self.with_free_ports(command);
        if command == "natter serve" {
            // It has no settings, so only its environment can move it to ports that nobody uses.
            let at =
                |key: &str, port: u16| format!("NATTER_{key}=127.0.0.1:{} ", self.ports[&port]);
            line = "env ".to_owned()
                + &at("LISTEN__CLIENT", 7400)
                + &at("LISTEN__WEBSOCKET", 7401)
                + &at("LISTEN__HTTP", 7402)
                + &at("CLUSTER__LISTEN", 7403)
                + &line;
        }
        let mut child = Command::new("script")
            .args([
                "-qefc",
                &self.shell(&format!("stty rows 24 cols 80; exec {line}")),
                "/dev/null",
            ])
            .env("HOME", self.folder.path())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program script, of util-linux");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut out, into) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(bytes @ 1..) = out.read(&mut piece) {
                into.lock().unwrap().extend_from_slice(&piece[..bytes]);
            }
        });
        Terminal { command: command.to_owned(), child, shown }
    }

    /// Does a command that ends by itself; what it says.
    fn run(&self, command: &str) -> (bool, String) {
        let command = self.shell(&self.with_free_ports(command));
        let done = Command::new("sh").args(["-c", &command]).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

impl Terminal {
    /// All that was written to it, and how it looks now.
    fn text(&self) -> String {
        let written = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        let picture = picture(&written);
        written + "\n" + &picture
    }

    /// Waits until `words` are there, in one piece.
    async fn shows(&self, words: &str) {
        let seen = until(words, PATIENCE, || Ok(self.text().contains(words).then_some(()))).await;
        seen.unwrap_or_else(|error| panic!("{}: {error}\n{}", self.command, self.text()));
    }

    fn types(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).and_then(|()| stdin.flush()).unwrap();
    }
}

/// What a screen of 24 rows and 80 columns shows after this was written to it. It knows what the chat uses: the
/// cursor is moved, text is written where it stands.
fn picture(written: &str) -> String {
    let mut rows = vec![[' '; 80]; 24];
    let (mut row, mut column) = (0, 0);
    let mut chars = written.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.next() == Some('[') => {
                let mut numbers = String::new();
                let end = loop {
                    match chars.next() {
                        Some(c) if c.is_ascii_digit() || ";?".contains(c) => numbers.push(c),
                        end => break end,
                    }
                };
                if end == Some('H') {
                    let mut place = numbers.split(';').map(|number| number.parse().unwrap_or(1));
                    let mut next = || place.next().unwrap_or(1_usize) - 1;
                    (row, column) = (next(), next());
                } else if end == Some('J') {
                    rows.fill([' '; 80]);
                }
            }
            '\r' => column = 0,
            '\n' => row += 1,
            c => {
                if let Some(cell) = rows.get_mut(row).and_then(|row| row.get_mut(column)) {
                    *cell = c;
                }
                column += 1;
            }
        }
    }
    rows.iter().map(|row| row.iter().collect::<String>() + "\n").collect()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The command loses its terminal, and ends.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The first registration of a newcomer: the PIN is on one of the nodes' terminals.
async fn register(chat: &mut Terminal, name: &str, nodes: &[&Terminal]) {
    chat.shows("PIN: ").await;
    let line = format!("natter-pin alias={name} pin=");
    let read = || {
        let pin = |node: &&Terminal| {
            let text = node.text();
            let (_, rest) = text.split_once(&line)?;
            rest.contains('\n').then(|| rest.lines().next().unwrap().trim().to_owned())
        };
        Ok(nodes.iter().find_map(pin))
    };
    let pin = until("a PIN", PATIENCE, read).await.unwrap();
    chat.types("12\r");
    chat.shows("The PIN is a number of 6 digits.").await;
    chat.types(&format!("{pin}\r"));
    chat.shows("connected").await;
}

/// Writes the first message to somebody whose chat has no conversation open. Enter is pressed until it is
/// sent: the person may not be found yet, and then what was typed stays.
async fn write(from: &mut Terminal, words: &str, to: &Terminal) {
    from.types(words);
    let arrived = || {
        from.types("\r");
        Ok(to.text().contains("Tab opens").then_some(()))
    };
    until("the first message", PATIENCE, arrived).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_who_does_what_the_readme_says_chats_with_somebody() {
    let (desk, lines) = (Desk::new(), tried());
    let [serve, ada, bob] = &lines[..3] else { panic!("{lines:?}") };
    let node = desk.open(serve);
    node.shows("node ready").await;
    let early = bob.replace("--as bob", "--as eve").replace("chat ada", "chat bob");
    let mut ada = desk.open(ada);
    register(&mut ada, "ada", &[&node]).await;
    let mut eve = desk.open(&early);
    register(&mut eve, "eve", &[&node]).await;
    eve.shows("--as bob").await; // Nobody is bob yet, and this is what he has to do.
    drop(eve);
    let mut bob = desk.open(bob);
    register(&mut bob, "bob", &[&node]).await;
    write(&mut bob, "hello-ada", &ada).await;
    ada.types("\t");
    ada.shows("hello-ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_nodes_of_the_readme_are_a_cluster_and_one_of_them_may_be_killed() {
    let (desk, lines) = (Desk::new(), tried());
    let [serve @ .., status, carol, dave] = &lines[3..] else { panic!("{lines:?}") };
    let mut nodes = Vec::new();
    for command in serve {
        nodes.push(desk.open(command));
        nodes.last().unwrap().shows("node ready").await;
    }
    assert_eq!(nodes.len(), 3, "{serve:?}");
    let told = || {
        let (done, said) = desk.run(status);
        assert!(done, "{said}");
        Ok((said.contains("3 nodes") && !said.contains("starting")).then_some(()))
    };
    until("three members", PATIENCE, told).await.unwrap();
    let all: Vec<&Terminal> = nodes.iter().collect();
    let mut carol = desk.open(carol);
    register(&mut carol, "carol", &all).await;
    let mut dave = desk.open(dave);
    register(&mut dave, "dave", &all).await;
    write(&mut dave, "before-the-kill", &carol).await;
    carol.types("\t");
    carol.shows("before-the-kill").await;

    // The node that Carol's list begins with, where she is connected.
    let pid = fs::read_to_string(desk.path("node1/store/lock")).unwrap();
    let (killed, said) = desk.run(&format!("kill -9 {}", pid.trim()));
    assert!(killed, "{said}");
    dave.types("after-the-kill\r");
    carol.shows("after-the-kill").await;
    carol.types("I-am-elsewhere\r");
    dave.shows("I-am-elsewhere").await;
}

#[test]
fn every_command_in_a_manual_is_one_that_natter_knows() {
    let mut seen = 0;
    for file in ["README.md", "CONTRIBUTING.md", "deploy/RUNBOOK.md", "clients/cli/CHAT.md"] {
        for command in commands(&text_of(file)) {
            let words = command.split([';', '|', '>']).next().unwrap();
            let words: Vec<_> = words.split_whitespace().skip(1).collect();
            // Help is shown only if all before it was understood.
            let asked = Command::new(PROGRAM).args(&words).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&asked.stderr);
            assert!(asked.status.success(), "{file}: {command}\n{said}");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} commands were found");
}
