//! The node's side of the socket: accepts, checks who it is, reads a line, answers with lines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use supervision::{ProcessError, Stopping, TaskGroup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::answer::answer;
use super::control::Control;
use super::socket::Socket;
use super::{Failure, FailureKind, Reply, Request};

/// Connections at once.
const CONNECTIONS_MAX: usize = 8;

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for a request, and for a reply to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for open connections at the end.
const LEAVE: Duration = Duration::from_millis(500);

/// Pause after an accept that failed, for want of file descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves the socket until `stopping`.
pub(super) async fn serve(
    socket: Socket,
    control: Arc<dyn Control>,
    stopping: Stopping,
) -> Result<(), ProcessError> {
    let listener = socket.listen()?;
    let (connections, places) = (TaskGroup::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let accepted = tokio::select! {
            () = stopping.wait() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "admin connection not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = places.clone().try_acquire_owned();
        let control = control.clone();
        connections.spawn("admin", async move {
            let refusal = match (place.is_ok(), is_permitted(&stream)) {
                (_, false) => Some(Failure::new(
                    FailureKind::NotPermitted,
                    "only the user that runs the node may do that",
                )),
                (false, true) => Some(Failure::new(FailureKind::Busy, "too many are asking")),
                (true, true) => None,
            };
            if let Err(error) = Conversation::new(stream, control).run(refusal).await {
                debug!(%error, "admin connection ended");
            }
            drop(place);
        });
    }
    connections.finish(LEAVE).await;
    Ok(())
}

/// Whether the other end is of the same user, or root.
fn is_permitted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// One connection.
pub(super) struct Conversation {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    read: BytesMut,
    control: Arc<dyn Control>,
}

impl Conversation {
    fn new(stream: UnixStream, control: Arc<dyn Control>) -> Self {
        let (from, to) = stream.into_split();
        Self { from, to, read: BytesMut::new(), control }
    }

    async fn run(mut self, refusal: Option<Failure>) -> io::Result<()> {
        if let Some(refusal) = refusal {
            return self.say(&Reply::Failed(refusal)).await;
        }
        while let Some(line) = self.line().await? {
            let reply = match serde_json::from_slice::<Request>(&line) {
                Ok(request) => {
                    let control = self.control.clone();
                    answer(&control, request, &mut self).await?
                }
                Err(error) => Reply::Failed(Failure::new(
                    FailureKind::Malformed,
                    format!("the node does not understand this: {error}"),
                )),
            };
            self.say(&reply).await?;
        }
        Ok(())
    }

    /// The next line; `None` if there is none any longer.
    async fn line(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                return Ok(Some(line));
            }
            if self.read.len() > LINE_BYTES_MAX {
                return Err(io::Error::other("the line is too long"));
            }
            let taken = timeout(PATIENCE, self.from.read_buf(&mut self.read)).await;
            if taken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
                return Ok(None);
            }
        }
    }

    /// Says something.
    pub(super) async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        let said = timeout(PATIENCE, self.to.write_all(&line)).await;
        said.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Waits until the other end leaves.
    pub(super) async fn left(&mut self) -> io::Error {
        loop {
            if self.read.len() > LINE_BYTES_MAX {
                return io::Error::other("the line is too long");
            }
            match self.from.read_buf(&mut self.read).await {
                Ok(0) => return io::Error::from(io::ErrorKind::UnexpectedEof),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }
}
