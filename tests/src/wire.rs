//! A client on the bare protocol, for tests: sends any frame or any bytes, and reads only when told
//! to. It shares nothing with the SDK but `proto`.
//!
//! **Invariant:** every wait has a deadline, so a story that fails ends.

use crate::node::{Node, PATIENCE, Target};
use anyhow::{Context as _, Result, bail};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use bytes::{Bytes, BytesMut};
use proto::frame;
use proto::limits::FRAME_BYTES_MAX;
use proto::wire::{
    ClientFrame, LoggedIn, Login, Refused, RegisterProve, RegisterStart, RequestLink, Resume,
    ServerFrame, Welcome, client_frame::Kind as Ask, server_frame::Kind as Say,
};
use proto::{Alias, Code, DeviceId, UserId, signed};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one frame may take. Generous: the machine may be compiling.
pub const FRAME_PATIENCE: Duration = Duration::from_secs(30);

/// A login or a resumption was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not let in: {0:?}")]
pub struct NotLetIn(pub Refused);

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection. Dropping it closes the socket without a word.
pub struct Wire {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    aside: VecDeque<ServerFrame>,
    next_id: u64,
    /// What the node said first.
    pub welcome: Welcome,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("welcome", &self.welcome).finish_non_exhaustive()
    }
}

/// A TLS stream to `address`.
///
/// # Errors
/// If it cannot be opened.
pub async fn tls(
    target: &Target,
    address: &str,
    protocols: &[&str],
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    tls_on(target, TcpStream::connect(address).await?, protocols).await
}

/// A TLS stream on a connection that is there already.
///
/// # Errors
/// If the node does not shake hands.
pub async fn tls_on(
    target: &Target,
    tcp: TcpStream,
    protocols: &[&str],
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = tls_config(target, protocols)?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
}

/// How a client shakes hands that trusts this node.
///
/// # Errors
/// If the node has no certificate yet.
pub fn tls_config(target: &Target, protocols: &[&str]) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&target.authority()?) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

impl Wire {
    /// Connects over TLS and waits for the welcome.
    ///
    /// # Errors
    /// If the node does not welcome us.
    pub async fn connect(target: &Target) -> Result<Self> {
        let address = target.addresses().context("the node is not ready")?.client;
        let stream = timeout(FRAME_PATIENCE, tls(target, &address, &["natter/1"])).await??;
        Self::welcome(Box::new(stream)).await
    }

    /// Connects without TLS and waits for the welcome.
    ///
    /// # Errors
    /// If the node does not welcome us.
    pub async fn plain(target: &Target) -> Result<Self> {
        let address = target.addresses().context("the node is not ready")?.plain;
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        Self::welcome(Box::new(stream)).await
    }

    /// Waits for the welcome on a connection that is there already.
    ///
    /// # Errors
    /// If the node does not welcome us.
    pub async fn welcome(stream: Box<dyn Stream>) -> Result<Self> {
        let (buffer, aside) = (BytesMut::new(), VecDeque::new());
        let mut wire =
            Self { stream, buffer, aside, next_id: 1 << 40, welcome: Welcome::default() };
        let Some(ServerFrame { id: 0, kind: Some(Say::Welcome(welcome)) }) = wire.read().await?
        else {
            bail!("the first frame is no welcome");
        };
        wire.welcome = welcome;
        Ok(wire)
    }

