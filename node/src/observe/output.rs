//! Standard output and standard error of a node, which never make anybody wait: a thread for each
//! writes what is queued for it.
//!
//! A pipe that nobody reads takes 64 KiB; then a write waits for ever. Here only the thread waits. Lines that
//! do not fit into its queue are dropped, and so is a line that a full disk refuses. Both are counted, and the
//! node says how many once the file takes bytes again.
//!
//! # Invariants
//! 1. [`Output::write`] does not wait for the file, and takes bounded memory.
//! 2. Lines come out whole and in their order, but for one that was cut by a full disk; the next one begins a
//!    line of its own.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use tracing_subscriber::fmt::MakeWriter;

use crate::clock;

/// Log lines that wait for the file: some seconds of a node that logs every step of a start.
const LOG_LINES_MAX: usize = 8_192;

/// Printed lines that wait for the file: PINs, which are soon worth nothing.
const PRINTED_LINES_MAX: usize = 1_024;

/// Their bytes.
const BYTES_MAX: usize = 1 << 20;

/// Pause between two looks whether all was written, at the end of the process.
const LOOK: Duration = Duration::from_millis(5);

/// A file that is written by a thread of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: &'static str,
    lines: SyncSender<Vec<u8>>,
    waiting_bytes: AtomicUsize,
    /// Lines taken and not yet written.
    waiting: AtomicUsize,
    dropped: AtomicU64,
    is_broken: AtomicBool,
}

static STDERR: LazyLock<Output> =
    LazyLock::new(|| Output::new("stderr", LOG_LINES_MAX, Unbuffered(io::stderr())));
static STDOUT: LazyLock<Output> =
    LazyLock::new(|| Output::new("stdout", PRINTED_LINES_MAX, Unbuffered(io::stdout())));

/// Standard error.
pub(crate) fn stderr() -> Output {
    STDERR.clone()
}

/// Standard output.
pub(crate) fn stdout() -> Output {
    STDOUT.clone()
}

impl Output {
    /// Begins a thread that writes to `file`; up to `lines_max` lines wait for it.
    fn new(name: &'static str, lines_max: usize, file: impl Write + Send + 'static) -> Self {
        let (lines, queue) = sync_channel(lines_max);
        let shared = Arc::new(Shared {
            name,
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

    /// `stderr` or `stdout`.
    pub(crate) fn name(&self) -> &'static str {
        self.0.name
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
    fn run(&self, queue: &Receiver<Vec<u8>>, file: impl Write) {
        let mut file = Lines { file, is_torn: false };
        let (mut told, mut cause) = (0, None);
        while let Ok(line) = queue.recv() {
            let mut written = file.write(&line);
            if written.is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if written.is_ok() && dropped > told {
                let cause = cause.as_deref().unwrap_or("nobody read them");
                written = file.write(&self.lost(&line, dropped - told, cause));
                if written.is_ok() {
                    told = dropped;
                }
            }
            self.is_broken.store(written.is_err(), Ordering::Relaxed);
            cause = match written {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            };
            self.waiting_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A line that says how many were dropped, in the form of `line`.
    fn lost(&self, line: &[u8], lines: u64, cause: &str) -> Vec<u8> {
        let message = format!("lines of {} dropped", self.name);
        if line.starts_with(b"{") {
            return json_line(
                "WARN",
                &message,
                &[("lines", lines.into()), ("cause", cause.into())],
            );
        }
        format!("natter: {message} lines={lines} cause={cause:?}\n").into_bytes()
    }
}

/// A line of a log in JSON, as the log itself writes them.
pub(crate) fn json_line(
    level: &str,
    message: &str,
    fields: &[(&str, serde_json::Value)],
) -> Vec<u8> {
    let now = UNIX_EPOCH + Duration::from_millis(clock::now_ms());
    let timestamp = humantime::format_rfc3339_millis(now).to_string();
    let mut line =
        serde_json::json!({ "timestamp": timestamp, "level": level, "message": message });
    for (name, value) in fields {
        line[name] = value.clone();
    }
    format!("{line}\n").into_bytes()
}

/// A file into which lines are written whole.
struct Lines<W> {
    file: W,
    /// The file took the beginning of a line and refused the rest.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.put(b"\n")?;
        }
        self.put(line)
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares the file has made it one that does not wait. This thread may.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A standard stream without the buffer of the standard library, which keeps a rest that a full disk refused.
struct Unbuffered<F>(F);

impl<F: AsFd> Write for Unbuffered<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    use parking_lot::{Condvar, Mutex};

    /// A pipe whose reader comes late.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<Written>, Condvar)>);

    /// Whether somebody reads, and what was written.
    type Written = (bool, Vec<u8>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock();
            while !state.0 {
                self.0.1.wait(&mut state);
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
        let output = Output::new("test", LOG_LINES_MAX, pipe.clone());
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let taken = (0..5_000).filter(|_| output.write(&line)).count();
        assert!((900..2_000).contains(&taken), "{taken} lines of a KiB");
        assert_eq!(output.dropped(), 5_000 - taken as u64);
        pipe.0.0.lock().0 = true;
        pipe.0.1.notify_all();
        output.flush(Duration::from_mins(1));
        let text = String::from_utf8(pipe.0.0.lock().1.clone()).unwrap();
        let said = format!("lines of test dropped lines={} cause=\"nobody read", 5_000 - taken);
        assert!(
            text.contains(&said),
            "{}",
            text.lines().find(|line| !line.starts_with('x')).unwrap()
        );
        assert_eq!(text.lines().count(), taken + 1, "whole lines");
    }

    /// A disk with room for so many bytes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, written) = &mut *self.0.lock();
            let fits = bytes.len().min(*room);
            if fits == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= fits;
            written.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted_and_the_next_one_begins_a_line() {
        let disk = Disk::default();
        let room = |bytes| disk.0.lock().0 = bytes;
        let output = Output::new("test", LOG_LINES_MAX, disk.clone());
        let print = |line: &[u8]| {
            output.write(line);
            output.flush(Duration::from_mins(1));
        };
        room(6 + 3);
        print(b"first\n");
        print(b"torn\n");
        assert!(!output.is_open());
        print(b"lost\n");
        room(8);
        print(b"third\n"); // It fits, but the news of the loss does not.
        room(1000);
        print(b"{\"level\":\"INFO\"}\n");
        assert!(output.is_open());
        let text = String::from_utf8(disk.0.lock().1.clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["first", "tor", "third"], "{text}");
        let said: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!((&said["lines"], &said["level"]), (&2.into(), &"WARN".into()), "{text}");
        assert!(said["cause"].is_string() && said["timestamp"].is_string(), "{text}");
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
        let output = Output::new("test", LOG_LINES_MAX, Closed);
        output.write(b"a\n");
        output.flush(Duration::from_mins(1));
        assert!(!output.is_open());
    }
}
