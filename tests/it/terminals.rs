//! Terminals of 80 columns, as people have them, with `natter` on their path.

use crate::people::PROGRAM;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tests::node::{PATIENCE, until};

/// The repository.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The ports that README.md and `deploy/cluster` name, and what stands for them here.
const PORTS: std::ops::Range<u16> = 7400..7434;

/// A file of the repository.
pub(crate) fn text_of(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

/// A newcomer's machine: a folder, a home, and `natter` on the path.
pub(crate) struct Desk {
    folder: TempDir,
    ports: BTreeMap<u16, u16>,
}

/// A terminal with a command in it; the command is gone when this is dropped.
pub(crate) struct Terminal {
    command: String,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Desk {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
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
    pub(crate) fn open(&self, command: &str) -> Terminal {
        let mut line = self.with_free_ports(command);
        if command.starts_with("natter serve") && !command.contains("--config") {
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
                into.lock().extend_from_slice(&piece[..bytes]);
            }
        });
        Terminal { command: command.to_owned(), child, shown }
    }

    /// Does a command that ends by itself; what it says.
    pub(crate) fn run(&self, command: &str) -> (bool, String) {
        let command = self.shell(&self.with_free_ports(command));
        let done = Command::new("sh")
            .args(["-c", &command])
            .env("HOME", self.folder.path())
            .output()
            .unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

impl Terminal {
    /// All that was written to it.
    fn written(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock()).into_owned()
    }

    /// All that was written to it, and how it looks now.
    pub(crate) fn text(&self) -> String {
        let written = self.written();
        let picture = picture(&written);
        written + "\n" + &picture
    }

    /// Waits until `words` are there, in one piece.
    pub(crate) async fn shows(&self, words: &str) {
        let seen = until(words, PATIENCE, || Ok(self.text().contains(words).then_some(()))).await;
        seen.unwrap_or_else(|error| panic!("{}: {error}\n{}", self.command, self.text()));
    }

    /// Waits until the command ends well.
    pub(crate) async fn ends(&mut self) {
        let ended = until("the end", PATIENCE, || Ok(self.child.try_wait()?)).await;
        let status = ended.unwrap_or_else(|error| panic!("{}: {error}", self.command));
        assert!(status.success(), "{}: {status}\n{}", self.command, self.text());
    }

    pub(crate) fn types(&mut self, keys: &str) {
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
pub(crate) async fn register(chat: &mut Terminal, name: &str, nodes: &[&Terminal]) {
    chat.shows("PIN: ").await;
    let pin = pin_of(name, nodes).await;
    chat.types("12\r");
    chat.shows("The PIN is a number of 6 digits.").await;
    chat.types(&format!("{pin}\r"));
    chat.shows("connected").await;
}

/// The last PIN for this name on the terminals of the nodes.
pub(crate) async fn pin_of(name: &str, nodes: &[&Terminal]) -> String {
    let line = format!("natter-pin alias={name} pin=");
    let read = || {
        let pin = |node: &&Terminal| {
            let text = node.written();
            let (_, rest) = text.rsplit_once(&line)?;
            rest.contains('\n').then(|| rest.lines().next().unwrap().trim().to_owned())
        };
        Ok(nodes.iter().find_map(pin))
    };
    until("a PIN", PATIENCE, read).await.unwrap()
}
