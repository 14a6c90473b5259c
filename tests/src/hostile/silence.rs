//! Connections that are opened and then say nothing, or nearly nothing: each holds a place, a
//! descriptor and some memory until the node ends it.

use crate::hostile::sockets::{Door, source, tcp};
use crate::node::Target;
use crate::wire::{tls_config, tls_on};
use anyhow::Result;
use rustls_pki_types::ServerName;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// How far a silent connection goes before it falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// TCP, and not a byte.
    Tcp(Door),
    /// The first half of a TLS hello.
    HalfHello(Door),
    /// All of TLS; what the node says is read, nothing is said.
    AfterWelcome,
    /// One byte of a frame each half second, never a whole one.
    Drip,
    /// Half a request to become a WebSocket.
    HalfUpgrade,
    /// Half a request of HTTP.
    HalfHttp,
}

impl Silence {
    /// Every kind that a client port meets.
    pub const ALL: &[Self] = &[
        Self::Tcp(Door::Client),
        Self::Tcp(Door::Plain),
        Self::Tcp(Door::WebSocket),
        Self::HalfHello(Door::Client),
        Self::HalfHello(Door::WebSocket),
        Self::AfterWelcome,
        Self::Drip,
        Self::HalfUpgrade,
    ];
}

/// Many silent connections that come again as soon as the node ends them. Dropping it ends all.
#[derive(Debug)]
pub struct Crowd {
    tasks: JoinSet<()>,
    opened: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new() -> Self {
        Self { tasks: JoinSet::new(), opened: Arc::default(), ended: Arc::default() }
    }

    /// `each` more connections of each of `kinds` from each of the addresses with these `numbers`.
    pub fn gather(
        &mut self,
        target: &Target,
        kinds: &'static [Silence],
        numbers: std::ops::Range<u16>,
        each: usize,
    ) {
        for number in numbers {
            for kind in kinds {
                for _ in 0..each {
                    let (target, from, kind) = (target.clone(), source(number), *kind);
                    let (opened, ended) = (Arc::clone(&self.opened), Arc::clone(&self.ended));
                    self.tasks.spawn(async move {
                        loop {
                            // Any end is what the node's limits are for: the next one is opened.
                            drop(hold(&target, from, kind, &opened).await);
                            ended.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    });
                }
            }
        }
    }

    /// Connections that were opened so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Connections that have ended so far, also those that never opened.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Default for Crowd {
    fn default() -> Self {
        Self::new()
    }
}

/// One silent connection, until the node ends it.
async fn hold(target: &Target, from: Ipv4Addr, kind: Silence, opened: &AtomicUsize) -> Result<()> {
    let door = match kind {
        Silence::Tcp(door) | Silence::HalfHello(door) => door,
        Silence::AfterWelcome | Silence::Drip => Door::Client,
        Silence::HalfUpgrade => Door::WebSocket,
        Silence::HalfHttp => Door::Http,
    };
    let mut stream = tcp(from, door.address(target)?).await?;
    opened.fetch_add(1, Ordering::Relaxed);
    match kind {
        Silence::Tcp(_) => {}
        Silence::HalfHello(_) => {
            let hello = hello(target)?;
            stream.write_all(&hello[..hello.len() / 2]).await?;
        }
        Silence::HalfHttp => {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await?;
        }
        Silence::AfterWelcome => {
            let mut stream = tls_on(target, stream, &["natter/1"]).await?;
            stream.read_to_end(&mut Vec::new()).await?;
            return Ok(());
        }
        Silence::Drip => return drip(tls_on(target, stream, &["natter/1"]).await?).await,
        Silence::HalfUpgrade => {
            let mut stream = tls_on(target, stream, &["http/1.1"]).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: webso").await?;
            stream.read_to_end(&mut Vec::new()).await?;
            return Ok(());
        }
    }
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// A frame of a hundred bytes, a byte each half second.
async fn drip(stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(&[100]).await?;
        loop {
            writer.write_all(&[0x0a]).await?;
            writer.flush().await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let mut rest = Vec::new();
    tokio::select! {
        written = write => written,
        read = reader.read_to_end(&mut rest) => read.map(|_| ()).map_err(Into::into),
    }
}

/// The first bytes of a TLS handshake.
fn hello(target: &Target) -> Result<Vec<u8>> {
    let config = Arc::new(tls_config(target, &["natter/1"])?);
    let mut client = rustls::ClientConnection::new(config, ServerName::try_from("localhost")?)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}
