//! Standard output and standard error of a node, which never make anybody wait: a thread for each
//! writes what is queued for it.
//!
//! A pipe that nobody reads takes 64 KiB; then a write waits for ever. Here only the thread waits;
//! what does not fit into its queue is dropped and counted, and said once the pipe takes bytes again.
//!
//! # Invariants
//! 1. [`Output::write`] does not wait for the file, and takes bounded memory.
//! 2. Lines come out whole and in their order.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use tracing_subscriber::fmt::MakeWriter;

use crate::clock;

/// Lines that wait for the file: some seconds of a node that logs every step of a start.
const LINES_MAX: usize = 8_192;

/// Their bytes.
const BYTES_MAX: usize = 1 << 20;

/// Pause between two looks whether all was written, at the end of the process.
const LOOK: Duration = Duration::from_millis(5);

/// A file that is written by a thread of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: SyncSender<Vec<u8>>,
    waiting_bytes: AtomicUsize,
    /// Lines taken and not yet written.
    waiting: AtomicUsize,
    dropped: AtomicU64,
    is_broken: AtomicBool,
}

static STDERR: LazyLock<Output> = LazyLock::new(|| Output::new("stderr", io::stderr()));
static STDOUT: LazyLock<Output> = LazyLock::new(|| Output::new("stdout", io::stdout()));

/// Standard error.
pub(crate) fn stderr() -> Output {
    STDERR.clone()
}

/// Standard output.
pub(crate) fn stdout() -> Output {
    STDOUT.clone()
}

impl Output {
    /// Begins a thread that writes to `file`.
    fn new(name: &str, file: impl Write + Send + 'static) -> Self {
        let (lines, queue) = sync_channel(LINES_MAX);
        let shared = Arc::new(Shared {
            lines,
            waiting_bytes: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || shared.run(&queue, file))
        };
        // Without a thread the queue fills and the rest is dropped: it is still no reason to end.
        shared.is_broken.store(thread.is_err(), Ordering::Relaxed);
        Self(shared)
    }

    /// Queues `line`, which ends with a line end. False if it was dropped.
    pub(crate) fn write(&self, line: &[u8]) -> bool {
        let shared = &self.0;
        let bytes = shared.waiting_bytes.fetch_add(line.len(), Ordering::AcqRel);
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        let taken = bytes + line.len() <= BYTES_MAX && shared.lines.try_send(line.to_vec()).is_ok();
        if !taken {
            shared.waiting_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            shared.waiting.fetch_sub(1, Ordering::AcqRel);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Whether the file took the last line: false once it is closed.
    pub(crate) fn is_open(&self) -> bool {
        !self.0.is_broken.load(Ordering::Relaxed)
    }

    /// Lines dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all was written, at most `within`. For the end of the process, outside tasks.
    pub(crate) fn flush(&self, within: Duration) {
        let looks = within.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            if self.0.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Shared {
    fn run(&self, queue: &Receiver<Vec<u8>>, mut file: impl Write) {
        let mut told = 0;
        while let Ok(line) = queue.recv() {
            let mut written = file.write_all(&line).and_then(|()| file.flush());
            let dropped = self.dropped.load(Ordering::Relaxed);
            if written.is_ok() && dropped > told {
                written = file.write_all(&lost(&line, dropped - told));
                told = dropped;
            }
            self.is_broken.store(written.is_err(), Ordering::Relaxed);
            self.waiting_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A line that says how many were dropped, in the form of `line`.
fn lost(line: &[u8], lines: u64) -> Vec<u8> {
    let what = "log lines dropped: nobody read them";
    if line.starts_with(b"{") {
        let now = UNIX_EPOCH + Duration::from_millis(clock::now_ms());
        let timestamp = humantime::format_rfc3339_millis(now).to_string();
        let line = serde_json::json!({ "timestamp": timestamp, "level": "WARN", "message": what, "lines": lines });
        return format!("{line}\n").into_bytes();
    }
    format!("natter: {what} lines={lines}\n").into_bytes()
}

/// One event on its way to an [`Output`]; queued whole when it is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    output: Output,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.output.write(&self.bytes);
        }
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { output: self.clone(), bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// A pipe whose reader comes late.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<Written>, Condvar)>);

    /// Whether somebody reads, and what was written.
    type Written = (bool, Vec<u8>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock().unwrap();
            while !state.0 {
                state = self.0.1.wait(state).unwrap();
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_and_losses_are_said() {
        let pipe = Pipe::default();
        let output = Output::new("test", pipe.clone());
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let taken = (0..5_000).filter(|_| output.write(&line)).count();
        assert!((900..2_000).contains(&taken), "{taken} lines of a KiB");
        assert_eq!(output.dropped(), 5_000 - taken as u64);
        pipe.0.0.lock().unwrap().0 = true;
        pipe.0.1.notify_all();
        output.flush(Duration::from_mins(1));
        let text = String::from_utf8(pipe.0.0.lock().unwrap().1.clone()).unwrap();
        assert!(text.contains(&format!("dropped: nobody read them lines={}\n", 5_000 - taken)));
        assert_eq!(text.lines().count(), taken + 1, "whole lines");
    }

    #[test]
    fn losses_are_said_as_json_where_lines_are() {
        let text = String::from_utf8(lost(b"{\"level\":\"INFO\"}\n", 7)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["lines"], 7);
    }

    #[test]
    fn a_closed_file_is_noticed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::new("test", Closed);
        output.write(b"a\n");
        output.flush(Duration::from_mins(1));
        assert!(!output.is_open());
    }
}
