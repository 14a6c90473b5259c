//! How to reach the cluster, and every limit of a client.

use crate::error::ConnectError;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The name of the protocol in the TLS handshake.
const ALPN: &[u8] = b"natter/1";

/// Certificates to trust, ready for a handshake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(crate) config: Arc<ClientConfig>,
}

impl Tls {
    /// Trusts the certificates in a PEM file: an authority, or the node's own certificate.
    ///
    /// # Errors
    /// [`ConnectError::Certificate`] if the file holds none.
    pub fn from_ca_file(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        let path = path.as_ref();
        let wrong = |reason: String| ConnectError::Certificate { path: path.to_path_buf(), reason };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let certificates = parse_pem(&pem).map_err(wrong)?;
        Self::from_certificates(certificates)
    }

    /// Trusts the certificates in `pem`.
    ///
    /// # Errors
    /// [`ConnectError::Certificate`] if there is none.
    pub fn from_ca_pem(pem: &[u8]) -> Result<Self, ConnectError> {
        let path = PathBuf::from("<memory>");
        let certificates =
            parse_pem(pem).map_err(|reason| ConnectError::Certificate { path, reason })?;
        Self::from_certificates(certificates)
    }

    /// Trusts exactly these certificates.
    ///
    /// # Errors
    /// [`ConnectError::Tls`] if one of them is no certificate.
    pub fn from_certificates(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, ConnectError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config) })
    }
}

fn parse_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("the file has no CERTIFICATE section".into());
    }
    Ok(certificates)
}

/// What carries the frames.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TLS 1.3 over TCP.
    Tls(Tls),
    /// TCP as it is: for tests and for nodes behind something that ends TLS.
    Plain,
}

/// How to reach the cluster. Change what differs from the defaults.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `host:port` of one or more nodes. They are tried in this order: the next one as soon as one
    /// fails, and beside it if it says nothing for half a second.
    pub addresses: Vec<String>,
    /// The name in the node's certificate; `None`: the host of the address.
    pub server_name: Option<String>,
    /// What carries the frames.
    pub transport: Transport,
    /// Longest wait for a connection and its `Welcome`, for each address, and for the answer to a
    /// login. Default 10 s.
    pub connect_timeout: Duration,
    /// Longest wait for the answer to a request, reconnecting included. Default 30 s. Sends have
    /// no such limit: they wait in the store.
    pub request_timeout: Duration,
    /// Wait before the first reconnect; doubled each time no address could be used, or a session
    /// was short. Default 200 ms, half of it random.
    pub backoff_min: Duration,
    /// Longest wait between two attempts. Default 30 s.
    pub backoff_max: Duration,
    /// Log in as a device that only fetches: its person is not shown as there, and is not seen anew.
    /// Default `false`; [`crate::Client::set_presence`] changes it.
    pub away: bool,
    /// Acknowledge each event when the next one is taken. Default `false`: call
    /// [`crate::Event::ack`].
    pub auto_ack: bool,
    /// Messages that may wait to be sent or answered. Default 10,000.
    pub outbox_max: usize,
    /// Events that may wait to be taken; beyond it the socket is not read. Default 1,024.
    pub events_max: usize,
}

impl ClientOptions {
    /// Over TLS to the node at `addresses` (`host:port`, or several of them with commas between).
    pub fn tls(addresses: impl Into<String>, tls: Tls) -> Self {
        Self::new(&addresses.into(), Transport::Tls(tls))
    }

    /// Over plain TCP to the node at `addresses` (`host:port`, or several of them with commas
    /// between).
    pub fn plain(addresses: impl Into<String>) -> Self {
        Self::new(&addresses.into(), Transport::Plain)
    }

    fn new(addresses: &str, transport: Transport) -> Self {
        Self {
            addresses: addresses.split(',').map(|one| one.trim().to_owned()).collect(),
            server_name: None,
            transport,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            away: false,
            auto_ack: false,
            outbox_max: 10_000,
            events_max: 1_024,
        }
    }

    /// The name to check in the certificate of the node at `address`.
    pub(crate) fn name_for(&self, address: &str) -> Result<ServerName<'static>, ConnectError> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Address(address.into()))
    }
}
