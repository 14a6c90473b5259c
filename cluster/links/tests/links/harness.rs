//! Starts nodes as processes, tells them what to do and waits for what they say.

use parking_lot::{Condvar, Mutex};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The variable that makes this binary a node.
pub(crate) const VARIABLE: &str = "NATTER_PEERS_TEST_NODE";

/// How a node is started.
pub(crate) struct Start {
    number: u8,
    incarnation: u64,
    cookie: String,
    seeds: Vec<String>,
}

impl Start {
    /// A node whose key is made from `number`.
    pub(crate) fn new(number: u8) -> Self {
        let cookie = "the cookie of all these nodes".to_owned();
        Self { number, incarnation: 1, cookie, seeds: Vec::new() }
    }

    pub(crate) fn incarnation(self, incarnation: u64) -> Self {
        Self { incarnation, ..self }
    }

    pub(crate) fn cookie(self, cookie: &str) -> Self {
        Self { cookie: cookie.to_owned(), ..self }
    }

    pub(crate) fn seeds(self, seeds: &[&str]) -> Self {
        Self { seeds: seeds.iter().map(|seed| (*seed).to_owned()).collect(), ..self }
    }

    pub(crate) fn start(self) -> Node {
        let Self { number, incarnation, cookie, seeds } = self;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture"])
            .env(VARIABLE, format!("{number}|{incarnation}|{cookie}|{}", seeds.join(",")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let said = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let hears = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                hears.0.lock().push(line);
                hears.1.notify_all();
            }
        });
        let mut node =
            Node { child, stdin, said, read: 0, id: String::new(), address: String::new() };
        let listening = node.wait_for("listening ", Duration::from_secs(20));
        let mut words = listening.split(' ').skip(1);
        words.next().unwrap().clone_into(&mut node.id);
        words.next().unwrap().clone_into(&mut node.address);
        node
    }
}

/// A node that runs. Killed when dropped.
pub(crate) struct Node {
    child: Child,
    stdin: ChildStdin,
    said: Arc<(Mutex<Vec<String>>, Condvar)>,
    read: usize,
    pub(crate) id: String,
    pub(crate) address: String,
}

impl Node {
    /// Tells it to do something.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Waits until it says something that contains `text`, not looking at what was waited for before.
    pub(crate) fn wait_for(&mut self, text: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        let mut said = self.said.0.lock();
        loop {
            let found = said.iter().enumerate().skip(self.read).find(|(_, it)| it.contains(text));
            if let Some((place, line)) = found {
                self.read = place + 1;
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it did not say `{text}` but {said:#?}");
            self.said.1.wait_for(&mut said, left);
        }
    }

    /// Whether it said something that contains `text`.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.said.0.lock().iter().any(|line| line.contains(text))
    }

    /// Tells it something that it answers.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        let place = self.said.0.lock().len();
        self.tell(command);
        let kept = std::mem::replace(&mut self.read, place);
        let answer = self.wait_for("= ", Duration::from_mins(1));
        self.read = kept;
        answer.trim_start_matches("= ").to_owned()
    }

    /// Asks until the answer is right.
    pub(crate) fn until(
        &mut self,
        command: &str,
        is_right: impl Fn(&str) -> bool,
        within: Duration,
    ) {
        let deadline = Instant::now() + within;
        loop {
            let answer = self.ask(command);
            if is_right(&answer) {
                return;
            }
            assert!(Instant::now() < deadline, "the last answer was {answer}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill()); // It may be dead already.
        drop(self.child.wait());
    }
}
