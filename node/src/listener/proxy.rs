//! PROXY protocol, versions 1 and 2: a proxy in front of the node names the client of a connection in
//! its first bytes.
//!
//! # Invariants
//! 1. A header counts only from a network that `listen.proxy_from` names; there it must come.
//! 2. What is read is the header and not one byte more, and bounded before it comes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::config::parse_network;

/// Begins a header of version 2; version 1 begins with other bytes and is never shorter.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses.
const FIXED_BYTES: usize = 16;

/// Longest header of version 1, by the protocol.
const TEXT_BYTES_MAX: usize = 107;

/// Longest rest of a version 2 header: addresses, and what cloud balancers add (some hundred bytes).
const REST_BYTES_MAX: usize = 2048;

/// Networks whose connections begin with a header. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Arc<[IpNet]>);

impl Proxies {
    /// Those of `listen.proxy_from`; what is no network is left out.
    pub fn new(networks: &[String]) -> Self {
        Self(networks.iter().filter_map(|text| parse_network(text)).collect())
    }

    /// Whether a connection from `address` is a proxy's.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Reads a header from the beginning of `stream`, and returns the client it names; `proxy` itself if
/// it speaks for nobody, as to find out whether the node lives.
///
/// # Errors
/// Those of the stream; `InvalidData` for anything but a header.
pub async fn read_client(
    stream: &mut (impl AsyncRead + Unpin),
    proxy: SocketAddr,
) -> io::Result<SocketAddr> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        header.resize(FIXED_BYTES, 0);
        stream.read_exact(&mut header[SIGNATURE.len()..]).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if rest > REST_BYTES_MAX {
            return Err(no_header());
        }
        header.resize(FIXED_BYTES + rest, 0);
        stream.read_exact(&mut header[FIXED_BYTES..]).await?;
    } else if header.starts_with(b"PROXY ") {
        while header.last() != Some(&b'\n') {
            if header.len() == TEXT_BYTES_MAX {
                return Err(no_header());
            }
            header.push(stream.read_u8().await?);
        }
    }
    client_of(&header, proxy)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "another library's enums")]
fn client_of(header: &[u8], proxy: SocketAddr) -> io::Result<SocketAddr> {
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(ip) => (ip.source_address, ip.source_port).into(),
            v1::Addresses::Tcp6(ip) => (ip.source_address, ip.source_port).into(),
            v1::Addresses::Unknown => proxy,
        }),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(proxy),
        HeaderResult::V2(Ok(header)) => Ok(match header.addresses {
            v2::Addresses::IPv4(ip) => (ip.source_address, ip.source_port).into(),
            v2::Addresses::IPv6(ip) => (ip.source_address, ip.source_port).into(),
            _ => proxy,
        }),
        _ => Err(no_header()),
    }
}

fn no_header() -> io::Error {
    let text = "no PROXY header although listen.proxy_from names this network";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1:50000";

    async fn read(bytes: &[u8]) -> (io::Result<SocketAddr>, Vec<u8>) {
        let mut stream = bytes;
        let client = read_client(&mut stream, PROXY.parse().unwrap()).await;
        (client, stream.to_vec())
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[0x20 | command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_what_follows_is_left() {
        let ipv4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let mut ipv6 = vec![0; 36];
        ipv6[..2].copy_from_slice(&[0x20, 1]);
        ipv6[15] = 9;
        ipv6[33] = 5;
        // A type-length-value behind the addresses, as cloud balancers send it.
        let longer = [ipv4.as_slice(), &[0xea, 0, 3, 1, 2, 3]].concat();
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n".to_vec(), "192.0.2.7:8080"),
            (b"PROXY TCP6 2001:db8::9 ::1 5 80\r\n".to_vec(), "[2001:db8::9]:5"),
            (b"PROXY UNKNOWN\r\n".to_vec(), PROXY),
            (binary(1, 0x11, &ipv4), "192.0.2.7:8080"),
            (binary(1, 0x11, &longer), "192.0.2.7:8080"),
            (binary(1, 0x21, &ipv6), "[2001::9]:5"),
            (binary(0, 0, &[]), PROXY),
        ] {
            let (found, rest) = read(&[header.as_slice(), b"hello"].concat()).await;
            assert_eq!(found.unwrap(), client.parse().unwrap(), "{header:?}");
            assert_eq!(rest, b"hello");
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused_and_read_no_further_than_a_header() {
        for bytes in [
            b"GET /healthz HTTP/1.1\r\n\r\n".to_vec(),
            [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat(),
            b"PROXY TCP4 one two 3 4\r\n".to_vec(),
            binary(1, 0x11, &[0; 4]),
            [binary(1, 0x11, &[]).as_slice()[..14].to_vec(), vec![0xff; 70_000]].concat(),
            b"PROXY".to_vec(),
        ] {
            let (found, rest) = read(&bytes).await;
            found.unwrap_err();
            assert!(bytes.len() - rest.len() <= FIXED_BYTES + TEXT_BYTES_MAX);
        }
    }

    #[test]
    fn a_network_is_an_address_or_a_prefix() {
        let networks = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"].map(str::to_owned);
        let proxies = Proxies::new(&networks);
        for (address, is) in [
            ("10.9.9.9", true),
            ("::ffff:10.9.9.9", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8:7::1", true),
            ("::1", false),
        ] {
            assert_eq!(proxies.contain(address.parse().unwrap()), is, "{address}");
        }
        assert!(parse_network("ten").is_none() && parse_network("10.0.0.0/33").is_none());
    }
}
