//! One connection: the bytes of `ractor_cluster` and our packets, in frames on one TLS stream.
//!
//! ```text
//! ractor_cluster's session <--pipe--> | frames | <--TLS--> the other end, the same
//! routes, switchboard      <--------> |        |
//! ```
//!
//! Nodes find, authenticate and greet each other through `ractor_cluster`. Packets go beside it: in
//! there each would pass four actors on its way out and four on its way in, and on a busy machine that
//! is most of what it costs.
//!
//! Packets are packed when the socket has room, and not before everybody who is about to send had his
//! turn: what is sent in the same moment travels together.
//!
//! The tap cuts the connection: `ractor_cluster` sees its end, and the socket is closed. (Stopping its session would
//! leave the socket and its queue behind when the peer hangs.)
//!
//! A frame is a kind (1 byte), a length (3 bytes, big endian) and so many bytes.
//!
//! **Invariant:** after a cut nothing is read or written any longer.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use bytes::{Buf as _, Bytes, BytesMut};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use supervision::{StopSource, Stopping, TaskGroup};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::Notify;

use crate::connections::inlet::Inlet;
use crate::connections::route::Route;
use crate::limits::{FRAME_BYTES_MAX, PACKETS_AT_ONCE};

/// Bytes of `ractor_cluster`'s that are on their way to or from it.
const PIPE_BYTES: usize = 64 << 10;

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 << 10;

const HEAD_BYTES: usize = 4;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Some bytes of `ractor_cluster`'s.
    Session = 1,
    /// A packet.
    Packet = 2,
}

/// A hold on one connection.
#[derive(Debug)]
pub(crate) struct Tap {
    source: StopSource,
    cut: Stopping,
    route: OnceLock<Weak<Route>>,
    bell: Arc<Notify>,
}

impl Tap {
    pub(crate) fn new() -> Arc<Self> {
        let (source, cut) = StopSource::new();
        Arc::new(Self { source, cut, route: OnceLock::new(), bell: Arc::default() })
    }

    /// Ends the connection.
    pub(crate) fn cut(&self) {
        self.source.fire();
    }

    /// Whose packets are written. Only the first one counts.
    pub(crate) fn tell(&self, route: &Arc<Route>) {
        self.route.get_or_init(|| Arc::downgrade(route));
    }

    /// To be rung when there are packets.
    pub(crate) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }

    /// Frames of the next packets; empty if there are none.
    fn packets(&self) -> Vec<u8> {
        let mut frames = Vec::new();
        if let Some(route) = self.route.get().and_then(Weak::upgrade) {
            for packet in std::iter::from_fn(|| route.next()).take(PACKETS_AT_ONCE) {
                put(&mut frames, Kind::Packet, &packet);
            }
        }
        frames
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A connection that nothing runs on yet.
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    pub(crate) label: String,
    pub(crate) tap: Arc<Tap>,
    pub(crate) inlet: Inlet,
    pub(crate) tasks: TaskGroup,
}

impl<S> fmt::Debug for Wire<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Wire").field("label", &self.label).finish_non_exhaustive()
    }
}

impl<S> ClusterBidiStream for Wire<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let Self { stream, tap, inlet, tasks, .. } = *self;
        let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
        let (from_session, to_session) = tokio::io::split(ours);
        let (reader, writer) = tokio::io::split(stream);
        // If the group is finishing, both ends are dropped and the session sees its end.
        let cut = Arc::clone(&tap);
        tasks.spawn("link out", until_cut(cut, write(writer, from_session, tap.clone())));
        tasks.spawn("link in", until_cut(tap, read(reader, to_session, inlet)));
        let (reader, writer) = tokio::io::split(theirs);
        (Box::new(reader), Box::new(writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// One direction of a connection. Its end is the end of both.
async fn until_cut(tap: Arc<Tap>, direction: impl Future<Output = io::Result<()>>) {
    let cut = tap.cut.clone();
    tokio::select! {
        () = cut.wait() => {}
        ended = direction => if let Err(error) = ended {
            tracing::debug!(%error, "connection to a node broke");
        },
    }
    tap.cut();
}

async fn write<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut session: ReadHalf<DuplexStream>,
    tap: Arc<Tap>,
) -> io::Result<()> {
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let mut of_session = 0;
        tokio::select! {
            () = tap.bell.notified() => tokio::task::yield_now().await,
            length = session.read(&mut chunk) => match length? {
                0 => return Ok(()),
                length => of_session = length,
            },
        }
        let mut frames = tap.packets();
        if of_session > 0 {
            put(&mut frames, Kind::Session, &chunk[..of_session]);
        }
        while !frames.is_empty() {
            socket.write_all(&frames).await?;
            socket.flush().await?;
            frames = tap.packets();
        }
    }
}

async fn read<R: AsyncRead + Unpin>(
    mut socket: R,
    mut session: WriteHalf<DuplexStream>,
    inlet: Inlet,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some((kind, bytes)) = take(&mut buffer)? {
            match kind {
                Kind::Packet => inlet.packet(bytes),
                Kind::Session => session.write_all(&bytes).await?,
            }
        }
        buffer.reserve(READ_BYTES);
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn put(frames: &mut Vec<u8>, kind: Kind, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    frames.extend_from_slice(&((kind as u32) << 24 | length).to_be_bytes());
    frames.extend_from_slice(bytes);
}

/// The next frame, if it is there whole. A copy: what is kept of a packet must not keep its neighbors.
fn take(buffer: &mut BytesMut) -> io::Result<Option<(Kind, Bytes)>> {
    let Some((kind, length)) = buffer.first_chunk().copied().map(head).transpose()? else {
        return Ok(None);
    };
    let Some(bytes) = buffer.get(HEAD_BYTES..HEAD_BYTES + length) else { return Ok(None) };
    let bytes = Bytes::copy_from_slice(bytes);
    buffer.advance(HEAD_BYTES + length);
    Ok(Some((kind, bytes)))
}

fn head(head: [u8; HEAD_BYTES]) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = head;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let kind = match kind {
        1 => Kind::Session,
        2 => Kind::Packet,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of no known kind")),
    };
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame over the limit"));
    }
    Ok((kind, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut frames = Vec::new();
        put(&mut frames, Kind::Packet, b"a packet");
        put(&mut frames, Kind::Session, b"");
        put(&mut frames, Kind::Session, &vec![7; 70_000]);
        for step in [1, 3, 1_000, frames.len()] {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for chunk in frames.chunks(step) {
                buffer.extend_from_slice(chunk);
                seen.extend(std::iter::from_fn(|| take(&mut buffer).unwrap()));
            }
            let expected = [
                (Kind::Packet, Bytes::from_static(b"a packet")),
                (Kind::Session, Bytes::new()),
                (Kind::Session, vec![7; 70_000].into()),
            ];
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_is_no_frame_ends_the_connection() {
        let take = |bytes: &[u8]| take(&mut BytesMut::from(bytes));
        assert!(take(&[3, 0, 0, 0]).is_err(), "no such kind");
        assert!(take(&[2, 0xFF, 0xFF, 0xFF]).is_err(), "too long");
        assert_eq!(take(&[2, 0, 0]).unwrap(), None, "not yet");
    }
}
