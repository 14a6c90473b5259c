//! One connection: TCP or TLS, and whole frames in both directions.

use crate::{
    error::ConnectError,
    options::{ClientOptions, Transport},
};
use bytes::BytesMut;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use proto::{
    frame,
    limits::FRAME_BYTES_MAX,
    wire::{self, ClientFrame, ServerFrame, client_frame, server_frame},
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// Longest frame that is taken even if `Welcome` allows more.
const FRAME_BYTES_CEILING: usize = 4 * FRAME_BYTES_MAX;

/// Silence of one address after which the next one is tried beside it. (RFC 8305 has 250 ms for a
/// TCP handshake; here TLS and `Welcome` are included.)
const STAGGER: Duration = Duration::from_millis(500);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection on which `Welcome` has come.
pub(crate) struct Link {
    pub(crate) reader: ReadHalf<Box<dyn Io>>,
    pub(crate) writer: WriteHalf<Box<dyn Io>>,
    pub(crate) buffer: BytesMut,
    pub(crate) frame_limit: usize,
    pub(crate) welcome: wire::Welcome,
}

impl Link {
    /// Connects to the first of `addresses` that says `Welcome`, and returns which one it was. Those
    /// that are slower are hung up on.
    pub(crate) async fn open_first(
        options: &ClientOptions,
        addresses: &[String],
    ) -> Result<(Self, String), ConnectError> {
        let attempt = |address: String| async move {
            let opened = Self::open(options, &address).await;
            (opened, address)
        };
        let mut untried = addresses.iter();
        let mut attempts = FuturesUnordered::new();
        let mut next = untried.next();
        let mut failed = ConnectError::Address("no address was given".into());
        loop {
            if let Some(address) = next {
                attempts.push(attempt(address.clone()));
            }
            next = tokio::select! {
                Some((opened, address)) = attempts.next() => match opened {
                    Ok(link) => return Ok((link, address)),
                    Err(error) => {
                        failed = error;
                        untried.next()
                    }
                },
                () = sleep(STAGGER), if untried.len() > 0 => untried.next(),
                else => return Err(failed),
            };
        }
    }

    /// Connects to `address` and waits for `Welcome`.
    pub(crate) async fn open(options: &ClientOptions, address: &str) -> Result<Self, ConnectError> {
        within(options.connect_timeout, async {
            let (reader, writer) = tokio::io::split(connect(options, address).await?);
            let mut link = Self {
                reader,
                writer,
                buffer: BytesMut::new(),
                frame_limit: FRAME_BYTES_MAX,
                welcome: wire::Welcome::default(),
            };
            link.welcome = match link.next().await?.kind {
                Some(server_frame::Kind::Welcome(welcome)) => welcome,
                Some(server_frame::Kind::Refused(refused)) => {
                    return Err(ConnectError::Refused(refused.into()));
                }
                Some(_) | None => return Err(ConnectError::Unexpected),
            };
            let told = usize::try_from(link.welcome.frame_bytes_max).unwrap_or(usize::MAX);
            link.frame_limit = told.clamp(FRAME_BYTES_MAX, FRAME_BYTES_CEILING);
            Ok(link)
        })
        .await
    }

    /// Sends `kind` and waits for its answer. For the opening of a connection, where nothing else
    /// is under way.
    pub(crate) async fn ask(
        &mut self,
        id: u64,
        kind: client_frame::Kind,
        wait: Duration,
    ) -> Result<server_frame::Kind, ConnectError> {
        within(wait, async {
            self.send(&ClientFrame { id, kind: Some(kind) }).await?;
            loop {
                let answer = self.next().await?;
                match answer.kind {
                    Some(server_frame::Kind::Ping(_)) => {
                        let pong = client_frame::Kind::Pong(wire::Pong {});
                        self.send(&ClientFrame { id: 0, kind: Some(pong) }).await?;
                    }
                    // With id 0 the node refuses the connection itself.
                    Some(server_frame::Kind::Refused(refused)) => {
                        return Err(ConnectError::Refused(refused.into()));
                    }
                    Some(kind) if answer.id == id => return Ok(kind),
                    Some(_) | None => {}
                }
            }
        })
        .await
    }

    async fn send(&mut self, frame: &ClientFrame) -> Result<(), ConnectError> {
        let mut bytes = Vec::new();
        frame::encode(frame, &mut bytes);
        self.writer.write_all(&bytes).await?;
        Ok(self.writer.flush().await?)
    }

    async fn next(&mut self) -> Result<ServerFrame, ConnectError> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, self.frame_limit)? {
                return Ok(frame);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

async fn within<T>(
    wait: Duration,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(wait, work).await.unwrap_or(Err(ConnectError::TimedOut(wait)))
}

async fn connect(options: &ClientOptions, address: &str) -> Result<Box<dyn Io>, ConnectError> {
    if !address.contains(':') {
        return Err(ConnectError::Address(address.into()));
    }
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    match &options.transport {
        Transport::Plain => Ok(Box::new(socket)),
        Transport::Tls(tls) => {
            let name = options.name_for(address)?;
            let connector = TlsConnector::from(tls.config.clone());
            Ok(Box::new(connector.connect(name, socket).await?))
        }
    }
}