    /// Sends any bytes at all.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn send(&mut self, id: u64, kind: Ask) -> Result<()> {
        let mut bytes = BytesMut::new();
        frame::encode(&ClientFrame { id, kind: Some(kind) }, &mut bytes);
        self.send_bytes(&bytes).await
    }

    /// The next frame as it comes, Pings answered; `None` if the node closed. Can be cancelled.
    ///
    /// # Errors
    /// If nothing comes in time or the connection breaks.
    pub async fn read(&mut self) -> Result<Option<ServerFrame>> {
        loop {
            match self.read_any().await? {
                Some(ServerFrame { kind: Some(Say::Ping(_)), .. }) => {
                    self.send(0, Ask::Pong(proto::wire::Pong {})).await?;
                }
                frame => return Ok(frame),
            }
        }
    }

    async fn read_any(&mut self) -> Result<Option<ServerFrame>> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, FRAME_BYTES_MAX)? {
                return Ok(Some(frame));
            }
            let read = timeout(FRAME_PATIENCE, self.stream.read_buf(&mut self.buffer));
            match read.await.context("no frame came")? {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_end(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next frame that `pick` takes; the others stay for later.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn expect<T>(&mut self, pick: impl Fn(&ServerFrame) -> Option<T>) -> Result<T> {
        for place in 0..self.aside.len() {
            if let Some(value) = pick(&self.aside[place]) {
                self.aside.remove(place);
                return Ok(value);
            }
        }
        while let Some(frame) = self.read().await? {
            if let Some(value) = pick(&frame) {
                return Ok(value);
            }
            self.aside.push_back(frame);
        }
        bail!("the connection ended first; came: {:?}", self.aside)
    }

    /// The next frame in the order they came, those left aside first.
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn next(&mut self) -> Result<(u64, Say)> {
        loop {
            let frame = match self.aside.pop_front() {
                Some(frame) => frame,
                None => self.read().await?.context("the connection ended")?,
            };
            if let Some(kind) = frame.kind {
                return Ok((frame.id, kind));
            }
        }
    }

    /// Asks with an id of its own and waits for the answer.
    ///
    /// # Errors
    /// If none comes.
    pub async fn ask(&mut self, kind: Ask) -> Result<Say> {
        self.next_id += 1;
        self.ask_as(self.next_id, kind).await
    }

    /// Asks with the given id and waits for the answer.
    ///
    /// # Errors
    /// If none comes.
    pub async fn ask_as(&mut self, id: u64, kind: Ask) -> Result<Say> {
        self.send(id, kind).await?;
        self.expect(|frame| if frame.id == id { frame.kind.clone() } else { None }).await
    }

    /// Asks and expects a refusal.
    ///
    /// # Errors
    /// If the answer is another.
    pub async fn refused(&mut self, kind: Ask) -> Result<Code> {
        match self.ask(kind).await? {
            Say::Refused(refused) => Ok(Code::from_number(refused.code)),
            other => bail!("not refused: {other:?}"),
        }
    }

    /// Reads until the node closes; the last code it gave.
    ///
    /// # Errors
    /// If it does not close.
    pub async fn ended(&mut self) -> Result<Option<Code>> {
        let mut last = None;
        self.aside.drain(..).for_each(|frame| last = code_of(&frame).or(last));
        let closed = async {
            while let Some(frame) = self.read().await? {
                last = code_of(&frame).or(last);
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, closed).await.context("the node does not close")??;
        Ok(last)
    }

    /// The same for a client that answers no Ping.
    ///
    /// # Errors
    /// If the node does not close.
    pub async fn ended_without_pong(&mut self) -> Result<Option<Code>> {
        let mut last = None;
        let closed = async {
            while let Some(frame) = self.read_any().await? {
                last = code_of(&frame).or(last);
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, closed).await.context("the node does not close")??;
        Ok(last)
    }
}

fn code_of(frame: &ServerFrame) -> Option<Code> {
    match &frame.kind {
        Some(Say::GoAway(away)) => Some(Code::from_number(away.code)),
        Some(Say::Refused(refused)) => Some(Code::from_number(refused.code)),
        _ => None,
    }
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

/// A device with its key: what a phone keeps.
#[derive(Debug)]
pub struct Phone {
    /// The user's id.
    pub user: u64,
    /// The device's id.
    pub device: u32,
    /// The newest ticket.
    pub ticket: Bytes,
    /// The highest seq it keeps.
    pub last: u64,
    /// It comes only to fetch: its person is not there.
    pub away: bool,
    seed: [u8; 32],
}

impl Phone {
    /// A key of its own that nobody has admitted yet.
    pub fn new() -> Self {
        Self {
            user: 0,
            device: 0,
            ticket: Bytes::new(),
            last: 0,
            away: false,
            seed: rand::random(),
        }
    }

    /// Registers `alias` on a new connection, which is then logged in.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn register(node: &Node, alias: &str) -> Result<(Self, Wire)> {
        let mut wire = Wire::connect(&node.target()).await?;
        let mut phone = Self::new();
        phone.register_on(node, &mut wire, alias).await?;
        Ok((phone, wire))
    }

    /// Registers `alias` on `wire`.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn register_on(&mut self, node: &Node, wire: &mut Wire, alias: &str) -> Result<()> {
        let seen = node.output().len();
        let start = RegisterStart { alias: alias.into() };
        let answer = wire.ask(Ask::RegisterStart(start)).await?;
        let Say::PinSent(sent) = answer else { bail!("no PIN: {answer:?}") };
        let alias = Alias::parse(alias)?;
        let pin = node.pin(alias.as_str(), seen).await?;
        let prove = self.proof(&wire.welcome.nonce, &alias, (pin, sent.token))?;
        match wire.ask(Ask::RegisterProve(prove.into())).await? {
            Say::Registered(registered) => {
                (self.user, self.device) = (registered.user, registered.device);
                self.ticket = registered.ticket;
                self.last = registered.acknowledged;
                Ok(())
            }
            other => bail!("not registered: {other:?}"),
        }
    }

    /// The second step of a registration, with the PIN and the token of the first.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn proof(
        &self,
        nonce: &[u8],
        alias: &Alias,
        (pin, token): (String, Bytes),
    ) -> Result<RegisterProve> {
        Ok(RegisterProve {
            alias: alias.to_string(),
            pin,
            device_key: self.public_key()?,
            signature: self.sign(&signed::register(nonce, alias))?,
            device_name: "test phone".into(),
            away: self.away,
            token,
            lock: String::new(),
        })
    }

    /// Asks that this device be linked to the account of `alias`.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn link_frame(&self, nonce: &[u8], alias: &Alias) -> Result<RequestLink> {
        Ok(RequestLink {
            alias: alias.to_string(),
            device_key: self.public_key()?,
            signature: self.sign(&signed::link(nonce, alias))?,
            device_name: "test tablet".into(),
            away: self.away,
        })
    }

    fn sign(&self, bytes: &[u8]) -> Result<Bytes> {
        let key = Ed25519KeyPair::from_seed_unchecked(&self.seed)?;
        Ok(Bytes::copy_from_slice(key.sign(bytes).as_ref()))
    }

    /// The public key.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn public_key(&self) -> Result<Bytes> {
        let key = Ed25519KeyPair::from_seed_unchecked(&self.seed)?;
        Ok(Bytes::copy_from_slice(key.public_key().as_ref()))
    }

    /// A login that is valid for `nonce`.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn login_frame(&self, nonce: &[u8]) -> Result<Ask> {
        let bytes = signed::login(nonce, UserId(self.user), DeviceId(self.device));
        let (user, device, acknowledged) = (self.user, self.device, self.last);
        let signature = self.sign(&bytes)?;
        let away = self.away;
        Ok(Ask::Login(Login { user, device, signature, acknowledged, away }))
    }

    /// Logs in with the key on a new connection.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn login(&mut self, target: &Target) -> Result<Wire> {
        let mut wire = Wire::connect(target).await?;
        self.login_on(&mut wire).await?;
        Ok(wire)
    }

    /// Logs in with the key on `wire`.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn login_on(&mut self, wire: &mut Wire) -> Result<()> {
        let login = self.login_frame(&wire.welcome.nonce)?;
        match wire.ask(login).await? {
            Say::LoggedIn(logged_in) => {
                self.keep(&logged_in);
                Ok(())
            }
            Say::Refused(refused) => Err(NotLetIn(refused).into()),
            other => bail!("not logged in: {other:?}"),
        }
    }

    /// Keeps what an answer to a login or a resumption brings.
    pub fn keep(&mut self, logged_in: &LoggedIn) {
        self.ticket = logged_in.ticket.clone();
        let recorded = logged_in.acknowledged;
        self.last = if logged_in.resync { recorded } else { self.last.max(recorded) };
    }

    /// Resumes with `ticket` on `wire`; `None`: it does not open.
    ///
    /// # Errors
    /// If the node refuses for another reason.
    pub async fn resume_on(
        wire: &mut Wire,
        ticket: Bytes,
        acknowledged: u64,
    ) -> Result<Option<LoggedIn>> {
        Self::open(wire, Resume { ticket, acknowledged, away: false }).await
    }

    async fn open(wire: &mut Wire, resume: Resume) -> Result<Option<LoggedIn>> {
        match wire.ask(Ask::Resume(resume)).await? {
            Say::LoggedIn(logged_in) => Ok(Some(logged_in)),
            Say::Refused(refused) if refused.code == Code::BadTicket.number() => Ok(None),
            Say::Refused(refused) => Err(NotLetIn(refused).into()),
            other => bail!("not resumed: {other:?}"),
        }
    }

    /// Resumes with the ticket, or logs in if the node does not take it. Whether it was resumed.
    ///
    /// # Errors
    /// If the node refuses both.
    pub async fn resume(&mut self, target: &Target) -> Result<(Wire, bool)> {
        let mut wire = Wire::connect(target).await?;
        let (ticket, acknowledged, away) = (self.ticket.clone(), self.last, self.away);
        let resumed = Self::open(&mut wire, Resume { ticket, acknowledged, away }).await?;
        match &resumed {
            Some(logged_in) => self.keep(logged_in),
            None => self.login_on(&mut wire).await?,
        }
        Ok((wire, resumed.is_some()))
    }
}

impl Default for Phone {
    fn default() -> Self {
        Self::new()
    }
}
