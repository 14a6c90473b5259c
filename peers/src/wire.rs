//! The byte stream of one connection, as `ractor_cluster` gets it: with a tap.
//!
//! The tap tells the route when all was written, so that the next packet can be packed, and cuts
//! the connection: the reader sees its end, and `ractor_cluster` closes the socket. (Stopping its
//! session would leave the socket and its queue behind when the peer hangs.)
//!
//! **Invariant:** after a cut nothing is read or written any longer.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};

use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use supervision::{StopSource, Stopping};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::route::Route;

/// A hold on the byte stream of one connection.
#[derive(Debug)]
pub(crate) struct Tap {
    source: StopSource,
    cut: Stopping,
    route: OnceLock<Weak<Route>>,
}

impl Tap {
    pub(crate) fn new() -> Arc<Self> {
        let (source, cut) = StopSource::new();
        Arc::new(Self { source, cut, route: OnceLock::new() })
    }

    /// Ends the connection.
    pub(crate) fn cut(&self) {
        self.source.fire();
    }

    /// Who is told when all was written. Only the first one counts.
    pub(crate) fn tell(&self, route: &Arc<Route>) {
        self.route.get_or_init(|| Arc::downgrade(route));
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A byte stream with its tap.
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    pub(crate) label: String,
    pub(crate) tap: Arc<Tap>,
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
        let Self { stream, tap, .. } = *self;
        let (reader, writer) = tokio::io::split(stream);
        let stopping = tap.cut.clone();
        let cut = Box::pin(async move { stopping.wait().await });
        (Box::new(Reader { reader, cut }), Box::new(Writer { writer, tap }))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

struct Reader<R> {
    reader: R,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            // Once it has ended it must not be polled again.
            self.cut = Box::pin(std::future::ready(()));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

struct Writer<W> {
    writer: W,
    tap: Arc<Tap>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writer<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.tap.cut.is_stopping() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.writer).poll_flush(context);
        if matches!(polled, Poll::Ready(Ok(())))
            && let Some(route) = self.tap.route.get().and_then(Weak::upgrade)
        {
            route.flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
