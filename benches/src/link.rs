//! One connection: a socket without blocking, TLS without buffers of its own, and what is left over
//! between two reads. Run by [`crate::net::Net`].
//!
//! **Invariant:** between reads a link holds only half records and half frames; the big buffers are
//! shared in [`Scratch`].

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, pki_types::ServerName};

/// Bytes read at once, beside what was left over.
const READ_BYTES: usize = 64 * 1024;

/// Room for what is written at once; grows when needed.
const WRITE_BYTES: usize = 64 * 1024;

/// Connections from one loopback address, below the number of ephemeral ports.
const PER_ADDRESS: u64 = 20_000;

/// Buffers that all links share.
#[derive(Debug)]
pub(crate) struct Scratch {
    input: Vec<u8>,
    /// What was received, decrypted; begins with the half frame left over.
    pub(crate) plain: Vec<u8>,
    cipher: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { input: vec![0; 2 * READ_BYTES], plain: Vec::new(), cipher: vec![0; WRITE_BYTES] }
    }
}

/// How a link stands after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Open,
    Closed,
}

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// One connection.
pub(crate) struct Link {
    socket: TcpStream,
    tls: Option<Box<UnbufferedClientConnection>>,
    half_record: Vec<u8>,
    half_frame: Vec<u8>,
    unsent: Vec<u8>,
    pub(crate) connected: bool,
}

impl Link {
    /// Begins to connect. `count` is how many were begun before: loopback addresses take turns.
    pub(crate) fn begin(target: &Target, count: u64) -> Result<Self> {
        let family = match target.address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .context("no socket: too many open files?")?;
        if target.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) && count >= PER_ADDRESS {
            let last = 1 + (count / PER_ADDRESS) % 200;
            let source = Ipv4Addr::new(127, 0, 0, last as u8);
            rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
        }
        match rustix::net::connect(&socket, &target.address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        let tls = match &target.tls {
            Some((config, name)) => {
                let connection = UnbufferedClientConnection::new(config.clone(), name.clone())?;
                Some(Box::new(connection))
            }
            None => None,
        };
        Ok(Self {
            socket,
            tls,
            half_record: Vec::new(),
            half_frame: Vec::new(),
            unsent: Vec::new(),
            connected: false,
        })
    }

    /// The socket, to wait for.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether bytes wait for room in the socket.
    pub(crate) fn wants_write(&self) -> bool {
        !self.connected || !self.unsent.is_empty()
    }

    /// The socket can be written: finishes connecting, then sends what waits.
    pub(crate) fn writable(&mut self, scratch: &mut Scratch) -> Result<()> {
        if !self.connected {
            if let Some(error) = self.socket.take_error()? {
                return Err(error).context("cannot connect");
            }
            self.connected = true;
            if let Some(tls) = &mut self.tls {
                advance(tls, &mut [], &mut scratch.plain, &mut self.unsent)?;
            }
        }
        let sent = write(&self.socket, &self.unsent)?;
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Reads once. What came, after the half frame left over, is then in `scratch.plain`.
    pub(crate) fn receive(&mut self, scratch: &mut Scratch) -> Result<Standing> {
        let Scratch { input, plain, .. } = scratch;
        plain.clear();
        plain.extend_from_slice(&self.half_frame);
        self.half_frame.clear();
        let left = self.half_record.len();
        input[..left].copy_from_slice(&self.half_record);
        let read = match self.socket.read(&mut input[left..left + READ_BYTES]) {
            Ok(0) => return Ok(Standing::Closed),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Standing::Open),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Standing::Open),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Ok(Standing::Closed);
            }
            Err(error) => return Err(error.into()),
        };
        let Some(tls) = &mut self.tls else {
            plain.extend_from_slice(&input[..read]);
            return Ok(Standing::Open);
        };
        let whole = &mut input[..left + read];
        let (used, standing) = advance(tls, whole, plain, &mut self.unsent)?;
        self.half_record.clear();
        self.half_record.extend_from_slice(&whole[used..]);
        if !self.unsent.is_empty() {
            let sent = write(&self.socket, &self.unsent)?;
            self.unsent.drain(..sent);
        }
        Ok(standing)
    }

    /// Keeps what is left of `scratch.plain` for the next read.
    pub(crate) fn keep(&mut self, half_frame: &[u8]) {
        self.half_frame.extend_from_slice(half_frame);
    }

    /// Sends `frames`, in one write if the socket takes them.
    pub(crate) fn send(&mut self, frames: &[u8], scratch: &mut Scratch) -> Result<()> {
        let bytes = match &mut self.tls {
            None => frames,
            Some(tls) => {
                let length = seal(tls, frames, &mut scratch.cipher)?;
                &scratch.cipher[..length]
            }
        };
        let sent = if self.unsent.is_empty() { write(&self.socket, bytes)? } else { 0 };
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }
}

/// Writes what the socket takes at once.
fn write(mut socket: &TcpStream, bytes: &[u8]) -> Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot write"),
        }
    }
    Ok(sent)
}

/// Feeds TLS records in: appends what they say to `plain` and what must be answered to `reply`.
/// Returns how many bytes were used.
fn advance(
    tls: &mut UnbufferedClientConnection,
    input: &mut [u8],
    plain: &mut Vec<u8>,
    reply: &mut Vec<u8>,
) -> Result<(usize, Standing)> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut input[used..]);
        let standing = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                None
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let begin = reply.len();
                let needed = match data.encode(&mut []) {
                    Err(EncodeError::InsufficientSize(size)) => size.required_size,
                    Err(error) => return Err(error.into()),
                    Ok(_) => 0,
                };
                reply.resize(begin + needed, 0);
                data.encode(&mut reply[begin..])?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                None
            }
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => {
                Some(Standing::Open)
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => Some(Standing::Closed),
            other @ (ConnectionState::ReadEarlyData(_) | _) => {
                bail!("TLS in a state unknown here: {other:?}")
            }
        };
        used += discard;
        if let Some(standing) = standing {
            return Ok((used, standing));
        }
    }
}

/// Encrypts `frames` into `cipher` and returns the length.
fn seal(
    tls: &mut UnbufferedClientConnection,
    frames: &[u8],
    cipher: &mut Vec<u8>,
) -> Result<usize> {
    let status = tls.process_tls_records(&mut []);
    let ConnectionState::WriteTraffic(mut traffic) = status.state? else {
        bail!("TLS is not ready to send");
    };
    match traffic.encrypt(frames, cipher) {
        Ok(length) => Ok(length),
        Err(EncryptError::InsufficientSize(size)) => {
            cipher.resize(size.required_size, 0);
            Ok(traffic.encrypt(frames, cipher)?)
        }
        Err(error) => Err(error.into()),
    }
}
