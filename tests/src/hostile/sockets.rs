//! Connections from chosen addresses of the loopback network, so that an attacker is not one source.

use crate::node::{Node, Target};
use crate::wire::{FRAME_PATIENCE, Phone, Wire, tls_on};
use anyhow::{Context as _, Result};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Where a node can be knocked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Frames over TLS.
    Client,
    /// Frames over plain TCP.
    Plain,
    /// WebSocket over TLS.
    WebSocket,
    /// Health and metrics.
    Http,
    /// Other nodes.
    Cluster,
}

impl Door {
    /// Where it is now.
    ///
    /// # Errors
    /// If the node is not ready.
    pub fn address(self, target: &Target) -> Result<SocketAddr> {
        let addresses = target.addresses().context("the node is not ready")?;
        let text = match self {
            Self::Client => addresses.client,
            Self::Plain => addresses.plain,
            Self::WebSocket => addresses.websocket,
            Self::Http => addresses.http,
            Self::Cluster => addresses.cluster,
        };
        text.parse().with_context(|| format!("{self:?}: {text:?} is no address"))
    }
}

/// The attacker's address with this number; none of them is an honest person's.
pub fn source(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 66, high, low)
}

/// A TCP connection to `to` that comes from `from`.
///
/// # Errors
/// If it cannot be opened.
pub async fn tcp(from: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Thousands of short connections from a few addresses must not run out of ports.
    socket.set_reuseaddr(true)?;
    socket.bind((from, 0).into())?;
    let stream = timeout(FRAME_PATIENCE, socket.connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A welcomed connection over TLS that comes from `from`.
///
/// # Errors
/// If the node does not welcome us.
pub async fn wire(target: &Target, from: Ipv4Addr) -> Result<Wire> {
    let stream = tcp(from, Door::Client.address(target)?).await?;
    let stream = timeout(FRAME_PATIENCE, tls_on(target, stream, &["natter/1"])).await??;
    Wire::welcome(Box::new(stream)).await
}

/// The same without TLS: cheap, where TLS is not what is attacked.
///
/// # Errors
/// If the node does not welcome us.
pub async fn plain(target: &Target, from: Ipv4Addr) -> Result<Wire> {
    let stream = tcp(from, Door::Plain.address(target)?).await?;
    Wire::welcome(Box::new(stream)).await
}

/// An account of the attacker, registered and logged in from `from`.
///
/// # Errors
/// If the node refuses.
pub async fn account(node: &Node, from: Ipv4Addr, alias: &str) -> Result<(Phone, Wire)> {
    let mut wire = plain(&node.target(), from).await?;
    let mut phone = Phone::new();
    phone.register_on(node, &mut wire, alias).await?;
    Ok((phone, wire))
}
