//! Mutual TLS 1.3 between nodes: who may come in, and which node it is.
//!
//! # Invariants
//! 1. Both ends prove the key that gives their node id, under a certificate that the authority of
//!    our cookie signed. Nothing else is looked at: no name, and no time, for a clock may be wrong.
//! 2. No session is resumed: each connection proves itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proto::NodeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, DigitallySignedStruct,
    DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::security::identity::{Identity, IdentityError, node_of};

const ALPN: &[u8] = b"natter-cluster/2";

/// What a DER-encoded Ed25519 public key begins with (RFC 8410).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A time at which every certificate of ours is valid (1975 to 4096): 2033.
const CHECKED_AT: Duration = Duration::from_secs(2_000_000_000);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No key.
    #[error("the keys of the cluster cannot be used")]
    Identity(#[from] IdentityError),
    /// The certificate was not made.
    #[error("the node's certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// rustls does not take key or certificate.
    #[error("TLS between nodes cannot be set up")]
    Config(#[from] Error),
}

/// Both ends of TLS for one node.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Makes the node's certificate.
    pub(crate) fn new(identity: &Identity) -> Result<Self, TlsError> {
        let authority = KeyPair::try_from(&PrivatePkcs8KeyDer::from(identity.authority_key()?))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "natter cluster");
        let anchor = params.clone().self_signed(&authority)?;
        let issuer = Issuer::new(params, authority);

        let node_key = identity.node_key()?;
        let mut params = CertificateParams::default();
        let name = identity.node().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(node_key.clone()))?;
        let chain = vec![params.signed_by(&key, &issuer)?.der().clone()];
        let key = PrivateKeyDer::Pkcs8(node_key.into());

        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(anchor.der().clone())?;
        let door = Arc::new(Door { roots, provider: Arc::clone(&provider) });
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::clone(&door) as Arc<dyn ClientCertVerifier>)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(door)
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let acceptor = TlsAcceptor::from(Arc::new(server));
        Ok(Self { acceptor, connector: TlsConnector::from(Arc::new(client)) })
    }

    /// Shakes hands with whoever is at the other end of `stream`.
    pub(crate) async fn connect<S>(
        &self,
        stream: S,
    ) -> io::Result<tokio_rustls::client::TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        // Whom we meet is told by the key; the name is not looked at.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        self.connector.connect(name, stream).await
    }
}

/// Which node is at the other end.
pub(crate) fn node_at(connection: &CommonState) -> Option<NodeId> {
    let certificate = connection.peer_certificates()?.first()?;
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let spki = parsed.subject_public_key_info();
    let key = spki.strip_prefix(&ED25519_SPKI)?;
    (key.len() == 32).then(|| node_of(key))
}

/// Whether a handshake failed because the other end has another cookie.
pub(crate) fn cookie_differs(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
                | Error::AlertReceived(AlertDescription::UnknownCA)
        )
    )
}

/// Lets in whoever has a certificate of the authority.
#[derive(Debug)]
struct Door {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Door {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let now = UnixTime::since_unix_epoch(CHECKED_AT);
        // Whatever is wrong with the chain, it is not from our authority.
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &[], now, algorithms)
            .map_err(|_| CertificateError::UnknownIssuer.into())
    }

    fn check_tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn check_tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Door {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Door {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
