//! One client's byte stream, the same for TLS, plain TCP and WebSocket: length-prefixed frames in
//! both directions.
//!
//! Owned by the connection's task. Tuned for the connection that says nothing: one task, one stream
//! that is not split, and no buffer between reads (8 KiB for an idle TLS connection, measured,
//! instead of 23).
//!
//! # Invariants
//! 1. [`Transport::readable`] holds no buffer and does not return at once for ever when there is
//!    nothing to read.
//! 2. It does return at once while decrypted bytes wait inside, which the socket cannot know.
//! 3. What is appended to the caller's buffer is allocated for what came, not for what might.

use std::future::{Future as _, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actors::connection::Refusal;
use bytes::BytesMut;
use proto::Code;
use tokio::io::{AsyncBufRead as _, AsyncRead as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop;
use tokio_rustls::server::TlsStream;

use super::websocket::WebSocket;

/// Longest time that saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes that are thrown away while saying goodbye.
const DISCARD_BYTES_MAX: usize = 1 << 20;

/// Bytes asked of the kernel at once, on the stack.
const CHUNK_BYTES: usize = 8 * 1024;

/// A connected client's stream of frames.
#[derive(Debug)]
pub struct Transport {
    socket: Socket,
    web: Option<Box<WebSocket>>,
    /// Bytes may wait inside, so the socket's readiness says nothing.
    more: bool,
    /// Bytes that the client sent before its first frame, in the handshake of WebSocket.
    opening_bytes: usize,
}

#[derive(Debug)]
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What [`Transport::read_now`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadNow {
    /// So many bytes came. Count them against limits; over WebSocket they may be less than a frame,
    /// so that nothing was appended.
    Bytes(usize),
    /// Nothing is there: wait for [`Transport::readable`].
    WouldBlock,
    /// The client has closed, in an orderly way or not.
    Closed,
    /// The client said goodbye in the words of the transport. Answer by [`Transport::close`].
    Farewell,
    /// The client broke the rules of the transport. Tell it and close.
    Broken(Refusal),
}

impl Transport {
    /// Frames over plain TCP.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { socket: Socket::Plain(stream), web: None, more: false, opening_bytes: 0 }
    }

    /// Frames over TLS, after the handshake.
    pub(super) fn tls(stream: Box<TlsStream<TcpStream>>) -> Self {
        // The first frames may have come in the packet that ended the handshake.
        Self { socket: Socket::Tls(stream), web: None, more: true, opening_bytes: 0 }
    }

    /// Frames as WebSocket messages over TLS, after both handshakes; the second took `opening_bytes`.
    pub(super) fn websocket(stream: Box<TlsStream<TcpStream>>, opening_bytes: usize) -> Self {
        Self { socket: Socket::Tls(stream), web: Some(Box::default()), more: true, opening_bytes }
    }

    /// Bytes of the client's WebSocket handshake. Count them as bytes before a login.
    pub fn opening_bytes(&self) -> u64 {
        self.opening_bytes as u64
    }

    /// Waits until bytes may be there. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket; the connection is over.
    pub async fn readable(&self) -> io::Result<()> {
        // Neither way below spends the task's budget; without this a client that never stops sending
        // would keep its worker thread for itself.
        coop::consume_budget().await;
        if self.more {
            return Ok(());
        }
        self.tcp().readable().await
    }

    /// Reads what is there, without waiting, and appends it to `into` as length-prefixed frames;
    /// about `max` bytes at most. A longer WebSocket message than
    /// [`Transport::set_frame_bytes_max`] allows is refused; over TCP and TLS the reader of frames
    /// does that.
    ///
    /// # Errors
    /// Those of the socket and of TLS; the connection is over.
    pub fn read_now(&mut self, into: &mut BytesMut, max: usize) -> io::Result<ReadNow> {
        let Some(web) = &mut self.web else {
            return self.socket.read_now(&mut self.more, into, max);
        };
        let found = self.socket.read_now(&mut self.more, web.received(), max)?;
        if let Err(code) = web.decode(into) {
            let text = "a WebSocket message that is not binary, or against RFC 6455".to_owned();
            let broken = Refusal::saying(code, text);
            return Ok(ReadNow::Broken(if code == Code::BadFrame { broken } else { code.into() }));
        }
        self.send_replies()?;
        if self.web.as_ref().is_some_and(|web| web.is_closed()) {
            // The goodbye is in the message; the socket may stay open and silent.
            self.more = true;
            return Ok(if found == ReadNow::WouldBlock { ReadNow::Farewell } else { found });
        }
        Ok(found)
    }

    /// Messages of WebSocket since the last call that carry nothing: pings, pongs, empty fragments.
    pub fn take_idle_messages(&mut self) -> u32 {
        self.web.as_mut().map_or(0, |web| web.take_idle())
    }

    /// Whether it speaks WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.web.is_some()
    }

    /// Whether a part of a WebSocket message waits for its rest.
    pub fn holds_part(&self) -> bool {
        self.web.as_ref().is_some_and(|web| web.holds_part())
    }

    /// Sets the longest WebSocket message, in bytes. At first
    /// [`proto::limits::FRAME_BYTES_MAX_BEFORE_LOGIN`].
    pub fn set_frame_bytes_max(&mut self, bytes: usize) {
        if let Some(web) = &mut self.web {
            web.set_limit(bytes);
        }
    }

    /// Writes all of `bytes`, which are whole length-prefixed frames, and flushes. The caller sets a
    /// time limit. Not cancel safe: after a write that was given up, only [`Transport::close`].
    ///
    /// # Errors
    /// Those of the socket; the connection is over.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.web {
            None => self.socket.write(bytes).await,
            Some(web) => {
                let messages = web.encode(bytes)?;
                self.socket.write(&messages).await
            }
        }
    }

    /// Says goodbye in the words of the transport, at most a second long. Afterwards the client has
    /// read what was written to it, unless it does not read.
    pub async fn close(&mut self) {
        // The client is gone or slow, and we leave either way.
        let _late_or_broken = tokio::time::timeout(CLOSE_TIMEOUT, self.farewell()).await;
    }

    async fn farewell(&mut self) -> io::Result<()> {
        if let Some(web) = &mut self.web {
            let goodbye = web.goodbye();
            self.socket.write(&goodbye).await?;
        }
        match &mut self.socket {
            Socket::Plain(stream) => stream.shutdown().await?,
            Socket::Tls(stream) => stream.shutdown().await?,
        }
        // A socket that is closed with unread bytes resets the connection, and the client may never
        // see our last frame.
        let mut discarded = 0;
        while discarded < DISCARD_BYTES_MAX {
            self.tcp().readable().await?;
            match discard(self.tcp()) {
                Ok(0) => break,
                Ok(bytes) => discarded += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers pings at once if the socket takes it, else with the next write.
    fn send_replies(&mut self) -> io::Result<()> {
        let (Some(web), Socket::Tls(stream)) = (&mut self.web, &mut self.socket) else {
            return Ok(());
        };
        let replies = web.replies();
        if replies.is_empty() {
            return Ok(());
        }
        if let Poll::Ready(sent) = now(|cx| Pin::new(&mut *stream).poll_write(cx, replies)) {
            replies.drain(..sent?);
        }
        Ok(())
    }

    fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Socket::Plain(stream) => stream,
            Socket::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl Socket {
    fn read_now(
        &mut self,
        more: &mut bool,
        into: &mut BytesMut,
        max: usize,
    ) -> io::Result<ReadNow> {
        let start = into.len();
        let end = match self {
            Self::Plain(stream) => read_plain(stream, into, max),
            Self::Tls(stream) => read_tls(stream, into, max),
        };
        let bytes = into.len() - start;
        // After bytes, an end or an error is met again by the next call. A full read may have left
        // some, and an end must not wait for the socket.
        *more = bytes > 0 && !matches!(end, Ok(End::Dry));
        match end {
            _ if bytes > 0 => Ok(ReadNow::Bytes(bytes)),
            Ok(End::Dry | End::Full) => Ok(ReadNow::WouldBlock),
            Ok(End::Closed) => Ok(ReadNow::Closed),
            Err(error) if is_hang_up(&error) => Ok(ReadNow::Closed),
            Err(error) => Err(error),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => write_and_flush(stream, bytes).await,
        }
    }
}

/// Why reading stopped.
enum End {
    /// The socket has no more for now.
    Dry,
    /// Enough was read.
    Full,
    /// The client sends no more.
    Closed,
}

fn read_plain(stream: &mut TcpStream, into: &mut BytesMut, max: usize) -> io::Result<End> {
    let mut space = [MaybeUninit::uninit(); CHUNK_BYTES];
    let mut room = max;
    while room > 0 {
        let mut chunk = ReadBuf::uninit(&mut space[..room.min(CHUNK_BYTES)]);
        match now(|cx| Pin::new(&mut *stream).poll_read(cx, &mut chunk)) {
            Poll::Pending => return Ok(End::Dry),
            Poll::Ready(result) => result?,
        }
        if chunk.filled().is_empty() {
            return Ok(End::Closed);
        }
        into.extend_from_slice(chunk.filled());
        room -= chunk.filled().len();
    }
    Ok(End::Full)
}

fn read_tls(stream: &mut TlsStream<TcpStream>, into: &mut BytesMut, max: usize) -> io::Result<End> {
    let mut room = max;
    while room > 0 {
        // The slice is rustls' own: nothing is allocated before it is known how much there is.
        let taken = now(|cx| {
            Pin::new(&mut *stream).poll_fill_buf(cx).map_ok(|plain| {
                let taken = plain.len().min(room);
                into.extend_from_slice(&plain[..taken]);
                taken
            })
        });
        match taken {
            Poll::Pending => return Ok(End::Dry),
            Poll::Ready(Ok(0)) => return Ok(End::Closed),
            Poll::Ready(Ok(taken)) => {
                Pin::new(&mut *stream).consume(taken);
                room -= taken;
            }
            Poll::Ready(Err(error)) => return Err(error),
        }
    }
    Ok(End::Full)
}

async fn write_and_flush(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn discard(stream: &TcpStream) -> io::Result<usize> {
    stream.try_read(&mut [0; CHUNK_BYTES])
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// Polls once. Readiness is waited for elsewhere (`TcpStream::readable` has its own list of wakers),
/// and the budget is spent there, so a pending answer always means that the socket is dry.
fn now<T>(poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    pin!(coop::unconstrained(poll_fn(poll))).poll(&mut Context::from_waker(Waker::noop()))
}
